"""The interface of all searchers (queries in, candidates with a bound out), and plain scoring of codes.

Distances ascend: Hamming distances, or negated AQD scores. Hamming is AQD with queries of +-1, `d = (K - <q, B>) / 2`,
so both rankings use the same searchers.

Shapes: `Q` queries, `N` codes of `K` bits, packed `(N, K / 8)` uint8; `D` candidates a query.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cmfah_hf.retrieval.codes import signs_of

_BLOCK_CODES = 16_384
_BYTES = np.arange(256, dtype=np.uint8)[:, None]


@dataclass(frozen=True, eq=False)
class Queries:
    """Queries in both forms that searchers need."""

    values: np.ndarray  # `(Q, K)` float32: +-1 or rounded by `round_for_aqd`, which makes every sum exact
    packed: np.ndarray  # `(Q, K / 8)` uint8, the signs of the values
    hamming: bool

    @classmethod
    def for_hamming(cls, packed: np.ndarray) -> "Queries":
        return cls(signs_of(packed), np.ascontiguousarray(packed), True)

    @classmethod
    def for_aqd(cls, values: np.ndarray) -> "Queries":
        return cls(values, np.packbits(values >= 0, axis=1, bitorder="little"), False)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, chosen: np.ndarray | slice) -> "Queries":
        return Queries(self.values[chosen], self.packed[chosen], self.hamming)

    def distances(self, scores: np.ndarray) -> np.ndarray:
        """Scores `<q, B>` as distances, float32."""
        return (self.values.shape[1] - scores) * np.float32(0.5) if self.hamming else -scores


@dataclass(frozen=True, eq=False)
class Candidates:
    """The candidates that a searcher proposes."""

    distances: np.ndarray  # `(Q, D)` float32, exact, in any order; infinite where `rows` is padding
    rows: np.ndarray  # `(Q, D)` int64
    bounds: np.ndarray  # `(Q,)` float32: no code that is left out is nearer; infinite if none is left out


class Searcher(Protocol):
    """Proposes about `depth` candidates a query, of which `wanted` are probably enough."""

    def candidates(self, queries: Queries, depth: int, wanted: int) -> Candidates: ...


def padded(found: Sequence[tuple[np.ndarray, np.ndarray, float]]) -> Candidates:
    """Distances, rows and bound of each query as one `Candidates`, padded to the longest."""
    if len(found) == 1:
        distances, rows, bound = found[0]
        return Candidates(distances[None], rows[None], np.array([bound], np.float32))
    width = max(len(rows) for _, rows, _ in found)
    distances = np.full((len(found), width), np.inf, np.float32)
    rows = np.zeros((len(found), width), np.int64)
    for query, (own_distances, own_rows, _) in enumerate(found):
        distances[query, : len(own_rows)], rows[query, : len(own_rows)] = own_distances, own_rows
    return Candidates(distances, rows, np.array([bound for _, _, bound in found], np.float32))


def exact_distances(queries: Queries, codes: np.ndarray) -> np.ndarray:
    """The distances of all codes: `(Q, N)` float32 for `(N, K / 8)` codes, or `(Q, D)` for `(Q, D, K / 8)` codes."""
    signs = signs_of(codes)
    if codes.ndim == 2:
        return queries.distances(queries.values @ signs.T)
    return queries.distances(np.matmul(signs, queries.values[:, :, None])[..., 0])


def distances_of_one(query: Queries, codes: np.ndarray) -> np.ndarray:
    """The distances of many codes to one query: `(N,)` float32.

    Hamming distances count bits a word at a time; AQD looks up the products of each byte. Both work in blocks that fit
    the cache.
    """
    distances = np.empty(len(codes), np.float32)
    octets = codes.shape[1]
    word = "<u8" if octets % 8 == 0 else "<u2" if octets % 2 == 0 else "u1"
    tables = np.empty(0) if query.hamming else -(query.values.reshape(octets, 8) @ signs_of(_BYTES).T).ravel()
    first_entries = np.arange(octets) * 256
    for start in range(0, len(codes), _BLOCK_CODES):
        block = np.ascontiguousarray(codes[start : start + _BLOCK_CODES])
        own = distances[start : start + len(block)]
        if query.hamming:
            np.bitwise_count(block.view(word) ^ query.packed.view(word)).sum(axis=1, dtype=np.float32, out=own)
        else:
            tables.take(block + first_entries).sum(axis=1, out=own)
    return distances
