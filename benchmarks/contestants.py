"""Contestants of `search.py` that no library provides: products with a top k, a rescored search, counting kernels.

Shapes: `N` items, `Q` queries, `K` bits, `k` answers a query.
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from typing import Any

import faiss
import numba
import numpy as np
import torch
from contests import Answers, indexed


def product_by_numpy(signs: np.ndarray, k: int, queries: np.ndarray) -> Answers:
    """The `k` largest products of each query, `(Q, K)`, with the +-1 codes, `(N, K)` float32."""
    products = queries @ signs.T
    top = np.argpartition(products, -k, axis=1)[:, -k:]
    scores = np.take_along_axis(products, top, 1)
    order = np.argsort(-scores, axis=1)
    return np.take_along_axis(top, order, 1), np.take_along_axis(scores, order, 1)


@torch.inference_mode()
def product_by_torch(signs: torch.Tensor, k: int, queries: torch.Tensor) -> Answers:
    """The same with PyTorch."""
    scores, ids = torch.topk(queries @ signs.T, k)
    return ids.numpy(), scores.numpy()


def rescored_search() -> Callable[[Any, int, np.ndarray], Answers]:
    """sentence-transformers' search of binary codes: `(index, k, queries)` to ids and scores.

    It rescores the 4 `k` nearest by Hamming distance with bits of 0 and 1. The codes of its index have NumPy's default
    bit order, most significant first. Raises an `ImportError` if sentence-transformers is missing.
    """
    try:
        from sentence_transformers.util.quantization import semantic_search_faiss
    except ImportError:  # the module of earlier releases
        from sentence_transformers.quantization import semantic_search_faiss

    def search(index: faiss.IndexBinary, k: int, queries: np.ndarray) -> Answers:
        settings = {"corpus_precision": "ubinary", "rescore": True, "rescore_multiplier": 4}
        found, _ = semantic_search_faiss(queries, corpus_index=index, top_k=k, **settings)
        answers = np.array([[(hit["corpus_id"], hit["score"]) for hit in hits] for hits in found])
        return answers[:, :, 0].astype(np.int64), answers[:, :, 1]

    return search


def counting_kernels(codes: np.ndarray, within: int) -> dict[str, Callable[[np.ndarray], int]]:
    """By name, kernels that only count the codes within a distance of a packed query."""
    words = codes.shape[1] // 8
    words_of_codes, buffer = codes.view(np.uint64), np.empty((len(codes), words), np.uint64)

    @numba.njit
    def kernel(codes: np.ndarray, query: np.ndarray, within: int) -> int:
        found = np.uint64(0)
        for item in range(codes.shape[0]):
            distance = np.uint64(0)
            # `words` is a constant: the compiler unrolls the loop, recognizes the popcount, and vectorizes it.
            for word in range(words):
                x = codes[item, word] ^ query[word]
                x -= (x >> np.uint64(1)) & np.uint64(0x5555555555555555)
                x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
                x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
                distance += (x * np.uint64(0x0101010101010101)) >> np.uint64(56)
            found += np.uint64(distance <= within)
        return found

    def by_numba(query: np.ndarray) -> int:
        return int(kernel(words_of_codes, query.view(np.uint64), np.uint64(within)))

    def by_faiss(query: np.ndarray) -> int:
        found, pointer = np.zeros(1, np.uint64), faiss.swig_ptr
        sides = pointer(query), pointer(codes), 1, len(codes)
        faiss.hamming_count_thres(*sides, within, codes.shape[1], pointer(found))
        return int(found[0])

    def by_numpy(query: np.ndarray) -> int:
        np.bitwise_xor(words_of_codes, query.view(np.uint64), out=buffer)
        return int(np.count_nonzero(np.bitwise_count(buffer).sum(axis=1, dtype=np.uint16) <= within))

    return {"kernel, numba": by_numba, "hamming_count_thres": by_faiss, "kernel, NumPy": by_numpy}


def gain_of_processes(count: int, codes: np.ndarray, queries: np.ndarray, k: int, repeats: int) -> float:
    """Speedup of `count` independent processes over one, each with its part of the codes.

    Cores share memory, caches and clock, so it may be less than `count`, and no shards can gain more.
    """
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        processes = []
        for start in range(count):
            part = np.ascontiguousarray(codes[start::count])
            own = (part, queries, k)
            process = ProcessPoolExecutor(1, mp_context=spawn, initializer=_hold, initargs=own)
            processes.append(stack.enter_context(process))
        for process in processes:
            process.submit(_seconds_of_a_search).result()  # builds lazy structures
        alone, together = [], []
        for _ in range(repeats):
            alone.append(processes[0].submit(_seconds_of_a_search).result())
            running = [process.submit(_seconds_of_a_search) for process in processes]
            together += [each.result() for each in running]
    return count * statistics.median(alone) / statistics.median(together)


def _hold(codes: np.ndarray, queries: np.ndarray, k: int) -> None:
    faiss.omp_set_num_threads(1)
    index = indexed(codes)
    index.optimize()
    _held.append(lambda: index.search(queries, k))


def _seconds_of_a_search() -> float:
    start = time.perf_counter()
    _held[0]()
    return time.perf_counter() - start


# The search of such a process.
_held: list[Callable[[], Any]] = []
