"""The map of a Space's codes: two coordinates of each code, by which near codes are near.

Classical scaling of Hamming distances: the squared Euclidean distance of two codes of +-1 is four times their Hamming
distance, so the scaling is a principal component analysis of the codes.

Shapes: N codes, M codes on the map, K bits.
"""

from functools import cached_property

import numpy as np

from cmfah_hf.retrieval.codes import unpack

_MOST_MAPPED = 20_000


class CodeMap:
    """A map of codes.

    Args:
        packed: `(N, K / 8)` uint8, the codes.

    Attributes:
        rows: `(M,)`, the rows of the codes on the map: all, or evenly spaced ones of more than 20,000.
    """

    def __init__(self, packed: np.ndarray):
        self.rows = np.linspace(0, len(packed) - 1, min(len(packed), _MOST_MAPPED)).astype(np.int64)
        self._codes_MK = unpack(packed[self.rows]).astype(np.float64)

    @cached_property
    def _projection(self) -> tuple[np.ndarray, np.ndarray]:
        """The mean code `(K,)` and the two directions `(2, K)` along which the codes differ most."""
        mean_K = self._codes_MK.mean(axis=0)
        directions = np.linalg.svd(self._codes_MK - mean_K, full_matrices=False)[2][:2]
        return mean_K, np.vstack([directions, np.zeros((2 - len(directions), len(mean_K)))])

    def places(self, codes_NK: np.ndarray) -> np.ndarray:
        """Coordinates `(N, 2)` of codes of +-1 on the map."""
        mean_K, directions = self._projection
        return (codes_NK - mean_K) @ directions.T

    @cached_property
    def coordinates(self) -> np.ndarray:
        """Coordinates `(M, 2)` of the codes on the map."""
        return self.places(self._codes_MK)

    @cached_property
    def shown_variance(self) -> float:
        """Fraction of the squared distances that the two directions explain."""
        total = float(((self._codes_MK - self._projection[0]) ** 2).sum())
        return float((self.coordinates**2).sum()) / total if total else 1.0
