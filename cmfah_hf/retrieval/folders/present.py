"""The folders of an update as they are now, next to what the index records of them."""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from cmfah_hf.data.images import find_image_files
from cmfah_hf.errors import DataError
from cmfah_hf.retrieval.folders.reach import in_time
from cmfah_hf.retrieval.folders.scan import FoundFile, Listing, scan
from cmfah_hf.retrieval.storage.folder_records import FileRecord, Root


class MissingFolderError(Exception):
    """A folder that the index follows is gone, holds no image as a place where nothing is mounted, or cannot be read.

    Attributes:
        remedy: What to do, other than to give the folder's new place.
    """

    def __init__(self, state: str, remedy: str):
        super().__init__(state)
        self.remedy = remedy


@dataclass
class Present:
    """The images of folders, and their records.

    Attributes:
        listings: The listing of each folder, by name.
        recorded: Records by id.
        found: Images by id.
        owner: The folder and the name in it of each id.
    """

    listings: dict[str, Listing] = field(default_factory=dict)
    recorded: dict[str, FileRecord] = field(default_factory=dict)
    found: dict[str, FoundFile] = field(default_factory=dict)
    owner: dict[str, tuple[str, str]] = field(default_factory=dict)

    def add(self, root: Root, listing: Listing, records: dict[str, FileRecord]) -> None:
        """Adds a folder."""
        self.listings[root.name] = listing
        self.found |= {root.id_of(name): file for name, file in listing.files.items()}
        self.recorded |= {root.id_of(name): record for name, record in records.items()}
        self.owner |= {root.id_of(name): (root.name, name) for name in [*listing.files, *records]}

    def is_unknown(self, item_id: str) -> bool:
        """Whether an image that was not found may be there, since its place cannot be read."""
        root, name = self.owner[item_id]
        return self.listings[root].is_unknown(_place_of(name, self.recorded[item_id]))

    def has_code(self, item_id: str) -> bool:
        """Whether the index had a code of an image before."""
        record = self.recorded.get(item_id)
        return record is not None and record.has_code

    def metadata_of(self, root: str, ids: list[str], own: pa.Table | None) -> pa.Table | None:
        """The metadata of images of one folder: the rows of the folder's metadata, or without any, `own`."""
        if not ids or self.found[ids[0]].row is None:
            return own
        table = self.listings[root].metadata
        return None if table is None else table.take(np.array([self.found[item_id].row_number for item_id in ids]))


def listing_of(root: Root, is_followed: bool, records: Mapping[str, FileRecord], prune: bool) -> Listing:
    """The images of a folder.

    Args:
        root: The folder.
        is_followed: Whether the index follows it already.
        records: The records of its images, by their names in it.
        prune: Whether a folder that is not there, or has no image any more, counts as empty. One that cannot be read
            never does.

    Raises:
        DataError: If a new folder is not there, or holds no image, or its metadata is not valid.
        MissingFolderError: If a followed folder is not there, cannot be read, or holds no image any more.
    """
    try:
        is_there = in_time(_is_there, root.path)
        listing = scan(root) if is_there else Listing({})
        reason = listing.closed.get(".")
    except OSError as error:
        is_there, listing, reason = True, Listing({}), _reason(error, root.path)
    if not is_followed:
        _refuse_unusable(root, listing, "there is no such folder" if not is_there else reason)
    if listing.files:
        return listing
    if reason is not None:
        raise MissingFolderError(f"cannot be read ({reason})", "connect its drive or change its permissions")
    if prune or (is_there and (not records or _has_unknown(listing, records))):
        return listing
    raise MissingFolderError(
        "holds no image now" if is_there else "is gone", "connect its drive, or remove them with --prune-missing-root"
    )


def _refuse_unusable(root: Root, listing: Listing, reason: str | None) -> None:
    """Refuses a new folder without images."""
    if listing.files:
        return
    if reason is not None:
        raise DataError(f"{root.path}: {reason}; check the path.")
    find_image_files(Path(root.path), root.hidden)  # raises, with what is there instead


def _has_unknown(listing: Listing, records: Mapping[str, FileRecord]) -> bool:
    """Whether any recorded image may be in a place that cannot be read."""
    return any(listing.is_unknown(_place_of(name, record)) for name, record in records.items())


def _place_of(name: str, record: FileRecord) -> str:
    """The path of an image below its folder."""
    return name if record.place is None else record.place


def _reason(error: OSError, folder: str) -> str:
    """The reason of an error, with the file that it is about if that is not the folder itself."""
    reason = error.strerror or str(error)
    return reason if error.filename in (None, folder) else f"{error.filename}: {reason}"


def _is_there(path: str) -> bool:
    """Whether a path leads to a folder. Raises `OSError` if it cannot be asked for, or listed."""
    try:
        found = os.stat(path)  # noqa: PTH116 - a path of any length
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: no file can have this name
        return False
    if not stat.S_ISDIR(found.st_mode):
        return False
    with os.scandir(path) as entries:
        next(entries, None)
    return True
