"""A run of an index's rows, and which of the structures it is scanned by."""

import threading

import numpy as np

from cmfah_hf.retrieval.forks import renew_in_children
from cmfah_hf.retrieval.scan import Candidates, FastScan, PostingLists, Queries, Scan, exact_costs

# Posting lists up to here: with so few bits ties fill whatever depth is asked of FastScan.
POSTING_BITS = 16
# Below so many codes FAISS's structures cost more than they save.
PLAIN_CODES = 1024
# From so many codes on, lists around centres are quicker, if codes lie together. Making them takes as long as FastScan
# takes for some thousand queries, so they are made after so many codes have been scanned, or when `group` is called.
GROUPED_CODES, SCANNED_FIRST = 2**17, 2**32


class Segment:
    """A run of rows of an index. Its structure is built by the first search that needs one, and never changes.

    Args:
        codes: `(N, K / 8)` the packed codes of all rows so far, of which this keeps those from `start` to `end`.
        start: Its first row.
        end: The row behind its last.
    """

    def __init__(self, codes: np.ndarray, start: int, end: int):
        self.start, self.end = start, end
        self._codes = codes[start:end]
        self._scan: Scan | None = None
        self._groups = codes.shape[1] * 8 > POSTING_BITS and end - start >= GROUPED_CODES
        self._scanned = 0
        self.renew_locks()
        renew_in_children(self)

    def renew_locks(self) -> None:
        """For `forks.py`."""
        self._building = threading.Lock()

    def __len__(self) -> int:
        return self.end - self.start

    def candidates(self, queries: Queries, depth: int, wanted: int) -> Candidates:
        """As every scan's; the rows are those of the index."""
        if len(self) <= max(PLAIN_CODES, depth):
            rows = np.broadcast_to(np.arange(self.start, self.end), (len(queries), len(self)))
            return Candidates(exact_costs(queries, self._codes), rows, np.full(len(queries), np.inf, np.float32))
        found = self._found(queries, depth, wanted)
        return Candidates(found.costs, found.rows + self.start, found.bounds) if self.start else found

    def group(self, wait: bool = True) -> None:
        """Makes lists around centres, unless there are too few codes or they do not lie together (`[groups]`).

        Others search on meanwhile. Without `wait`, nothing is done where another thread is building something.
        """
        if self._groups and self._building.acquire(blocking=wait):
            try:
                if self._groups:
                    from cmfah_hf.retrieval.grouped_lists import GroupedLists  # what compiles it takes time to load

                    self._scan = GroupedLists.of(self._codes) or self._scan
                    self._groups = False
            finally:
                self._building.release()

    def _found(self, queries: Queries, depth: int, wanted: int) -> Candidates:
        if self._scan is None:
            with self._building:
                if self._scan is None:
                    short = self._codes.shape[1] * 8 <= POSTING_BITS
                    self._scan = PostingLists(self._codes) if short else FastScan(self._codes)
        if self._groups:
            self._scanned += len(queries) * len(self)
            if self._scanned > SCANNED_FIRST:
                self.group(wait=False)
        return self._scan.candidates(queries, depth, wanted)
