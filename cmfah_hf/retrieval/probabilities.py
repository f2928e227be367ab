"""Probabilities of search results by the calibration of a model, and the answers that reach a threshold.

Shapes: `Q` queries, `k` answers a query, `K` bits.
"""

from dataclasses import replace
from typing import Protocol

import numpy as np

from cmfah_hf.errors import QueryError
from cmfah_hf.retrieval.calibration import Calibration
from cmfah_hf.retrieval.results import SearchResults
from cmfah_hf.retrieval.storage.metadata import taken

_MEDIA = {"i": "images", "t": "texts"}


class Calibrated(Protocol):
    """The part of `CrossMediaRetriever` that probabilities need."""

    calibration: Calibration | None
    any_model: bool

    @property
    def fingerprint(self) -> str: ...


def calibration_of(retriever: Calibrated) -> Calibration | None:
    """The calibration of a retriever, if it has one of its own model."""
    found = retriever.calibration
    if found is None or retriever.any_model or found.model == retriever.fingerprint:
        return found
    return None  # the weights have changed, or the file is that of another model


def check_min_score(retriever: Calibrated, min_score: float | None, metric: str, way: str) -> None:
    """Rejects a threshold that is no probability, or that the model has no probabilities for."""
    if min_score is None:
        return
    if isinstance(min_score, bool) or not isinstance(min_score, (int, float)) or not 0 <= min_score <= 1:
        raise QueryError(f"min_score is {min_score!r}; it is a probability, so give a number from 0 to 1.")
    calibration = calibration_of(retriever)
    if calibration is None:
        fault = (
            "the model has no calibration" if retriever.calibration is None else "the calibration is of another model"
        )
        raise QueryError(
            f"min_score={min_score:g}: {fault}; make one with `cmfah calibrate MODEL DATA`, or leave min_score out."
        )
    if f"{metric}/{way}" not in calibration.maps:
        raise QueryError(
            f"min_score={min_score:g}: the calibration of the model has no map for metric={metric!r} from "
            f"{_MEDIA[way[0]]} to {_MEDIA[way[2]]}; leave min_score out."
        )


def with_probabilities(
    retriever: Calibrated,
    results: SearchResults,
    queries_QK: np.ndarray,
    metric: str,
    way: str,
    items: int,
    min_score: float | None = None,
) -> SearchResults:
    """The results with their probabilities, if the model has a calibration of this direction.

    Args:
        retriever: The model and its calibration.
        results: The answers of an index.
        queries_QK: The continuous codes of the queries.
        metric, way, items: As in `Calibration.probabilities`.
        min_score: Keep only answers with at least this probability, as checked by `check_min_score`. They are the first
            ones of a query, because no answer has a larger probability than a nearer one.
    """
    calibration = calibration_of(retriever)
    if calibration is None:
        return results
    probabilities_Qk = calibration.probabilities(results.scores, queries_QK, metric, way, items)
    results = replace(results, probabilities=probabilities_Qk)
    if min_score is None or probabilities_Qk is None:
        return results
    kept_Q = (probabilities_Qk >= min_score).cumprod(axis=1).sum(axis=1)
    return _cut(results, int(kept_Q.max(initial=0)), kept_Q)


def _cut(results: SearchResults, width: int, kept_Q: np.ndarray) -> SearchResults:
    """The first `width` answers of each query."""
    queries, k = results.ids.shape
    rows = (np.arange(queries)[:, None] * k + np.arange(width)).ravel()
    return replace(
        results,
        ids=results.ids[:, :width],
        scores=results.scores[:, :width],
        metadata=None if results.metadata is None else taken(results.metadata, rows),
        probabilities=None if results.probabilities is None else results.probabilities[:, :width],
        counts=kept_Q if results.counts is None else np.minimum(kept_Q, results.counts),
    )
