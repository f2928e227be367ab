"""Fitting of a calibration to held-out pairs, and its error on others (see docs/method.md, [calibration]).

Shapes: `S` cosines. Arrays without a suffix are `(groups of queries, S)`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from cmfah_hf.evaluation.cosine_counts import CodedPairs, CosineCounts, iterate_counts, relevance_kind
from cmfah_hf.evaluation.reliability import Reliability, precision_and_recall, reliability_curve
from cmfah_hf.retrieval.calibration import Calibration, ScoreMap

# The answers of a query that the choice of a map, and the second error, look at.
TOP = 10
THRESHOLD = 0.5
# With fewer, a map would be that of these queries.
FEWEST_QUERIES = 20
_FEWEST_OF_EACH = 10
_FOLDS = 5
# Logits up to which a logistic map has points, and their number.
_LARGEST_LOGIT, _LOGISTIC_POINTS = 12.0, 97
_SMALLEST = 1e-6
# Standard deviations of cosines up to it are errors of rounding.
_NO_SPREAD = 1e-9

# From cosines `(S,)` and the numbers of all and of relevant items at them, to the points of a map.
_Fit = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def fit_calibration(
    model: str, bits: int, queries: CodedPairs, database: CodedPairs | None = None, share: float | None = None
) -> Calibration | None:
    """Fits a map for each metric and direction to pairs that the model was not trained on.

    Two maps are compared on queries that they were not fitted to, five-fold, by the log loss of the first ten answers:
    isotonic and logistic regression. The better one is then fitted to all queries.

    Args:
        model: The fingerprint of the model.
        bits: `K`.
        queries: Held-out pairs, whose images and texts are the queries.
        database: Held-out pairs that are searched. None: the other pairs of `queries`. Without labels, `queries` are
            always searched, because they contain the partners.
        share: The share of items that are relevant to a query, of more pairs than these (`share_of_relevant`). Without
            labels, it is not used.

    Returns:
        None if there are fewer than 20 queries, or no direction has ten relevant and ten other items.
    """
    kind = relevance_kind(queries, database)
    maps: dict[str, ScoreMap] = {}
    if (len(queries.labeled) if kind == "labels" else len(queries)) >= FEWEST_QUERIES:
        for name, counts in iterate_counts(kind, queries, database):
            relevant = counts.relevant.sum()
            if min(relevant, counts.counts.sum() - relevant) >= _FEWEST_OF_EACH:
                if kind == "labels" and share is not None and 0 < share < 1:
                    counts = counts.with_share(share)
                maps[name] = _fitted(counts)
    return Calibration(model, bits, kind, maps) if maps else None


def measure_calibration(
    calibration: Calibration, queries: CodedPairs, database: CodedPairs | None = None
) -> dict[str, dict[str, Any]]:
    """The errors of the probabilities of a calibration on other pairs, by metric and direction.

    Arguments are as in `fit_calibration`. The figures are `queries`, their number; `ece` and `ece@10`, the calibration
    error of all items and of the first ten answers (`[calibration-error]`); `precision` and `recall` of answers with a
    probability of at least 1/2; `share`, that of relevant items; and `bins`, the reliability curve of the first ten
    answers: rows of the number of answers, their mean probability and the share that is relevant. Directions without a
    map or without an item are left out, so all are if the calibration is by labels and the pairs have none.
    """
    measured: dict[str, dict[str, Any]] = {}
    if calibration.relevance == "labels" != relevance_kind(queries, database):
        return measured
    for name, counts in iterate_counts(calibration.relevance, queries, database):
        score_map = calibration.maps.get(name)
        if score_map is None or not counts.counts.any():
            continue
        pooled, top = counts.pooled(1), counts.top(TOP).pooled(1)
        probabilities = calibration.at(score_map, counts.cosines, counts.items)[None]
        figures = {"queries": len(counts.counts), **_figures(pooled, top, probabilities)}
        measured[name] = {**figures, "bins": _bins(top, probabilities)}
    return measured


def isotonic_points(cosines: np.ndarray, counts: np.ndarray, relevant: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centered isotonic regression: `(points,)` cosines and probabilities (`[calibration]`, see docs/method.md).

    Args:
        cosines: `(S,)`, ascending.
        counts, relevant: `(S,)`, the numbers of items and of relevant ones.
    """
    from scipy.optimize import isotonic_regression

    filled = counts > 0
    cosines_S, counts_S, relevant_S = cosines[filled], counts[filled], relevant[filled]
    shares_S = isotonic_regression(relevant_S / counts_S, weights=counts_S).x
    blocks_S = np.concatenate([[0], np.cumsum(np.diff(shares_S) > 0)])
    counts_B, relevant_B, sums_B = (
        np.bincount(blocks_S, weights=values) for values in (counts_S, relevant_S, counts_S * cosines_S)
    )
    # Half an item of each kind, so that a few items at the end are not certain.
    smoothed_B = (relevant_B + 0.5) / (counts_B + 1)
    return sums_B / counts_B, isotonic_regression(smoothed_B, weights=counts_B + 1).x


