"""Retrieval metrics under ties, as pure functions on arrays.

Hash codes have many ties, and the order within a tie is arbitrary. Every figure is therefore the expectation over all
orders of tied items with equal probabilities (McSherry and Najork, ECIR 2008), in closed form from the counts `(n, r)`
per level of the ranking (see levels.py). A ranking without ties has one item per level. An item is relevant if it
shares at least one label with the query, or belongs to the query's pair.

Shapes: `Q` queries, `N` database items, `L` levels, nearest first. `n` and `r` are `(Q, L)` integers: the numbers of
items and of relevant items in a level. All results are float64, in [0, 1] except for ranks.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cmfah_hf.errors import QueryError
from cmfah_hf.evaluation.levels import score_levels, tied_scores

VARIANTS = (None, "dcmh")
Counts = np.ndarray | int
Depths = np.ndarray | Sequence[int]


def mean_average_precision(scores: np.ndarray, relevant: np.ndarray, **options: Any) -> float:
    """The mean of `average_precision`, with its options, over the queries; 0 for queries without relevant items.

    Example:
        >>> float(mean_average_precision(np.array([[3, 2, 2, 1]]), np.array([[True, False, True, False]])))
        0.9166666666666666
    """
    return float(average_precision(scores, relevant, **options).mean())


def average_precision(
    scores: np.ndarray,
    relevant: np.ndarray,
    *,
    ties: str = "expected",
    k: int | None = None,
    variant: str | None = None,
    tie_tolerance: float = 0.0,
) -> np.ndarray:
    """The average precision of each query, `(Q,)`.

    Args:
        scores: `(Q, N)`, larger is nearer; negative distances (not of an unsigned type).
        relevant: `(Q, N)` bool.
        ties: `"expected"`, over all orders of ties, or `"stable"`, with ties in database order.
        k, variant: As in `expected_average_precision`.
        tie_tolerance: Maximum difference of tied neighbors in the ranking; 1e-6 suits real-valued scores in float32.

    Raises:
        QueryError: If the shapes differ, the database is empty, or a score is NaN.
    """
    scores, relevant = _same_shape(scores, np.asarray(relevant, dtype=bool), "relevance")
    result = np.empty(len(scores))
    for query, (scores_N, relevant_N) in enumerate(zip(scores, relevant, strict=True)):
        n, r = score_levels(scores_N, relevant_N, tie_tolerance, ties)
        result[query] = expected_average_precision(n[None], r[None], k, variant)[0]
    return result


def expected_average_precision(
    n: np.ndarray, r: np.ndarray, k: int | None = None, variant: str | None = None
) -> np.ndarray:
    """The expected average precision of each query over all orders of its ties, `(Q,)`; 0 without relevant items.

    `AP = 1/R * sum over relevant items of the precision at their rank`. Without `k`, the sum is over the whole database
    (MAP@ALL). For MAP@k there are two conventions, which differ by several points and are not comparable:

    - `variant=None`: the mean over the relevant items among the first `k` (0 without any), as in most hashing code and
      torchmetrics.
    - `variant="dcmh"`: the mean over the first `k` *relevant* items at any depth, as in the published code of DCMH and
      code derived from it.

    Raises:
        QueryError: If the variant is unknown, or `k` is below 1.
    """
    if variant not in VARIANTS:
        raise QueryError(f"There is no variant {variant!r} of MAP@k; choose None or 'dcmh'.")
    n, r = np.asarray(n, dtype=np.int64), np.asarray(r, dtype=np.int64)
    before_n, before_r = np.cumsum(n, axis=1) - n, np.cumsum(r, axis=1) - r
    relevant_Q = r.sum(axis=1)
    if k is None:
        whole = r > 0
    elif k < 1:
        raise QueryError(f"k must be at least 1, not {k!r}.")
    else:
        whole = (r > 0) & ((before_n + n <= k) if variant is None else (before_r + r <= k))
    queries, levels = np.nonzero(whole)
    sums_Q = np.bincount(
        queries,
        weights=_precision_sum(*(counts[queries, levels] for counts in (before_n, before_r, n, r))),
        minlength=len(n),
    )
    if k is None:
        return sums_Q / np.maximum(relevant_Q, 1)
    result = sums_Q / np.maximum(np.where(whole, r, 0).sum(axis=1), 1)
    # At most one level of a query is divided, in which the rank (or the number of relevant items) passes k.
    before, size = (before_n, n) if variant is None else (before_r, r)
    for query, level in np.argwhere((before < k) & (before + size > k) & (r > 0)):
        at_n, at_r, size_n, size_r = (int(counts[query, level]) for counts in (before_n, before_r, n, r))
        cut = _cut_by_rank if variant is None else _cut_by_relevant
        result[query] = cut(float(sums_Q[query]), at_n, at_r, size_n, size_r, k)
    return result


def random_ranking_map(relevant: np.ndarray, database_size: int) -> float:
    """The expected MAP@ALL of a random order, for the numbers of relevant items `(Q,)` and a database of `N` items."""
    r = np.asarray(relevant, dtype=np.int64)[:, None]
    return float(expected_average_precision(np.full_like(r, database_size), r).mean())


def precision_at_k(n: np.ndarray, r: np.ndarray, ks: Depths) -> np.ndarray:
    """The expected precision of the first `k` items, `(Q, len(ks))`; ranks beyond the database count as irrelevant."""
    return _expected_relevant(n, r, ks) / np.asarray(ks)


def recall_at_k(n: np.ndarray, r: np.ndarray, ks: Depths) -> np.ndarray:
    """The expected recall of the first `k` items, `(Q, len(ks))`; 0 for queries without relevant items."""
    return _expected_relevant(n, r, ks) / np.maximum(np.sum(r, axis=1), 1)[:, None]


def hit_rate_at_k(n: np.ndarray, r: np.ndarray, ks: Depths) -> np.ndarray:
    """The probability of a relevant item among the first `k`, `(Q, len(ks))`; 0 without relevant items (`[hit-rate]`).

    Its mean over the queries is the recall at k of instance retrieval.
    """
    before_n, n_Q, r_Q = _first_relevant_level(np.asarray(n), np.asarray(r))
    hits = [1 - _none_probability(n_Q, r_Q, np.clip(k - before_n, 0, n_Q)) for k in np.asarray(ks)]
    return np.stack(hits, axis=1) if hits else np.empty((len(n_Q), 0))


def first_relevant_rank(n: np.ndarray, r: np.ndarray) -> np.ndarray:
    """The expected rank of the first relevant item, `(Q,)`, counted from 1; `N + 1` without any (`[first-rank]`)."""
    before_n, n_Q, r_Q = _first_relevant_level(np.asarray(n), np.asarray(r))
    return before_n + (n_Q + 1) / (r_Q + 1)


def ndcg_at_k(n: np.ndarray, gains: np.ndarray, ks: Depths, ideal: np.ndarray | None = None) -> np.ndarray:
    """The expected normalized discounted cumulative gain of the first `k` items, `(Q, len(ks))` (`[ndcg]`).

    Args:
        n: `(Q, L)`, the number of items in a level.
        gains: `(Q, L)`, the sum of their gains; the number of relevant items if relevance is binary.
        ks: The depths.
        ideal: `(Q, len(ks))`, the largest possible discounted gains. None: those of binary relevance. A query whose
            ideal is 0 counts 0.
    """
    n, gains = np.asarray(n, np.int64), np.asarray(gains)
    ends = np.cumsum(n, axis=1)
    depths_D = np.minimum(np.asarray(ks, np.int64), ends.max())
    discounts = _discounts(int(depths_D.max(initial=0)))
    # Every place of a level has the mean gain of the level.
    means = gains / np.maximum(n, 1)
    found = [
        np.sum(means * (discounts[np.minimum(ends, k)] - discounts[np.minimum(ends - n, k)]), axis=1) for k in depths_D
    ]
    found_QD = np.stack(found, axis=1) if found else np.empty((len(n), 0))
    if ideal is None:
        ideal = discounts[np.minimum(gains.sum(axis=1, dtype=np.int64)[:, None], depths_D)]
    return np.divide(found_QD, ideal, out=np.zeros_like(found_QD), where=np.asarray(ideal) > 0)


def normalized_dcg(scores: np.ndarray, gains: np.ndarray, k: int = 10, tie_tolerance: float = 0.0) -> np.ndarray:
    """The expected nDCG@k of each query, `(Q,)`, with binary or graded relevance (`[ndcg]`).

    Args:
        scores: `(Q, N)`, larger is nearer; as in `average_precision`.
        gains: `(Q, N)`, at least 0: the gain of each item, which counts linearly. For exponential gains, give
            `2**relevance - 1`.
        k: The depth.
        tie_tolerance: As in `average_precision`.

    Raises:
        QueryError: As `average_precision`, or if a gain is negative or `k` is below 1.
    """
    scores, gains = _same_shape(scores, np.asarray(gains, dtype=np.float64), "gains")
    if k < 1:
        raise QueryError(f"k must be at least 1, not {k!r}.")
    if not (gains >= 0).all():
        raise QueryError(f"The gains of query {np.argwhere(~(gains >= 0))[0, 0]} are not all at least 0.")
    discounts = np.diff(_discounts(min(k, scores.shape[1])))
    ideal_Q = -np.sort(-gains, axis=1)[:, : len(discounts)] @ discounts
    result = np.empty(len(scores))
    for query, (scores_N, gains_N) in enumerate(zip(scores, gains, strict=True)):
        n, smallest = tied_scores(scores_N, tie_tolerance)
        sums = np.bincount(np.searchsorted(smallest, scores_N, side="right") - 1, weights=gains_N, minlength=len(n))
        result[query] = ndcg_at_k(n[None, ::-1], sums[None, ::-1], [k], ideal_Q[query, None, None])[0, 0]
    return result


def precision_recall_curve(n: np.ndarray, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall of all items up to each level, `(L,)` each: for Hamming, within each radius.

    Levels must have the same meaning for all queries. Precision is the mean over queries with items up to the level
    (NaN without any), recall the mean over queries with relevant items.
    """
    found_n, found_r = np.cumsum(n, axis=1), np.cumsum(r, axis=1)
    finds = found_n > 0
    with np.errstate(invalid="ignore"):
        precision = np.where(finds, found_r / np.maximum(found_n, 1), 0).sum(axis=0) / finds.sum(axis=0)
    answerable = found_r[:, -1] > 0
    recall = (found_r / np.maximum(found_r[:, -1:], 1)).sum(axis=0) / max(int(answerable.sum()), 1)
    return precision, recall


