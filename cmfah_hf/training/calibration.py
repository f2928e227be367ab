"""Calibration of a model on held-out pairs: at the end of a training, of a compression, or of a saved model."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import datasets

from cmfah_hf.atomic import write_text
from cmfah_hf.data import load_image_text
from cmfah_hf.documents import read_json
from cmfah_hf.errors import CheckpointError, DataError
from cmfah_hf.evaluation.calibration import FEWEST_QUERIES, fit_calibration, measure_calibration
from cmfah_hf.evaluation.cosine_counts import MOST_ITEMS, MOST_LABELS, CodedPairs, share_of_relevant, spread
from cmfah_hf.hub.model_folder import METRICS_NAME
from cmfah_hf.models import CMFAHModel, CMFAHProcessor
from cmfah_hf.retrieval import CrossMediaRetriever
from cmfah_hf.retrieval.calibration import CALIBRATION_NAME, Calibration
from cmfah_hf.retrieval.fingerprint import fingerprint_of
from cmfah_hf.training.data.streams import PairStream
from cmfah_hf.training.evaluate import EncodedPairs, encode_pairs, inputs_for
from cmfah_hf.training.preparation import PreparedRun
from cmfah_hf.training.trainer import CMFAHTrainer

logger = logging.getLogger(__name__)

_FIGURES = ("calibration", "calibration_seen")
# Rows of a split whose labels are read, of which some may be empty.
_MOST_READ = 10 * MOST_LABELS


def validation_calibration(trainer: CMFAHTrainer, prepared: PreparedRun) -> Calibration | None:
    """The calibration of a trained model on the validation pairs, without a fingerprint.

    With `--protocol unseen`, the validation queries search their held-out database; otherwise the other validation
    pairs. None in all processes but the main one, with FSDP, or if there are too few pairs.
    """
    if not trainer.is_world_process_zero() or trainer.is_fsdp_enabled:
        return None
    model, processor = trainer.pretraining.cmfah, cast(CMFAHProcessor, trainer.processing_class)
    tokens = prepared.kept_tokens(model.text_model, processor)
    sides: dict[str, CodedPairs] = {}
    for name in ("validation", "validation_database"):
        if (pairs := prepared.pairs.splits.get(name)) is not None:
            pairs = pairs if isinstance(pairs, PairStream) else pairs.select(spread(len(pairs), MOST_ITEMS))
            sides[name] = coded(
                encode_pairs(model, processor, pairs, prepared.text_column, expander=prepared.expander, tokens=tokens)
            )
    share = None if prepared.pairs.is_stream else _share([prepared.pairs.all])
    bits, database = model.config.hash_bits, sides.get("validation_database")
    calibration = fit_calibration("", bits, sides["validation"], database, share)
    if calibration is None:
        logger.info("There are too few validation pairs for a calibration; `cmfah calibrate` makes one of other pairs.")
    return calibration


def save_calibration(
    calibration: Calibration | None, folder: Path, towers: CMFAHModel, processor: CMFAHProcessor, expander: Any
) -> None:
    """Saves the calibration of a finished model next to it, with its fingerprint; None removes an earlier one."""
    path = folder / CALIBRATION_NAME
    if calibration is None:
        path.unlink(missing_ok=True)
    else:
        replace(calibration, model=fingerprint_of(towers, processor, expander)).save(path)


def calibration_figures(
    calibration: Calibration | None, sides: Mapping[str, EncodedPairs], protocol: str
) -> dict[str, dict[str, Any]]:
    """The figures of `measure_calibration` on the test queries.

    `calibration`, against items that the model was not trained on: its database with the protocol `"unseen"`, otherwise
    the other test pairs; then `calibration_seen` is against the training pairs. Empty without a calibration.
    """
    if calibration is None:
        return {}
    found = {name: coded(side) for name, side in sides.items()}
    queries, database = found["queries"], found.get("database")
    figures = {"calibration": measure_calibration(calibration, queries, database if protocol == "unseen" else None)}
    if protocol != "unseen" and database is not None and calibration.relevance == "labels":
        figures["calibration_seen"] = measure_calibration(calibration, queries, database)
    return figures


def coded(side: EncodedPairs) -> CodedPairs:
    """Encoded pairs as a calibration takes them."""
    return CodedPairs(side.images, side.texts, side.labels)


def _share(splits: Iterable[datasets.Dataset]) -> float | None:
    """The share of relevant items by the labels of all pairs, training pairs included; None without labels."""
    labels: list[Sequence[str]] = []
    for pairs in splits:
        if "labels" in pairs.column_names:
            column = pairs.select_columns(["labels"]).with_format(None).select(spread(len(pairs), _MOST_READ))
            labels += [names or () for names in column["labels"]]
    return share_of_relevant(labels)


def calibrate_folder(
    model: str, dataset: str, split: str | None = None, database_split: str | None = None, captions: str = "auto"
) -> Calibration:
    """Fits a calibration of a saved model to pairs that it was not trained on, and saves it next to the model.

    Args:
        model: The folder of a model.
        dataset: As in `load_image_text`.
        split: The split of the queries. None: `query` if the data has it, or its only split.
        database_split: The split that is searched. None: the other pairs of `split`.
        captions: As in `load_image_text`.

    Raises:
        CMFAHError: If the model or the data cannot be used, the model is not in a folder, a split is missing, or there
            are too few pairs.
    """
    folder = Path(model)
    if not folder.is_dir():
        raise CheckpointError(f"{model} is no folder, and a calibration is saved next to its model; download it first.")
    retriever = CrossMediaRetriever.from_pretrained(model, calibration=False)
    loaded = load_image_text(dataset, captions=captions)
    split = split or ("query" if "query" in loaded or len(loaded) > 1 else next(iter(loaded)))
    names = [split] if database_split is None else [split, database_split]
    for name in names:
        if name not in loaded:
            raise DataError(f"{dataset}: there is no split {name!r}; there are {', '.join(loaded)}.")
    sides: list[CodedPairs] = []
    for name in names:
        pairs, text_column = inputs_for(retriever, loaded[name], dataset)
        sides.append(
            coded(encode_pairs(retriever.model, retriever.processor, pairs, text_column, expander=retriever.expander))
        )
    bits = retriever.model.config.hash_bits
    share = _share(loaded.values())
    database = sides[1] if database_split is not None else None
    calibration = fit_calibration(retriever.fingerprint, bits, sides[0], database, share)
    if calibration is None:
        raise DataError(
            f"{dataset}: the split {split!r} is too small for a calibration; give {FEWEST_QUERIES} pairs or more, some "
            "of them relevant to each other."
        )
    calibration.save(folder / CALIBRATION_NAME)
    _drop_figures(folder / METRICS_NAME)
    return calibration


def _drop_figures(path: Path) -> None:
    """Removes the figures of an earlier calibration from `metrics.json`, because a card would show them as its own."""
    content = read_json(path, CheckpointError) if path.is_file() else None
    if isinstance(content, dict) and not content.keys().isdisjoint(_FIGURES):
        kept = {name: value for name, value in content.items() if name not in _FIGURES}
        write_text(path, json.dumps(kept, indent=2) + "\n", CheckpointError)
