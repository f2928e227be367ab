"""Pointing game: whether the attention of a word is strongest within the box of the object that it names.

Shapes: `R` regions in row-major order over a grid, `W` words.
"""

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any, NamedTuple

import numpy as np

from cmfah_hf.errors import QueryError
from cmfah_hf.retrieval.codes import as_array

Box = Sequence[float]
"""Left, top, right, bottom, in pixels of the image."""

Boxes = Mapping[str, Sequence[Box]] | Sequence[Sequence[Box]]
"""Boxes of the objects that words name, by word or as one list per word. A word may have several boxes or none."""


class PointingResult(NamedTuple):
    """Sums of one image; add them over images (`chance` weighted by `total`) before dividing.

    Attributes:
        hits: The number of words whose strongest region has its center in one of their boxes. A tie counts as the mean
            of its regions, so that uniform attention has the score of chance.
        total: The number of words with a box.
        chance: The mean share of region centers within the boxes: the score of random regions; 0 without boxes.
    """

    hits: float
    total: int
    chance: float


def pointing_game(
    weights_RW: Any,
    words: Sequence[str],
    boxes: Boxes,
    image_size: tuple[int, int],
    region_grid: tuple[int, int] | None = None,
    seen: Box | None = None,
) -> PointingResult:
    """Plays the pointing game on one image.

    Args:
        weights_RW: `(R, W)`, attention of each word to each region (`[attention-t]`, see docs/method.md).
        words: The `W` words. Those without a box are left out.
        boxes: As in `Boxes`.
        image_size: Width and height of the image, in pixels.
        region_grid: Rows and columns of the grid; a square by default.
        seen: The part of the image that the grid covers. None: the whole image.

    Raises:
        QueryError: If weights, words, boxes and grid do not fit together, or a weight is NaN.
    """
    weights_RW, (rows, columns) = region_weights(weights_RW, words, region_grid)
    first_x, first_y, last_x, last_y = seen or (0, 0, *image_size)
    x_R = np.tile(first_x + (np.arange(columns) + 0.5) * (last_x - first_x) / columns, rows)
    y_R = np.repeat(first_y + (np.arange(rows) + 0.5) * (last_y - first_y) / rows, columns)
    hits, shares = 0.0, []
    for weights_R, word_boxes in zip(weights_RW.T, boxes_by_word(words, boxes), strict=True):
        if not word_boxes:
            continue
        inside_R = np.zeros(len(x_R), bool)
        for left, top, right, bottom in word_boxes:
            inside_R |= (left <= x_R) & (x_R <= right) & (top <= y_R) & (y_R <= bottom)
        hits += float(inside_R[weights_R == weights_R.max()].mean())
        shares.append(inside_R.mean())
    return PointingResult(hits, len(shares), float(np.mean(shares)) if shares else 0.0)


def region_weights(
    weights_RW: Any, words: Sequence[str], region_grid: tuple[int, int] | None
) -> tuple[np.ndarray, tuple[int, int]]:
    """The weights as a checked `(R, W)` float array, and the grid's rows and columns."""
    weights_RW = as_array(weights_RW)
    if weights_RW.ndim != 2 or weights_RW.shape[1] != len(words):
        raise QueryError(f"Weights of shape {weights_RW.shape} do not fit {len(words)} words; give (regions, words).")
    if not len(weights_RW) or np.isnan(weights_RW).any():
        raise QueryError("The weights are empty or hold a NaN; check the model's input.")
    regions = len(weights_RW)
    grid = region_grid or (isqrt(regions), isqrt(regions))
    if grid[0] * grid[1] != regions:
        raise QueryError(f"{regions} regions are no {grid[0]} x {grid[1]} grid; give `region_grid` as (rows, columns).")
    return weights_RW.astype(np.float64), (int(grid[0]), int(grid[1]))


def boxes_by_word(words: Sequence[str], boxes: Boxes) -> list[list[Box]]:
    """One list of boxes per word."""
    found = [boxes.get(word, ()) for word in words] if isinstance(boxes, Mapping) else list(boxes)
    if len(found) != len(words):
        raise QueryError(
            f"{len(found)} lists of boxes came with {len(words)} words; give one a word, or name the words."
        )
    for word, word_boxes in zip(words, found, strict=True):
        for box in word_boxes:
            if np.shape(box) != (4,):
                raise QueryError(f"A box of {word!r} is {box!r}; give (left, top, right, bottom), in a list of boxes.")
    return [list(word_boxes) for word_boxes in found]
