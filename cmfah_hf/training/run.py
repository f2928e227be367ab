"""One training run: from a configuration to a folder that `from_pretrained` loads."""

import json
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import TrainerCallback, set_seed

from cmfah_hf.data import collect_classes, load_image_text, resolve_data_path, train_validation_split
from cmfah_hf.data.images import drop_unreadable
from cmfah_hf.data.relevance import LabelRelevance, PairRelevance, Relevance, TagRelevance
from cmfah_hf.errors import CheckpointError, DataError
from cmfah_hf.expansion import GraphExpander, SkipGramEmbedding
from cmfah_hf.models import CMFAHConfig, CMFAHForPreTraining, CMFAHImageModel, CMFAHProcessor
from cmfah_hf.models.tokenization_cmfah import SPECIAL_TOKENS
from cmfah_hf.training.arguments import CMFAHTrainingArguments, DataArguments
from cmfah_hf.training.backbone import load_backbone_weights
from cmfah_hf.training.checkpoints import (
    begin_anew,
    disk_errors,
    find_checkpoint,
    newest_checkpoint,
    step_of,
    wants_to_resume,
)
from cmfah_hf.training.configuration import Run
from cmfah_hf.training.evaluate import evaluate_pairs
from cmfah_hf.training.region_cache import keep_regions
from cmfah_hf.training.trainer import CMFAHTrainer, without_augmentation

logger = logging.getLogger(__name__)

METRICS_NAME = "metrics.json"
REFIT_NAME = "refit"
WORDS_STEMS = ("expander", "skip_gram")


def train(run: Run) -> dict[str, Any]:
    """Trains a model and leaves it, its processor, its words and its figures in `run.training.output_dir`.

    The validation pairs choose the epoch. With `refit` a second model is then trained from the start on all pairs, the
    validation pairs among them, to that epoch of the same schedule. The test queries are looked at once, at the end.

    A run that was broken off goes on with `resume_from_checkpoint` (`find_checkpoint` says what it takes), in the refit
    too, and ends as the unbroken one would have; the words that it had made are not made again.

    Returns:
        `validation`: the best MAP there, its `epoch`, and what was relevant there (`validation_relevance`); `query`:
        the figures of `RetrievalEvaluator`, where the data has a query split with labels; and what the run was (bits,
        seed, pairs). The same stands in `metrics.json`.

    Raises:
        CMFAHError: If the data, the weights, a setting or the checkpoint cannot be used, or the disk is full.
    """
    start = time.monotonic()
    args, data = run.training, run.data
    set_seed(args.seed)
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    checkpoint = find_checkpoint(args.resume_from_checkpoint, output)
    if args.should_save and not wants_to_resume(args.resume_from_checkpoint):
        begin_anew(output)
    with args.main_process_first(local=False, desc="pictures"):
        loaded, backbone = _load(run)
        splits = _cut(data, loaded)
    classes = collect_classes(splits["train"]) if data.similarity == "labels" else []
    with args.main_process_first(local=False, desc="words"):
        expander, embedding = _words(run, splits["train"], output, checkpoint)
    text_column = "text"
    if expander is not None:
        text_column = expander.output_column
        splits = {name: pairs.map(expander, batched=True, desc="Expansion") for name, pairs in splits.items()}
    relevance, measured = _relevances(data, classes, splits, text_column)
    if isinstance(relevance, TagRelevance):
        run = replace(run, model={"positive_overlap": relevance.threshold, **run.model})
        relevance.threshold = run.model["positive_overlap"]
    model, processor = _build(run, classes, embedding, backbone)

    def trainer_of(model: CMFAHForPreTraining, args: CMFAHTrainingArguments, pairs: datasets.Dataset, **kwargs: Any):
        return CMFAHTrainer(
            model,
            args,
            pairs,
            splits["validation"],
            processing_class=processor,
            text_column=text_column,
            relevance=relevance,
            measured=measured,
            **kwargs,
        )

    trainer = trainer_of(model, args, splits["train"])
    trainer.train(resume_from_checkpoint=checkpoint)
    with disk_errors(output, "the state of the training"):
        trainer.save_state()
    best, epoch = trainer.state.best_metric, _best_epoch(trainer)
    all_pairs = datasets.concatenate_datasets([splits["train"], splits["validation"]])
    if data.refit:
        # Checkpoints of a refit belong to this run only if nothing was left to do before it.
        refit_goes_on = checkpoint is not None and trainer.state.global_step == step_of(checkpoint)
        set_seed(args.seed)
        model, processor = _build(run, classes, embedding, backbone)
        final = _refit_arguments(args, output / REFIT_NAME)
        trainer = trainer_of(model, final, all_pairs, callbacks=[_StopAfter(epoch)])
        trainer.train(resume_from_checkpoint=newest_checkpoint(final.output_dir) if refit_goes_on else None)
    with disk_errors(output, "the model"):
        trainer.save_model(str(output))
    if not trainer.is_world_process_zero():
        return {}
    metrics: dict[str, Any] = {
        "hash_bits": model.config.hash_bits,
        "seed": args.seed,
        "train_pairs": len(splits["train"]),
        "validation_pairs": len(splits["validation"]),
        "similarity": relevance.name,
        "validation": best,
        "validation_relevance": measured.name,
        "epoch": epoch,
        "refit": data.refit,
        "seconds": round(time.monotonic() - start, 1),
    }
    queries, database = splits.get("query"), splits.get("database", all_pairs)
    if queries is not None and all("labels" in pairs.column_names for pairs in (queries, database)):
        towers = trainer.accelerator.unwrap_model(trainer.model).cmfah
        metrics["query"] = evaluate_pairs(
            towers,
            processor,
            without_augmentation(queries),
            without_augmentation(database),
            text_column,
            plots=output / "plots",
        )
    with disk_errors(output, "the figures"):
        (output / METRICS_NAME).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(output / REFIT_NAME, ignore_errors=True)  # all of it is in the model now
    return metrics


