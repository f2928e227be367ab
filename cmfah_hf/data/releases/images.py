"""Images of a released data set: search, reading and a decoding check."""

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
class ReleasedImage:
    """One row's image: its bytes as released, and the error if it cannot be read."""

    row: int
    content: bytes
    reason: str | None


@dataclass(frozen=True)
class ReleasedImages:
    """The images of a release by row; with `verify`, each is decoded as a check."""

    files: ReleaseFiles
    keys: Mapping[int, str]
    verify: bool


def find_images(
    files: ReleaseFiles, table: ReleaseTable, rows: np.ndarray, skip_missing: bool, corrections: Corrections
) -> tuple[dict[int, str], bool, np.ndarray]:
    """The keys of the images by row, whether there are any, and the rows whose image is missing."""
    if not table.images:
        return {}, False, np.zeros(0, np.int64)
    keys = {int(row): key for row in rows if (key := files.find(table.images[row])) is not None}
    if not keys:
        closed = ", ".join(files.unread_archives())
        corrections.add(
            f"{files.root}: holds no images, so only ids, texts, tags and labels are prepared, without a column "
            "'image'." + (f" They may be in {closed}, which cannot be read; unpack it then." if closed else "")
        )
        return keys, False, np.zeros(0, np.int64)
    missing = np.array([row for row in rows if int(row) not in keys], np.int64)
    if len(missing):
        examples = ", ".join(table.images[row] for row in missing[:_EXAMPLES])
        more = ", ..." if len(missing) > _EXAMPLES else ""
        line = f"{files.root}: {len(missing):,} of {len(rows):,} images are missing ({examples}{more})"
        if not skip_missing:
            raise DataError(f"{line}; add them, or leave their rows out with --skip-missing (skip_missing=True).")
        corrections.add(f"{line}: their rows are left out.")
    return keys, True, missing


def iterate_images(images: ReleasedImages, table: ReleaseTable, rows: np.ndarray) -> Iterator[ReleasedImage]:
    """The images of some rows in their order, read by several threads; errors are logged as warnings."""

    def read(row: int) -> ReleasedImage:
        content = b""
        try:
            content = images.files.read(images.keys[row])
            if images.verify:
                decode_image(content, name=table.images[row])
        except (OSError, ImageError) as error:
            return ReleasedImage(row, content, images.files.without_root(" ".join(str(error).split())))
        return ReleasedImage(row, content, None)

    with ThreadPoolExecutor(_THREADS) as pool:
        # In batches, because `map` would read all images ahead.
        for first in range(0, len(rows), _BATCH):
            for image in pool.map(read, rows[first : first + _BATCH].tolist()):
                if image.reason is not None:
                    logger.warning("Cannot be read: %s", image.reason)
                yield image
