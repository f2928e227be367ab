"""Posting lists for codes of 8 or 16 bits: the rows of each code that occurs."""

import numpy as np

from cmfah_hf.retrieval.searchers.base import Candidates, Queries, exact_distances, padded


class PostingLists:
    """Scores every code, `(N, 1)` or `(N, 2)` uint8, that occurs once; returns all rows of the nearest codes."""

    def __init__(self, codes: np.ndarray):
        numbers = codes[:, 0].astype(np.int64)
        if codes.shape[1] == 2:
            numbers |= codes[:, 1].astype(np.int64) << 8
        self._rows = np.argsort(numbers, kind="stable")
        _, self._starts, self._counts = np.unique(numbers[self._rows], return_index=True, return_counts=True)
        self._codes = codes[self._rows[self._starts]]

    def candidates(self, queries: Queries, depth: int, wanted: int) -> Candidates:
        """At least `depth` rows of each query, in whole posting lists."""
        return padded([self._of_one(queries[row : row + 1], depth) for row in range(len(queries))])

    def _of_one(self, query: Queries, depth: int) -> tuple[np.ndarray, np.ndarray, float]:
        distances = exact_distances(query, self._codes)[0]
        nearest = np.arange(len(distances))
        if depth + 1 < len(distances):  # every code has at least one row, so this many codes are enough
            nearest = np.argpartition(distances, depth)[: depth + 1]
        nearest = nearest[np.argsort(distances[nearest])]
        taken = int(np.searchsorted(np.cumsum(self._counts[nearest]), depth)) + 1
        bound = float(distances[nearest[taken]]) if taken < len(nearest) else np.inf
        lists = nearest[:taken]
        rows = np.concatenate([self._rows[self._starts[i] : self._starts[i] + self._counts[i]] for i in lists])
        return np.repeat(distances[lists], self._counts[lists]), rows, bound
