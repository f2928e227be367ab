"""All items within a Hamming distance of a query, exactly, in the canonical order: by distance, then by id.

Shapes: `Q` queries, `N` codes of `K` bits, packed `(N, K / 8)` uint8; `A` answers of a query.
"""

from itertools import pairwise

import faiss
import numpy as np

from cmfah_hf.errors import QueryError
from cmfah_hf.retrieval.ranking import first
from cmfah_hf.retrieval.storage.ids import Ids

# Codes and queries compared at once, which bounds the answers that are held before they are counted.
_BLOCK_CODES, _QUERIES = 2**18, 16
_NOTHING = np.empty(0, np.int32), np.empty(0, np.int64)


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
    found: list[tuple[np.ndarray, np.ndarray]] = []
    count = 0
    for first_query in range(0, len(queries), _QUERIES):
        asked = np.ascontiguousarray(queries[first_query : first_query + _QUERIES])
        parts: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in asked]
        for start in range(0, len(codes), _BLOCK_CODES):
            block = np.ascontiguousarray(codes[start : start + _BLOCK_CODES])
            for part, (distances, places) in zip(parts, _of_block(asked, block, radius), strict=True):
                rows = places + start
                chosen = slice(None) if allowed is None else allowed[rows]
                part.append((distances[chosen], rows[chosen]))
                count += len(part[-1][1])
            if count > limit:
                raise too_many(limit, radius)
        found += [_joined(part, ids) for part in parts]
    return found


def _of_block(queries: np.ndarray, codes: np.ndarray, radius: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Distances and places of the codes of a block within the radius of each query."""
    result = faiss.RangeSearchResult(len(queries))
    # The kernel of `IndexBinaryFlat.range_search`, which would need a copy of all codes. It finds distances below.
    pointers = faiss.swig_ptr(queries), faiss.swig_ptr(codes)
    search = faiss.hamming_range_search  # type: ignore[attr-defined] # not in its stub
    search(*pointers, len(queries), len(codes), radius + 1, codes.shape[1], result)
    limits = faiss.rev_swig_ptr(result.lims, len(queries) + 1).tolist()
    if not limits[-1]:
        return [_NOTHING] * len(queries)
    places = faiss.rev_swig_ptr(result.labels, limits[-1]).copy()  # the result frees its memory
    distances = faiss.rev_swig_ptr(result.distances, limits[-1]).astype(np.int32)
    return [(distances[start:end], places[start:end]) for start, end in pairwise(limits)]


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
    distances, rows = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    if not len(rows):
        return distances, rows
    ordered, ordered_rows = first(len(rows), distances.astype(np.float32)[None], rows[None], ids)
    return ordered[0].astype(np.int32), ordered_rows[0]
