"""Counts per level of a ranking, from codes, scores, and labels or pair keys: the input of all metrics.

A level is a set of tied items, with one Hamming distance or score. `n` is the number of its items, `r` the number of
relevant ones. Levels may be empty (`n = 0`), so the counts of several queries can share a matrix. Neighboring levels
without relevant items may be counted as one, which changes no metric.

Shapes: `Q` queries, `N` database items, `K` bits, `C` classes, `L` levels from the nearest to the farthest, `B` bytes
of 8 classes each. Packed codes are `(Q, K / 8)` and `(N, K / 8)` uint8. An item is relevant if it shares a label with
the query, by multi-hot labels `(Q, C)` and `(N, C)`, or if their keys, `(Q,)` and `(N,)` integers, are equal.
"""

from collections.abc import Callable, Iterator

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
    """`(Q, N)` bool: whether query and item share at least one label, or their key."""
    relevant_to = _relevance_of(labels_q, labels_db)
    relevant_QN = np.empty((len(labels_q), len(labels_db)), bool)
    for query, row_N in enumerate(relevant_QN):
        row_N[:] = relevant_to(query)
    return relevant_QN


def count_relevant(labels_q: np.ndarray, labels_db: np.ndarray) -> np.ndarray:
    """`(Q,)` int64: the number of items that share a label, or the key, with each query."""
    relevant_to = _relevance_of(labels_q, labels_db)
    return np.array([np.count_nonzero(relevant_to(query)) for query in range(len(labels_q))], np.int64)


def pack_labels(labels: np.ndarray) -> np.ndarray:
    """Multi-hot `(N, C)` labels as bits, `(C / 8, N)` uint8, so that `&` finds shared labels."""
    return np.packbits(np.asarray(labels).T > 0, axis=0)


def hamming_levels(
    codes_q: np.ndarray, codes_db: np.ndarray, labels_q: np.ndarray, labels_db: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Counts `n` and `r` per Hamming distance 0..K of packed codes, `(Q, K + 1)` int64 each."""
    _check_same_width(codes_q, codes_db)
    relevant_to = _relevance_of(labels_q, labels_db)
    code_words_q, code_words_db = _words(codes_q), _words(codes_db)
    levels = codes_q.shape[1] * 8 + 1
    counts = np.empty((len(codes_q), 2, levels), np.int64)
    # One histogram for both counts: distances of relevant items are shifted by the number of levels.
    small = np.uint8 if 2 * levels <= 256 else np.uint16
    for query in range(len(codes_q)):
        keys_N = np.multiply(relevant_to(query), levels, dtype=small)
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
    n, smallest = tied_scores(scores, tie_tolerance)
    level_of_relevant = np.searchsorted(smallest, np.sort(scores[relevant]), side="right") - 1
    r = np.bincount(level_of_relevant, minlength=len(n))
    return n[::-1], r[::-1]


def tied_scores(scores: np.ndarray, tie_tolerance: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """The number of items and the smallest score of each level, `(L,)` each, in *ascending* order of scores `(N,)`."""
    ascending = np.sort(scores)
    starts = np.concatenate(([0], np.flatnonzero(np.diff(ascending) > tie_tolerance) + 1))
    return np.diff(starts, append=len(scores)), ascending[starts]


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
        ranking: `"hamming"`; `"aqd"` for `<z_q, B_x>` (`[aqd]`, see docs/method.md); or `"cosine"`.
        queries: Packed codes for Hamming, `(Q, K)` rounded float32 continuous codes for AQD, `unit_rows` for cosine.
        codes_db: Packed codes, or `(N, K)` `unit_rows` for cosine.
        labels_q, labels_db: Labels or keys.
        ties: As in `score_levels`. Distances and scores are exact, so tied ones are equal.
    """
    if ranking == "hamming" and ties == "expected":
        yield hamming_levels(queries, codes_db, labels_q, labels_db)
        return
    relevant_to = _relevance_of(labels_q, labels_db)
    items_KN = None
    if ranking != "hamming":
        items_KN = codes_db.T if ranking == "cosine" else unpack(codes_db).T.astype(np.float32)
    step = max(1, _PAIRS_AT_ONCE // len(codes_db))
    for start in range(0, len(queries), step):
        chunk = queries[start : start + step]
        scores_QN = -hamming_distances(chunk, codes_db) if items_KN is None else chunk @ items_KN
        relevant = ((scores_N, relevant_to(query)) for query, scores_N in enumerate(scores_QN, start))
        if labels_q.ndim == 1 and ties == "expected":
            yield _stacked([_levels_of_few(*given) for given in relevant])
            continue
        for given in relevant:
            n, r = score_levels(*given, ties=ties)
            yield n[None], r[None]


def unit_rows(values_NK: np.ndarray) -> np.ndarray:
    """Rows of length 1, or of zeros, as multiples of 2^-20: `(N, K)` float64.

    Every partial sum of their products is then exact in float64, in any order. So rows that differ only in length, and
    codes of +-1 at one Hamming distance, tie on any machine. The rounding moves a cosine by at most `sqrt(K) * 2^-20`.
    """
    values_NK = np.asarray(values_NK, np.float64)
    largest_N1 = np.abs(values_NK).max(axis=1, keepdims=True)
    scaled_NK = values_NK / np.where(largest_N1 > 0, largest_N1, 1)  # squares neither overflow nor vanish
    lengths_N1 = np.linalg.norm(scaled_NK, axis=1, keepdims=True)
    return np.rint(scaled_NK / np.where(lengths_N1 > 0, lengths_N1, 1) * 2**20) / 2**20


def _levels_of_few(scores_N: np.ndarray, relevant_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts like those of `score_levels`, without sorting: one level for all items between two relevant scores."""
    scores, counts = np.unique(scores_N[relevant_N], return_counts=True)
    ends = [bound for score in scores[::-1] for bound in (np.sum(scores_N > score), np.sum(scores_N >= score))]
    r = np.zeros(len(ends) + 1, np.int64)
    r[1::2] = counts[::-1]
    return np.diff([0, *ends, len(scores_N)]), r


def _stacked(levels: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Levels of several queries as matrices, with empty levels at the end."""
    width = max(len(n) for n, _ in levels)
    stacked = np.zeros((2, len(levels), width), np.int64)
    for query, (n, r) in enumerate(levels):
        stacked[0, query, : len(n)], stacked[1, query, : len(r)] = n, r
    return stacked[0], stacked[1]


def _relevance_of(labels_q: np.ndarray, labels_db: np.ndarray) -> Callable[[int], np.ndarray]:
    """A function from the number of a query to its relevant items, `(N,)` bool."""
    if labels_q.ndim == 1:
        return lambda query: labels_db == labels_q[query]
    if labels_q.shape[1] != labels_db.shape[1]:
        raise QueryError(f"The queries have {labels_q.shape[1]} classes, the database has {labels_db.shape[1]}.")
    labels_BQ, labels_BN = pack_labels(labels_q), pack_labels(labels_db)
    return lambda query: _relevant(labels_BQ[:, query], labels_BN)


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
