"""Scanning of a folder that an index follows: its images, their states, and their metadata."""

import hashlib
import logging
import os
import shlex
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pyarrow as pa

from cmfah_hf.data.file_state import COARSE_NS, changed_at
from cmfah_hf.data.images import list_image_files
from cmfah_hf.data.images.files import RECORD_NAME
from cmfah_hf.data.sources.request import METADATA_NAMES, is_file, is_metadata_name, subfolders
from cmfah_hf.errors import DataError
from cmfah_hf.retrieval.storage.folder_records import FileRecord, Root
from cmfah_hf.retrieval.storage.metadata import appended, as_table

logger = logging.getLogger(__name__)

_WITHOUT_ROW = "images without a row of metadata"
# Rows of metadata that are Python objects at once.
_ROWS = 10_000


class FoundFile(NamedTuple):
    """An image in a folder, with the state of its file.

    Attributes:
        path: The file.
        size: Bytes.
        mtime_ns, ctime_ns: Its times.
        is_certain: Whether the times are old enough that a later change cannot have the same ones.
        row: A digest of its row of metadata, or None.
        row_number: The number of that row.
        place: Its path below the folder if its name is another one, or None.
    """

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int
    is_certain: bool
    row: bytes | None = None
    row_number: int = -1
    place: str | None = None

    def record(self, sha256: bytes, problem: str | None = None) -> FileRecord:
        """The record of this state with a content."""
        times = (self.mtime_ns, self.ctime_ns) if self.is_certain else (-1, -1)
        return FileRecord(self.size, *times, sha256, self.row, problem, place=self.place)

    def is_as(self, record: FileRecord) -> bool:
        """Whether size and times are those of the record."""
        return (self.size, self.mtime_ns, self.ctime_ns) == record[:3] and self.is_certain


@dataclass(frozen=True)
class Listing:
    """The images of a folder.

    Attributes:
        files: The images by their names in the folder, in order.
        metadata: The kept columns of metadata, or None.
        skipped: The numbers of skipped files by ending or reason.
        closed: The places below which nothing is known, by their paths below the folder (`.` is the folder itself),
            with the reasons.
    """

    files: dict[str, FoundFile]
    metadata: pa.Table | None = None
    skipped: Mapping[str, int] = field(default_factory=dict)
    closed: Mapping[str, str] = field(default_factory=dict)

    def is_unknown(self, place: str) -> bool:
        """Whether the file at a path below the folder may be there without having been found."""
        path = PurePosixPath(place)
        return "." in self.closed or any(str(above) in self.closed for above in (path, *path.parents))


def state_of_file(path: str, now_ns: int) -> FoundFile:
    """The state of a file now; `now_ns` is a time before the call. Raises `OSError`."""
    found = os.stat(path)  # noqa: PTH116 - a `Path` takes longer than the call, and a folder has many files
    at = changed_at(found)
    return FoundFile(path, found.st_size, found.st_mtime_ns, at, now_ns - at >= COARSE_NS)


def metadata_files(folder: str | Path) -> list[Path]:
    """The metadata files of a folder and of those directly below it; a folder that cannot be read holds none."""
    below = (entry / name for entry in subfolders(Path(folder)) for name in METADATA_NAMES)
    own = (entry for entry in Path(folder).iterdir() if is_metadata_name(entry.name))
    return [file for file in (*own, *below) if is_file(file)]


def scan(root: Root) -> Listing:
    """The images of a folder: those of its metadata, or without metadata all below it.

    Raises:
        DataError: If its metadata is not valid, or lacks a column to keep.
    """
    return _scan_rows(root) if metadata_files(root.path) else _scan_files(root)


def _scan_files(root: Root) -> Listing:
    if root.keep:
        raise DataError(f"{root.path}: images without a data set have no column {root.keep[0]!r} to keep.")
    folder = Path(root.path)
    now_ns = time.time_ns()
    found = list_image_files(folder, root.hidden)
    closed = {_name(folder, path): reason for path, reason in found.closed.items()}
    files = {}
    for path in found.files:
        name = _name(folder, path)
        try:
            files[name] = state_of_file(str(path), now_ns)
        except FileNotFoundError:  # deleted since it was listed
            continue
        except OSError as error:
            closed[name] = error.strerror or str(error)
    return Listing(files, None, found.skipped, closed)


def _scan_rows(root: Root) -> Listing:
    from cmfah_hf.data import load_image_text
    from cmfah_hf.data.images import decoding_off

    now_ns = time.time_ns()
    folder = os.path.join(root.path, "")  # noqa: PTH118 - with a slash at its end
    loaded = load_image_text(root.path, split=root.split)
    parts = {"": loaded} if root.split is not None else dict(loaded)
    files: dict[str, FoundFile] = {}
    metadata: pa.Table | None = None
    for split, part in parts.items():
        plain = decoding_off(part)
        for column in root.keep:
            if column not in plain.column_names:
                raise DataError(f"The data set has no column {column!r}; it has {', '.join(plain.column_names)}.")
        named = plain.select_columns(["id", "image"]).with_format("arrow")[:]
        paths = named["image"].combine_chunks().field("path").to_pylist()
        kept = as_table(plain.select_columns(list(root.keep)), len(plain)) if root.keep else None
        digests = _digests(kept, len(plain))
        for item_id, path, digest in zip(named["id"].to_pylist(), paths, digests, strict=True):
            state = state_of_file(path, now_ns)
            name = f"{split}/{item_id}" if len(parts) > 1 else item_id
            files[name] = state._replace(row=digest, row_number=len(files), place=_place(folder, path, name))
        metadata = appended(metadata, len(files) - len(plain), kept, len(plain))
    described = {os.path.realpath(found.path) for found in files.values()}
    others = list_image_files(Path(root.path), root.hidden)
    without_row = sum(os.path.realpath(path) not in described for path in others.files)
    skipped = Counter(others.skipped)
    if without_row:
        skipped[_WITHOUT_ROW] = without_row
        logger.warning("%s", _without_row(root, without_row))
    skipped.subtract(path.suffix.lower() for path in metadata_files(root.path))
    closed = {_name(Path(root.path), path): reason for path, reason in others.closed.items()}
    return Listing(files, metadata, {reason: count for reason, count in skipped.items() if count > 0}, closed)


def _without_row(root: Root, count: int) -> str:
    """A line about images that metadata does not name, and what to do."""
    found = f"{root.path}: its metadata, which decides on the images, names {count:,} of them in no row"
    if root.split is not None:
        return f"{found} of the split {root.split!r}; to include other splits, leave out --split."
    if (Path(root.path) / RECORD_NAME).is_file():
        return f"{found}; run `cmfah data from-folder {shlex.quote(str(root.path))}`, then this command again."
    return f"{found}; add their rows, or delete the metadata to follow all images."


def _digests(table: pa.Table | None, rows: int) -> Iterator[bytes]:
    """A digest of each row."""
    if table is None:
        yield from (b"\0" * 16 for _ in range(rows))
        return
    for start in range(0, rows, _ROWS):
        for row in table.slice(start, _ROWS).to_pylist():
            yield hashlib.blake2b(repr(row).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _place(folder: str, path: str, name: str) -> str | None:
    """The path of a file below its folder, or all of it if it is elsewhere; None if it is the name."""
    place = path.removeprefix(folder).replace(os.sep, "/")
    return None if place == name else place


def _name(folder: Path, path: str | Path) -> str:
    return Path(path).relative_to(folder).as_posix()
