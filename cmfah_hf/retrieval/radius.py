"""All items within a Hamming distance of a query, exactly, in the canonical order: by distance, then by id.

Shapes: `Q` queries, `N` codes of `K` bits, packed `(N, K / 8)` uint8; `A` answers of a query.
"""

import numpy as np

from cmfah_hf.errors import QueryError
from cmfah_hf.retrieval.ranking import first
from cmfah_hf.retrieval.storage.ids import Ids

# Codes compared at once: with their distances they fit the cache.
_BLOCK_CODES = 16_384


def too_many(limit: int, radius: int) -> QueryError:
    """The error for more answers than the limit."""
    return QueryError(
        f"More than {limit:,} items lie within {radius} bits of the queries; take a smaller radius, fewer queries, "
        "or a larger `limit`."
    )


def within_radius(
    queries: np.ndarray, radius: int, codes: np.ndarray, ids: Ids, allowed: np.ndarray | None, limit: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Distances and rows, `(A,)` int32 and `(A,)` int64, of all allowed codes within the radius of each query.

    Args:
        queries: `(Q, K / 8)` uint8, packed.
        radius: The largest Hamming distance.
        codes: `(N, K / 8)` uint8, packed.
        ids: The ids of the rows, which decide ties.
        allowed: `(N,)` bool, or None for all.
        limit: The largest number of answers to all queries together.

    Raises:
        QueryError: If there are more answers than `limit`.
    """
    parts: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(len(queries))]
    count = 0
    for start in range(0, len(codes), _BLOCK_CODES):
        block = np.ascontiguousarray(codes[start : start + _BLOCK_CODES])
        own = None if allowed is None else allowed[start : start + _BLOCK_CODES]
        for query, found in zip(queries, parts, strict=True):
            distances_B = hamming_distances(block, query)
            near_B = distances_B <= radius
            places = np.flatnonzero(near_B if own is None else near_B & own)
            if len(places):
                count += len(places)
                if count > limit:
                    raise too_many(limit, radius)
                found.append((distances_B[places].astype(np.int32), places + start))
    return [_joined(found, ids) for found in parts]


def hamming_distances(codes: np.ndarray, query: np.ndarray) -> np.ndarray:
    """The Hamming distances `(N,)` of contiguous packed codes `(N, K / 8)` to one, `(K / 8,)`: uint8 or uint16."""
    octets = codes.shape[1]
    word = np.dtype("<u8" if octets % 8 == 0 else "<u2" if octets % 2 == 0 else "u1")
    codes_NW, query_W = codes.view(word), np.ascontiguousarray(query).view(word)
    distances: np.ndarray = np.bitwise_count(codes_NW[:, 0] ^ query_W[0])
    if len(query_W) > 1:
        distances = distances.astype(np.uint16)
    for place in range(1, len(query_W)):
        distances += np.bitwise_count(codes_NW[:, place] ^ query_W[place])
    return distances


def _joined(found: list[tuple[np.ndarray, np.ndarray]], ids: Ids) -> tuple[np.ndarray, np.ndarray]:
    """The parts of one query's answer as one, in the canonical order."""
    if not found:
        return np.empty(0, np.int32), np.empty(0, np.int64)
    distances, rows = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    ordered, ordered_rows = first(len(rows), distances.astype(np.float32)[None], rows[None], ids)
    return ordered[0].astype(np.int32), ordered_rows[0]