def _refit_arguments(args: CMFAHTrainingArguments, folder: Path) -> CMFAHTrainingArguments:
    """Those of the second model: it is not evaluated, and keeps the last checkpoint for going on after a break."""
    return replace(
        args,
        output_dir=str(folder),
        eval_strategy="no",
        save_strategy="epoch" if args.save_strategy == "best" else args.save_strategy,
        save_total_limit=1,
        load_best_model_at_end=False,
        early_stopping_patience=None,
    )


def _relevances(
    data: DataArguments, classes: list[str], splits: Mapping[str, datasets.Dataset], text_column: str
) -> tuple[Relevance, Relevance]:
    """What makes pairs alike in training, and in the evaluation on the validation pairs: labels, if there are any."""
    if data.similarity == "labels":
        return LabelRelevance(classes), LabelRelevance(classes)
    relevance = TagRelevance.fit(splits["train"][text_column]) if data.similarity == "tags" else PairRelevance()
    sides = (splits["validation"], splits["train"])
    if not all("labels" in pairs.column_names for pairs in sides):
        return relevance, relevance
    found = sorted({name for pairs in sides for names in pairs["labels"] for name in names or ()})
    return relevance, LabelRelevance(found) if found else relevance


def _best_epoch(trainer: CMFAHTrainer) -> float:
    """The epoch of the best evaluation; the last one where none was kept."""
    state = trainer.state
    if state.best_global_step is None:
        return state.epoch
    return next(log["epoch"] for log in state.log_history if log["step"] == state.best_global_step)


class _StopAfter(TrainerCallback):
    """Ends a training after so many epochs of its schedule."""

    def __init__(self, epochs: float):
        self.epochs = epochs

    def on_train_begin(self, args, state, control, **kwargs):
        if state.epoch is not None and state.epoch >= self.epochs:  # resumed from its last checkpoint
            control.should_training_stop = True

    def on_step_end(self, args, state, control, **kwargs):
        if state.epoch >= self.epochs:
            control.should_training_stop = True


def _load(run: Run) -> tuple[dict[str, datasets.Dataset], torch.nn.Module | None]:
    """The splits as they are named, without unreadable pictures; if the backbone is frozen, their regions, and it."""
    data, config = run.data, CMFAHConfig(**run.model)
    loaded = load_image_text(
        data.dataset, image_column=data.image_column, text_column=data.text_column, labels_column=data.labels_column
    )
    _check(data, loaded)
    wanted = {data.train_split, data.validation_split, data.query_split, data.database_split}
    loaded = {name: pairs for name, pairs in loaded.items() if name in wanted}
    if not (config.freeze_backbone and data.keep_regions):
        return {name: drop_unreadable(pairs) for name, pairs in loaded.items()}, None
    image_model = CMFAHImageModel(config).to(run.training.device)
    if weights := _backbone_weights(data, config):
        load_backbone_weights(image_model, weights)
    processor = CMFAHProcessor.from_vocabulary(config, [], data.image_mean, data.image_std)
    mirrored = {data.train_split, data.validation_split} if data.mirror else set()
    splits = {
        name: keep_regions(pairs, image_model, processor, name in mirrored).remove_columns("image")
        for name, pairs in loaded.items()
    }
    return splits, image_model.embeddings.backbone


def _check(data: DataArguments, loaded: Mapping[str, datasets.Dataset]) -> None:
    """What can be known to be missing is said before the backbone sees a picture, which may take hours."""
    for name in (data.train_split, data.validation_split, data.database_split):
        if name is not None and name not in loaded:
            raise DataError(f"{data.dataset}: there is no split {name!r}; there are {', '.join(loaded)}.")
    if data.similarity == "labels" and "labels" not in loaded[data.train_split].column_names:
        raise DataError(
            f"{data.dataset}: the split {data.train_split!r} has no labels, which guide the training; add them, or "
            "give --similarity tags or --similarity pairs, which need none."
        )


