"""Approximate search by inverted lists: FAISS's `IndexBinaryIVF`, of which only the nearest lists are scanned."""

from dataclasses import dataclass

import faiss
import numpy as np

from cmfah_hf.retrieval.searchers.base import Candidates, Queries, exact_distances


class InvertedLists:
    """Codes in the inverted lists of a k-means clustering: about `4 sqrt(N)` lists, at most 4,096."""

    # Training codes per list.
    _POINTS = 48

    def __init__(self, codes: np.ndarray):
        self.codes = codes
        bits = codes.shape[1] * 8
        self.lists = int(min(4096, max(1, 4 * len(codes) ** 0.5), max(1, len(codes) // self._POINTS)))
        quantizer = faiss.IndexBinaryFlat(bits)
        self._quantizer, self._index = quantizer, faiss.IndexBinaryIVF(quantizer, bits, self.lists)
        clustering = self._index.cp
        clustering.niter = 4  # more rounds take longer and improve nothing
        clustering.seed, clustering.min_points_per_centroid, clustering.max_points_per_centroid = 0, 1, self._POINTS
        codes = np.ascontiguousarray(codes)
        self._index.train(codes)
        self._index.add(codes)

    def search(self, packed: np.ndarray, depth: int, probes: int) -> tuple[np.ndarray, np.ndarray]:
        """Hamming distances and rows, `(Q, depth)` each; rows of -1 where the probed lists hold fewer codes."""
        parameters = faiss.IVFSearchParameters(nprobe=min(probes, self.lists))  # type: ignore[call-arg]  # stub: no kwargs
        return self._index.search(packed, depth, params=parameters)


@dataclass(frozen=True, eq=False)
class ProbedLists:
    """Candidates from the `probes` nearest lists. The bounds are infinite: the other lists are ignored."""

    inverted: InvertedLists
    probes: int

    # AQD re-ranks this many times as many of the nearest by Hamming distance.
    AQD_DEPTH = 4

    def candidates(self, queries: Queries, depth: int, wanted: int) -> Candidates:
        codes = self.inverted.codes
        depth = min(len(codes), depth if queries.hamming else depth * self.AQD_DEPTH)
        found, rows = self.inverted.search(queries.packed, depth, self.probes)
        missing = rows < 0
        rows = np.where(missing, 0, rows)
        distances = found.astype(np.float32) if queries.hamming else exact_distances(queries, codes[rows])
        distances[missing] = np.inf
        return Candidates(distances, rows, np.full(len(queries), np.inf, np.float32))
