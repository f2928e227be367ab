"""The exact top k of the candidates of several searchers, in the canonical order: by distance, then by id.

A searcher bounds the distances of all codes that it left out. Once the k-th smallest distance found is below all those
bounds, the answer is certain, including its ties at the cut. Until then, uncertain queries are repeated four times as
deep, and finally every code is scored (`[certificate]`). Shapes as in `searchers/base.py`; `k` answers a query.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np

from cmfah_hf.retrieval.codes import AQD_STEP
from cmfah_hf.retrieval.searchers.base import Candidates, Queries, Searcher, distances_of_one
from cmfah_hf.retrieval.storage.ids import Ids, IntegerIds

# Numbers unpacked at once for the candidates of a group of queries.
_UNPACKED = 2**23
# Beyond this share of all codes, scoring every code is faster; of few codes, all may be candidates.
_DEEPEST, _FEW_CODES = 1 / 8, 4096
# From this id on, a distance and an id no longer fit into one 64-bit integer.
_LEAST_LARGE_ID = 2**37
_DISTANCE_STEPS, _BEYOND_DISTANCES = np.float32(1 / AQD_STEP), np.float32(2**11)
# If at most this share of the codes is allowed, only those are scored.
_SMALL_SHARE = 1 / 64


def nearest(
    queries: Queries,
    k: int,
    codes: np.ndarray,
    ids: Ids,
    searchers: Sequence[Searcher],
    allowed: np.ndarray | None = None,
    count: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Distances and rows of the `k` nearest allowed codes of each query, `(Q, k)` each; ids decide ties.

    The searchers together cover all rows. `allowed` is `(N,)` bool or None for all, and `count` their number, if known.
    """
    wanted, depth = k, max(2 * k, k + 64)
    deepest = len(codes) * _DEEPEST if len(codes) > _FEW_CODES else max(depth, len(codes) * 4)
    if allowed is not None:
        share = (np.count_nonzero(allowed) if count is None else count) / len(codes)
        few = len(codes) * share <= max(_FEW_CODES, len(codes) * _SMALL_SHARE)
        share = max(share, _SMALL_SHARE)
        wanted, depth, deepest = int(1.2 * k / share) + 1, int(depth / share), 0 if few else deepest

    def attempt(asked: Queries) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        found = _proposed(asked, depth, wanted, searchers)
        found_distances = found.distances if allowed is None else np.where(allowed[found.rows], found.distances, np.inf)
        own_distances, own_rows = first(k, found_distances, found.rows, ids)
        return own_distances, own_rows, own_distances[:, -1] < found.bounds

    group = max(1, _UNPACKED // (depth * codes.shape[1] * 8))
    if depth <= deepest and len(queries) <= group:
        distances, rows, certain = attempt(queries)
        if certain.all():
            return distances, rows
        uncertain, depth, wanted = np.flatnonzero(~certain), 4 * depth, 4 * wanted
    else:
        distances, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        uncertain = np.arange(len(queries))
    while len(uncertain) and depth <= deepest:
        group = max(1, _UNPACKED // (depth * codes.shape[1] * 8))
        left = []
        for start in range(0, len(uncertain), group):
            asked = uncertain[start : start + group]
            own_distances, own_rows, certain = attempt(queries[asked])
            distances[asked[certain]], rows[asked[certain]] = own_distances[certain], own_rows[certain]
            left.append(asked[~certain])
        uncertain, depth, wanted = np.concatenate(left), 4 * depth, 4 * wanted
    if len(uncertain):
        everything = None if allowed is None else np.flatnonzero(allowed)
        distances[uncertain], rows[uncertain] = _all_scored(queries[uncertain], k, codes, ids, everything)
    return distances, rows


def _proposed(queries: Queries, depth: int, wanted: int, searchers: Sequence[Searcher]) -> Candidates:
    """The candidates of all searchers side by side, with the least of their bounds."""
    threads = faiss.omp_get_max_threads()
    if len(queries) > 1 or threads == 1:
        found = [searcher.candidates(queries, depth, wanted) for searcher in searchers]
    elif len(searchers) > 1:
        # FAISS's number of threads is set per thread.
        workers = min(threads, len(searchers))
        with ThreadPoolExecutor(workers, initializer=faiss.omp_set_num_threads, initargs=(1,)) as pool:
            found = list(pool.map(lambda searcher: searcher.candidates(queries, depth, wanted), searchers))
    else:
        # FAISS distributes queries over its threads; with one query, the others would only be waited for.
        faiss.omp_set_num_threads(1)
        try:
            found = [searcher.candidates(queries, depth, wanted) for searcher in searchers]
        finally:
            faiss.omp_set_num_threads(threads)
    if len(found) == 1:
        return found[0]
    return Candidates(
        np.concatenate([part.distances for part in found], axis=1),
        np.concatenate([part.rows for part in found], axis=1),
        np.min([part.bounds for part in found], axis=0),
    )


def first(k: int, distances: np.ndarray, rows: np.ndarray, ids: Ids) -> tuple[np.ndarray, np.ndarray]:
    """Distances and rows of the first `k` of each row of candidates, in the canonical order."""
    if not isinstance(ids, IntegerIds):
        order = _order(k, distances, rows, ids)
    elif ids.least >= 0 and ids.largest < _LEAST_LARGE_ID:
        # Distances are multiples of 2^-14 below 2^10, so distance and id fit one integer, and one sort is enough.
        steps = np.minimum(distances, _BEYOND_DISTANCES) * _DISTANCE_STEPS
        order = (steps.astype(np.int64) * _LEAST_LARGE_ID + ids.take(rows)).argsort(axis=-1)
    else:
        order = np.lexsort((ids.take(rows), distances), axis=-1)
    order = order[:, :k]
    if len(order) == 1:
        return distances[:, order[0]], rows[:, order[0]]
    queries = np.arange(len(order))[:, None]
    return distances[queries, order], rows[queries, order]


def _order(k: int, distances: np.ndarray, rows: np.ndarray, ids: Ids) -> np.ndarray:
    order = np.argsort(distances, axis=-1, kind="stable")
    for query, own in enumerate(order):
        near = own[: int(np.count_nonzero(distances[query] <= distances[query, own[k - 1]]))]
        own_distances = distances[query, near].tolist()
        if len(set(own_distances)) < len(own_distances):
            places = list(zip(own_distances, ids.take(rows[query, near]).tolist(), near.tolist(), strict=True))
            order[query, : len(near)] = [place for _, _, place in sorted(places)]
    return order


def _all_scored(
    queries: Queries, k: int, codes: np.ndarray, ids: Ids, rows: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The answer by scoring all codes, or those of `rows`, one query after the other."""
    chosen = codes if rows is None else codes[rows]
    distances_out, rows_out = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    for query in range(len(queries)):
        distances = distances_of_one(queries[query : query + 1], chosen)
        near = (
            np.flatnonzero(distances <= np.partition(distances, k - 1)[k - 1])
            if k < len(distances)
            else np.arange(len(distances))
        )
        near_rows = near if rows is None else rows[near]
        distances_out[query], rows_out[query] = (
            part[0] for part in first(k, distances[None, near], near_rows[None], ids)
        )
    return distances_out, rows_out
