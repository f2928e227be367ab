"""A training run, from its settings to a folder that `from_pretrained` loads."""

import json
import logging
import shutil
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from transformers import TrainerCallback, set_seed

from cmfah_hf.atomic import write_text
from cmfah_hf.data.similarity import PairSimilarity
from cmfah_hf.errors import CheckpointError, CMFAHError
from cmfah_hf.evaluation import RetrievalEvaluator
from cmfah_hf.evaluation.curve_files import CURVES_NAME, write_curves
from cmfah_hf.hub.model_folder import METRICS_NAME
from cmfah_hf.models import MODELS, CMFAHModel, CMFAHProcessor
from cmfah_hf.models.adapters import merge_adapters
from cmfah_hf.models.remote_code import remote_code
from cmfah_hf.retrieval.calibration import Calibration
from cmfah_hf.training.backbone import encoders_of
from cmfah_hf.training.calibration import calibration_figures, save_calibration, validation_calibration
from cmfah_hf.training.checkpoints import (
    begin_anew,
    disk_errors,
    find_checkpoint,
    newest_checkpoint,
    step_of,
    wants_to_resume,
)
from cmfah_hf.training.encoder_sources import link_encoder
from cmfah_hf.training.evaluate import EncodedPairs, evaluate_pairs, split_figures
from cmfah_hf.training.fitting import FittedHasher, figures_of_other_databases, fit_towers, is_fitted
from cmfah_hf.training.illustration import draw_attention
from cmfah_hf.training.preparation import PreparedRun, prepare
from cmfah_hf.training.run_folder import held, make_output_folder
from cmfah_hf.training.settings.arguments import CMFAHTrainingArguments
from cmfah_hf.training.settings.configuration import Run, write_settings
from cmfah_hf.training.task import training_collator
from cmfah_hf.training.trainer import CMFAHTrainer

REFIT_NAME = "refit"


def train(run: Run) -> dict[str, Any]:
    """Trains a model and saves it, its processor, its vocabulary, its calibration and its figures in
    `run.training.output_dir`.

    The validation pairs choose the epoch; with `load_best_model_at_end=False`, the last one is kept. With `refit`, a
    second model is then trained from scratch on all pairs, validation included, up to that epoch of the same schedule;
    a shallow method has no epochs, and is fitted to all pairs at once, without a figure on the validation pairs.
    The test queries are measured once, at the end. The calibration is that of the first model on the validation pairs.

    An interrupted run resumes with `resume_from_checkpoint` (see `find_checkpoint`), even within the refit, and ends
    like an uninterrupted one. Its vocabulary is not fitted again. With `push_to_hub`, the finished folder is pushed to
    `hub_model_id`, as by `cmfah push`.

    Returns:
        The content of `metrics.json`: `validation`, the MAP of the model on the validation pairs, its `epoch` and its
        similarity (`validation_relevance`); `query`, the figures of `RetrievalEvaluator`, if the data has a query split
        with labels; `query_seen`, with `--protocol unseen`, the same queries against the training pairs; `pairs`,
        instance retrieval among the pairs of the query split, with or without labels; `calibration` (see
        `calibration_figures`); and the method, bits, seed, numbers of pairs and `source` (`source_of`). Empty in all
        processes but the main one.

    Raises:
        CMFAHError: If the data, the weights, a setting or the checkpoint cannot be used, the disk is full, or the Hub
            refuses the model. In the last case the folder is complete and can be pushed with `cmfah push`.
    """
    args = run.training
    output = make_output_folder(args.output_dir)
    # The process that writes holds the lock of the folder. If it fails, the other processes end with it.
    with remote_code(run.data.trust_remote_code), held(output, "training") if args.should_save else nullcontext():
        return _train(run, output)


