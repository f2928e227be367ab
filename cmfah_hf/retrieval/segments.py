"""A run of an index's rows, and which of the structures it is scanned by."""

import threading

import faiss
import numpy as np

from cmfah_hf.retrieval.chunk_lists import CHUNK_BITS, ChunkLists
from cmfah_hf.retrieval.scan import Candidates, FastScan, PostingLists, Queries, exact_costs, padded

# Posting lists up to here: with so few bits ties fill whatever depth is asked of FastScan.
POSTING_BITS = 16
# Below so many codes FAISS's structures cost more than they save.
PLAIN_CODES = 1024
# From so many codes on, and so many for each thread in a batch, which FastScan shares out, lists by chunks are quicker.
LISTED_CODES = 2**21


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
        self._short: PostingLists | None = None
        self._fast: FastScan | None = None
        self._lists: ChunkLists | None = None
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

    def _found(self, queries: Queries, depth: int, wanted: int) -> Candidates:
        bits = self._codes.shape[1] * 8
        if bits <= POSTING_BITS:
            self._build("_short", PostingLists)
            return self._short.candidates(queries, depth, wanted)
        threads = 1 if len(queries) == 1 else faiss.omp_get_max_threads()
        if bits % CHUNK_BITS or len(self) < LISTED_CODES * threads:
            self._build("_fast", FastScan)
            return self._fast.candidates(queries, depth, wanted)
        self._build("_lists", ChunkLists)
        found = [self._lists.nearest(queries[query : query + 1], wanted) for query in range(len(queries))]
        left = [query for query, own in enumerate(found) if own is None]
        if left:
            self._build("_fast", FastScan)
            scanned = self._fast.candidates(queries[left], depth, wanted)
            for at, query in enumerate(left):
                found[query] = scanned.costs[at], scanned.rows[at], scanned.bounds[at]
        return padded(found)

    def _build(self, name: str, kind: type) -> None:
        if getattr(self, name) is None:
            with self._building:
                if getattr(self, name) is None:
                    setattr(self, name, kind(self._codes))
