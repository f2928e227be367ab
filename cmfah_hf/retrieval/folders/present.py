"""The folders of an update as they are now, next to what the index records of them."""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from cmfah_hf.data.images import find_image_files
from cmfah_hf.errors import DataError
from cmfah_hf.retrieval.folders.reach import in_time
from cmfah_hf.retrieval.folders.scan import FoundFile, Listing, scan
from cmfah_hf.retrieval.storage.folder_records import FileRecord, Root


class MissingFolderError(Exception):
    """A folder that the index follows is gone, or empty as a place where nothing is mounted."""


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
        return self.listings[root].is_unknown(name)

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


def listing_of(root: Root, is_followed: bool, holds_images: bool, prune: bool) -> Listing:
    """The images of a folder.

    Args:
        root: The folder.
        is_followed: Whether the index follows it already.
        holds_images: Whether the index has images of it.
        prune: Whether a missing folder counts as empty, unless its drive does not answer.

    Raises:
        DataError: If a new folder is not there, or holds no image, or its metadata is not valid.
        MissingFolderError: If a followed folder is not there, its drive does not answer, or it holds no image any more.
    """
    reason, is_silent = None, False
    try:
        if in_time(_is_there, root.path):
            listing = scan(root)
            reason = listing.closed.get(".")
        else:
            listing, reason = Listing({}), "there is no such folder"
    except OSError as error:
        listing, reason = Listing({}), error.strerror or str(error)
        is_silent = isinstance(error, TimeoutError)
    if listing.files or (is_followed and not holds_images and reason is None):
        return listing
    if not is_followed:
        if reason is not None:
            raise DataError(f"{root.path}: {reason}; check the path.")
        find_image_files(Path(root.path), root.hidden)  # raises, with what is there instead
    if prune and not is_silent:
        return replace(listing, closed={place: why for place, why in listing.closed.items() if place != "."})
    raise MissingFolderError(reason or "no image is there")


def _is_there(path: str) -> bool:
    """Whether a path leads to a folder that can be listed. Raises `OSError` if it cannot."""
    if not os.path.isdir(path):  # noqa: PTH112 - a path of any length
        return False
    with os.scandir(path) as entries:
        next(entries, None)
    return True
