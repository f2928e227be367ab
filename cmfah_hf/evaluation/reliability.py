"""Reliability of probabilities: the calibration error, the reliability curve, and precision and recall of a threshold.

Answers may be counted instead of listed: then each row of the arrays is a group with one probability. A group may hold
fractions of answers, such as the expected number of tied items above a cut.

Shapes: `M` groups (or answers), `B` bins.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from cmfah_hf.errors import QueryError

BINS = 10


@dataclass(frozen=True)
class Reliability:
    """The reliability curve: answers in `B` bins of equal width over [0, 1], by their probability.

    Attributes:
        counts: `(B,)` float64, the number of answers.
        predicted: `(B,)`, their mean probability; NaN for an empty bin.
        observed: `(B,)`, the share of them that is relevant; NaN for an empty bin.
    """

    counts: np.ndarray
    predicted: np.ndarray
    observed: np.ndarray

    @property
    def error(self) -> float:
        """The expected calibration error (`[calibration-error]` in docs/method.md), in [0, 1]."""
        filled = self.counts > 0
        weights = self.counts[filled] / self.counts.sum()
        return float(weights @ np.abs(self.predicted - self.observed)[filled])


def reliability_curve(probabilities: Any, relevant: Any, counts: Any = None, bins: int = BINS) -> Reliability:
    """The reliability of probabilities (`[calibration-error]`, see docs/method.md).

    Args:
        probabilities: `(M,)`, in [0, 1].
        relevant: `(M,)`, whether an answer is relevant, or with `counts` the number of relevant ones in a group.
        counts: `(M,)`, the number of answers in each group. None: 1 each.
        bins: `B`. A bin includes its upper end, the first one also 0.

    Raises:
        QueryError: If the shapes differ, there is no answer, a value is out of range, or `bins` is below 1.

    Example:
        >>> round(reliability_curve([0.9, 0.9, 0.1, 0.1], [True, False, False, False]).error, 3)
        0.25
    """
    if isinstance(bins, bool) or not isinstance(bins, (int, np.integer)) or bins < 1:
        raise QueryError(f"bins is {bins!r}; give a whole number of at least 1.")
    probabilities_M, relevant_M, counts_M = _checked(probabilities, relevant, counts)
    places_M = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], probabilities_M)
    counts_B, expected_B, relevant_B = (
        np.bincount(places_M, weights=weights_M, minlength=bins)
        for weights_M in (counts_M, counts_M * probabilities_M, relevant_M)
    )
    with np.errstate(invalid="ignore"):
        return Reliability(counts_B, expected_B / counts_B, relevant_B / counts_B)


def expected_calibration_error(probabilities: Any, relevant: Any, counts: Any = None, bins: int = BINS) -> float:
    """`reliability_curve(...).error`."""
    return reliability_curve(probabilities, relevant, counts, bins).error


def precision_and_recall(
    probabilities: Any, relevant: Any, counts: Any = None, threshold: float = 0.5
) -> tuple[float | None, float | None]:
    """Precision and recall of the answers with a probability of at least `threshold`, over all queries together.

    Precision is None if there is no such answer, recall if nothing is relevant. Arguments and errors are those of
    `reliability_curve`.
    """
    probabilities_M, relevant_M, counts_M = _checked(probabilities, relevant, counts)
    kept_M = probabilities_M >= threshold
    kept, found, wanted = counts_M[kept_M].sum(), relevant_M[kept_M].sum(), relevant_M.sum()
    return (float(found / kept) if kept else None), (float(found / wanted) if wanted else None)


def _checked(probabilities: Any, relevant: Any, counts: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    probabilities_M, relevant_M = np.asarray(probabilities, np.float64), np.asarray(relevant, np.float64)
    counts_M = np.ones_like(probabilities_M) if counts is None else np.asarray(counts, np.float64)
    if probabilities_M.ndim != 1 or not probabilities_M.shape == relevant_M.shape == counts_M.shape:
        shapes = ", ".join(str(values.shape) for values in (probabilities_M, relevant_M, counts_M))
        raise QueryError(f"Probabilities, relevance and counts have the shapes {shapes}; give one row of equal length.")
    if not counts_M.sum() > 0:
        raise QueryError("There is no answer to measure; give some.")
    if not ((probabilities_M >= 0) & (probabilities_M <= 1)).all():
        raise QueryError("A probability is not in 0..1.")
    if not ((relevant_M >= 0) & (relevant_M <= counts_M * (1 + 1e-9))).all():
        raise QueryError("More answers of a group are relevant than there are, or fewer than none.")
    return probabilities_M, relevant_M, counts_M
