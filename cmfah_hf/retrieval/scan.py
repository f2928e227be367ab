"""FAISS's kernels over an array of packed codes, in memory or mapped from a file.

Shapes: `N` codes of `K` bits, `(N, K / 8)` uint8; `Q` queries. Scores ascend here: Hamming distances as they are,
AQD scores negated. AQD queries must have been rounded by `round_for_aqd`, or the scores are not exact.
"""

import faiss
import numpy as np

from cmfah_hf.retrieval.codes import aqd_codebook


def nearest_by_hamming(queries: np.ndarray, codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances and positions, `(Q, k)` each, of k nearest codes, in no promised order within a tie.

    This is the scan inside `IndexBinaryFlat`, which itself would want a copy of the codes of its own.
    """
    return faiss.knn_hamming(queries, codes, k)


def tied_by_hamming(query: np.ndarray, codes: np.ndarray, distance: int) -> np.ndarray:
    """The positions of all codes at exactly this distance from the one query."""
    result = faiss.RangeSearchResult(1)
    faiss.hamming_range_search(
        faiss.swig_ptr(query), faiss.swig_ptr(codes), 1, len(codes), int(distance) + 1, codes.shape[1], result
    )
    found = int(faiss.rev_swig_ptr(result.lims, 2)[1])
    at_distance = faiss.rev_swig_ptr(result.distances, found) == distance
    return faiss.rev_swig_ptr(result.labels, found)[at_distance]


def nearest_by_aqd(queries: np.ndarray, codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Negated scores and positions, `(Q, k)` each, of the k codes of the largest `<z_q, B_x>`, in no promised order.

    A product quantiser whose centroids are the +-1 vectors themselves reads packed codes as they are.
    """
    bits = codes.shape[1] * 8
    quantiser = faiss.ProductQuantizer(bits, bits // 8, 8)
    faiss.copy_array_to_vector(np.tile(aqd_codebook(), (bits // 8, 1, 1)).ravel(), quantiser.centroids)
    scores, positions = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    heaps = faiss.float_minheap_array_t()
    heaps.nh, heaps.k = len(queries), k
    heaps.ids, heaps.val = faiss.swig_ptr(positions), faiss.swig_ptr(scores)
    quantiser.search_ip(faiss.swig_ptr(queries), len(queries), faiss.swig_ptr(codes), len(codes), heaps)
    return -scores, positions


def tied_by_aqd(query: np.ndarray, codes: np.ndarray, negated_score: float) -> np.ndarray:
    """The positions of all codes with exactly this score for the one query."""
    table = query.reshape(-1, 8) @ aqd_codebook().T
    scores = np.zeros(len(codes), np.float32)
    for byte, products in enumerate(table):
        scores += products[codes[:, byte]]
    return np.flatnonzero(scores == -negated_score)