def _same_shape(scores: np.ndarray, values: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    scores = np.asarray(scores)
    if scores.ndim != 2 or scores.shape != values.shape or not scores.size:
        raise QueryError(f"Scores {scores.shape} and {name} {values.shape} must both be (queries, items).")
    if scores.dtype.kind == "f" and np.isnan(scores).any():
        raise QueryError(f"The scores of query {np.flatnonzero(np.isnan(scores).any(axis=1))[0]} hold a NaN.")
    return scores, values


def _first_relevant_level(n: np.ndarray, r: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The items before the first level with relevant ones, and its `n` and `r`, `(Q,)` each.

    Without relevant items, the whole database is one level with `r = 0`.
    """
    rows, level = np.arange(len(r)), (r > 0).argmax(axis=1)
    answerable = r[rows, level] > 0
    before = (np.cumsum(n, axis=1) - n)[rows, level]
    return np.where(answerable, before, 0), np.where(answerable, n[rows, level], n.sum(axis=1)), r[rows, level]


def _none_probability(n: np.ndarray, r: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The probability that the first `places` of `n` items in random order hold none of `r`, `(Q,)`.

    It is C(n - r, places) / C(n, places), a product of min(r, places) factors, exact to the last digits.
    """
    fewer, more = np.minimum(r, places), np.maximum(r, places)
    probability = np.ones(len(n))
    for i in range(int(fewer.max(initial=0))):
        probability *= np.where(i < fewer, np.maximum(n - more - i, 0) / np.maximum(n - i, 1), 1)
    return probability


def _discounts(k: int) -> np.ndarray:
    """The sum of `1 / log2(i + 1)` over the ranks i = 1..j, for j = 0..k, `(k + 1,)`."""
    return np.concatenate(([0.0], np.cumsum(1 / np.log2(np.arange(2, k + 2)))))


def _expected_relevant(n: np.ndarray, r: np.ndarray, ks: Depths) -> np.ndarray:
    # Within a level, the expectation increases by r / n per item: it is linear between the ends of levels.
    ends_n, ends_r = (np.pad(np.cumsum(counts, axis=1), ((0, 0), (1, 0))) for counts in (n, r))
    return np.stack([np.interp(ks, *ends) for ends in zip(ends_n, ends_r, strict=True)])


def _precision_sum(before_n: Counts, before_r: Counts, n: Counts, r: Counts) -> np.ndarray:
    """The expected sum of the precisions at the relevant items of a level of `n` items, `r` of them relevant.

    The level follows `before_n` items with `before_r` relevant. Its i-th item is relevant with probability r / n, and
    then (i - 1)(r - 1) / (n - 1) relevant items of its level are expected before it. In the sum over i, only the
    harmonic difference `sum 1 / (before_n + i)` remains.
    """
    # The precision of a single item is exact, so that rankings without ties have exact figures.
    harmonic = np.where(n == 1, 1 / (before_n + 1), _harmonic_difference(before_n, n))
    others = (r - 1) / np.maximum(n - 1, 1)
    return r / n * ((before_r + 1) * harmonic + others * (n - (before_n + 1) * harmonic))


_SERIES_FROM = 64
_HARMONIC_NUMBERS = np.concatenate(([0.0], np.cumsum(1 / np.arange(1, _SERIES_FROM + 1))))


def _harmonic_difference(start: Counts, count: Counts) -> np.ndarray:
    """The sum of `1 / (start + i)` over i = 1..count, to the last digits of float64.

    The difference of two harmonic numbers would lose digits for short levels deep in large databases. Only the first 64
    are therefore from a table; beyond, the logarithms of the asymptotic series are subtracted in closed form.
    """
    start = np.asarray(start)
    end = start + count
    low = _HARMONIC_NUMBERS[np.minimum(end, _SERIES_FROM)] - _HARMONIC_NUMBERS[np.minimum(start, _SERIES_FROM)]
    start, end = np.maximum(start, _SERIES_FROM), np.maximum(end, _SERIES_FROM)
    return low + np.log1p((end - start) / (start + 0.5)) + (_series_rest(end) - _series_rest(start))


def _series_rest(x: np.ndarray) -> np.ndarray:
    # H(x) - log(x + 1/2) - Euler's constant; the next term is below 1e-16 from x = 64 on.
    square = 1 / np.square(x + 0.5)
    return square * (1 / 24 + square * (-7 / 960 + square * (31 / 8064)))


def _cut_by_rank(precisions: float, before_n: int, before_r: int, n: int, r: int, k: int) -> float:
    """AP@k if the cut is within a level, given the sum of precisions before that level.

    The number of relevant items before the cut is hypergeometric. Given this number, their positions are uniform, so
    each case is equivalent to a complete level.
    """
    places = k - before_n
    found = np.arange(max(0, places - (n - r)), min(places, r) + 1)
    probability = np.exp(_log_choose(r, found) + _log_choose(n - r, places - found) - _log_choose(n, places))
    sums = precisions + _precision_sum(before_n, before_r, places, found)
    return float(probability / probability.sum() @ (sums / np.maximum(before_r + found, 1)))


def _cut_by_relevant(precisions: float, before_n: int, before_r: int, n: int, r: int, k: int) -> float:
    """AP over the first `k` relevant items, the k-th within a level, given the sum of precisions before that level.

    The i-th item counts if it is relevant and fewer than `wanted` relevant items of its level precede it. If X precede
    it, its precision is (before_r + 1 + X) / (before_n + i), and `E[X; X < wanted]` is the expectation of X times a
    probability of the same form for a population that is smaller by one.
    """
    wanted = k - before_r
    i = np.arange(1, n + 1)
    counts = _fewer_probability(n - 1, r - 1, wanted)
    counts_given_one = np.concatenate(([0.0], _fewer_probability(n - 2, r - 2, wanted - 1)))
    relevant_before = (before_r + 1) * counts + (i - 1) * (r - 1) / (n - 1) * counts_given_one
    return float((precisions + r / n * np.sum(relevant_before / (before_n + i))) / k)


def _fewer_probability(population: int, successes: int, wanted: int) -> np.ndarray:
    """The probability of fewer than `wanted` (<= `successes`) successes in 0, 1, ..., `population` draws.

    Draws are without replacement, so it is the probability that the last wanted success comes after them.
    """
    if wanted == 0:
        return np.zeros(population + 1)
    place = np.arange(wanted, population - (successes - wanted) + 1)
    chance = np.zeros(population + 1)
    chance[place] = np.exp(
        _log_choose(place - 1, wanted - 1)
        + _log_choose(population - place, successes - wanted)
        - _log_choose(population, successes)
    )
    return 1 - np.cumsum(chance) / chance.sum()


def _log_choose(n: Counts, k: Counts) -> np.ndarray | np.float64:
    from scipy.special import gammaln

    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
