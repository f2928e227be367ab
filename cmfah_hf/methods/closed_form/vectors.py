"""Vectors of an encoder: unit length, checks, and a uniform sample of a stream.

Shapes: `N` items of a block, `D` width of any values, `E` width of the vectors, `S` rows of a sample.
"""

from typing import Any

import numpy as np

from cmfah_hf.errors import DataError


def finite_matrix(values: Any, what: str) -> np.ndarray:
    """Values as a float64 matrix, one row per item.

    Raises:
        DataError: If they are not a matrix of finite numbers; it names them by `what`.
    """
    values_ND = np.asarray(values)
    if values_ND.ndim != 2 or values_ND.dtype.kind not in "fiub":
        raise DataError(
            f"The {what} are {values_ND.dtype} of shape {values_ND.shape}; give an (items, width) matrix of numbers."
        )
    values_ND = values_ND.astype(np.float64)
    if not (finite_N := np.isfinite(values_ND).all(axis=1)).all():
        row = int(np.argmin(finite_N))
        raise DataError(f"Row {row} of the {what} has a NaN or an infinity; check what computed this item.")
    return values_ND


def unit_vectors(vectors: Any, what: str = "vectors") -> np.ndarray:
    """`(N, E)` vectors scaled to unit length, in float64; zero vectors stay zero, so their cosines are 0.

    A `DataError` as that of `finite_matrix` names them by `what`.
    """
    vectors_NE = finite_matrix(vectors, what)
    # Division by the largest magnitude first, so that no square overflows or vanishes.
    largest_N1 = np.abs(vectors_NE).max(axis=1, initial=0, keepdims=True)
    vectors_NE /= np.where(largest_N1 > 0, largest_N1, 1)
    lengths_N1 = np.linalg.norm(vectors_NE, axis=1, keepdims=True)
    return vectors_NE / np.where(lengths_N1 > 0, lengths_N1, 1)


class Reservoir:
    """A uniform sample without replacement of the rows of a stream, the same for any division into blocks.

    Each row draws a key from the seed, and the rows with the `size` smallest keys are kept.

    Attributes:
        count: The number of rows of the stream so far.
    """

    def __init__(self, size: int, width: int, seed: int = 0, dtype: Any = np.float32):
        if size < 1:
            raise DataError(f"A sample of {size} rows is empty; take 1 or more.")
        self.size, self.count = size, 0
        self._rows = np.empty((0, width), dtype)
        self._keys = np.empty(0)
        self._random = np.random.default_rng(seed)

    @property
    def rows(self) -> np.ndarray:
        """The sample `(S, E)`, at most `size` rows, in the random order of their keys."""
        return self._rows[np.argsort(self._keys, kind="stable")]

    def add(self, block_NE: np.ndarray) -> np.ndarray:
        """Offers rows to the sample. Returns those that are not in it: refused now, or replaced by these.

        The sample and all returned rows together are exactly the stream.

        Raises:
            DataError: If the block has another width.
        """
        if block_NE.ndim != 2 or block_NE.shape[1] != self._rows.shape[1]:
            raise DataError(f"Rows have the width {self._rows.shape[1]}, a block has the shape {block_NE.shape}.")
        block_NE = block_NE.astype(self._rows.dtype, copy=False)
        keys_N = self._random.random(len(block_NE))
        self.count += len(block_NE)
        free = self.size - len(self._rows)
        if free > 0:
            self._rows = np.concatenate([self._rows, block_NE[:free]])
            self._keys = np.concatenate([self._keys, keys_N[:free]])
            block_NE, keys_N = block_NE[free:], keys_N[free:]
        below_N = keys_N < self._keys.max(initial=0)
        if not below_N.any():
            return block_NE
        entering_NE, refused_NE = block_NE[below_N], block_NE[~below_N]
        keys = np.concatenate([self._keys, keys_N[below_N]])
        in_sample = np.zeros(len(keys), bool)
        in_sample[np.argpartition(keys, self.size - 1)[: self.size]] = True
        slots, admitted = np.flatnonzero(~in_sample[: self.size]), in_sample[self.size :]
        replaced_NE = self._rows[slots]
        self._rows[slots], self._keys[slots] = entering_NE[admitted], keys[self.size :][admitted]
        return np.concatenate([refused_NE, entering_NE[~admitted], replaced_NE])
