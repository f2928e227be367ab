"""Exact IVF search with triangle-inequality pruning (`[groups]` in docs/method.md).

Codes are grouped into cells around centers. Within a cell, a code at radius `r` from the center is at most as much
nearer to the query than the center as `r` flipped bits can gain. So of each inverted list only the codes far enough
from the center are read, and of most lists none. `exact_ivf_kernel.py` is the loop that reads them.

Shapes: `Q` queries, `N` codes and `L` centers of `K` bits, in `W` words of 64; `R` radii; `D` places for candidates;
`J` sampled queries.
"""

from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np

from cmfah_hf.retrieval.codes import AQD_STEP, pack, signs_of
from cmfah_hf.retrieval.searchers.base import Candidates, Queries
from cmfah_hf.retrieval.searchers.exact_ivf_kernel import read_lists

# The numbers of centers to try. The larger one is tried if a query reads more than a little with the smaller one, and
# there are enough codes for each list.
_LISTS, _CODES_PER_LIST, _LITTLE = (1024, 4096), 128, 1 / 16
# Training codes of the centers (for 64 bits), and rounds of k-means.
_SAMPLE, _ROUNDS = 2**15, 4
# One such part as many centers are trained again on the codes farthest from the first centers.
_FAR = 4
# The share to be read is estimated with this many codes as queries for this many answers, on the lists of a sample.
_SAMPLE_QUERIES, _ANSWERS, _SAMPLE_CODES = 512, 100, 2**15
# Cost of probing a list, in codes scanned.
_PROBE_COST = 25
# Reading a code of a list takes some six times as long as FastScan takes per code, so beyond this share FastScan wins.
_LARGEST_SHARE = 1 / 6
# Places for candidates: this many times `depth`, and at least this many. Beyond, a query has too many ties.
_TIES, _PLACES = 16, 4096
# Starting a thread costs as much as this many queries.
_QUERIES_PER_THREAD = 4


