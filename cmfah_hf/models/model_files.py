"""Files of a model in a folder or on the Hub: found only below its root, and read with limits.

The rest of the package uses `documents.py`; code that is saved with the weights cannot import it.
"""

import json
import math
import os
import re
from pathlib import Path
from typing import Any

# Arguments of `from_pretrained` for the location of a file on the Hub or in the cache.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")

_MOST_BYTES = 64 * 2**20  # enough for a vocabulary of two million words
_MOST_DEPTH = 32
_COMMIT = re.compile("/snapshots/([0-9a-f]{40})/")  # in the cache of the Hub
_SURROGATE = re.compile("[\ud800-\udfff]")


class ModelFileError(ValueError):
    """A file of a model that is damaged, outside the model's folder, or not of a form that this package writes.

    The message is one line. The errors of the package are not available to code that is saved with the weights.
    """


def hub_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `from_pretrained` for the location of a file."""
    return {name: options[name] for name in HUB_ARGUMENTS if options.get(name) is not None}


def is_folder(source: Any) -> bool:
    """Whether a folder exists; False for invalid names, for which `Path.is_dir` raises an error."""
    return os.path.isdir(source)  # noqa: PTH112


def is_file(source: Any) -> bool:
    """Whether a file exists; False for invalid names."""
    return os.path.isfile(source)  # noqa: PTH113


def split_revision(source: Any) -> tuple[str, dict[str, Any]]:
    """The Hub id in `NAME@REVISION`, and the revision as an argument of `from_pretrained`; a folder has none."""
    name, at, revision = str(source).partition("@")
    return (str(source), {}) if is_folder(source) or not at else (name, {"revision": revision})


def find_file(source: Any, name: str, hub: dict[str, Any]) -> Path | None:
    """The path of a file of a model, a folder or Hub id, downloaded if necessary; None if it does not exist.

    A Hub id may have a revision, `NAME@REVISION`; one in `hub` takes precedence.

    Raises:
        ModelFileError: If it is not a regular file, or its name or a link leads out of the folder.
        OSError: If the Hub or the repository cannot be reached.
    """
    if not is_folder(source):
        from transformers.utils import cached_file  # takes long to import, and a folder does not need it

        place, revision = split_revision(source)
        found = cached_file(place, name, _raise_exceptions_for_missing_entries=False, **{**revision, **hub})
        return None if found is None else Path(found)
    path = Path(source, hub.get("subfolder") or "", name)
    if not os.path.lexists(path):
        return None
    if not is_file(path):  # reading a pipe or a device could block
        raise ModelFileError(f"{path} is not a regular file; put the model's file there.")
    require_below(path, source)
    return path


def pinned(source: Any, found: Path | None, hub: dict[str, Any]) -> dict[str, Any]:
    """`hub` with the commit of a file that was found, so that further files are from the same commit."""
    if found is None or is_folder(source):
        return hub
    commit = _COMMIT.search(found.as_posix())
    return hub if commit is None else {**hub, "revision": commit[1]}


def require_below(path: str | os.PathLike, folder: str | os.PathLike) -> None:
    """Raises a `ModelFileError` if a path leads out of a model's folder, or in the Hub's cache, of its repository."""
    root = Path(os.path.realpath(folder))
    for parent in (root, *root.parents):  # files of a snapshot are links to blobs next to it
        if parent.parent.name == "snapshots" and (parent.parent.parent / "blobs").is_dir():
            root = parent.parent.parent
            break
    if not Path(os.path.realpath(path)).is_relative_to(root):
        raise ModelFileError(f"{path} leads out of {folder}; a model only reads files of its own folder.")


def read_object(path: str | os.PathLike) -> dict[str, Any]:
    """The content of a JSON file that holds an object.

    Raises:
        ModelFileError: If the file is too large, not JSON, not an object, nested too deeply, or contains NaN, infinite
            numbers or unpaired surrogates.
    """
    return _read_json(path, dict, "object")


def read_list(path: str | os.PathLike) -> list[Any]:
    """The content of a JSON file that holds a list, as `read_object`."""
    return _read_json(path, list, "list")


def _read_json(path: str | os.PathLike, kind: type, what: str) -> Any:
    with Path(path).open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ModelFileError(f"{path} has more than {_MOST_BYTES:,} bytes, which no file of a model needs.")
    try:
        text = content.decode("utf-8")
        value = json.loads(text, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ModelFileError(f"{path} is nested too deeply; restore it, or save the model again.") from None
    except ValueError as error:  # not UTF-8, not JSON, or an integer of thousands of digits
        reason = " ".join(str(error).split())[:200]
        raise ModelFileError(f"{path} is not valid JSON ({reason}); restore it, or save the model again.") from error
    if not isinstance(value, kind):
        raise ModelFileError(f"{path} holds no JSON {what}; restore it, or save the model again.")
    if text.count("[") + text.count("{") > _MOST_DEPTH or "\\u" in text:
        _check(value, path)
    return value


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:40]} is no finite number")
    return value


def _check(value: Any, path: str | os.PathLike) -> None:
    pending = [(value, 0)]
    while pending:
        item, depth = pending.pop()
        if depth > _MOST_DEPTH:
            raise ModelFileError(f"{path} is nested too deeply; restore it, or save the model again.")
        if isinstance(item, dict):
            pending += [(part, depth + 1) for pair in item.items() for part in pair]
        elif isinstance(item, list):
            pending += [(part, depth + 1) for part in item]
        elif isinstance(item, str) and _SURROGATE.search(item):
            raise ModelFileError(f"{path} holds half of a surrogate pair in {item[:40]!r}; correct that text.")
