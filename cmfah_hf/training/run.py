"""One training run: from a configuration to a folder that `from_pretrained` loads."""

import json
import logging
import shutil
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, set_seed

from cmfah_hf.atomic import write_text
from cmfah_hf.data.relevance import Relevance, TagRelevance
from cmfah_hf.errors import CheckpointError, CMFAHError
from cmfah_hf.hub.model_folder import METRICS_NAME
from cmfah_hf.methods import CMFAHForPreTraining
from cmfah_hf.models import MODELS
from cmfah_hf.training.arguments import CMFAHTrainingArguments
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
from cmfah_hf.training.illustration import draw_attention
from cmfah_hf.training.preparation import build_model, make_words, read_pairs, relevances
from cmfah_hf.training.run_folder import held, make_output_folder
from cmfah_hf.training.settings_file import write_settings
from cmfah_hf.training.task import without_augmentation
from cmfah_hf.training.trainer import CMFAHTrainer

REFIT_NAME = "refit"


def train(run: Run) -> dict[str, Any]:
    """Trains a model and leaves it, its processor, its words and its figures in `run.training.output_dir`.

    The validation pairs choose the epoch. With `refit` a second model is then trained from the start on all pairs, the
    validation pairs among them, to that epoch of the same schedule. The test queries are looked at once, at the end.

    A run that was broken off goes on with `resume_from_checkpoint` (`find_checkpoint` says what it takes), in the refit
    too, and ends as the unbroken one would have; the words that it had made are not made again.

    With `push_to_hub` the finished folder then goes to `hub_model_id`, as `cmfah push` would bring it there.

    Returns:
        `validation`: the best MAP there, its `epoch`, and what was relevant there (`validation_relevance`); `query`:
        the figures of `RetrievalEvaluator`, where the data has a query split with labels; and what the run was (method,
        bits, seed, pairs, `source`, as `source_of` gives it). The same is in `metrics.json`. Of several processes only
        the main one gets them.

    Raises:
        CMFAHError: If the data, the weights, a setting or the checkpoint cannot be used, the disk is full, or the Hub
            refuses the model; the folder is whole then, and `cmfah push` takes it.
    """
    output = make_output_folder(run.training.output_dir)
    # Of several processes the one that writes holds the folder. The others are ended with it, should it fail.
    with held(output, "training") if run.training.should_save else nullcontext():
        return _train(run, output)


