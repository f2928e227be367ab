"""A contiguous range of an index's rows with its search structure."""

import threading

import numpy as np

from cmfah_hf.retrieval.forks import renew_in_children
from cmfah_hf.retrieval.searchers.base import Candidates, Queries, Searcher, exact_distances
from cmfah_hf.retrieval.searchers.fast_scan import FastScan
from cmfah_hf.retrieval.searchers.posting_lists import PostingLists

# Codes of up to this many bits get posting lists: they tie so often that FastScan would find only ties.
POSTING_BITS = 16
# Up to this many codes, FAISS's structures cost more than they save.
PLAIN_CODES = 1024
# From this many codes on, exact IVF is faster if codes cluster. Building it takes as long as FastScan takes for some
# thousand queries, so it is built once this many codes have been scanned, or by `optimize`.
IVF_CODES, SCANNED_FIRST = 2**17, 2**32


class Segment:
    """Rows `start` to `end` of an index. The search structure is built by the first search that needs it."""

    def __init__(self, codes: np.ndarray, start: int, end: int):
        self.start, self.end = start, end
        self._codes = codes[start:end]
        self._searcher: Searcher | None = None
        self._may_use_ivf = codes.shape[1] * 8 > POSTING_BITS and end - start >= IVF_CODES
        self._scanned = 0
        self.renew_locks()
        renew_in_children(self)

    def renew_locks(self) -> None:
        """New locks in a forked child, see `forks.py`."""
        self._building = threading.Lock()

    def __len__(self) -> int:
        return self.end - self.start

    def candidates(self, queries: Queries, depth: int, wanted: int) -> Candidates:
        """As for every searcher; the rows are those of the index."""
        if len(self) <= max(PLAIN_CODES, depth):
            rows = np.broadcast_to(np.arange(self.start, self.end), (len(queries), len(self)))
            bounds = np.full(len(queries), np.inf, np.float32)
            return Candidates(exact_distances(queries, self._codes), rows, bounds)
        found = self._search(queries, depth, wanted)
        return Candidates(found.distances, found.rows + self.start, found.bounds) if self.start else found

    def optimize(self, wait: bool = True) -> None:
        """Switches to exact IVF if there are enough codes and they cluster (`[groups]`).

        Other threads search on meanwhile. Without `wait`, does nothing if another thread is building a structure.
        """
        if self._may_use_ivf and self._building.acquire(blocking=wait):
            try:
                if self._may_use_ivf:
                    from cmfah_hf.retrieval.searchers.exact_ivf import ExactIVF  # numba takes time to load

                    self._searcher = ExactIVF.of(self._codes) or self._searcher
                    self._may_use_ivf = False
            finally:
                self._building.release()

    def _search(self, queries: Queries, depth: int, wanted: int) -> Candidates:
        if self._may_use_ivf:
            self._scanned += len(queries) * len(self)
            if self._scanned > SCANNED_FIRST:
                self.optimize(wait=False)
        return (self._searcher or self._built()).candidates(queries, depth, wanted)

    def _built(self) -> Searcher:
        with self._building:
            if self._searcher is None:
                short = self._codes.shape[1] * 8 <= POSTING_BITS
                self._searcher = PostingLists(self._codes) if short else FastScan(self._codes)
            return self._searcher
