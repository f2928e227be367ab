"""What scans packed codes: FAISS's FastScan with a codebook set by hand, posting lists, inverted lists, plain algebra.

Every scan proposes `depth` candidates a query with their exact costs, and a bound that no code which it left out is
below; `ranking.py` decides by that bound whether the answer is certain. Costs ascend: Hamming distances, or AQD scores
negated. Hamming is AQD with queries of +-1, `d = (K - <q, B>) / 2`, so both rankings run through the same scan.

Shapes: `Q` queries, `N` codes of `K` bits, packed `(N, K / 8)` uint8; `D` candidates a query, `M = K / 4` nibbles.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import faiss
import numpy as np

from cmfah_hf.retrieval.codes import signs_of

# The first nibble of a Hamming query is stretched by this, so that the other look-up tables of FastScan, which are
# rounded to 8 bits with the scale 255 / widest span, become whole numbers: 63 for each step of 2.
_HAMMING_STRETCH = np.float32(255 / 252)
_BLOCK_CODES = 16_384
_BYTES = np.arange(256, dtype=np.uint8)[:, None]


@dataclass(frozen=True, eq=False)
class Queries:
    """`(Q, K)` float32 values: +-1 for Hamming, else rounded by `round_for_aqd`, which makes every sum exact."""

    values: np.ndarray
    hamming: bool

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, chosen: np.ndarray | slice) -> "Queries":
        return Queries(self.values[chosen], self.hamming)

    @property
    def packed(self) -> np.ndarray:
        return np.packbits(self.values >= 0, axis=1, bitorder="little")

    def costs(self, scores: np.ndarray) -> np.ndarray:
        """Scores `<q, B>` as costs, float32 either way."""
        return (self.values.shape[1] - scores) * np.float32(0.5) if self.hamming else -scores


@dataclass(frozen=True, eq=False)
class Candidates:
    """What a scan proposes.

    Attributes:
        costs: `(Q, D)` float32, exact, in no promised order; infinite where `rows` is padding.
        rows: `(Q, D)` int64.
        bounds: `(Q,)` float32: no code that was left out costs less. Infinite where none was left out.
    """

    costs: np.ndarray
    rows: np.ndarray
    bounds: np.ndarray


class Scan(Protocol):
    """Proposes candidates out of some codes: about `depth` a query, of which `wanted` are likely to be enough."""

    def candidates(self, queries: Queries, depth: int, wanted: int) -> Candidates: ...


def padded(found: Sequence[tuple[np.ndarray, np.ndarray, float]]) -> Candidates:
    """Costs, rows and bound of each query, of as many candidates as it has, side by side."""
    if len(found) == 1:
        costs, rows, bound = found[0]
        return Candidates(costs[None], rows[None], np.array([bound], np.float32))
    width = max(len(rows) for _, rows, _ in found)
    costs = np.full((len(found), width), np.inf, np.float32)
    rows = np.zeros((len(found), width), np.int64)
    for query, (own_costs, own_rows, _) in enumerate(found):
        costs[query, : len(own_rows)], rows[query, : len(own_rows)] = own_costs, own_rows
    return Candidates(costs, rows, np.array([bound for _, _, bound in found], np.float32))


def exact_costs(queries: Queries, codes: np.ndarray) -> np.ndarray:
    """The costs of all codes: `(Q, N)` float32 of `(N, K / 8)` codes, or `(Q, D)` of `(Q, D, K / 8)`, a set a query."""
    signs = signs_of(codes)
    if codes.ndim == 2:
        return queries.costs(queries.values @ signs.T)
    return queries.costs(np.matmul(signs, queries.values[:, :, None])[..., 0])


def costs_of_one(query: Queries, codes: np.ndarray) -> np.ndarray:
    """The costs of many codes for one query, `(N,)` float32: by words for Hamming, by a table of each byte's products
    for AQD, in blocks that stay in the cache."""
    costs = np.empty(len(codes), np.float32)
    octets = codes.shape[1]
    if query.hamming:
        word = "<u8" if octets % 8 == 0 else "<u2" if octets % 2 == 0 else "u1"
        packed = query.packed.view(word)
    else:
        tables = -(query.values.reshape(octets, 8) @ signs_of(_BYTES).T).ravel()
        firsts = np.arange(octets) * 256
    for start in range(0, len(codes), _BLOCK_CODES):
        block = np.ascontiguousarray(codes[start : start + _BLOCK_CODES])
        own = costs[start : start + len(block)]
        if query.hamming:
            np.bitwise_count(block.view(word) ^ packed).sum(axis=1, dtype=np.float32, out=own)
        else:
            tables.take(block + firsts).sum(axis=1, out=own)
    return costs


@dataclass(frozen=True, eq=False)
class Rounded:
    """Queries as FastScan is asked them, and what its look-up tables of 8 bits make of their answers.

    For Hamming the tables are made whole numbers, so its distances are exact. For AQD the candidates are scored anew,
    and what the rounding can have hidden widens the bound (`[certificate]`).

    Attributes:
        queries: The queries.
        values: `(Q, K)` float32, to be asked.
        rounding: `(Q,)`, by how much two rounded scores may differ from the exact ones; None for Hamming.
        totals: `(Q,)`, how far the highest and the lowest score lie apart; None for Hamming.
        flat: `(Q,)` bool, which queries are zero throughout and rank everything alike; None for Hamming.
    """

    queries: Queries
    values: np.ndarray
    rounding: np.ndarray | None = None
    totals: np.ndarray | None = None
    flat: np.ndarray | None = None

    @classmethod
    def of(cls, queries: Queries) -> "Rounded":
        values = queries.values
        if queries.hamming:
            values = values.copy()
            values[:, :4] *= _HAMMING_STRETCH
            return cls(queries, values)
        spans = 2 * np.abs(values).reshape(len(values), -1, 4).sum(axis=2)
        widest, totals = spans.max(axis=1), spans.sum(axis=1)
        flat = widest == 0
        if flat.any():  # FAISS would divide by the span
            values = np.where(flat[:, None], np.float32(1), values)
        rounding = spans.shape[1] * 0.5 * np.maximum(widest / 255, totals / 65535)
        # A thousandth more for the float32 arithmetic on the way.
        return cls(queries, values, 1.001 * rounding + 1e-4 * totals, totals, flat)

    def candidates(self, scores: np.ndarray, rows: np.ndarray, codes: np.ndarray) -> Candidates:
        """What FAISS has found, `(Q, D)` rounded scores and rows of `codes`, with exact costs."""
        if self.queries.hamming:
            costs = np.rint(self.queries.costs(scores))
            bounds = costs[:, -1].copy()
        else:
            costs = exact_costs(self.queries, codes[rows])
            bounds = np.where(self.flat, -np.inf, -scores[:, -1] - self.rounding)
        if rows[:, -1].min() < 0:
            # FAISS never returns a code whose rounded sum is 0, the least there is, and fills up with -1.
            short = rows[:, -1] < 0
            costs[rows < 0] = np.inf
            rows = np.maximum(rows, 0)
            if self.queries.hamming:
                bounds[short] = self.values.shape[1]
            else:
                bounds[short] = self.totals[short] / 2 - self.rounding[short]
        return Candidates(costs, rows, bounds)


def signs_codebook(bits: int) -> np.ndarray:
    """The centroids of all `K / 4` nibbles, the +-1 vectors themselves, so that a packed code is its own PQ code."""
    centroids = np.unpackbits(np.arange(16, dtype=np.uint8)[:, None], axis=1, count=4, bitorder="little")
    return np.tile(centroids.astype(np.float32) * 2 - 1, (bits // 4, 1, 1)).ravel()


class FastScan:
    """FAISS's `IndexPQFastScan` over all codes, with the codebook set by hand."""

    def __init__(self, codes: np.ndarray):
        self._codes = codes
        bits = codes.shape[1] * 8
        plain = faiss.IndexPQ(bits, bits // 4, 4, faiss.METRIC_INNER_PRODUCT)
        faiss.copy_array_to_vector(signs_codebook(bits), plain.pq.centroids)
        plain.is_trained = True
        plain.add_sa_codes(np.ascontiguousarray(codes))
        self._index = faiss.IndexPQFastScan(plain)

    def candidates(self, queries: Queries, depth: int, wanted: int) -> Candidates:
        asked = Rounded.of(queries)
        return asked.candidates(*self._index.search(asked.values, depth), self._codes)


class PostingLists:
    """For codes of 8 or 16 bits: all that occur are scored, and the lists of the best are walked to their ends."""

    def __init__(self, codes: np.ndarray):
        numbers = codes[:, 0].astype(np.int64)
        if codes.shape[1] == 2:
            numbers |= codes[:, 1].astype(np.int64) << 8
        self._rows = np.argsort(numbers, kind="stable")
        _, self._starts, self._counts = np.unique(numbers[self._rows], return_index=True, return_counts=True)
        self._codes = codes[self._rows[self._starts]]

    def candidates(self, queries: Queries, depth: int, wanted: int) -> Candidates:
        found = [self._of_one(queries[row : row + 1], depth) for row in range(len(queries))]
        return padded(found)

    def _of_one(self, query: Queries, depth: int) -> tuple[np.ndarray, np.ndarray, float]:
        costs = exact_costs(query, self._codes)[0]
        nearest = np.arange(len(costs))
        if depth + 1 < len(costs):  # every code has an item, so this many codes are enough
            nearest = np.argpartition(costs, depth)[: depth + 1]
        nearest = nearest[np.argsort(costs[nearest])]
        walked = int(np.searchsorted(np.cumsum(self._counts[nearest]), depth)) + 1
        bound = float(costs[nearest[walked]]) if walked < len(nearest) else np.inf
        lists = nearest[:walked]
        rows = np.concatenate([self._rows[self._starts[i] : self._starts[i] + self._counts[i]] for i in lists])
        return np.repeat(costs[lists], self._counts[lists]), rows, bound


class InvertedLists:
    """FAISS's `IndexBinaryIVF`: only some of its lists are scanned, those nearest, so what is found is not certain.

    Args:
        codes: `(N, K / 8)`.
        lists: How many lists. None: about four times the root of `N`, at most 4,096.
        seed: Of the clustering.
    """

    # Codes a list to cluster.
    _POINTS = 48

    def __init__(self, codes: np.ndarray, lists: int | None = None, seed: int = 0):
        self.codes = codes
        bits = codes.shape[1] * 8
        self.lists = lists or int(min(4096, max(1, 4 * len(codes) ** 0.5), max(1, len(codes) // self._POINTS)))
        quantizer = faiss.IndexBinaryFlat(bits)
        self._quantizer, self._index = quantizer, faiss.IndexBinaryIVF(quantizer, bits, self.lists)
        clustering = self._index.cp
        clustering.niter = 4  # more take longer, and find no more afterwards
        clustering.seed, clustering.min_points_per_centroid, clustering.max_points_per_centroid = seed, 1, self._POINTS
        codes = np.ascontiguousarray(codes)
        self._index.train(codes)
        self._index.add(codes)

    def search(self, packed: np.ndarray, depth: int, probes: int) -> tuple[np.ndarray, np.ndarray]:
        """Distances and rows, `(Q, depth)` each; rows of -1 where the lists hold no more."""
        return self._index.search(packed, depth, params=faiss.IVFSearchParameters(nprobe=min(probes, self.lists)))


@dataclass(frozen=True, eq=False)
class ProbedLists:
    """Candidates out of the `probes` nearest lists. Their bounds are infinite: what the others hold is not asked."""

    inverted: InvertedLists
    probes: int

    # AQD takes its answers from so many times as many of the nearest by Hamming distance.
    AQD_DEPTH = 4

    def candidates(self, queries: Queries, depth: int, wanted: int) -> Candidates:
        codes = self.inverted.codes
        depth = min(len(codes), depth if queries.hamming else depth * self.AQD_DEPTH)
        distances, rows = self.inverted.search(queries.packed, depth, self.probes)
        missing = rows < 0
        rows = np.where(missing, 0, rows)
        costs = distances.astype(np.float32) if queries.hamming else exact_costs(queries, codes[rows])
        costs[missing] = np.inf
        return Candidates(costs, rows, np.full(len(queries), np.inf, np.float32))
