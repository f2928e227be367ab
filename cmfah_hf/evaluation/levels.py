"""Counts per level of a ranking, from codes, scores and labels: the input of all metrics.

A level is a set of tied items, with one Hamming distance or score. `n` is the number of its items, `r` the number of
relevant ones. Levels may be empty (`n = 0`), so the counts of several queries can share a matrix.

Shapes: `Q` queries, `N` database items, `K` bits, `C` classes, `L` levels from the nearest to the farthest, `B` bytes
of 8 classes each. Packed codes are `(Q, K / 8)` and `(N, K / 8)` uint8, labels multi-hot `(Q, C)` and `(N, C)`.
"""

from collections.abc import Iterator

import numpy as np

from cmfah_hf.errors import QueryError
from cmfah_hf.retrieval.codes import unpack

# Maximum number of scores in memory: 32 MB of float32.
_PAIRS_AT_ONCE = 1 << 23


def hamming_distances(codes_q: np.ndarray, codes_db: np.ndarray) -> np.ndarray:
    """`(Q, N)` int16 Hamming distances between packed codes."""
    _check_same_width(codes_q, codes_db)
    words_q, words_db = _words(codes_q), _words(codes_db)
    distances_QN = np.zeros((len(codes_q), len(codes_db)), np.int16)
    for word_q, word_db in zip(words_q, words_db, strict=True):
        distances_QN += np.bitwise_count(word_q[:, None] ^ word_db)
    return distances_QN


def relevance(labels_q: np.ndarray, labels_db: np.ndarray) -> np.ndarray:
    """`(Q, N)` bool: whether query and item share at least one label."""
    if labels_q.shape[1] != labels_db.shape[1]:
        raise QueryError(f"The queries have {labels_q.shape[1]} classes, the database has {labels_db.shape[1]}.")
    labels_BQ, labels_BN = pack_labels(labels_q), pack_labels(labels_db)
    relevant_QN = np.empty((len(labels_q), len(labels_db)), bool)
    for query, row_N in enumerate(relevant_QN):
        row_N[:] = _relevant(labels_BQ[:, query], labels_BN)
    return relevant_QN


def count_relevant(labels_q: np.ndarray, labels_db: np.ndarray) -> np.ndarray:
    """`(Q,)` int64: the number of items that share a label with each query."""
    labels_BQ, labels_BN = pack_labels(labels_q), pack_labels(labels_db)
    counts = [np.count_nonzero(_relevant(query_B, labels_BN)) for query_B in labels_BQ.T]
    return np.array(counts, np.int64)


def pack_labels(labels: np.ndarray) -> np.ndarray:
    """Multi-hot `(N, C)` labels as bits, `(C / 8, N)` uint8, so that `&` finds shared labels."""
    return np.packbits(np.asarray(labels).T > 0, axis=0)


