"""The pictures of a released data set: which are there, and whether they can be decoded."""

import logging
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from cmfah_hf.data.images import decode_image
from cmfah_hf.data.releases.files import ReleaseFiles
from cmfah_hf.data.releases.table import Corrections, ReleaseTable
from cmfah_hf.errors import DataError, ImageError

logger = logging.getLogger(__name__)

_BATCH = 100
_THREADS = min(8, os.cpu_count() or 1)
_EXAMPLES = 3


@dataclass(frozen=True)
class ReleasePicture:
    """One row's picture: its bytes as released, and why it cannot be read, if so."""

    row: int
    content: bytes
    reason: str | None


@dataclass(frozen=True)
class Pictures:
    """Where the pictures of rows are, and whether each is decoded to see that it can be.

    Without, only what cannot be read at all has a reason.
    """

    files: ReleaseFiles
    keys: Mapping[int, str]
    verify: bool


def find_pictures_of(
    files: ReleaseFiles, table: ReleaseTable, rows: np.ndarray, skip_missing: bool, corrections: Corrections
) -> tuple[dict[int, str], bool, np.ndarray]:
    """Where each row's picture is.

    Returns:
        The keys of the pictures by row; whether there are pictures at all; and the rows to leave out for want of one.

    Raises:
        DataError: If some pictures are there and others are not, and these are not to be skipped.
    """
    keys = {int(row): key for row in rows if (key := files.find(table.pictures[row])) is not None}
    if not keys:
        closed = ", ".join(files.unread_archives())
        corrections.say(
            f"{files.root}: no pictures in it, so ids, texts, tags and labels are prepared alone, without a column "
            "'image'." + (f" They may be in {closed}, which cannot be read as it is; unpack it then." if closed else "")
        )
        return keys, False, np.zeros(0, np.int64)
    missing = np.array([row for row in rows if int(row) not in keys], np.int64)
    if len(missing):
        examples = ", ".join(table.pictures[row] for row in missing[:_EXAMPLES])
        more = ", ..." if len(missing) > _EXAMPLES else ""
        line = f"{files.root}: {len(missing):,} of {len(rows):,} pictures are not there ({examples}{more})"
        if not skip_missing:
            raise DataError(f"{line}; add them, or leave their rows out with --skip-missing (skip_missing=True).")
        corrections.say(f"{line}: their rows are left out.")
    return keys, True, missing


def iterate_pictures(pictures: Pictures, table: ReleaseTable, rows: np.ndarray) -> Iterator[ReleasePicture]:
    """The pictures of some rows in their order, read by several threads; what cannot be read is named in a warning."""

    def read(row: int) -> ReleasePicture:
        content = b""
        try:
            content = pictures.files.read(pictures.keys[row])
            if pictures.verify:
                decode_image(content, name=table.pictures[row])
        except (OSError, ImageError) as error:
            return ReleasePicture(row, content, pictures.files.without_root(" ".join(str(error).split())))
        return ReleasePicture(row, content, None)

    with ThreadPoolExecutor(_THREADS) as pool:
        # A few at a time, or all pictures would be read ahead of whoever takes them.
        for first in range(0, len(rows), _BATCH):
            for picture in pool.map(read, rows[first : first + _BATCH].tolist()):
                if picture.reason is not None:
                    logger.warning("Cannot be read: %s", picture.reason)
                yield picture
