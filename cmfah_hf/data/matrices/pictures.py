"""Pictures out of matrices: values as PNG files, and whether they stand upright."""

import io
import logging
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from cmfah_hf.data.matrices.axes import shown
from cmfah_hf.data.matrices.rows import DenseRows
from cmfah_hf.errors import DataError

logger = logging.getLogger(__name__)

# Pictures looked at to tell which way is up, and cells of their mean along each axis.
_LOOKED_AT, _CELLS = 128, 8


@lru_cache(maxsize=2)
def pictures_of(rows: DenseRows) -> "PictureFiles":
    """What makes files of these pictures; it looks at the first of them once."""
    return PictureFiles(rows)


class PictureFiles:
    """Values of a picture as a PNG file. Floats within 0 to 1 in the first pictures are taken times 255."""

    def __init__(self, rows: DenseRows):
        self.variable = rows.variable
        blocks = rows.blocks(0, _LOOKED_AT)
        first = next(blocks)
        self.scale = 255 if first.dtype.kind == "b" or (first.dtype.kind == "f" and first.max() <= 1) else 1
        total = sum((block.sum(axis=(0, 3), dtype=np.float64) for block in blocks), first.sum(axis=(0, 3), dtype=float))
        if len(rows) >= _LOOKED_AT and lies_on_its_side(total):
            turned = rows.axes.translate(str.maketrans("HW", "WH"))
            logger.warning(
                "%s: read as %s, the pictures of %s seem to lie on their side; if they do, say "
                'axes={"images": "%s"} (on the command line --axes images=%s).',
                self.variable.file, shown(rows.axes), self.variable.name, turned, turned,
            )  # fmt: skip

    def __call__(self, values: np.ndarray, row: int) -> dict[str, Any]:
        """The picture `(H, W, C)` of this row, as a column of pictures holds it.

        Raises:
            DataError: If values are not within 0 to 255, or 0 to 1.
        """
        if values.dtype != np.uint8:
            scaled = np.asarray(values, np.float64) * self.scale
            if not (np.isfinite(scaled).all() and scaled.min() >= 0 and scaled.max() <= 255):
                raise DataError(
                    f"{self.variable.file}, {self.variable.name}, row {row}: values from {values.min():g} to "
                    f"{values.max():g} are no picture's, which lie within 0 to 255 (or 0 to 1); take the file without "
                    "the mean subtracted."
                )
            values = np.rint(scaled).astype(np.uint8)
        image = Image.fromarray(np.ascontiguousarray(values[:, :, 0] if values.shape[2] == 1 else values))
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", compress_level=1)
        return {"path": None, "bytes": buffer.getvalue()}


def lies_on_its_side(mean: np.ndarray) -> bool:
    """Whether the mean `(H, W)` of many photographs, or their sum, is turned by a quarter.

    The mean of photographs is lighter above than below, and the same on the left and on the right. Of 200 portions of
    128 out of 1,170 photographs, all had a mean that differs twice as much, or more, from its mirror image top to
    bottom than from that left to right. What is no photograph tells nothing.
    """
    if min(mean.shape) < _CELLS or not np.isfinite(mean).all():
        return False
    cells = np.array(
        [[part.mean() for part in np.array_split(band, _CELLS, axis=1)] for band in np.array_split(mean, _CELLS)]
    )
    up_and_down, left_and_right = np.abs(cells - cells[::-1]).mean(), np.abs(cells - cells[:, ::-1]).mean()
    # The second condition leaves out what differs by nothing but chance or rounding.
    return bool(left_and_right > 2 * up_and_down and left_and_right > 0.01 * np.abs(cells).max())
