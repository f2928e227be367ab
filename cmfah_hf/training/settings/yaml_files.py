"""YAML files of settings, and the files that they extend."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmfah_hf.documents import read_yaml
from cmfah_hf.errors import CMFAHError
from cmfah_hf.training.settings.ranges import short

SECTIONS = ("model", "method", "data", "training")
EXTENDS = "extends"
# Maximum number of files in a chain of `extends`.
MOST_FILES = 10

Sections = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class SettingsFile:
    """The sections of one file, without those of the file that it extends."""

    path: Path
    sections: Sections


def read_chain(path: str | os.PathLike) -> list[SettingsFile]:
    """Reads a file and the files that it extends, the base first.

    `extends: base.yaml` at the top of a file names another one, relative to its own folder.

    Raises:
        CMFAHError: If a file is missing, is not a YAML file with these sections, or extends itself.
    """
    chain: list[SettingsFile] = []
    next_path: Path | None = Path(path)
    while next_path is not None:
        if any(os.path.realpath(file.path) == os.path.realpath(next_path) for file in chain):
            raise CMFAHError(f"{next_path} extends itself, through {chain[-1].path}; remove one `{EXTENDS}`.")
        if len(chain) == MOST_FILES:
            raise CMFAHError(f"{path} extends a chain of more than {MOST_FILES} files; shorten it.")
        content = _read(next_path)
        base = _base_of(next_path, content.pop(EXTENDS)) if EXTENDS in content else None
        chain.append(SettingsFile(next_path, content))
        next_path = base
    return chain[::-1]


def merged(chain: list[SettingsFile]) -> Sections:
    """The settings of a chain. Within each section, keys of later files replace those of earlier ones."""
    settings: Sections = {}
    for file in chain:
        for section, values in file.sections.items():
            so_far = settings.setdefault(section, {})
            for name in {"backbone", "text_backbone"} & values.keys():  # else the base's would take precedence
                so_far.pop(f"{name}_config", None)
            so_far.update(values)
    return settings


def _read(path: Path) -> dict[str, Any]:
    """The content of one file: its sections, and `extends` if it is given."""
    content = read_yaml(path) or {}
    if not isinstance(content, dict):
        raise CMFAHError(f"{path}: a configuration has the sections {', '.join(SECTIONS)}, each with its settings.")
    for name, values in content.items():
        if name == EXTENDS:
            continue
        if name not in SECTIONS:
            raise CMFAHError(f"{path}: there is no section {short(name)}; there are {', '.join(SECTIONS)}.")
        if not isinstance(values, dict):
            kind = type(values).__name__  # not the value, which may be a token
            raise CMFAHError(f"{path}: the section {name} is a {kind}; give it settings, or leave it out.")
    return content


def _base_of(path: Path, base: Any) -> Path:
    if not isinstance(base, str) or not base or Path(base).is_absolute():
        raise CMFAHError(f"{path}: {EXTENDS} is {short(base)}; give the path of one YAML file, relative to this file.")
    found = path.parent / base
    if not os.path.exists(found):  # noqa: PTH110 - that of `Path` raises an error for a name that is too long
        raise CMFAHError(f"{path} extends {short(base)}, which does not exist; correct the path.")
    return found