def _train(run: Run, output: Path) -> dict[str, Any]:
    start = time.monotonic()
    args, data = run.training, run.data
    set_seed(args.seed)
    checkpoint = find_checkpoint(args.resume_from_checkpoint, output)
    if args.should_save and not wants_to_resume(args.resume_from_checkpoint):
        begin_anew(output)
    if not args.should_save:  # a warning is said once
        logging.getLogger("cmfah_hf").setLevel(logging.ERROR)
        logging.getLogger("cmfah_hf.data.streams").setLevel(logging.WARNING)  # of pictures that no other one reads
    pairs = read_pairs(run, output)
    text_column = "text"
    # Where the nodes save each for itself, they do not see each other's files.
    with args.main_process_first(local=args.save_on_each_node, desc="words"):
        expander, embedding = make_words(run, pairs.texts, output, checkpoint)
        if expander is not None:
            text_column = expander.output_column
            pairs = pairs.expanded(expander)
    relevance, measured = relevances(data, pairs, expander)
    run = _with_threshold(run, relevance)
    classes = pairs.classes["train"] if data.similarity == "labels" else []
    # Counted once: as the words, the label graph of a refit is that of the training pairs.
    label_counts = pairs.label_counts if run.setting("use_label_graph") else None
    model, processor = build_model(run, classes, embedding, pairs.backbone, label_counts)

    def trainer_of(model: CMFAHForPreTraining, args: CMFAHTrainingArguments, train_pairs: Any, **kwargs: Any):
        return CMFAHTrainer(
            model,
            args,
            train_pairs,
            pairs.splits["validation"],
            processing_class=processor,
            text_column=text_column,
            relevance=relevance,
            measured=measured,
            **kwargs,
        )

    trainer = trainer_of(model, args, pairs.splits["train"])
    trainer.train(resume_from_checkpoint=checkpoint)
    with disk_errors(output, "the state of the training"):
        trainer.save_state()
    best, epoch = trainer.state.best_metric, _best_epoch(trainer)
    if data.refit:
        # Checkpoints of a refit belong to this run only if nothing was left to do before it.
        refit_goes_on = checkpoint is not None and trainer.state.global_step == step_of(checkpoint)
        set_seed(args.seed)
        model, processor = build_model(run, classes, embedding, pairs.backbone, label_counts)
        final = _refit_arguments(args, output / REFIT_NAME)
        trainer = trainer_of(model, final, pairs.all, callbacks=[_StopAfter(epoch)])
        trainer.train(resume_from_checkpoint=newest_checkpoint(final.output_dir) if refit_goes_on else None)
    if not all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters()):
        raise CMFAHError(
            f"{output}: the training diverged, weights are not finite; give a lower learning_rate, or a max_grad_norm. "
            "No model was saved."
        )
    if trainer.is_fsdp_enabled:  # whatever the checkpoints are: what is left in the end is one whole model
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    with disk_errors(output, "the model"):
        trainer.save_model(str(output))
    if not trainer.is_world_process_zero():
        return {}
    metrics: dict[str, Any] = {
        "method": run.method,
        "hash_bits": model.config.hash_bits,
        "seed": args.seed,
        "source": pairs.source,
        "train_pairs": len(pairs.splits["train"]),
        "validation_pairs": len(pairs.splits["validation"]),
        "similarity": relevance.name,
        "validation": best,
        "validation_relevance": measured.name,
        "epoch": epoch,
        "refit": data.refit,
        "seconds": round(time.monotonic() - start, 1),
    }
    queries, database = pairs.splits.get("query"), pairs.splits.get("database", pairs.all)
    if queries is not None and all("labels" in side.column_names for side in (queries, database)):
        if trainer.is_fsdp_enabled:  # its weights are spread over processes that have done their part
            towers = MODELS[model.config.model_type].model.from_pretrained(output).to(args.device)
        else:
            towers = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False).cmfah
        metrics["query"] = evaluate_pairs(
            towers,
            processor,
            without_augmentation(queries),
            without_augmentation(database),
            text_column,
            plots=output / "plots",
            expander=expander,
        )
        draw_attention(towers, processor, queries, data, output / "plots")
    with disk_errors(output, "the figures"):
        write_settings(run, output)
        write_text(output / METRICS_NAME, json.dumps(metrics, indent=2) + "\n", CheckpointError)
    shutil.rmtree(output / REFIT_NAME, ignore_errors=True)  # all of it is in the model now
    if args.push_to_hub:
        trainer.hub.push(output)
    return metrics


def _with_threshold(run: Run, relevance: Relevance) -> Run:
    """The run with the threshold of similar tags as `positive_overlap`, where its objective has that setting."""
    if not isinstance(relevance, TagRelevance) or "positive_overlap" not in run.objective_class.settings_class.names():
        return run
    run = replace(run, objective={"positive_overlap": relevance.threshold, **run.objective})
    relevance.threshold = run.objective["positive_overlap"]
    return run


def _refit_arguments(args: CMFAHTrainingArguments, folder: Path) -> CMFAHTrainingArguments:
    """Those of the second model: it is not evaluated, and keeps the last checkpoint for going on after a break."""
    return replace(
        args,
        output_dir=str(folder),
        eval_strategy="no",
        save_strategy="epoch" if args.save_strategy == "best" else args.save_strategy,
        save_total_limit=1,
        load_best_model_at_end=False,
        push_to_hub=False,
        early_stopping_patience=None,
    )


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