class ExactIVF:
    """Codes in inverted lists, each sorted by falling radius (distance from the cell's center).

    The centers, `(L, K)` float32 of +-1, decide how much is read, never what is found.
    """

    def __init__(self, codes: np.ndarray, centers_LK: np.ndarray):
        cells_N, radii_N = _assigned(codes, centers_LK)
        used, cells_N = np.unique(cells_N, return_inverse=True)
        self._tails_RL = _tails(cells_N, radii_N, len(used))
        self._starts_L = np.concatenate([[0], self._tails_RL[0, :-1].cumsum()]).astype(np.int64)
        order_N = np.argsort(cells_N * len(self._tails_RL) - radii_N, kind="stable")
        self._rows_N = order_N.astype(np.int32)
        self._codes_WN = _words(codes[order_N])
        self._centers_WL = _words(pack(centers_LK[used]))

    @classmethod
    def of(cls, codes: np.ndarray, seed: int = 0) -> "ExactIVF | None":
        """Trains as many centers as pay off. None if codes do not cluster, so that most of them would be read."""
        best_share, best_LK = np.inf, None
        for lists in _LISTS:
            if best_LK is not None and (best_share <= _LITTLE or len(codes) < lists * _CODES_PER_LIST):
                break
            centers_LK = _centers(codes, lists, seed)
            share = _share_read(codes, centers_LK, seed)
            if share < best_share:
                best_share, best_LK = share, centers_LK
        return None if best_LK is None or best_share > _LARGEST_SHARE else cls(codes, best_LK)

    def candidates(self, queries: Queries, depth: int, wanted: int) -> Candidates:
        """All codes at least as near as the `wanted`-th, and few others."""
        count, places = len(queries), min(len(self._rows_N), max(_PLACES, _TIES * depth))
        values_QK = np.ascontiguousarray(queries.values)
        unit = 0.0 if queries.hamming else 1 / AQD_STEP
        lists = self._centers_WL, self._starts_L, self._tails_RL, self._codes_WN, self._rows_N, wanted
        distances_QD, rows_QD = np.empty((count, places), np.float32), np.empty((count, places), np.int64)
        bounds_Q, found_Q, read_Q = np.empty(count, np.float32), np.empty(count, np.int64), np.empty(count, np.int64)
        threads = min(faiss.omp_get_max_threads(), -(-count // _QUERIES_PER_THREAD))
        if threads == 1:
            read_lists(values_QK, unit, *lists, distances_QD, rows_QD, bounds_Q, found_Q, read_Q)
        else:

            def read(start: int, end: int) -> None:
                filled = (part[start:end] for part in (distances_QD, rows_QD, bounds_Q, found_Q, read_Q))
                read_lists(values_QK[start:end], unit, *lists, *filled)

            ends = np.linspace(0, count, threads + 1).astype(int).tolist()
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(read, ends[:-1], ends[1:]))
        counts = found_Q.tolist()  # for one query faster than array operations
        fewest, width = min(counts), max(counts)
        if fewest < 0:
            width = max(width, min(depth, places))
        distances_QD, rows_QD = distances_QD[:, :width], rows_QD[:, :width]
        if fewest < width:
            missing_QD = np.arange(width) >= found_Q[:, None]
            distances_QD[missing_QD], rows_QD[missing_QD] = np.inf, 0
        return Candidates(distances_QD, rows_QD, bounds_Q)


def _share_read(codes: np.ndarray, centers_LK: np.ndarray, seed: int) -> float:
    """The estimated share of the codes that a query reads with these centers."""
    rng = np.random.default_rng(seed)
    sample = codes[np.sort(rng.choice(len(codes), min(len(codes), _SAMPLE_CODES), replace=False))]
    tails_RL = _tails(*_assigned(sample, centers_LK), len(centers_LK))
    queries = np.ascontiguousarray(codes[:: max(1, len(codes) // _SAMPLE_QUERIES)])
    # The distance of the last answer: the sample's share of the answers, and the query itself.
    answers = min(len(sample), 1 + max(1, round(_ANSWERS * len(sample) / len(codes))))
    within_J = _nearest(sample, queries, answers)[0][:, -1]
    to_centers_JL = (centers_LK.shape[1] - signs_of(queries) @ centers_LK.T) / 2
    flips_JL = np.clip(np.rint(to_centers_JL) - within_J[:, None], 0, len(tails_RL) - 1).astype(np.int64)
    sizes_JL = tails_RL[flips_JL, np.arange(len(centers_LK))]
    probed = _PROBE_COST * np.count_nonzero(sizes_JL) / len(codes)
    return float((sizes_JL.sum() / len(sample) + probed) / len(queries))


def _tails(cells_N: np.ndarray, radii_N: np.ndarray, cells: int) -> np.ndarray:
    """`(R, L)` int32: the number of codes of each cell with at least each radius, from 0 to one that none has."""
    radii = int(radii_N.max()) + 2
    counts_LR = np.bincount(cells_N * radii + radii_N, minlength=cells * radii).reshape(-1, radii)
    return np.ascontiguousarray(counts_LR[:, ::-1].cumsum(axis=1)[:, ::-1].T, np.int32)


def _words(codes: np.ndarray) -> np.ndarray:
    """`(N, K / 8)` packed codes as `(W, N)` words of 64 bits, padded with zero bits."""
    padded = np.zeros((len(codes), -(-codes.shape[1] // 8) * 8), np.uint8)
    padded[:, : codes.shape[1]] = codes
    return np.ascontiguousarray(padded.view("<u8").T)


def _centers(codes: np.ndarray, lists: int, seed: int) -> np.ndarray:
    """`(L, K)` float32 of +-1: the signs of k-means centers of a sample, plus those of its codes far from them."""
    points = max(4, _SAMPLE // lists * 64 // max(64, codes.shape[1] * 8))
    lists = max(1, min(lists, len(codes) // points))
    chosen = np.random.default_rng(seed).choice(len(codes), min(len(codes), lists * points), replace=False)
    sample = codes[np.sort(chosen)]
    centers_LK = _means(sample, lists, points, seed)
    _, radii_S = _assigned(sample, centers_LK)
    more = max(1, lists // _FAR)
    far = np.argsort(-radii_S, kind="stable")[: more * points]
    return np.concatenate([centers_LK, _means(sample[far], more, points, seed)])


def _means(codes: np.ndarray, lists: int, points: int, seed: int) -> np.ndarray:
    kmeans = faiss.Kmeans(
        codes.shape[1] * 8, lists, niter=_ROUNDS, seed=seed, min_points_per_centroid=1, max_points_per_centroid=points
    )
    kmeans.train(signs_of(codes))
    return np.where(np.asarray(kmeans.centroids) >= 0, np.float32(1), np.float32(-1))


def _assigned(codes: np.ndarray, centers_LK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cell and the radius of each code, `(N,)` each."""
    distances, cells = _nearest(pack(centers_LK), codes, 1)
    return cells[:, 0], distances[:, 0]


def _nearest(codes: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Hamming distances and rows, `(Q, k)` each, of the nearest of these packed codes."""
    flat = faiss.IndexBinaryFlat(codes.shape[1] * 8)
    flat.add(codes)
    return flat.search(np.ascontiguousarray(queries), k)
