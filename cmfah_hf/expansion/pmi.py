"""Positive pointwise mutual information of words that occur near each other (see docs/method.md, [knowledge]).

Shapes: V words of the vocabulary, W counted words.
"""

from typing import Any

import numpy as np
from scipy import sparse

# Scores that are equal when rounded to this many decimals are equal, so that the order does not depend on the machine.
DECIMALS = 12


def positive_pmi(
    near_VW: sparse.csr_array, totals_W: np.ndarray, occurrences_W: np.ndarray, settings: dict[str, Any]
) -> sparse.csr_array:
    """`log(near[a, b] / totals[a] / (totals[b]^s / sum of totals^s))` where it is positive and the counts suffice."""
    pairs = near_VW.tocoo()
    a, b = pairs.row, pairs.col
    smoothed_W = totals_W.astype(np.float64) ** settings["smoothing"] * (totals_W > 0)
    sufficient = (pairs.data >= settings["min_pair_count"]) & (occurrences_W[b] >= settings["min_count"]) & (a != b)
    a, b, count = a[sufficient], b[sufficient], pairs.data[sufficient]
    scores = np.log(count / totals_W[a]) - np.log(smoothed_W[b] / smoothed_W.sum())
    positive = np.round(scores, DECIMALS) > 0
    return sparse.csr_array((scores[positive], (a[positive], b[positive])), shape=near_VW.shape)


def largest_scores(scores_VW: sparse.csr_array, words: list[str], k: int) -> sparse.csr_array:
    """The `k` largest scores of each row; ties in alphabetical order."""
    alphabet_W = np.empty(len(words), dtype=np.int64)
    alphabet_W[sorted(range(len(words)), key=words.__getitem__)] = np.arange(len(words))
    rows = np.repeat(np.arange(scores_VW.shape[0]), np.diff(scores_VW.indptr))
    order = np.lexsort((alphabet_W[scores_VW.indices], -np.round(scores_VW.data, DECIMALS), rows))
    place_in_row = np.arange(len(order)) - scores_VW.indptr[rows]
    kept = order[place_in_row < k]
    return sparse.csr_array((scores_VW.data[kept], (rows[kept], scores_VW.indices[kept])), shape=scores_VW.shape)
