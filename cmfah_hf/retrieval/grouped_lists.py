"""Exact search that reads few codes: lists of the codes around centres, `[groups]` in docs/method.md.

A code within `R` bits of a centre costs at least what the centre costs, less what `R` flipped bits can take off. So
lists whose centres are far from a query hold no answer, and the others are scanned by FastScan. Codes far from every
centre stand in one more list, which is always scanned. Shapes as in `scan.py`; `L` lists, `P` of them probed.
"""

import faiss
import numpy as np

from cmfah_hf.retrieval.codes import pack
from cmfah_hf.retrieval.scan import Candidates, Queries, Rounded, signs_codebook, signs_of

_LISTS = 1024
# What the centres are learned from: so many codes a list of 64 bits, so many times over.
_POINTS, _ROUNDS = 32, 4
# So many times fewer centres are learned once more, from the codes that the first ones left far.
_FAR = 4
# What a list holds is judged by so many of the codes, and by answers that differ in three of sixteen bits.
_JUDGES, _ANSWERS_WITHIN = 512, 3 / 16
# Opening a list takes as long as scanning so many codes.
_OPENING = 1500
# Lists of which a query has to read more than this share are not worth their memory.
_LARGEST_SHARE = 1 / 2
# The lists that are probed before it is known which have to be, and one more for so many answers.
_FIRST_PROBES, _ANSWERS_A_PROBE = 24, 4
# Up to here a score and what flipped bits gain are exact in float32, summed: multiples of 2^-14 below 3 K.
_EXACT_BITS = 256
_LOOKED_AT = 2**12


