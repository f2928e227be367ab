"""Linear reference: logistic regression on frozen regions and words or tokens, whose C is chosen on validation pairs.

Shapes: `N` items, `D` features, `C` classes, `Q` queries.
"""

import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from cmfah_hf.evaluation import RetrievalEvaluator
from cmfah_hf.evaluation.curve_files import CURVES_NAME, write_curves
from cmfah_hf.evaluation.levels import count_relevant, relevance
from cmfah_hf.evaluation.metrics import mean_average_precision, random_ranking_map
from cmfah_hf.experiments.features import Items, items_of_run, of_length_one
from cmfah_hf.experiments.results import Fitted, figures_of_queries, figures_of_validation
from cmfah_hf.training.settings.configuration import Run

logger = logging.getLogger(__name__)

# Candidates of the inverse regularization strength of each modality.
STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
# Maximum steps of a fit, which is then used even if it has not converged.
_MOST_STEPS = 1000
_MODALITIES = ("image", "text")
_DIRECTIONS = {"i2t": ("image", "text"), "t2i": ("text", "image")}


def linear_reference(run: Run, output: Path) -> Fitted:
    """The figures of the linear reference on the data of a run; its curves become a file of the output.

    There is one logistic regression per class and modality, and items are ranked by the cosine of their class
    posteriors, without hashing. `read_items` says what the features are. The validation queries choose one of
    `STRENGTHS` for each modality, ranked against the database of the run's protocol. All pairs except the held-out
    database are then fitted.

    Args:
        run, output: As in `items_of_run`.

    Raises:
        DataError: As in `items_of_run`.
        CMFAHError: If scikit-learn is not installed.
    """
    start = time.monotonic()
    items = items_of_run(run, output)
    database = items.get("validation_database", items["train"])
    strengths, validation = choose_strengths(items["train"], items["validation"], database)
    logger.info("C chosen on %d validation queries: %s", len(items["validation"].labels), strengths)
    fitted = {name: fit(items["all"], name, strengths[name]) for name in _MODALITIES}
    seconds = time.monotonic() - start
    figures = figures_of_validation(validation, run.data.protocol, "cosine")
    databases = {run.data.protocol: items.get("database", items["all"])}
    databases.setdefault("seen", items["all"])
    write_curves(curves_of(fitted, items["query"], databases[run.data.protocol]), output / CURVES_NAME)
    for name, searched in databases.items():
        figures += figures_of_queries(measure(fitted, items["query"], searched), name)
    return Fitted(figures, seconds)


def choose_strengths(
    train: Items, queries: Items, database: Items, strengths: Sequence[float] = STRENGTHS
) -> tuple[dict[str, float], dict[str, float]]:
    """Chooses the strengths with the best MAP on validation queries, in the mean of both directions.

    Returns:
        `C` by modality, and the figures by the names of a trainer's log.
    """
    encoded = {
        (modality, c): [posteriors(models, side, modality) for side in (queries, database)]
        for modality, c in product(_MODALITIES, strengths)
        for models in [fit(train, modality, c)]
    }
    relevant_QN = relevance(queries.labels, database.labels)
    best: dict[str, float] = {}
    chosen: dict[str, float] = {}
    for pair in product(strengths, repeat=2):
        c = dict(zip(_MODALITIES, pair, strict=True))
        maps = {
            direction: ranked_map(encoded[query, c[query]][0], encoded[found, c[found]][1], relevant_QN)
            for direction, (query, found) in _DIRECTIONS.items()
        }
        mean = sum(maps.values()) / 2
        if not best or mean > best["eval_map"]:
            best = {"eval_map": mean, **{f"eval_map_{direction}": value for direction, value in maps.items()}}
            chosen = c
    counts = count_relevant(queries.labels, database.labels)
    best["eval_map_random"] = random_ranking_map(counts, len(database.labels))
    return chosen, best


def measure(fitted: Mapping[str, list[Any]], queries: Items, database: Items) -> dict[str, float]:
    """MAP of both directions by the cosine of the posteriors, and of a random ranking."""
    relevant_QN = relevance(queries.labels, database.labels)
    figures = {}
    for direction, (query, found) in _DIRECTIONS.items():
        asked, searched = posteriors(fitted[query], queries, query), posteriors(fitted[found], database, found)
        figures[f"cosine/{direction}/map"] = ranked_map(asked, searched, relevant_QN)
    counts = count_relevant(queries.labels, database.labels)
    return {**figures, "random/map": random_ranking_map(counts, len(database.labels))}


def curves_of(fitted: Mapping[str, list[Any]], queries: Items, database: Items) -> dict[str, dict[str, np.ndarray]]:
    """The curves of both directions by the cosine of the posteriors, as of `RetrievalEvaluator.curves`."""
    sides = [posteriors(fitted[name], side, name) for side in (queries, database) for name in _MODALITIES]
    labels = [queries.labels, database.labels]
    return RetrievalEvaluator(ranking="cosine").curves(*sides, *labels)


def fit(items: Items, modality: str, c: float) -> list[Any]:
    """One classifier per class, or a constant probability if all items have the same label.

    Image classifiers also train on mirror images, if the items have any.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    models: list[Any] = []
    x_ND, labels_NC = items.samples(modality)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for labels_N in labels_NC.T:
            if labels_N.all() or not labels_N.any():
                models.append(float(labels_N[0]))
            else:
                models.append(LogisticRegression(C=c, max_iter=_MOST_STEPS).fit(x_ND, labels_N))
    return models


def posteriors(models: Sequence[Any], items: Items, modality: str) -> np.ndarray:
    """Class posteriors `(N, C)` of length 1, so that their products are cosines."""
    x = items.features[modality]
    columns = [
        np.full(x.shape[0], model) if isinstance(model, float) else model.predict_proba(x)[:, 1] for model in models
    ]
    return of_length_one(np.stack(columns, axis=1))


def ranked_map(queries_QC: np.ndarray, database_NC: np.ndarray, relevant_QN: np.ndarray) -> float:
    """MAP of a ranking by inner products, which tie if they differ only by rounding."""
    return mean_average_precision(queries_QC @ database_NC.T, relevant_QN, tie_tolerance=1e-6)
