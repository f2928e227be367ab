"""FAISS's FastScan over packed codes, with a hand-set codebook, exact distances and a bound.

Shapes as in `base.py`; `M = K / 4` nibbles.
"""

from dataclasses import dataclass

import faiss
import numpy as np

from cmfah_hf.retrieval.searchers.base import Candidates, Queries, exact_distances

# FastScan rounds look-up tables to 8 bits with the scale 255 / widest span. Stretching the first nibble of a Hamming
# query by this factor turns the other tables into whole numbers: 63 for each step of 2.
_HAMMING_STRETCH = np.float32(255 / 252)


@dataclass(frozen=True, eq=False)
class _AQDRounding:
    """The error that FastScan's 8-bit look-up tables can cause (`[certificate]`)."""

    errors: np.ndarray  # `(Q,)`, by how much the difference of two rounded scores can be off
    spans: np.ndarray  # `(Q,)`, the difference of the highest and the lowest possible score
    zero: np.ndarray  # `(Q,)` bool, queries of zeros alone, for which all codes tie

    @classmethod
    def of(cls, queries: Queries) -> "_AQDRounding":
        spans_QM = 2 * np.abs(queries.values).reshape(len(queries), -1, 4).sum(axis=2)
        widest, totals = spans_QM.max(axis=1), spans_QM.sum(axis=1)
        errors = spans_QM.shape[1] * 0.5 * np.maximum(widest / 255, totals / 65535)
        # A thousandth more for the float32 arithmetic on the way.
        return cls(1.001 * errors + 1e-4 * totals, totals, widest == 0)


def signs_codebook(bits: int) -> np.ndarray:
    """The centroids of all `K / 4` nibbles, the +-1 vectors themselves, so that a packed code is its own PQ code."""
    centroids = np.unpackbits(np.arange(16, dtype=np.uint8)[:, None], axis=1, count=4, bitorder="little")
    return np.tile(centroids.astype(np.float32) * 2 - 1, (bits // 4, 1, 1)).ravel()


class FastScan:
    """FAISS's `IndexPQFastScan` over all codes, `(N, K / 8)` uint8.

    Hamming distances come out exact, because their tables are whole numbers. AQD candidates are scored again, and the
    bound allows for the rounding.
    """

    def __init__(self, codes: np.ndarray):
        self._codes = codes
        bits = codes.shape[1] * 8
        plain = faiss.IndexPQ(bits, bits // 4, 4, faiss.METRIC_INNER_PRODUCT)
        faiss.copy_array_to_vector(signs_codebook(bits), plain.pq.centroids)
        plain.is_trained = True
        plain.add_sa_codes(np.ascontiguousarray(codes))
        self._index = faiss.IndexPQFastScan(plain)  # type: ignore[arg-type]  # its stub has one of two constructors

    def candidates(self, queries: Queries, depth: int, wanted: int) -> Candidates:
        """The `depth` best of each query by FastScan's scores, with exact distances."""
        return self._by_hamming(queries, depth) if queries.hamming else self._by_aqd(queries, depth)

    # FAISS never returns a code whose rounded sum is 0, the least possible, and fills up with row -1. The bound is then
    # the largest possible distance.

    def _by_hamming(self, queries: Queries, depth: int) -> Candidates:
        values = queries.values.copy()
        values[:, :4] *= _HAMMING_STRETCH
        scores, rows = self._index.search(values, depth)
        distances = np.rint(queries.distances(scores))
        bounds = distances[:, -1].copy()
        missing = rows < 0
        if missing[:, -1].any():
            bounds[missing[:, -1]] = values.shape[1]
            distances[missing] = np.inf
        return Candidates(distances, np.maximum(rows, 0), bounds)

    def _by_aqd(self, queries: Queries, depth: int) -> Candidates:
        rounding, values = _AQDRounding.of(queries), queries.values
        if rounding.zero.any():  # FAISS would divide by the span
            values = np.where(rounding.zero[:, None], np.float32(1), values)
        scores, rows = self._index.search(values, depth)
        distances = exact_distances(queries, self._codes[rows])
        bounds = np.where(rounding.zero, -np.inf, -scores[:, -1] - rounding.errors)
        missing = rows < 0
        if missing[:, -1].any():
            short = missing[:, -1]
            bounds[short] = rounding.spans[short] / 2 - rounding.errors[short]
            distances[missing] = np.inf
        return Candidates(distances, np.maximum(rows, 0), bounds)