class GroupedLists:
    """Codes in lists around centres, as FAISS's `IndexIVFPQFastScan` with the codebook and the lists set by hand.

    Args:
        codes: `(N, K / 8)` uint8.
        seed: Of the centres. They decide how much has to be read, and never what is found.

    Attributes:
        share: Which share of the codes a query has to read, as far as the codes themselves tell.
    """

    def __init__(self, codes: np.ndarray, seed: int = 0):
        self._codes = codes
        centres_LK = _centres(codes, seed)
        lists_N, distances_N = _assigned(codes, centres_LK)
        radius, self.share = _best_radius(codes, centres_LK, lists_N, distances_N)
        inside = distances_N <= radius
        used, lists_N[inside] = np.unique(lists_N[inside], return_inverse=True)
        self._centres_LK, self._rest = centres_LK[used], len(used)
        lists_N[~inside] = self._rest
        self._radii_L = np.zeros(len(used), np.int64)
        np.maximum.at(self._radii_L, lists_N[inside], distances_N[inside])
        self._index = _filled(codes, lists_N, self._rest + 1)

    @property
    def worthwhile(self) -> bool:
        """Whether the codes lie together, so that few of them have to be read."""
        return self.share <= _LARGEST_SHARE

    def candidates(self, queries: Queries, depth: int, wanted: int) -> Candidates:
        """As every scan's: the nearest lists first, then those that the `wanted`-th cost does not rule out."""
        asked = Rounded.of(queries)
        least_QL = self._least_costs(queries)
        probes, lists = _FIRST_PROBES + wanted // _ANSWERS_A_PROBE, len(self._radii_L)
        if probes >= lists:
            return self._probed(asked, np.broadcast_to(np.arange(lists), least_QL.shape), depth)
        order = np.argpartition(least_QL, probes, axis=1)
        rows_Q = np.arange(len(queries))
        left_Q = least_QL[rows_Q, order[:, probes]]
        found = self._probed(asked, order[:, :probes], depth)
        place = min(wanted, found.costs.shape[1]) - 1
        reached_Q = np.partition(found.costs, place, axis=1)[:, place]
        open_Q = np.flatnonzero(left_Q <= reached_Q)
        if not len(open_Q):
            return Candidates(found.costs, found.rows, np.minimum(found.bounds, left_Q))
        np.put_along_axis(least_QL, order[:, :probes], np.inf, axis=1)
        least_OL, reached_O = least_QL[open_Q], reached_Q[open_Q, None]
        further = (least_OL <= reached_O) & np.isfinite(least_OL)
        if not queries.hamming:
            self._look_closer(queries[open_Q], least_OL, further)
            further &= least_OL <= reached_O
        left_Q[open_Q] = np.where(further, np.inf, least_OL).min(axis=1)
        most = int(further.sum(axis=1).max())
        if not most:
            return Candidates(found.costs, found.rows, np.minimum(found.bounds, left_Q))
        chosen = np.where(further, np.arange(further.shape[1]), -1)
        chosen = -np.sort(-chosen, axis=1)[:, :most]
        more = self._probed(asked[open_Q], chosen, depth, rest=False)
        return _joined(found, more, open_Q, left_Q)

    def _least_costs(self, queries: Queries) -> np.ndarray:
        """`(Q, L)`, what no code of each list costs less than."""
        values = queries.values
        weights = -np.sort(-np.abs(values), axis=1)
        # What the first 0, 1, 2, ... flipped bits gain at most: the largest values.
        gains = np.concatenate([np.zeros((len(values), 1), np.float32), 2 * weights.cumsum(axis=1)], axis=1)
        least = queries.costs(values @ self._centres_LK.T + gains[:, self._radii_L])
        return self._below(least)

    def _look_closer(self, queries: Queries, least_QL: np.ndarray, chosen_QL: np.ndarray) -> None:
        """Raises the least costs of the chosen lists: only bits in which a centre differs from the query can gain."""
        query_C, list_C = np.nonzero(chosen_QL)
        order_QK = np.argsort(-np.abs(queries.values), axis=1)
        values_QK = np.take_along_axis(queries.values, order_QK, axis=1)
        for start in range(0, len(query_C), _LOOKED_AT):
            query_B, list_B = query_C[start : start + _LOOKED_AT], list_C[start : start + _LOOKED_AT]
            values_BK = values_QK[query_B]
            losses_BK = np.minimum(values_BK * self._centres_LK[list_B[:, None], order_QK[query_B]], 0)
            within_BK = (losses_BK < 0).cumsum(axis=1) <= self._radii_L[list_B, None]
            scores_B = np.abs(values_BK).sum(axis=1) + 2 * np.where(within_BK, 0, losses_BK).sum(axis=1)
            least_QL[query_B, list_B] = self._below(queries.costs(scores_B))

    def _below(self, least: np.ndarray) -> np.ndarray:
        return least if self._centres_LK.shape[1] <= _EXACT_BITS else np.nextafter(least, np.float32(-np.inf))

    def _probed(self, asked: Rounded, lists_QP: np.ndarray, depth: int, rest: bool = True) -> Candidates:
        if rest:
            lists_QP = np.concatenate([lists_QP, np.full((len(lists_QP), 1), self._rest)], axis=1)
        lists_QP = np.ascontiguousarray(lists_QP, dtype=np.int64)
        values = np.ascontiguousarray(asked.values)
        scores = np.empty((len(values), depth), np.float32)
        rows = np.empty((len(values), depth), np.int64)
        biases = np.zeros(lists_QP.shape, np.float32)
        # FAISS's own wrapper takes the number of lists from the index, which other threads search as well.
        self._index.search_preassigned_c(
            len(values),
            faiss.swig_ptr(values),
            depth,
            faiss.swig_ptr(lists_QP),
            faiss.swig_ptr(biases),
            faiss.swig_ptr(scores),
            faiss.swig_ptr(rows),
            False,
            faiss.IVFSearchParameters(nprobe=lists_QP.shape[1]),
        )
        return asked.candidates(scores, rows, self._codes)