def logistic_points(cosines: np.ndarray, counts: np.ndarray, relevant: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logistic regression with Platt's targets; arguments and result are those of `isotonic_points`.

    A falling curve is replaced by a constant one.
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    others = counts - relevant
    high, low = (relevant.sum() + 1) / (relevant.sum() + 2), 1 / (others.sum() + 2)
    wanted = relevant * high + others * low
    mean = counts @ cosines / counts.sum()
    spread = float(np.sqrt(counts @ np.square(cosines - mean) / counts.sum()))
    spread = spread if spread > _NO_SPREAD else 1.0
    inputs = (cosines - mean) / spread

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        logits = parameters[0] * inputs + parameters[1]
        residuals = (counts * expit(logits) - wanted) / counts.sum()
        value = (counts @ np.logaddexp(0, logits) - wanted @ logits) / counts.sum()
        return value, np.array([residuals @ inputs, residuals.sum()])

    slope, intercept = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS").x
    if slope <= 0:
        return np.array([mean]), np.array([wanted.sum() / counts.sum()])
    logits = np.linspace(-_LARGEST_LOGIT, _LARGEST_LOGIT, _LOGISTIC_POINTS)
    points = (logits - intercept) / slope * spread + mean
    inside = (points > -1) & (points < 1)
    points = np.concatenate([[-1.0], points[inside], [1.0]])
    return points, expit(slope * (points - mean) / spread + intercept)


_METHODS: dict[str, _Fit] = {"isotonic": isotonic_points, "logistic": logistic_points}


def _fitted(counts: CosineCounts) -> ScoreMap:
    """The better of the two maps, with its figures and reliability curve on queries that it was not fitted to."""
    folds, top = counts.pooled(_FOLDS), counts.top(TOP).pooled(_FOLDS)
    held_out_FS = {name: _held_out(fit, folds) for name, fit in _METHODS.items()}
    losses = {name: _log_loss(top, probabilities_FS) for name, probabilities_FS in held_out_FS.items()}
    chosen = min(losses, key=losses.__getitem__)
    points = _METHODS[chosen](counts.cosines, folds.counts.sum(axis=0), folds.relevant.sum(axis=0))
    figures = {"queries": len(counts.counts), "log_loss": losses[chosen], **_figures(folds, top, held_out_FS[chosen])}
    return ScoreMap(*points, counts.items, chosen, figures, _bins(top, held_out_FS[chosen]))


def _held_out(fit: _Fit, folds: CosineCounts) -> np.ndarray:
    """The probabilities `(folds, S)` in each fold by a map that was fitted to the others."""
    totals = folds.counts.sum(axis=0), folds.relevant.sum(axis=0)
    points = [
        fit(folds.cosines, totals[0] - counts_S, totals[1] - relevant_S)
        for counts_S, relevant_S in zip(folds.counts, folds.relevant, strict=True)
    ]
    return np.stack([np.interp(folds.cosines, *own) for own in points])


def _figures(counts: CosineCounts, top: CosineCounts, probabilities: np.ndarray) -> dict[str, float]:
    """The calibration errors of all items, `ece`, and of the first ten answers of each query, `ece@10`; precision and
    recall of the answers with a probability of at least 1/2, if there are any; and the share of relevant items."""
    precision, recall = precision_and_recall(
        probabilities.ravel(), counts.relevant.ravel(), counts.counts.ravel(), THRESHOLD
    )
    figures = {
        "ece": _curve(counts, probabilities).error,
        f"ece@{TOP}": _curve(top, probabilities).error,
        "precision": precision,
        "recall": recall,
        "share": float(counts.relevant.sum() / counts.counts.sum()),
    }
    return {name: value for name, value in figures.items() if value is not None}


def _curve(counts: CosineCounts, probabilities: np.ndarray) -> Reliability:
    return reliability_curve(probabilities.ravel(), counts.relevant.ravel(), counts.counts.ravel())


def _bins(counts: CosineCounts, probabilities: np.ndarray) -> list[list[float]]:
    """The reliability curve in rows: the number of answers, their mean probability and the share that is relevant."""
    curve = _curve(counts, probabilities)
    filled = curve.counts > 0
    rows = zip(curve.counts[filled], curve.predicted[filled], curve.observed[filled], strict=True)
    return [[round(float(value), 4) for value in row] for row in rows]


def _log_loss(counts: CosineCounts, probabilities: np.ndarray) -> float:
    clipped = np.clip(probabilities, _SMALLEST, 1 - _SMALLEST)
    total = counts.relevant * np.log(clipped) + (counts.counts - counts.relevant) * np.log1p(-clipped)
    return float(-total.sum() / counts.counts.sum())
