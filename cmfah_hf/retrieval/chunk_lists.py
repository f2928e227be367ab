"""Exact search that reads few codes: lists of the codes by each 16 bits of theirs, `[chunks]` in docs/method.md.

Whatever is near a query as a whole is near it in one of its chunks. So the lists of the chunks' nearest values hold all
that can be an answer, and what they hold tells how far one has to look. Shapes as in `scan.py`; `M = K / 16` chunks.
"""

from functools import cache

import numpy as np

from cmfah_hf.retrieval.scan import Queries, costs_of_one

CHUNK_BITS = 16
_VALUES = 2**CHUNK_BITS
_BITS_OF_BYTE = np.unpackbits(np.arange(256, dtype=np.uint8)[None], axis=0, bitorder="little").astype(np.float32)
# Codes that lists name lie anywhere in memory: reading one costs what FastScan takes for so many in a row.
_LARGEST_SHARE = 1 / 150
# After so many queries in a row that had to read too many codes, only one in so many is tried.
_FAILURES, _PAUSE = 16, 64
# One flipped bit a chunk, where looking begins.
_FIRST_FLIPS = 1


@cache
def _flips() -> tuple[np.ndarray, np.ndarray]:
    """All values of 16 bits by how many are set, `(65536,)`, and how many have up to `i` bits set, `(17,)`."""
    values = np.arange(_VALUES, dtype=np.uint16)
    set_bits = np.bitwise_count(values)
    return values[np.argsort(set_bits, kind="stable")].astype(np.int64), np.cumsum(np.bincount(set_bits))


class ChunkLists:
    """The rows of all codes, listed once for each chunk by its value.

    Args:
        codes: `(N, K / 8)` uint8, `K` a multiple of 16.
    """

    def __init__(self, codes: np.ndarray):
        self._codes = codes
        chunks = np.ascontiguousarray(codes).view("<u2")
        items, self._chunks = chunks.shape
        self._rows = np.empty(self._chunks * items, np.int32)
        # Where the list of each chunk's value begins in `_rows`; the next one begins where it ends.
        self._starts = np.empty(self._chunks * _VALUES + 1, np.int64)
        for chunk in range(self._chunks):
            values = np.ascontiguousarray(chunks[:, chunk])
            self._rows[chunk * items : (chunk + 1) * items] = np.argsort(values, kind="stable")
            counts = np.bincount(values, minlength=_VALUES)
            self._starts[chunk * _VALUES : (chunk + 1) * _VALUES] = chunk * items + np.cumsum(counts) - counts
        self._starts[-1] = len(self._rows)
        self._offsets = np.arange(self._chunks)[:, None] * _VALUES
        self._asked = self._failed = 0
        self._most = max(1, int(items * _LARGEST_SHARE))

    def nearest(self, query: Queries, wanted: int) -> tuple[np.ndarray, np.ndarray, float] | None:
        """Costs and rows of all codes that cost no more to the one query than the `wanted`-th, and what all others
        cost at least. None where too many would have to be read."""
        # Codes without any structure are near none of the query's chunks; then lists are hardly tried any more.
        self._asked += 1
        if self._failed >= _FAILURES and self._asked % _PAUSE:
            return None
        found = self._nearest(query, wanted)
        self._failed = self._failed + 1 if found is None else 0
        return found

    def _nearest(self, query: Queries, wanted: int) -> tuple[np.ndarray, np.ndarray, float] | None:
        values = query.packed.view("<u2").astype(np.int64).T  # (M, 1)
        flips, up_to = _flips()
        for most_flips in range(_FIRST_FLIPS, 4):
            first = up_to[most_flips]
            listed = self._listed((values ^ flips[:first]) + self._offsets)
            if listed is None:
                return None
            rows = _distinct(listed)  # what two chunks list comes twice
            costs = costs_of_one(query, self._codes[rows])
            if len(rows) >= wanted:
                break
        else:
            return None
        limit = np.partition(costs, wanted - 1)[wanted - 1]
        lists = self._within(query, values, limit, first)
        if len(lists):
            further = self._listed(lists)
            if further is None:
                return None
            rows = _distinct(np.concatenate([rows, further]))
            costs = costs_of_one(query, self._codes[rows])
            limit = np.partition(costs, wanted - 1)[wanted - 1]
        near = np.flatnonzero(costs <= limit)
        return costs[near], rows[near].astype(np.int64), np.nextafter(limit, np.float32(np.inf))

    def _within(self, query: Queries, values: np.ndarray, limit: np.float32, first: int) -> np.ndarray:
        """The lists beyond the `first` of each chunk where a code that costs up to `limit` may stand."""
        flips, up_to = _flips()
        if query.hamming:
            # Of M chunks one differs in `limit // M` bits at most, and not all but the first few in that many.
            flipped, rest = divmod(int(limit), self._chunks)
            most = [min(flipped, CHUNK_BITS)] * (rest + 1) + [flipped - 1] * (self._chunks - rest - 1)
            ends = [int(up_to[own]) if own >= 0 else 0 for own in most]
            return np.concatenate(
                [(values[chunk] ^ flips[first:end]) + chunk * _VALUES for chunk, end in enumerate(ends)]
            )
        weights = np.abs(query.values).reshape(2 * self._chunks, CHUNK_BITS // 2)
        # A code loses twice the weight of every bit that differs; of M chunks one loses an M-th of it at most.
        most = np.nextafter(np.float32((weights.sum() + limit) / (2 * self._chunks)), np.float32(np.inf))
        losses = weights @ _BITS_OF_BYTE  # of every way to differ in one byte of a chunk
        lists = []
        for chunk, (low, high) in enumerate(losses.reshape(self._chunks, 2, 256)):
            lows, highs = np.flatnonzero(low <= most), np.flatnonzero(high <= most)
            flipped = (lows | (highs << 8)[:, None])[high[highs, None] + low[lows] <= most]
            lists.append((values[chunk] ^ flipped[np.bitwise_count(flipped) > _FIRST_FLIPS]) + chunk * _VALUES)
        return np.concatenate(lists)

    def _listed(self, lists: np.ndarray) -> np.ndarray | None:
        """The rows in these lists, one list after the other; None if there are too many."""
        lists = lists.ravel()
        starts = self._starts[lists]
        # The list behind the last of a chunk is the first of the next chunk, which begins where this one ends.
        counts = self._starts[lists + 1] - starts
        total = int(counts.sum())
        if total > self._most:
            return None
        ends = np.cumsum(counts)
        at = np.arange(total) + np.repeat(starts - ends + counts, counts)
        return self._rows[at]


def _distinct(rows: np.ndarray) -> np.ndarray:
    """Each row once; `np.unique` takes ten times as long for some thousand."""
    rows = np.sort(rows)
    first = np.empty(len(rows), bool)
    first[:1] = True
    np.not_equal(rows[1:], rows[:-1], out=first[1:])
    return rows[first]
