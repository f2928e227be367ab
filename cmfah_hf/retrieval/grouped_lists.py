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

_LISTS = 1024
# What the centres are learned from: so many codes a list of 64 bits, so many times over.
_POINTS, _ROUNDS = 32, 4
# So many times fewer centres are learned once more, from the codes that the first ones left far.
_FAR = 4
# What a query has to read is judged by so many of the codes, and by answers that differ in three of sixteen bits.
_JUDGES, _ANSWERS_WITHIN = 512, 3 / 16
# Looking at a list takes as long as reading so many codes.
_OPENING = 25
# Reading a code of a list takes some four times as long as FastScan takes for one of all.
_LARGEST_SHARE = 1 / 4
# A query finds so many times as many as are asked for, and so many at least, before its ties are too many.
_TIES, _PLACES = 16, 4096
# To start a thread takes as long as this many queries.
_QUERIES_A_THREAD = 4


class GroupedLists:
    """Codes in lists around centres, those of a list by falling distance from its centre.

    Args:
        codes: `(N, K / 8)` uint8.
        seed: Of the centres. They decide how much has to be read, and never what is found.

    Attributes:
        share: Which share of the codes a query has to read, as far as the codes themselves tell.
    """

    def __init__(self, codes: np.ndarray, seed: int = 0):
        centres_LK = _centres(codes, seed)
        lists_N, distances_N = _assigned(codes, centres_LK)
        used, lists_N = np.unique(lists_N, return_inverse=True)
        radii = int(distances_N.max()) + 2  # from 0 to one at which no code lies any more
        counts_LR = np.bincount(lists_N * radii + distances_N, minlength=len(used) * radii).reshape(-1, radii)
        tails_RL = counts_LR[:, ::-1].cumsum(axis=1)[:, ::-1].T
        self._tails_RL = np.ascontiguousarray(tails_RL, np.int32)
        self._starts_L = np.concatenate([[0], tails_RL[0, :-1].cumsum()]).astype(np.int64)
        order_N = np.argsort(lists_N * radii - distances_N, kind="stable")
        self._rows_N = order_N.astype(np.int32)
        self._codes_WN = _words(codes[order_N])
        self._centres_WL = _words(pack(centres_LK[used]))
        self.share = self._share_read(codes, centres_LK[used])

    @property
    def worthwhile(self) -> bool:
        """Whether the codes lie together, so that few of them have to be read."""
        return self.share <= _LARGEST_SHARE

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
        width = int(found_Q.max()) if found_Q.min() >= 0 else max(int(found_Q.max()), min(depth, places))
        costs_QD, rows_QD = costs_QD[:, :width], rows_QD[:, :width]
        if (found_Q < width).any():
            missing_QD = np.arange(width) >= found_Q[:, None]
            costs_QD[missing_QD], rows_QD[missing_QD] = np.inf, 0
        return Candidates(costs_QD, rows_QD, bounds_Q)

    def _share_read(self, codes: np.ndarray, centres_LK: np.ndarray) -> float:
        bits = centres_LK.shape[1]
        judges_JK = signs_of(codes[:: max(1, len(codes) // _JUDGES)])
        apart_JL = (bits - judges_JK @ centres_LK.T) / 2
        flips_JL = np.clip(np.ceil(apart_JL - bits * _ANSWERS_WITHIN), 0, len(self._tails_RL) - 1).astype(np.int64)
        sizes_JL = self._tails_RL[flips_JL, np.arange(len(centres_LK))]
        return float((sizes_JL.sum() + _OPENING * np.count_nonzero(sizes_JL)) / (len(judges_JK) * len(codes)))


def _words(codes: np.ndarray) -> np.ndarray:
    """`(N, K / 8)` packed codes as `(W, N)` words of 64 bits, zero behind the last bit."""
    padded = np.zeros((len(codes), -(-codes.shape[1] // 8) * 8), np.uint8)
    padded[:, : codes.shape[1]] = codes
    return np.ascontiguousarray(padded.view("<u8").T)


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