def _centres(codes: np.ndarray, seed: int) -> np.ndarray:
    """`(L, K)` float32 of +-1: the signs of k-means over some of the codes, and again over those that it left far."""
    points = max(4, _POINTS * 64 // max(64, codes.shape[1] * 8))
    lists = max(1, min(_LISTS, len(codes) // points))
    chosen = np.random.default_rng(seed).choice(len(codes), min(len(codes), lists * points), replace=False)
    sample = codes[np.sort(chosen)]
    centres_LK = _means(sample, lists, points, seed)
    _, distances_S = _assigned(sample, centres_LK)
    further = max(1, lists // _FAR)
    far = np.argsort(-distances_S, kind="stable")[: further * points]
    return np.concatenate([centres_LK, _means(sample[far], further, points, seed)])


def _means(codes: np.ndarray, lists: int, points: int, seed: int) -> np.ndarray:
    kmeans = faiss.Kmeans(
        codes.shape[1] * 8, lists, niter=_ROUNDS, seed=seed, min_points_per_centroid=1, max_points_per_centroid=points
    )
    kmeans.train(signs_of(codes))
    return np.where(kmeans.centroids >= 0, np.float32(1), np.float32(-1))


def _assigned(codes: np.ndarray, centres_LK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest centre of each code and its distance, `(N,)` each."""
    nearest = faiss.IndexBinaryFlat(centres_LK.shape[1])
    nearest.add(pack(centres_LK))
    distances, lists = nearest.search(np.ascontiguousarray(codes), 1)
    return lists[:, 0], distances[:, 0]


def _best_radius(
    codes: np.ndarray, centres_LK: np.ndarray, lists_N: np.ndarray, distances_N: np.ndarray
) -> tuple[int, float]:
    """Up to which distance codes stay in the list of their centre, and which share of all a query then reads.

    A small radius leaves many codes to the list that is always scanned, a large one rules few lists out.
    """
    lists, bits = centres_LK.shape
    judges_JK = signs_of(codes[:: max(1, len(codes) // _JUDGES)])
    apart_JL = (bits - judges_JK @ centres_LK.T) / 2
    counts = np.bincount(lists_N * (bits + 1) + distances_N, minlength=lists * (bits + 1))
    within_LR = counts.reshape(lists, bits + 1).cumsum(axis=1)
    reads = []
    for radius in range(bits // 2):
        probed_L = (apart_JL <= radius + bits * _ANSWERS_WITHIN).mean(axis=0)
        own_L = within_LR[:, radius]
        reads.append(len(codes) - own_L.sum() + probed_L @ (own_L + _OPENING))
    best = int(np.argmin(reads))
    return best, float(reads[best] / len(codes))


def _filled(codes: np.ndarray, lists_N: np.ndarray, lists: int) -> faiss.IndexIVFPQFastScan:
    bits = codes.shape[1] * 8
    # FAISS never asks it, since the lists are given, but wants as many centres as there are lists.
    quantizer = faiss.IndexFlatIP(bits)
    quantizer.add(np.zeros((lists, bits), np.float32))
    plain = faiss.IndexIVFPQ(quantizer, bits, lists, bits // 4, 4, faiss.METRIC_INNER_PRODUCT)
    plain.by_residual = False
    plain.is_trained = True
    faiss.copy_array_to_vector(signs_codebook(bits), plain.pq.centroids)
    rows = np.argsort(lists_N, kind="stable")
    ends = np.bincount(lists_N, minlength=lists).cumsum()
    start = 0
    for number, end in enumerate(ends.tolist()):
        if end > start:
            own_rows = np.ascontiguousarray(rows[start:end])
            own_codes = np.ascontiguousarray(codes[own_rows])
            plain.invlists.add_entries(number, end - start, faiss.swig_ptr(own_rows), faiss.swig_ptr(own_codes))
        start = end
    plain.ntotal = len(codes)
    filled = faiss.IndexIVFPQFastScan(plain)
    # It has a copy of everything but the quantizer; the wrapper would keep the whole of `plain` alive.
    filled.referenced_objects = [quantizer]
    return filled


def _joined(found: Candidates, more: Candidates, open_Q: np.ndarray, left_Q: np.ndarray) -> Candidates:
    """Both finds side by side; `more` is of the queries `open_Q` alone."""
    queries, width = found.costs.shape
    costs = np.full((queries, width + more.costs.shape[1]), np.inf, np.float32)
    rows = np.zeros(costs.shape, np.int64)
    bounds = np.minimum(found.bounds, left_Q)
    costs[:, :width], rows[:, :width] = found.costs, found.rows
    costs[open_Q, width:], rows[open_Q, width:] = more.costs, more.rows
    bounds[open_Q] = np.minimum(bounds[open_Q], more.bounds)
    return Candidates(costs, rows, bounds)
