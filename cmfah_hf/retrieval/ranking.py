"""The exact top k out of what scans propose, in the canonical order: by cost, then by id.

A scan says below which cost it has left nothing out. As soon as the k-th smallest cost found lies below all those
bounds, the answer is certain, its ties at the cut included; until then the queries that are not certain are asked anew,
four times as deep, and at last every code is scored (`[certificate]`). Shapes as in `scan.py`; `k` answers a query.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np

from cmfah_hf.retrieval.codes import AQD_STEP
from cmfah_hf.retrieval.ids import Ids, IntegerIds
from cmfah_hf.retrieval.scan import Candidates, Queries, Scan, costs_of_one

# Numbers unpacked at once for the candidates of a group of queries.
_UNPACKED = 2**23
# Deeper than this share of all codes, scoring every code is quicker; of few codes all can be proposed.
_DEEPEST, _FEW_CODES = 1 / 8, 4096
# From this id on, a cost and an id no longer fit into one integer of 64 bits.
_LEAST_LARGE_ID = 2**37
_COST_STEPS, _BEYOND_COSTS = np.float32(1 / AQD_STEP), np.float32(2**11)
# Where so few codes are allowed, they alone are scored.
_SMALL_SHARE = 1 / 64


def nearest(
    queries: Queries,
    k: int,
    codes: np.ndarray,
    ids: Ids,
    scans: Sequence[Scan],
    allowed: np.ndarray | None = None,
    count: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Costs and rows, `(Q, k)` each, of the `k` nearest allowed codes of each query.

    Args:
        queries: The queries.
        k: At most as many as are allowed.
        codes: `(N, K / 8)`, all of them.
        ids: Of all rows; ties are put in their order.
        scans: Which together propose all rows.
        allowed: `(N,)` bool. None: all.
        count: How many are allowed, where that is known.
    """
    wanted, depth = k, max(2 * k, k + 64)
    deepest = len(codes) * _DEEPEST if len(codes) > _FEW_CODES else max(depth, len(codes) * 4)
    if allowed is not None:
        share = (np.count_nonzero(allowed) if count is None else count) / len(codes)
        few = len(codes) * share <= max(_FEW_CODES, len(codes) * _SMALL_SHARE)
        share = max(share, _SMALL_SHARE)
        wanted, depth, deepest = int(1.2 * k / share) + 1, int(depth / share), 0 if few else deepest

    def attempt(asked: Queries) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        found = _proposed(asked, depth, wanted, scans)
        found_costs = found.costs if allowed is None else np.where(allowed[found.rows], found.costs, np.inf)
        own_costs, own_rows = _first(k, found_costs, found.rows, ids)
        return own_costs, own_rows, own_costs[:, -1] < found.bounds

    group = max(1, _UNPACKED // (depth * codes.shape[1] * 8))
    if depth <= deepest and len(queries) <= group:
        costs, rows, certain = attempt(queries)
        if certain.all():
            return costs, rows
        uncertain, depth, wanted = np.flatnonzero(~certain), 4 * depth, 4 * wanted
    else:
        costs, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        uncertain = np.arange(len(queries))
    while len(uncertain) and depth <= deepest:
        group = max(1, _UNPACKED // (depth * codes.shape[1] * 8))
        left = []
        for start in range(0, len(uncertain), group):
            asked = uncertain[start : start + group]
            own_costs, own_rows, certain = attempt(queries[asked])
            costs[asked[certain]], rows[asked[certain]] = own_costs[certain], own_rows[certain]
            left.append(asked[~certain])
        uncertain, depth, wanted = np.concatenate(left), 4 * depth, 4 * wanted
    if len(uncertain):
        everything = None if allowed is None else np.flatnonzero(allowed)
        costs[uncertain], rows[uncertain] = _all_scored(queries[uncertain], k, codes, ids, everything)
    return costs, rows


def _proposed(queries: Queries, depth: int, wanted: int, scans: Sequence[Scan]) -> Candidates:
    """The candidates of all scans beside each other, below the least of their bounds."""
    threads = faiss.omp_get_max_threads()
    if len(queries) > 1 or threads == 1:
        found = [scan.candidates(queries, depth, wanted) for scan in scans]
    elif len(scans) > 1:
        # Every thread has FAISS's number of threads for itself.
        workers = min(threads, len(scans))
        with ThreadPoolExecutor(workers, initializer=faiss.omp_set_num_threads, initargs=(1,)) as pool:
            found = list(pool.map(lambda scan: scan.candidates(queries, depth, wanted), scans))
    else:
        # FAISS shares out queries over its threads, so a second thread would only be waited for.
        faiss.omp_set_num_threads(1)
        try:
            found = [scan.candidates(queries, depth, wanted) for scan in scans]
        finally:
            faiss.omp_set_num_threads(threads)
    if len(found) == 1:
        return found[0]
    return Candidates(
        np.concatenate([part.costs for part in found], axis=1),
        np.concatenate([part.rows for part in found], axis=1),
        np.min([part.bounds for part in found], axis=0),
    )


def _first(k: int, costs: np.ndarray, rows: np.ndarray, ids: Ids) -> tuple[np.ndarray, np.ndarray]:
    """Costs and rows of the first `k` of each row of candidates, in the canonical order."""
    if not isinstance(ids, IntegerIds):
        order = _order(k, costs, rows, ids)
    elif ids.least >= 0 and ids.largest < _LEAST_LARGE_ID:
        # Costs are multiples of 2^-14 below 2^10, so cost and id are one integer, and one sort is enough.
        steps = np.minimum(costs, _BEYOND_COSTS) * _COST_STEPS
        order = (steps.astype(np.int64) * _LEAST_LARGE_ID + ids.take(rows)).argsort(axis=-1)
    else:
        order = np.lexsort((ids.take(rows), costs), axis=-1)
    order = order[:, :k]
    if len(order) == 1:
        return costs[:, order[0]], rows[:, order[0]]
    queries = np.arange(len(order))[:, None]
    return costs[queries, order], rows[queries, order]


def _order(k: int, costs: np.ndarray, rows: np.ndarray, ids: Ids) -> np.ndarray:
    order = np.argsort(costs, axis=-1, kind="stable")
    for query, own in enumerate(order):
        near = own[: int(np.count_nonzero(costs[query] <= costs[query, own[k - 1]]))]
        own_costs = costs[query, near].tolist()
        if len(set(own_costs)) < len(own_costs):
            places = list(zip(own_costs, ids.take(rows[query, near]).tolist(), near.tolist(), strict=True))
            order[query, : len(near)] = [place for _, _, place in sorted(places)]
    return order


def _all_scored(
    queries: Queries, k: int, codes: np.ndarray, ids: Ids, rows: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The answer by scoring all codes, or those of `rows`, one query after the other."""
    chosen = codes if rows is None else codes[rows]
    costs_out, rows_out = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    for query in range(len(queries)):
        costs = costs_of_one(queries[query : query + 1], chosen)
        near = np.flatnonzero(costs <= np.partition(costs, k - 1)[k - 1]) if k < len(costs) else np.arange(len(costs))
        near_rows = near if rows is None else rows[near]
        costs_out[query], rows_out[query] = (part[0] for part in _first(k, costs[None, near], near_rows[None], ids))
    return costs_out, rows_out
