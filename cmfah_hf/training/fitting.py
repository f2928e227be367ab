"""Fitting of shallow methods to the features of a run, in place of a training."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from cmfah_hf.data import encode_labels
from cmfah_hf.evaluation import RetrievalEvaluator
from cmfah_hf.evaluation.curve_files import add_curves
from cmfah_hf.methods.shallow.hasher import ShallowHasher
from cmfah_hf.methods.shallow.objectives import ShallowObjective, fill_towers
from cmfah_hf.models import CMFAHModel, CMFAHProcessor
from cmfah_hf.training.dual_encoders import EncoderVectors
from cmfah_hf.training.evaluate import EncodedPairs, encode_pairs
from cmfah_hf.training.preparation import PreparedRun
from cmfah_hf.training.trainer import CMFAHTrainer


@dataclass(frozen=True)
class FittedHasher:
    """A hasher, and the features of the pairs that it was fitted to, in place of codes."""

    hasher: ShallowHasher
    pairs: EncodedPairs


def is_fitted(prepared: PreparedRun) -> bool:
    """Whether the method of a run is fitted to features, and not trained."""
    return issubclass(prepared.run.objective_class, ShallowObjective)


def fit_towers(trainer: CMFAHTrainer, prepared: PreparedRun) -> FittedHasher:
    """Fits a shallow method to the training pairs of a trainer, and gives its towers the maps.

    Raises:
        DataError: If the method cannot be fitted, as to pairs without a label.
    """
    model = trainer.pretraining
    settings = cast(ShallowObjective, model.objective).settings
    hasher = settings.new_hasher(model.config.hash_bits, trainer.args.seed)
    pairs = _features_of(trainer, prepared, trainer.train_dataset)
    labels = encode_labels(pairs.labels, prepared.classes) if hasher.supervised else None
    hasher.fit(pairs.images, pairs.texts, labels)
    fill_towers(model.cmfah, hasher, (pairs.images, pairs.texts))
    return FittedHasher(hasher, pairs)


def figures_of_other_databases(
    fitted: FittedHasher, trainer: CMFAHTrainer, prepared: PreparedRun, queries: Any, database: Any, curves: Path
) -> dict[str, dict[str, float]]:
    """The figures with the database codes of the method's paper, if these are not of single items.

    Args:
        fitted: From `fit_towers`.
        trainer, prepared: Of the same run.
        queries, database: Pairs with labels. None as the database: the pairs of the fit.
        curves: A file of curves, to which theirs are added.

    Returns:
        `query_pair` with codes of pairs; `query_learnt` with the codes of the fit, which has seen the labels.
    """
    hasher = fitted.hasher
    if hasher.database == "single" or (hasher.database == "learnt" and database is not None):
        return {}
    asked = _features_of(trainer, prepared, queries)
    searched = fitted.pairs if database is None else _features_of(trainer, prepared, database)
    if hasher.database == "pair":
        codes_NK = hasher.encode_pair(searched.images, searched.texts)
    else:
        assert hasher.training_codes_ is not None
        codes_NK = hasher.training_codes_.astype("float32")
    hashes = hasher.encode_image(asked.images), hasher.encode_text(asked.texts)
    task = (*hashes, codes_NK, codes_NK, asked.labels, searched.labels)
    evaluator = RetrievalEvaluator(prepared.run.data.metrics)
    add_curves(evaluator.curves(*task), prepared.run.data.protocol, hasher.database, curves)
    return {f"query_{hasher.database}": evaluator(*task)}


def _features_of(trainer: CMFAHTrainer, prepared: PreparedRun, pairs: Any) -> EncodedPairs:
    features = cast(CMFAHModel, EncoderVectors(trainer.pretraining.cmfah))
    processor = cast(CMFAHProcessor, trainer.processing_class)
    return encode_pairs(
        features,
        processor,
        pairs,
        prepared.text_column,
        expander=prepared.expander,
        tokens=prepared.tested_tokens(trainer.pretraining.cmfah.text_model, processor),
    )