def _train(run: Run, output: Path) -> dict[str, Any]:
    start = time.monotonic()
    args = run.training
    set_seed(args.seed)
    checkpoint = find_checkpoint(args.resume_from_checkpoint, output)
    if args.should_save and not wants_to_resume(args.resume_from_checkpoint):
        begin_anew(output)
    if not args.should_save:  # the main process reports all warnings, except for images that it does not read
        logging.getLogger("cmfah_hf").setLevel(logging.ERROR)
        logging.getLogger("cmfah_hf.training.data.streams").setLevel(logging.WARNING)
    prepared = prepare(run, output, checkpoint)
    is_shallow = is_fitted(prepared)
    trainer = _trainer(
        prepared, args, prepared.pairs.in_order if is_shallow and run.data.refit else prepared.pairs.splits["train"]
    )
    # Before the training, which the Hub must not be able to end.
    encoders = encoders_of(run.data, trainer.pretraining.config) if args.should_save else []
    fitted = None
    if is_shallow:
        fitted = fit_towers(trainer, prepared)
        trainer.state.epoch = 0.0
        if not run.data.refit:
            trainer.evaluate()
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
    with disk_errors(output, "the state of the training"):
        trainer.save_state()
    selected = _selects_epoch(trainer)
    validation, epoch = _chosen(trainer)
    # A shallow method with a refit has seen the validation pairs.
    calibration = None if fitted is not None and run.data.refit else validation_calibration(trainer, prepared)
    if run.data.refit and fitted is None:
        # Checkpoints of a refit belong to this run only if the training before it was complete.
        resumes = checkpoint is not None and trainer.state.global_step == step_of(checkpoint)
        trainer = _refit(prepared, output / REFIT_NAME, epoch, resumes)
    _save_model(trainer, prepared, output)
    if not trainer.is_world_process_zero():
        return {}
    metrics: dict[str, Any] = {
        "method": run.method,
        "hash_bits": run.setting("hash_bits"),
        "seed": args.seed,
        "source": prepared.pairs.source,
        "train_pairs": len(prepared.pairs.splits["train"]),
        "validation_pairs": len(prepared.pairs.splits["validation"]),
        "similarity": prepared.similarity.name,
        "validation": validation,
        "validation_relevance": prepared.measured.name,
        "epoch": epoch,
        "epoch_by": "validation" if selected else "schedule",
        "refit": run.data.refit,
        "protocol": run.data.protocol,
        "seconds": round(time.monotonic() - start, 1),
    }
    if encoders:
        metrics["encoders"] = encoders
    towers = _towers(prepared, trainer, output)
    with disk_errors(output, "the calibration"):
        save_calibration(calibration, output, towers, cast(CMFAHProcessor, trainer.processing_class), prepared.expander)
    metrics |= _query_figures(prepared, trainer, towers, output, fitted, calibration)
    with disk_errors(output, "the figures"):
        write_settings(prepared.run, output)
        write_text(output / METRICS_NAME, json.dumps(metrics, indent=2) + "\n", CheckpointError)
    shutil.rmtree(output / REFIT_NAME, ignore_errors=True)  # the model holds its result
    if args.push_to_hub:
        trainer.hub.push(output)
    return metrics


def _trainer(prepared: PreparedRun, args: CMFAHTrainingArguments, train_pairs: Any, **kwargs: Any) -> CMFAHTrainer:
    """The trainer of a new model."""
    model, processor = prepared.build_model()
    collator = training_collator(
        model.config,
        processor,
        prepared.text_column,
        prepared.similarity,
        prepared.expander,
        args.seed if args.data_seed is None else args.data_seed,
        prepared.kept_tokens(model.cmfah.text_model, processor),
    )
    return CMFAHTrainer(
        model,
        args,
        train_pairs,
        prepared.pairs.splits["validation"],
        processing_class=processor,
        text_column=prepared.text_column,
        similarity=prepared.similarity,
        measured=prepared.measured,
        expander=prepared.expander,
        data_collator=collator,
        # Pairs that are similar only to themselves are searched among the validation pairs, which are unseen.
        database=None
        if isinstance(prepared.measured, PairSimilarity)
        else prepared.pairs.splits.get("validation_database"),
        **kwargs,
    )


def _refit(prepared: PreparedRun, folder: Path, epoch: float, resumes: bool) -> CMFAHTrainer:
    """Trains a second model on the pairs of training and validation, up to an epoch of the same schedule."""
    args = prepared.run.training
    set_seed(args.seed)
    callbacks = [_StopAfter(epoch)]
    # No evaluation, so no best checkpoint either; otherwise, the last checkpoint is kept to resume from.
    refit_args = replace(
        args,
        output_dir=str(folder),
        eval_strategy="no",
        save_strategy="no" if args.save_strategy == "best" else args.save_strategy,
        save_total_limit=1,
        load_best_model_at_end=False,
        push_to_hub=False,
        early_stopping_patience=None,
    )
    trainer = _trainer(prepared, refit_args, prepared.pairs.all, callbacks=callbacks)
    checkpoint = newest_checkpoint(folder) if resumes else None
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
    return trainer


