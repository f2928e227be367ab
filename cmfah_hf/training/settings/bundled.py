"""Configurations that come with the package, found by name."""

import difflib
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

from cmfah_hf.errors import CMFAHError

FOLDER_NAME = "hub_configs"
# The folder of the grids of `cmfah experiment`.
GRIDS = "experiments"
_ENDING = ".yaml"
# The method whose name may be left out of the name of a configuration: `scenes` is `cmfah-scenes`.
_USUAL = "cmfah-"
_LONGEST_NAME = 100


@dataclass(frozen=True)
class BundledFile:
    """A bundled YAML file.

    Attributes:
        name: Its path below the folder of configurations, without ending, such as `methods/scm`.
        path: Where it is.
        about: The comment that it begins with, as one line.
    """

    name: str
    path: Path
    about: str


@cache
def bundled_folder() -> Path:
    """`hub_configs/`: in the installed package, or next to it in a checkout."""
    package = Path(__file__).parents[2]
    folders = (package / FOLDER_NAME, package.parent / FOLDER_NAME)
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def bundled_configuration(name: str) -> Path:
    """The path of a bundled configuration, such as `methods/scm.yaml`."""
    path = bundled_folder() / name
    if not path.is_file():
        raise CMFAHError(f"{name}: this configuration did not come with the package; install it again.")
    return path


def bundled_files(below: str = "") -> list[BundledFile]:
    """The bundled files below a folder, sorted by name, those of the top folder first."""
    folder = bundled_folder()
    files = [
        BundledFile(path.relative_to(folder).with_suffix("").as_posix(), path, _about(path))
        for path in (folder / below).rglob(f"*{_ENDING}")
    ]
    return sorted(files, key=lambda file: (file.name.count("/"), file.name))


def find_configuration(name: str | os.PathLike, below: str = "") -> Path:
    """The file of a configuration: a file, or a bundled one by its name, which may also be that of a folder here.

    A bundled `methods/scm.yaml` is found as `methods/scm.yaml` and as `methods/scm`, with `hub_configs/` before it or
    without; `cmfah-scenes.yaml` also as `scenes`.

    Args:
        name: The path or the name.
        below: The folder of bundled files whose name may be left out, such as `experiments`.

    Raises:
        CMFAHError: If there is none; it names those with similar names.
    """
    is_folder = os.path.isdir(name)  # noqa: PTH112 - that of `Path` raises an error for a name that is too long
    if os.path.exists(name) and not is_folder:  # noqa: PTH110
        return Path(name)
    parts = PurePosixPath(os.fspath(name)).parts
    asked = "/".join(parts[1:] if parts[:1] == (FOLDER_NAME,) else parts).removesuffix(_ENDING)
    bundled = {file.name: file.path for file in bundled_files()}
    folder, _, last = asked.rpartition("/")
    for one in (f"{below}/{asked}" if below else asked, asked, f"{folder}/{_USUAL}{last}".lstrip("/")):
        if one in bundled:
            return bundled[one]
    if is_folder:
        return Path(name)
    given = [known.removeprefix(f"{below}/").removeprefix(_USUAL) for known in bundled]
    near = difflib.get_close_matches(asked[:_LONGEST_NAME], given, n=1)
    raise CMFAHError(
        f"{os.fspath(name)}: this configuration does not exist; give a file, or a name that `cmfah configs` lists"
        f"{f', such as {near[0]}' if near else ''}."
    )


def _about(path: Path) -> str:
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines)
