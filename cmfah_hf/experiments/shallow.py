"""Shallow methods in experiments: fitted to the features of a run, and measured like trained models."""

import time
from pathlib import Path

import numpy as np

from cmfah_hf.evaluation import RetrievalEvaluator
from cmfah_hf.evaluation.curve_files import CURVES_NAME, write_curves
from cmfah_hf.experiments.curves import curve_name
from cmfah_hf.experiments.features import Items, items_of_run
from cmfah_hf.experiments.results import Fitted, figures_of_queries
from cmfah_hf.methods.shallow.hasher import ShallowHasher
from cmfah_hf.training.settings.configuration import Run

METRICS = ("map", "map_stable", "map@k", "precision@k", "random", "constant")


def shallow_reference(run: Run, hasher: ShallowHasher, output: Path) -> Fitted:
    """The figures of a shallow method on the data of a run.

    It is fitted to all training pairs, with the settings of its paper, and saved to the folder `model` of the output,
    next to the file of its curves.
    Items are encoded alone (`single`); a method whose paper gives the database the codes of pairs or those of `fit` is
    measured with these too (`pair`, `learnt`).

    Args:
        run: As in `items_of_run`.
        hasher: The method.
        output: The folder of the run.

    Raises:
        DataError: If the data cannot be read, or the method cannot be fitted to it.
    """
    start = time.monotonic()
    items = items_of_run(run, output)
    train, queries = items["all"], items["query"]
    hasher.fit(*_features(train), train.labels if hasher.supervised else None)
    seconds = time.monotonic() - start
    hasher.save_pretrained(output / "model")
    databases = {run.data.protocol: items.get("database", train)}
    databases.setdefault("seen", train)
    evaluator, figures, curves = RetrievalEvaluator(METRICS), [], {}
    for name, searched in databases.items():
        for encoding, codes in _database_codes(hasher, searched, searched is train).items():
            task = (*_codes(hasher, queries), *codes, queries.labels, searched.labels)
            figures += figures_of_queries(evaluator(*task), name, encoding)
            for curve, points in evaluator.curves(*task).items():
                ranking, _, direction = curve.partition("/")
                is_main = (name, encoding) == (run.data.protocol, "single")
                curves[curve if is_main else curve_name(ranking, direction, name, encoding)] = points
    write_curves(curves, output / CURVES_NAME)
    return Fitted(figures, seconds)


def _database_codes(hasher: ShallowHasher, searched: Items, is_train: bool) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The codes of images and of texts of a database, by the name of the protocol."""
    found = {"single": _codes(hasher, searched)}
    if hasher.database == "pair":
        both_NK = hasher.encode_pair(*_features(searched))
        found["pair"] = both_NK, both_NK
    elif hasher.database == "learnt" and is_train and hasher.training_codes_ is not None:
        found["learnt"] = hasher.training_codes_, hasher.training_codes_
    return found


def _codes(hasher: ShallowHasher, items: Items) -> tuple[np.ndarray, np.ndarray]:
    images, texts = _features(items)
    return hasher.encode_image(images), hasher.encode_text(texts)


def _features(items: Items) -> tuple[np.ndarray, np.ndarray]:
    """Features of images and texts, dense."""
    images, texts = items.features["image"], items.features["text"]
    return images, texts.toarray() if hasattr(texts, "toarray") else texts