def hamming_levels(
    codes_q: np.ndarray, codes_db: np.ndarray, labels_q: np.ndarray, labels_db: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Counts `n` and `r` per Hamming distance 0..K of packed codes, `(Q, K + 1)` int64 each."""
    _check_same_width(codes_q, codes_db)
    labels_BQ, labels_BN = pack_labels(labels_q), pack_labels(labels_db)
    code_words_q, code_words_db = _words(codes_q), _words(codes_db)
    levels = codes_q.shape[1] * 8 + 1
    counts = np.empty((len(codes_q), 2, levels), np.int64)
    # One histogram for both counts: distances of relevant items are shifted by the number of levels.
    small = np.uint8 if 2 * levels <= 256 else np.uint16
    for query in range(len(codes_q)):
        keys_N = np.multiply(_relevant(labels_BQ[:, query], labels_BN), levels, dtype=small)
        for word_q, word_db in zip(code_words_q, code_words_db, strict=True):
            keys_N += np.bitwise_count(word_db ^ word_q[query])
        counts[query] = np.bincount(keys_N, minlength=2 * levels).reshape(2, levels)
    return counts.sum(axis=1), counts[:, 1]


def score_levels(
    scores: np.ndarray, relevant: np.ndarray, tie_tolerance: float = 0.0, ties: str = "expected"
) -> tuple[np.ndarray, np.ndarray]:
    """Counts per level of one query's scores: `n` and `r`, `(L,)` int64 each, the largest score first.

    Args:
        scores: `(N,)`, larger is nearer.
        relevant: `(N,)` bool.
        tie_tolerance: Maximum difference of tied neighbors in the ranking.
        ties: `"expected"` counts a tie as one level; `"stable"` breaks it by position, into levels of one item.
    """
    if ties == "stable":
        order = np.argsort(-scores, kind="stable")
        if tie_tolerance > 0:
            ordered = scores[order]
            level = np.concatenate(([0], np.cumsum(ordered[:-1] - ordered[1:] > tie_tolerance)))
            order = order[np.lexsort((order, level))]
        return np.ones(len(scores), np.int64), relevant[order].astype(np.int64)
    if ties != "expected":
        raise QueryError(f"Ties are broken as 'expected' or 'stable', not {ties!r}.")
    # Two sorts and a search are several times as fast as one argsort.
    ascending = np.sort(scores)
    starts = np.concatenate(([0], np.flatnonzero(np.diff(ascending) > tie_tolerance) + 1))
    level_of_relevant = np.searchsorted(ascending[starts], np.sort(scores[relevant]), side="right") - 1
    n = np.diff(starts, append=len(scores))
    r = np.bincount(level_of_relevant, minlength=len(starts))
    return n[::-1], r[::-1]


def iterate_levels(
    ranking: str,
    queries: np.ndarray,
    codes_db: np.ndarray,
    labels_q: np.ndarray,
    labels_db: np.ndarray,
    ties: str = "expected",
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Counts `n` and `r`, `(queries, L)` each, for successive batches of queries.

    Args:
        ranking: `"hamming"`, or `"aqd"` for `<z_q, B_x>` (`[aqd]`, see docs/method.md).
        queries: Packed codes for Hamming, `(Q, K)` rounded float32 continuous codes for AQD.
        codes_db, labels_q, labels_db: As in `hamming_levels`.
        ties: As in `score_levels`. Distances and scores are exact, so ties are equal.
    """
    if ranking == "hamming" and ties == "expected":
        yield hamming_levels(queries, codes_db, labels_q, labels_db)
        return
    labels_BQ, labels_BN = pack_labels(labels_q), pack_labels(labels_db)
    signs_KN = None if ranking == "hamming" else unpack(codes_db).T.astype(np.float32)
    step = max(1, _PAIRS_AT_ONCE // len(codes_db))
    for start in range(0, len(queries), step):
        chunk = queries[start : start + step]
        scores_QN = -hamming_distances(chunk, codes_db) if signs_KN is None else chunk @ signs_KN
        for query, scores_N in enumerate(scores_QN, start):
            n, r = score_levels(scores_N, _relevant(labels_BQ[:, query], labels_BN), ties=ties)
            yield n[None], r[None]


def _relevant(query_B: np.ndarray, labels_BN: np.ndarray) -> np.ndarray:
    # A query has few labels, so most bytes are skipped: the time does not grow with the number of classes.
    shared_N = np.zeros(labels_BN.shape[1], np.uint8)
    for byte in np.flatnonzero(query_B):
        shared_N |= labels_BN[byte] & query_B[byte]
    return shared_N > 0


def _words(codes: np.ndarray) -> list[np.ndarray]:
    """Packed codes as contiguous columns `(N,)` of the widest integers that fit."""
    size = next(size for size in (8, 4, 2, 1) if codes.shape[1] % size == 0)
    words = np.ascontiguousarray(codes).view(f"u{size}")
    return [np.ascontiguousarray(words[:, column]) for column in range(words.shape[1])]


def _check_same_width(codes_q: np.ndarray, codes_db: np.ndarray) -> None:
    if codes_q.shape[1] != codes_db.shape[1]:
        raise QueryError(f"The queries have {codes_q.shape[1] * 8} bits, the database has {codes_db.shape[1] * 8}.")
