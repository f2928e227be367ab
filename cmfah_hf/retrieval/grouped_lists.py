"""Exact search that reads few codes: lists of the codes around centres, `[groups]` in docs/method.md.

A code at distance `r` from a centre costs at least what the centre costs, less what `r` flipped bits can take off. So
of a list only those codes are read that lie far enough from its centre to cost less than the answers known so far, and
of most lists none. `list_reading.py` is the loop that reads them; shapes are explained there.
"""

from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np

from cmfah_hf.retrieval.codes import AQD_STEP, pack, signs_of
from cmfah_hf.retrieval.list_reading import read_lists
from cmfah_hf.retrieval.scan import Candidates, Queries

# How many centres are learned: more, if there are so many codes for each, where a query has more than little to read.
_LISTS, _CODES_A_LIST, _LITTLE = (1024, 4096), 128, 1 / 16
# What the centres are learned from: so many codes of 64 bits, so many times over.
_SAMPLE, _ROUNDS = 2**15, 4
# So many times fewer centres are learned once more, from the codes that the first ones left far.
_FAR = 4
# What a query has to read is judged by so many of the codes, as queries for so many answers, and by the lists that so
# many others make.
_JUDGES, _ANSWERS, _JUDGED = 512, 100, 2**15
# Looking at a list takes as long as reading so many codes.
_OPENING = 25
# Reading a code of a list, with what stands around it, takes some six times as long as FastScan takes for one of all.
_LARGEST_SHARE = 1 / 6
# A query finds so many times as many as are asked for, and so many at least, before its ties are too many.
_TIES, _PLACES = 16, 4096
# To start a thread takes as long as this many queries.
_QUERIES_A_THREAD = 4


