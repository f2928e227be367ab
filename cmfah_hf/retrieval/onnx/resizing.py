"""Resizing of images with antialiasing in the arithmetic of PyTorch, bit for bit, in NumPy.

PyTorch resizes images of 8 bits by integer weights: each axis has weights of 16 bits with as many fractional bits as
fit, sums are rounded half up, and the width comes first. The sums are exact in float64, so matrix products give the
same bits in any order.

Shapes: C colors, H and W sides of an image, I positions along an axis, O positions after resizing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

# Positions after resizing that are computed by one product.
_BLOCK = 16
_WEIGHT_BITS, _MOST_FRACTION_BITS = 15, 22


def resized(image_CHW: np.ndarray, height: int, width: int, resample: int) -> np.ndarray:
    """The image in another size, `(C, height, width)` uint8.

    Args:
        image_CHW: uint8.
        resample: Pillow's number of a filter: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic.
    """
    if resample == 0:
        rows, columns = (_nearest(*sides) for sides in zip(image_CHW.shape[1:], (height, width), strict=True))
        return image_CHW[:, rows[:, None], columns]
    if image_CHW.shape[2] != width:
        image_CHW = _along_width(image_CHW, _weights(image_CHW.shape[2], width, resample))
    if image_CHW.shape[1] != height:
        image_CHW = _along_height(image_CHW, _weights(image_CHW.shape[1], height, resample))
    return image_CHW


@dataclass(frozen=True)
class _Weights:
    """Integer weights of an axis.

    Attributes:
        blocks: For each `_BLOCK` positions after resizing, the first position that they read, and their weights
            `(I, O)`, whole numbers as float64.
        fraction_bits: The weights are multiples of `2^-fraction_bits`.
    """

    blocks: tuple[tuple[int, np.ndarray], ...]
    fraction_bits: int

    def rounded(self, sums: np.ndarray) -> np.ndarray:
        """Sums of weighted values as uint8, rounded half up."""
        return np.clip(np.floor((sums + 2.0 ** (self.fraction_bits - 1)) * 2.0**-self.fraction_bits), 0, 255)


def _along_width(image_CHW: np.ndarray, weights: _Weights) -> np.ndarray:
    parts = [weights.rounded(image_CHW[:, :, first : first + len(own)] @ own) for first, own in weights.blocks]
    return np.concatenate(parts, axis=2).astype(np.uint8)


def _along_height(image_CHW: np.ndarray, weights: _Weights) -> np.ndarray:
    parts = [weights.rounded(own.T @ image_CHW[:, first : first + len(own)]) for first, own in weights.blocks]
    return np.concatenate(parts, axis=1).astype(np.uint8)


@lru_cache(maxsize=64)
def _weights(size: int, target: int, resample: int) -> _Weights:
    """The weights from `size` to `target` positions: the filter, widened if positions become fewer."""
    shape, radius = _FILTERS[resample]
    scale = size / target
    widening = max(scale, 1.0)
    support = radius * widening
    places: list[tuple[int, np.ndarray]] = []
    for position in range(target):
        center = scale * (position + 0.5)
        first = max(int(center - support + 0.5), 0)
        last = min(int(center + support + 0.5), size)
        own = shape((np.arange(first, last) - center + 0.5) * (1.0 / widening))
        places.append((first, own / own.sum()))
    largest = max(float(own.max()) for _, own in places)
    bits = 0
    while bits < _MOST_FRACTION_BITS and int(0.5 + largest * 2 ** (bits + 1)) < 2**_WEIGHT_BITS:
        bits += 1
    blocks = []
    for start in range(0, target, _BLOCK):
        some = places[start : start + _BLOCK]
        begin, end = some[0][0], max(first + len(own) for first, own in some)
        matrix = np.zeros((end - begin, len(some)))
        for column, (first, own) in enumerate(some):
            matrix[first - begin : first - begin + len(own), column] = np.trunc(own * 2.0**bits + np.copysign(0.5, own))
        blocks.append((begin, matrix))
    return _Weights(tuple(blocks), bits)


def _nearest(size: int, target: int) -> np.ndarray:
    """The position that each new one has the value of, `(O,)`."""
    # In float32, as PyTorch computes it.
    return np.minimum((np.float32(size / target) * (np.arange(target, dtype=np.float32) + 0.5)).astype(int), size - 1)


def _bilinear(x: np.ndarray) -> np.ndarray:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _bicubic(x: np.ndarray) -> np.ndarray:
    """Keys's kernel with `a = -0.5`."""
    x, a = np.abs(x), -0.5
    inner = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    outer = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, inner, np.where(x < 2.0, outer, 0.0))


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 3.0, np.sinc(x) * np.sinc(x / 3.0), 0.0)


# By Pillow's numbers, each with its radius.
_FILTERS: dict[int, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    1: (_lanczos, 3.0),
    2: (_bilinear, 1.0),
    3: (_bicubic, 2.0),
}
RESAMPLES = frozenset({0, *_FILTERS})
