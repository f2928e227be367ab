"""One training run: from a configuration to a folder that `from_pretrained` loads."""

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import TrainerCallback, set_seed

from cmfah_hf.data import collect_classes, load_image_text, resolve_data_path, train_validation_split
from cmfah_hf.data.images import drop_unreadable
from cmfah_hf.data.streams import PairStream, split_stream
from cmfah_hf.errors import DataError
from cmfah_hf.expansion import GraphExpander, SkipGramEmbedding
from cmfah_hf.models import CMFAHConfig, CMFAHForPreTraining, CMFAHImageModel, CMFAHModel, CMFAHProcessor
from cmfah_hf.models.tokenization_cmfah import SPECIAL_TOKENS
from cmfah_hf.training.arguments import CMFAHTrainingArguments, DataArguments
from cmfah_hf.training.backbone import load_backbone_weights
from cmfah_hf.training.configuration import Run
from cmfah_hf.training.evaluate import evaluate_pairs
from cmfah_hf.training.region_cache import keep_regions
from cmfah_hf.training.streaming import SpooledTexts, count_streams, open_streams, stream_regions
from cmfah_hf.training.trainer import CMFAHTrainer, without_augmentation

logger = logging.getLogger(__name__)

METRICS_NAME = "metrics.json"


def train(run: Run) -> dict[str, Any]:
    """Trains a model and leaves it, its processor, its words and its figures in `run.training.output_dir`.

    The validation pairs choose the epoch. With `refit` a second model is then trained from the start on all pairs, the
    validation pairs among them, to that epoch of the same schedule. The test queries are looked at once, at the end.

    Returns:
        `validation`: the best MAP there, and its `epoch`; `query`: the figures of `RetrievalEvaluator`, where the data
        has a query split with labels; and what the run was (bits, seed, pairs). The same stands in `metrics.json`.

    Raises:
        CMFAHError: If the data, the weights or a setting cannot be used.
    """
    start = time.monotonic()
    args, data = run.training, run.data
    set_seed(args.seed)
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    # Where the nodes save each for itself, they do not see each other's files.
    local = args.save_on_each_node
    if not args.should_save:  # a warning is said once
        logging.getLogger("cmfah_hf").setLevel(logging.ERROR)
        logging.getLogger("cmfah_hf.data.streams").setLevel(logging.WARNING)  # of pictures that no other one reads
    if data.streaming:
        splits, all_pairs, classes, texts, backbone = _stream(run, output)
    else:
        with args.main_process_first(local=local, desc="pictures"):
            loaded, backbone = _load(run)
            splits = _cut(data, loaded)
        classes, texts = collect_classes(splits["train"]), splits["train"]
    text_column = "text"
    with args.main_process_first(local=local, desc="words"):
        expander, embedding = _fit_words(run, texts, output)
        if expander is not None:
            text_column = expander.output_column
            splits = {name: pairs.map(expander, batched=True, desc="Expansion") for name, pairs in splits.items()}
            if data.streaming:
                all_pairs = all_pairs.map(expander, batched=True)
    model, processor = _build(run, classes, embedding, backbone)

    def trainer_of(model: CMFAHForPreTraining, args: CMFAHTrainingArguments, pairs: datasets.Dataset, **kwargs: Any):
        return CMFAHTrainer(
            model, args, pairs, splits["validation"], processing_class=processor, text_column=text_column, **kwargs
        )

    trainer = trainer_of(model, args, splits["train"])
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_state()
    best, epoch = trainer.state.best_metric, _best_epoch(trainer)
    if not data.streaming:
        all_pairs = datasets.concatenate_datasets([splits["train"], splits["validation"]])
    if data.refit:
        set_seed(args.seed)
        model, processor = _build(run, classes, embedding, backbone)
        final = replace(
            args, output_dir=str(output / "refit"), eval_strategy="no", save_strategy="no", load_best_model_at_end=False
        )
        trainer = trainer_of(model, final, all_pairs, callbacks=[_StopAfter(epoch)])
        trainer.train()
    if trainer.is_fsdp_enabled:  # whatever the checkpoints are: what is left in the end is one whole model
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(str(output))
    if not trainer.is_world_process_zero():
        return {}
    metrics: dict[str, Any] = {
        "hash_bits": model.config.hash_bits,
        "seed": args.seed,
        "train_pairs": len(splits["train"]),
        "validation_pairs": len(splits["validation"]),
        "validation": best,
        "epoch": epoch,
        "refit": data.refit,
        "seconds": round(time.monotonic() - start, 1),
    }
    if "query" in splits and "labels" in splits["query"].column_names:
        queries, database = splits["query"], splits.get("database", all_pairs)
        if trainer.is_fsdp_enabled:  # its weights are spread over processes that have done their part
            towers = CMFAHModel.from_pretrained(output).to(args.device)
        else:
            towers = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False).cmfah
        metrics["query"] = evaluate_pairs(
            towers,
            processor,
            without_augmentation(queries),
            without_augmentation(database),
            text_column,
            plots=output / "plots",
        )
    (output / METRICS_NAME).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    return metrics


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
    image_model, processor = _region_tower(run, config)
    mirrored = {data.train_split, data.validation_split} if data.mirror else set()
    splits = {
        name: keep_regions(pairs, image_model, processor, name in mirrored).remove_columns("image")
        for name, pairs in loaded.items()
    }
    return splits, image_model.embeddings.backbone