class GroupedLists:
    """Codes in lists around centres, those of a list by falling distance from its centre.

    Args:
        codes: `(N, K / 8)` uint8.
        centres_LK: `(L, K)` float32 of +-1. They decide how much has to be read, and never what is found.
    """

    def __init__(self, codes: np.ndarray, centres_LK: np.ndarray):
        lists_N, distances_N = _assigned(codes, centres_LK)
        used, lists_N = np.unique(lists_N, return_inverse=True)
        self._tails_RL = _tails(lists_N, distances_N, len(used))
        self._starts_L = np.concatenate([[0], self._tails_RL[0, :-1].cumsum()]).astype(np.int64)
        order_N = np.argsort(lists_N * len(self._tails_RL) - distances_N, kind="stable")
        self._rows_N = order_N.astype(np.int32)
        self._codes_WN = _words(codes[order_N])
        self._centres_WL = _words(pack(centres_LK[used]))

    @classmethod
    def of(cls, codes: np.ndarray, seed: int = 0) -> "GroupedLists | None":
        """Lists around as many centres as it takes; None where codes do not lie together, and most would be read."""
        share, centres_LK = np.inf, None
        for lists in _LISTS:
            if centres_LK is not None and (share <= _LITTLE or len(codes) < lists * _CODES_A_LIST):
                break
            others_LK = _centres(codes, lists, seed)
            share_of_others = _share_read(codes, others_LK, seed)
            if share_of_others < share:
                share, centres_LK = share_of_others, others_LK
        return cls(codes, centres_LK) if share <= _LARGEST_SHARE else None

    def candidates(self, queries: Queries, depth: int, wanted: int) -> Candidates:
        """As every scan's: all that cost no more than the `wanted`-th, and few others."""
        count, places = len(queries), min(len(self._rows_N), max(_PLACES, _TIES * depth))
        values_QK = np.ascontiguousarray(queries.values)
        unit = 0.0 if queries.hamming else 1 / AQD_STEP
        lists = self._centres_WL, self._starts_L, self._tails_RL, self._codes_WN, self._rows_N, wanted
        costs_QD, rows_QD = np.empty((count, places), np.float32), np.empty((count, places), np.int64)
        bounds_Q, found_Q, read_Q = np.empty(count, np.float32), np.empty(count, np.int64), np.empty(count, np.int64)
        threads = min(faiss.omp_get_max_threads(), -(-count // _QUERIES_A_THREAD))
        if threads == 1:
            read_lists(values_QK, unit, *lists, costs_QD, rows_QD, bounds_Q, found_Q, read_Q)
        else:

            def read(start: int, end: int) -> None:
                filled = (part[start:end] for part in (costs_QD, rows_QD, bounds_Q, found_Q, read_Q))
                read_lists(values_QK[start:end], unit, *lists, *filled)

            ends = np.linspace(0, count, threads + 1).astype(int).tolist()
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(read, ends[:-1], ends[1:]))
        counts = found_Q.tolist()  # of one query quicker than arrays
        fewest, width = min(counts), max(counts)
        if fewest < 0:
            width = max(width, min(depth, places))
        costs_QD, rows_QD = costs_QD[:, :width], rows_QD[:, :width]
        if fewest < width:
            missing_QD = np.arange(width) >= found_Q[:, None]
            costs_QD[missing_QD], rows_QD[missing_QD] = np.inf, 0
        return Candidates(costs_QD, rows_QD, bounds_Q)


def _share_read(codes: np.ndarray, centres_LK: np.ndarray, seed: int) -> float:
    """Which share of the codes a query has to read of lists around these centres, as far as the codes tell."""
    rng = np.random.default_rng(seed)
    judged = codes[np.sort(rng.choice(len(codes), min(len(codes), _JUDGED), replace=False))]
    tails_RL = _tails(*_assigned(judged, centres_LK), len(centres_LK))
    judges = np.ascontiguousarray(codes[:: max(1, len(codes) // _JUDGES)])
    # How far the answers lie: as many of those judged as are their share of the answers, and the judge itself.
    answers = min(len(judged), 1 + max(1, round(_ANSWERS * len(judged) / len(codes))))
    within_J = _distances(judged, judges, answers)[0][:, -1]
    apart_JL = (centres_LK.shape[1] - signs_of(judges) @ centres_LK.T) / 2
    flips_JL = np.clip(np.rint(apart_JL) - within_J[:, None], 0, len(tails_RL) - 1).astype(np.int64)
    sizes_JL = tails_RL[flips_JL, np.arange(len(centres_LK))]
    opened = _OPENING * np.count_nonzero(sizes_JL) / len(codes)
    return float((sizes_JL.sum() / len(judged) + opened) / len(judges))


def _tails(lists_N: np.ndarray, distances_N: np.ndarray, lists: int) -> np.ndarray:
    """`(R, L)` int32: how many codes of each list lie at least so far from its centre, from 0 on to where none does."""
    radii = int(distances_N.max()) + 2
    counts_LR = np.bincount(lists_N * radii + distances_N, minlength=lists * radii).reshape(-1, radii)
    return np.ascontiguousarray(counts_LR[:, ::-1].cumsum(axis=1)[:, ::-1].T, np.int32)


def _words(codes: np.ndarray) -> np.ndarray:
    """`(N, K / 8)` packed codes as `(W, N)` words of 64 bits, zero behind the last bit."""
    padded = np.zeros((len(codes), -(-codes.shape[1] // 8) * 8), np.uint8)
    padded[:, : codes.shape[1]] = codes
    return np.ascontiguousarray(padded.view("<u8").T)


def _centres(codes: np.ndarray, lists: int, seed: int) -> np.ndarray:
    """`(L, K)` float32 of +-1: the signs of k-means over some of the codes, and again over those that it left far."""
    points = max(4, _SAMPLE // lists * 64 // max(64, codes.shape[1] * 8))
    lists = max(1, min(lists, len(codes) // points))
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
    distances, lists = _distances(pack(centres_LK), codes, 1)
    return lists[:, 0], distances[:, 0]


def _distances(codes: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances and rows, `(Q, k)` each, of the nearest codes; both sides packed."""
    flat = faiss.IndexBinaryFlat(codes.shape[1] * 8)
    flat.add(codes)
    return flat.search(np.ascontiguousarray(queries), k)