def _cut(data: DataArguments, loaded: Mapping[str, datasets.Dataset]) -> dict[str, datasets.Dataset]:
    """The splits by their part in the run: `train`, `validation`, and where there are such `query` and `database`."""
    splits = {"train": loaded[data.train_split]}
    if data.validation_split is not None:
        splits["validation"] = loaded[data.validation_split]
    else:
        splits["train"], splits["validation"] = train_validation_split(
            splits["train"], data.validation_fraction, seed=data.validation_seed
        )
    if data.query_split in loaded:
        splits["query"] = loaded[data.query_split]
    elif data.query_split is not None:
        logger.warning(
            "%s: there is no split %r, so no test queries are measured; there are %s.",
            data.dataset,
            data.query_split,
            ", ".join(loaded),
        )
    if data.database_split is not None:
        splits["database"] = loaded[data.database_split]
    return splits


def _words(
    run: Run, pairs: datasets.Dataset, output: Path, checkpoint: Path | None
) -> tuple[GraphExpander | None, SkipGramEmbedding]:
    """The word graph and the word vectors: those of the run that goes on, else of the run that is named, else new."""
    if wants_to_resume(run.training.resume_from_checkpoint):
        for folder in (output, *([checkpoint.parent] if checkpoint is not None else [])):
            try:
                words = _load_words(run.data, folder)
            except CheckpointError:  # broken off before they were written
                continue
            if folder != output:
                _save_words(run, output, *words)
            return words
    words = _load_words(run.data, resolve_data_path(run.data.words_from)) if run.data.words_from else None
    if run.training.should_save:
        # None of an earlier run may be taken for this one's, should it break off in between.
        for path in (output / f"{stem}{ending}" for stem in WORDS_STEMS for ending in (".json", ".safetensors")):
            path.unlink(missing_ok=True)
    words = words or _fit_words(run, pairs)
    _save_words(run, output, *words)
    return words


def _load_words(data: DataArguments, folder: Path) -> tuple[GraphExpander | None, SkipGramEmbedding]:
    return GraphExpander.load(folder) if data.expand else None, SkipGramEmbedding.load(folder)


def _save_words(run: Run, output: Path, expander: GraphExpander | None, embedding: SkipGramEmbedding) -> None:
    if not run.training.should_save:
        return
    with disk_errors(output, "the words"):
        if expander is not None:
            expander.save(output)
        embedding.save(output)


def _fit_words(run: Run, pairs: datasets.Dataset) -> tuple[GraphExpander | None, SkipGramEmbedding]:
    """The word graph and the word vectors of the training texts."""
    data = run.data
    expander = None
    corpus: Any = pairs
    if data.expand:
        expander = GraphExpander(
            data.walk_length, top_k=data.top_k, min_probability=data.min_probability, seed=run.training.seed
        ).fit(pairs)
        corpus = expander.corpus(pairs, num_walks=data.word_walks)
    embedding = SkipGramEmbedding(
        run.model.get("word_dim", CMFAHConfig.word_dim),
        epochs=data.word_epochs,
        window=data.word_window,
        seed=data.word_seed,
        workers=data.word_workers,
        min_count=data.word_min_count,
    ).fit(corpus, extra_corpus=[resolve_data_path(path) for path in data.word_corpus] or None)
    return expander, embedding


def _backbone_weights(data: DataArguments, config: CMFAHConfig) -> str | None:
    """Where the backbone's weights are; one that is given by Hub id or folder brings its own."""
    return data.backbone_weights or (
        config.backbone_config.name_or_path if config.backbone_config is not None else None
    )


def _build(
    run: Run, classes: list[str], embedding: SkipGramEmbedding, backbone: torch.nn.Module | None
) -> tuple[CMFAHForPreTraining, CMFAHProcessor]:
    vectors_VE = torch.from_numpy(embedding.vectors)
    settings = {**run.model, "word_dim": vectors_VE.shape[1]}
    if not classes and settings.get("label_weight", CMFAHConfig.label_weight):
        logger.info("Without labels there is no label guidance: label_weight is taken as 0.")
        settings["label_weight"] = 0
    config = CMFAHConfig(
        **settings,
        vocab_size=len(embedding.vocabulary) + len(SPECIAL_TOKENS),
        id2label=dict(enumerate(classes)),
        label2id={name: number for number, name in enumerate(classes)},
    )
    model = CMFAHForPreTraining(config)
    table = model.get_input_embeddings().weight.data
    table.zero_()
    # Of one length, as the regions are: skip-gram's lengths tell how frequent a word is, and not what it means.
    table[len(SPECIAL_TOKENS) :] = torch.nn.functional.normalize(vectors_VE, dim=1) * vectors_VE.shape[1] ** 0.5
    weights = _backbone_weights(run.data, config)
    if backbone is not None:  # the one that made the regions, also where its weights were drawn at random
        model.cmfah.image_model.embeddings.backbone.load_state_dict(backbone.state_dict())
    elif weights:
        load_backbone_weights(model.cmfah.image_model, weights)
    if config.freeze_backbone and not weights:
        logger.warning(
            "The image backbone is frozen with weights drawn at random; give --backbone_weights, or "
            "--freeze_backbone false."
        )
    return model, CMFAHProcessor.from_vocabulary(config, embedding.vocabulary, run.data.image_mean, run.data.image_std)