def _save_model(trainer: CMFAHTrainer, prepared: PreparedRun, output: Path) -> None:
    """Saves the finished model in one file of whole tensors, without those of an encoder that is named by its commit;
    `CMFAHError` if its weights are not finite."""
    parameters = trainer.model.parameters() if trainer.model is not None else ()
    if not all(torch.isfinite(parameter).all() for parameter in parameters):
        raise CMFAHError(
            f"{output}: the training diverged, weights are not finite; give a lower learning_rate, or a max_grad_norm. "
            "No model was saved."
        )
    merge_adapters(trainer.pretraining)
    if trainer.is_fsdp_enabled:  # even if the checkpoints are sharded
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    elif prepared.run.data.link:  # a process of FSDP has only parts of the weights, and cannot compare them
        link_encoder(trainer.pretraining, prepared.link)
    with disk_errors(output, "the model"):
        trainer.save_model(str(output))


def _towers(prepared: PreparedRun, trainer: CMFAHTrainer, output: Path) -> CMFAHModel:
    """The towers of the finished model."""
    run = prepared.run
    if trainer.is_fsdp_enabled:  # the other processes, which hold parts of the weights, have finished
        return MODELS[run.objective_class.model_type].model.from_pretrained(output).to(run.training.device)
    return trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False).cmfah


def _query_figures(
    prepared: PreparedRun,
    trainer: CMFAHTrainer,
    towers: CMFAHModel,
    output: Path,
    fitted: FittedHasher | None,
    calibration: Calibration | None,
) -> dict[str, dict[str, Any]]:
    """The figures on the test queries, with plots: `query`, and with `--protocol unseen` also `query_seen`, against the
    training pairs, if query pairs and database have labels; `pairs`, instance retrieval among the query pairs; those of
    the calibration; and those of a shallow method with its own codes of the database."""
    pairs, run = prepared.pairs, prepared.run
    queries, database = pairs.splits.get("query"), pairs.splits.get("database", pairs.in_order)
    if queries is None:
        return {}
    sides: dict[str, EncodedPairs] = {}
    processor = cast(CMFAHProcessor, trainer.processing_class)
    evaluate = partial(
        evaluate_pairs,
        towers,
        processor,
        queries,
        text_column=prepared.text_column,
        expander=prepared.expander,
        evaluator=RetrievalEvaluator(run.data.metrics),
        tokens=prepared.tested_tokens(towers.text_model, processor),
    )
    if not all("labels" in side.column_names for side in (queries, database)):
        figures = {"pairs": split_figures(evaluate(keep_codes=sides.update))[1]}
        return figures | calibration_figures(calibration, sides, run.data.protocol)
    found = evaluate(
        database=database,
        plots=output / "plots",
        keep_curves=partial(write_curves, path=output / CURVES_NAME),
        keep_codes=sides.update,
    )
    figures = dict(zip(("query", "pairs"), split_figures(found), strict=True))
    figures |= calibration_figures(calibration, sides, run.data.protocol)
    if run.data.protocol == "unseen":
        figures["query_seen"] = evaluate(database=pairs.in_order, instances=False)
    if fitted is not None:
        file = output / CURVES_NAME
        figures |= figures_of_other_databases(fitted, trainer, prepared, queries, pairs.splits.get("database"), file)
    draw_attention(towers, processor, queries, run.data, output / "plots")
    return figures


def _chosen(trainer: CMFAHTrainer) -> tuple[float | None, float]:
    """Validation figure and epoch of the model: those of the best evaluation or, if it is not loaded, of the last."""
    state, args = trainer.state, trainer.args
    if _selects_epoch(trainer):
        return state.best_metric, next(
            log["epoch"] for log in state.log_history if log["step"] == state.best_global_step
        )
    name = f"eval_{(args.metric_for_best_model or 'map').removeprefix('eval_')}"
    figures = [log[name] for log in state.log_history if name in log]
    return (figures[-1] if figures else None), state.epoch


def _selects_epoch(trainer: CMFAHTrainer) -> bool:
    """Whether the validation pairs chose the epoch, and not the schedule its end."""
    return trainer.args.load_best_model_at_end and trainer.state.best_global_step is not None


class _StopAfter(TrainerCallback):
    """Stops a training after a number of epochs of its schedule."""

    def __init__(self, epochs: float):
        self.epochs = epochs

    def on_train_begin(self, args, state, control, **kwargs):
        if state.epoch is not None and state.epoch >= self.epochs:  # resumed from its last checkpoint
            control.should_training_stop = True

    def on_step_end(self, args, state, control, **kwargs):
        if state.epoch >= self.epochs:
            control.should_training_stop = True