def _region_tower(run: Run, config: CMFAHConfig) -> tuple[CMFAHImageModel, CMFAHProcessor]:
    """What makes regions of pictures: a tower with the backbone's weights, and the pictures' preparation."""
    image_model = CMFAHImageModel(config).to(run.training.device)
    if weights := _backbone_weights(run.data, config):
        load_backbone_weights(image_model, weights)
    return image_model, CMFAHProcessor.from_vocabulary(config, [], run.data.image_mean, run.data.image_std)


def _stream(
    run: Run, output: Path
) -> tuple[dict[str, PairStream], PairStream, list[str], SpooledTexts, torch.nn.Module | None]:
    """As `_load` and `_cut`, of streams: the splits, all pairs, the classes, the training texts, and the backbone."""
    data, config = run.data, CMFAHConfig(**run.model)
    loaded = open_streams(data)
    _check(data, loaded)
    backbone = None
    if config.freeze_backbone and data.keep_regions:
        image_model, processor = _region_tower(run, config)
        wanted = {data.train_split, data.validation_split, data.query_split, data.database_split}
        streams = {name: pairs for name, pairs in loaded.items() if name in wanted}
        loaded = {**loaded, **stream_regions(run, streams, image_model, processor)}
        backbone = image_model.embeddings.backbone
    whole = None if data.validation_split is not None else loaded[data.train_split]
    splits = _cut(data, loaded, split_stream)
    return *count_streams(run, splits, whole, backbone is not None, output), backbone


def _check(data: DataArguments, loaded: Mapping[str, datasets.Dataset]) -> None:
    """What can be known to be missing is said before the backbone sees a picture, which may take hours."""
    for name in (data.train_split, data.validation_split, data.database_split):
        if name is not None and name not in loaded:
            raise DataError(f"{data.dataset}: there is no split {name!r}; there are {', '.join(loaded)}.")
    if "labels" not in loaded[data.train_split].column_names:
        raise DataError(
            f"{data.dataset}: the split {data.train_split!r} has no labels, which guide the training; add them."
        )


def _cut(
    data: DataArguments, loaded: Mapping[str, datasets.Dataset], divide: Callable = train_validation_split
) -> dict[str, datasets.Dataset]:
    """The splits by their part in the run: `train`, `validation`, and where there are such `query` and `database`."""
    splits = {"train": loaded[data.train_split]}
    if data.validation_split is not None:
        splits["validation"] = loaded[data.validation_split]
    else:
        splits["train"], splits["validation"] = divide(
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


def _fit_words(run: Run, pairs: datasets.Dataset, output: Path) -> tuple[GraphExpander | None, SkipGramEmbedding]:
    """The word graph and the word vectors of the training texts; those of an earlier run where one is named.

    Of several processes the main one makes and keeps them, and the others read what it kept.
    """
    data = run.data
    source = data.words_from or (
        output if run.training.resume_from_checkpoint or not run.training.should_save else None
    )
    if source is not None:
        folder = resolve_data_path(source)
        expander = GraphExpander.load(folder) if data.expand else None
        embedding = SkipGramEmbedding.load(folder)
    else:
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
    if not run.training.should_save:
        return expander, embedding
    # Kept before the training starts: should that break off, they need not be made again.
    if expander is not None:
        expander.save(output)
    embedding.save(output)
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
