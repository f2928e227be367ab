"""The record beside the metadata that `prepare_folder` writes into a folder, by which it knows its own metadata."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cmfah_hf.atomic import sha256_of
from cmfah_hf.data.from_folder.layout import FOLDERS
from cmfah_hf.data.from_folder.tables import TableRequest
from cmfah_hf.data.images.files import RECORD_NAME
from cmfah_hf.documents import read_json
from cmfah_hf.errors import DataError

_VERSION = 1
_MOST_BYTES = 2**30


@dataclass(frozen=True)
class Settings:
    """The settings of `prepare_folder` that an update takes over."""

    queries: float = 0.1
    seed: int = 0
    folders: str = "auto"
    hidden: bool = False
    table: TableRequest | None = None


@dataclass(frozen=True)
class FolderRecord:
    """The last call of `prepare_folder` on a folder: its settings, and the files and splits that it wrote.

    Attributes:
        settings: The settings.
        are_splits: Whether folders divided the images into splits.
        files: The SHA-256 of each metadata file, and that of the file before it, `None` where there was none: if the
            writing was interrupted, some files are still those.
        splits: The split of each image that has a row.
        gone: The split of each image that had a row once, in case that it comes back.
    """

    settings: Settings = Settings()
    are_splits: bool = False
    files: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    splits: Mapping[str, str] = field(default_factory=dict)
    gone: Mapping[str, str] = field(default_factory=dict)

    def wrote(self, files: Iterable[Path], folder: Path) -> bool:
        """Whether these are all metadata files of the folder as they were written."""
        names = {*self.files, *(file.relative_to(folder).as_posix() for file in files)}
        return all(digest_of_file(folder / name) in self.files.get(name, ()) for name in names)

    def as_text(self) -> str:
        table = self.settings.table
        kept = {**asdict(self.settings), "table": table and {**asdict(table), "path": str(table.path.absolute())}}
        document = {
            "version": _VERSION,
            "settings": kept,
            "are_splits": self.are_splits,
            "files": self.files,
            "splits": _by_split(self.splits),
            "gone": _by_split(self.gone),
        }
        return json.dumps(document, ensure_ascii=False, indent=1) + "\n"


def read_record(folder: Path) -> FolderRecord | None:
    """The record in a folder, if there is one. Raises a `DataError` if it is damaged."""
    path = folder / RECORD_NAME
    if not path.exists():
        return None
    document = read_json(path, DataError, _MOST_BYTES)
    try:
        if document["version"] != _VERSION:
            raise ValueError(f"its version is {document['version']!r}")
        return FolderRecord(
            _settings(document["settings"]),
            bool(document["are_splits"]),
            {name: [*digests] for name, digests in document["files"].items()},
            {name: split for split, names in document["splits"].items() for name in names},
            {name: split for split, names in document["gone"].items() for name in names},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{path}: is no record of `cmfah data from-folder` ({reason}); delete it, and pass --overwrite to begin "
            "anew."
        ) from error


def _settings(document: Mapping[str, Any]) -> Settings:
    table = document["table"]
    settings = Settings(
        float(document["queries"]),
        int(document["seed"]),
        document["folders"],
        bool(document["hidden"]),
        table and TableRequest(**{**table, "path": Path(table["path"])}),
    )
    if settings.folders not in FOLDERS:
        raise ValueError(f"folders cannot be {settings.folders!r}")
    return settings


def _by_split(splits: Mapping[str, str]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for name, split in splits.items():
        names.setdefault(split, []).append(name)
    return names


def digest_of_file(path: Path) -> str | None:
    """The SHA-256 of a file, `None` if there is none."""
    return sha256_of(path) if path.is_file() else None
