"""The request of a caller of `load_image_text`, read by every source, and the choice of a split."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmfah_hf.data.data_root import DataRoot
from cmfah_hf.data.rows.columns import USUAL_NAMES, RequestedColumns
from cmfah_hf.errors import DataError

if TYPE_CHECKING:
    from cmfah_hf.data.rows.uniform import Loaded

DATA_VARIABLE = "CMFAH_DATA"
METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
# The metadata of one further split in the folder itself, next to that of `train`.
_METADATA_OF_SPLIT = re.compile(r"metadata\.([^.]+)\.jsonl")
SPLIT_FOLDERS = ("train", "query", "database", "validation", "test")
# A stream has at most this many shards where a source cuts it itself, so this many workers can share it.
MAX_SHARDS = 16


@dataclass(frozen=True)
class LoadRequest:
    """The arguments of `load_image_text`; `kwargs` are the further ones, whose meaning depends on the source."""

    source: str
    split: str | None = None
    streaming: bool = False
    columns: RequestedColumns = USUAL_NAMES
    images: bool = True
    allow_urls: bool = False
    image_folders: tuple[str | os.PathLike, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_address(self) -> bool:
        return re.match(r"\w+://", self.source) is not None

    @cached_property
    def path(self) -> Path:
        """The local path; of a metadata file, its folder."""
        path = resolve_data_path(self.source)
        return path.parent if is_metadata_name(path.name) and _exists(path) and path.is_file() else path

    @cached_property
    def exists(self) -> bool:
        """Whether the source is a local file or folder."""
        return not self.is_address and _exists(self.path)

    @property
    def name(self) -> str:
        """The source's name in errors."""
        return str(self.path) if self.exists else self.source

    def allowed(self, root: DataRoot) -> DataRoot:
        """The root, with the further places that the caller allows."""
        return root.allowing(self.allow_urls, self.image_folders)

    def wanted(self, present: Iterable[str]) -> list[str]:
        """The names of the splits to read: the one requested, or all, also for a slice such as `train[:10%]`."""
        present = list(present)
        if self.split in present:
            return [str(self.split)]
        if self.streaming and self.split is not None:
            raise self._no_such_split(present)
        return present

    def select(self, splits: Mapping[str, Any]) -> "Loaded":
        """All splits, the one requested, or of map-style ones a slice in the syntax of `datasets`."""
        if self.split is None:
            return splits
        if self.split in splits:
            return splits[self.split]
        if self.streaming:
            raise self._no_such_split(splits)
        import datasets  # it takes long, and most readers of this file only want the path

        lengths = {name: len(part) for name, part in splits.items()}
        try:
            instructions = datasets.ReadInstruction.from_spec(self.split).to_absolute(lengths)
        except (ValueError, AssertionError) as error:
            raise self._no_such_split(splits) from error
        parts = [
            splits[part.splitname].select(range(part.from_ or 0, part.to or lengths[part.splitname]))
            for part in instructions
        ]
        return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)

    def splits(self, parts: Mapping[str, Any]) -> "Loaded":
        """Parts by name as a dictionary of `datasets`."""
        import datasets

        return (datasets.IterableDatasetDict if self.streaming else datasets.DatasetDict)(parts)

    def _no_such_split(self, present: Iterable[str]) -> DataError:
        return DataError(f"{self.name}: there is no split {self.split!r}; present are: {', '.join(present)}.")


def resolve_data_path(path: str | os.PathLike) -> Path:
    """`path` if it exists, else the same path below the folder named by the environment variable `CMFAH_DATA`.

    Returns:
        The path that exists; if neither does, `path` as it was given.
    """
    given = Path(path).expanduser()
    root = os.environ.get(DATA_VARIABLE)
    if not _exists(given) and root and not given.is_absolute():
        below = Path(root).expanduser() / given
        if _exists(below):
            return below
    return given


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # no file can have this name
        return False


def is_metadata_name(name: str) -> bool:
    """Whether a file of this name describes images."""
    return name in METADATA_NAMES or split_of_metadata(name) is not None


def split_of_metadata(name: str) -> str | None:
    """The split that a metadata file names, such as `metadata.query.jsonl`; `None` if it names none."""
    match = _METADATA_OF_SPLIT.fullmatch(name)
    return match[1] if match else None


def subfolders(folder: Path) -> list[Path]:
    """The folders directly below one, in order, without hidden ones and links that lead back above them."""
    named = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    entries = [entry for entry in named if os.path.isdir(entry)]  # noqa: PTH112 - as in `is_file`
    return [entry for entry in entries if not (entry.is_symlink() and folder.resolve().is_relative_to(entry.resolve()))]


def is_file(path: Path) -> bool:
    """Whether a regular file is there; in a folder that cannot be read, none is."""
    return os.path.isfile(path)  # noqa: PTH113 - `Path.is_file` raises `PermissionError` before Python 3.14


def usual_order(name: str) -> tuple[int, str]:
    """The sorting key of splits: the usual ones first."""
    return (SPLIT_FOLDERS.index(name) if name in SPLIT_FOLDERS else len(SPLIT_FOLDERS), name)
