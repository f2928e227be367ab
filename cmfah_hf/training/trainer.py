"""`CMFAHTrainer`: a `Trainer` of alternating updates, for models with an objective that may have players."""

from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate.utils import broadcast_object_list
from torch import nn
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, has_length

from cmfah_hf.data.similarity import Similarity
from cmfah_hf.errors import DataError
from cmfah_hf.expansion import GraphExpander
from cmfah_hf.methods import CMFAHForPreTraining, TrainingState
from cmfah_hf.models import CMFAHProcessor
from cmfah_hf.training.batch_norm import use_global_statistics
from cmfah_hf.training.checkpoint_store import CheckpointStore, check_same_model
from cmfah_hf.training.checkpoints import begin_anew, find_checkpoint
from cmfah_hf.training.data.stream_loaders import (
    StreamPlaceCallback,
    as_stream,
    as_training_stream,
    predict_stream,
    stream_loader,
)
from cmfah_hf.training.data.streams import PairStream, StreamPart
from cmfah_hf.training.encoder_updates import separate_encoders
from cmfah_hf.training.hub_uploads import HubUploads
from cmfah_hf.training.loss_terms import LossTerms
from cmfah_hf.training.players import ObjectiveCallback, PlayerUpdates, keep_whole
from cmfah_hf.training.processes import broadcast_from_main, detached, gather_outputs, share_batches, share_random_state
from cmfah_hf.training.run_folder import held, make_output_folder, remove_unfinished, replacing_files
from cmfah_hf.training.settings.arguments import CMFAHTrainingArguments
from cmfah_hf.training.settings.ranges import taken
from cmfah_hf.training.task import RetrievalTask, numbered, training_collator, without_augmentation
from cmfah_hf.training.training_pass import encode_training_pairs

if TYPE_CHECKING:
    from cmfah_hf.hub import PushedModel

TRAINING_ARGS_NAME = "training_args.json"
NEEDS_ROWS = "values of all training pairs; give --streaming false --codes_update epoch."
NO_BATCH = (
    "There is no batch to train on; take more pairs, a smaller per_device_train_batch_size, or "
    "--dataloader_drop_last false."
)


class CMFAHTrainer(Trainer):
    """Trains the towers of a model with an objective, and the players of the objective, `[algorithm-1]`.

    The towers encode a batch once. Each player takes a step on these outputs, detached. Then the loss of the towers is
    computed with all players fixed, and the towers take a step. Evaluation selects the best model by unimodal
    retrieval: the evaluation pairs are the queries, and the training pairs (or `database`) are searched. An interrupted
    training resumes bit-identically. With several processes, each encodes its share of a batch, and the losses are
    those of the whole batch (docs/training.md). With `push_to_hub`, the repository is created with the trainer, so a
    token without write permission fails before the first step.

    Args:
        model: A model with an objective, such as a `CMFAHForPreTraining`.
        args: A `CMFAHTrainingArguments`.
        train_dataset: Rows as `PairCollator` reads them: a data set of `datasets` or torch, map-style or a stream, or a
            list. The rows of a stream of `datasets` are counted first, unless `max_steps` is given or a `PairStream`
            has counts.
        eval_dataset: The validation pairs. Never the test queries.
        processing_class: The model's `CMFAHProcessor`, saved with it.
        text_column: The column of the texts.
        database: The pairs that evaluation searches. None: the training pairs; if pairs are similar only to
            themselves, the evaluation pairs.
        similarity: The similarity of training pairs. None: by the labels of the model's classes.
        measured: The similarity of pairs in evaluation. None: the same.
        expander: The expander of `text_column`, if any; needed for pairs with several captions.
        data_collator, callbacks, ...: As in `Trainer`.
    """

    args: CMFAHTrainingArguments

    def __init__(
        self,
        model: CMFAHForPreTraining,
        args: CMFAHTrainingArguments,
        train_dataset=None,
        eval_dataset=None,
        processing_class: CMFAHProcessor | None = None,
        text_column: str = "text",
        database=None,
        similarity: Similarity | None = None,
        measured: Similarity | None = None,
        expander: GraphExpander | None = None,
        data_collator=None,
        callbacks: Sequence[TrainerCallback] | None = None,
        **kwargs: Any,
    ):
        if data_collator is None:
            seed = args.seed if args.data_seed is None else args.data_seed
            data_collator = training_collator(model.config, processing_class, text_column, similarity, expander, seed)
        self.task = RetrievalTask(
            data_collator, processing_class, text_column, database, similarity, measured, expander
        )
        self.hub = HubUploads(self)
        train_dataset, eval_dataset = as_training_stream(train_dataset, args), as_stream(eval_dataset)
        by_row = args.codes_update == "epoch" and train_dataset is not None and has_length(train_dataset)
        by_row = by_row and not isinstance(train_dataset, PairStream)
        if args.should_save:
            make_output_folder(args.output_dir)
        if by_row:
            train_dataset = numbered(train_dataset)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=without_augmentation(eval_dataset),
            processing_class=processing_class,
            callbacks=None if callbacks is None else list(callbacks),
            **kwargs,
        )
        count, encode = (len(train_dataset), partial(encode_training_pairs, self)) if by_row else (0, None)
        self.training_state = TrainingState(count, encode=encode, towers=self.pretraining.cmfah)
        self.players = {player.name: PlayerUpdates(player, self) for player in self.pretraining.objective.players()}
        self.loss_terms = LossTerms()
        self.loss_is_scaled_for_ga = False
        use_global_statistics(self.pretraining)
        broadcast_from_main([*self.pretraining.parameters(), *self.pretraining.buffers()], self.args.device)
        if self.is_fsdp_enabled:
            keep_whole(self.players.values(), self.accelerator.state.fsdp_plugin)
        self.store = CheckpointStore(self)
        self.add_callback(self.store)
        self.add_callback(ObjectiveCallback(self))
        self.add_callback(StreamPlaceCallback())
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience))

    @property
    def pretraining(self) -> CMFAHForPreTraining:
        """The model without its wrappers."""
        if isinstance(self.model, CMFAHForPreTraining):  # the usual case, in which `unwrap_model` takes milliseconds
            return self.model
        # `keep_torch_compile` would take a compiled model's wrapper off.
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # the parent's estimate is for language models, and counts all parameters in every step

    @staticmethod
    def get_optimizer_cls_and_kwargs(args, model=None):
        return args.adamax or Trainer.get_optimizer_cls_and_kwargs(args, model)

    def create_optimizer(self, model=None):
        with taken(self.args, "optim", "optim_args"):
            is_new, optimizer = self.optimizer is None, super().create_optimizer(model)
        if is_new:
            separate_encoders(optimizer, self.model if model is None else model, self.args.encoder_learning_rate)
        for updates in self.players.values():
            updates.create_optimizer()
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        with taken(self.args, "lr_scheduler_type", "lr_scheduler_kwargs"):
            scheduler = super().create_scheduler(num_training_steps, optimizer)
        for updates in self.players.values():
            updates.create_schedule(num_training_steps)
        return scheduler

    def get_train_dataloader(self):
        """As the parent's; each process gets its share of every batch, including the last one of an epoch."""
        if isinstance(self.train_dataset, PairStream):
            loader = stream_loader(self, self.train_dataset, training=True)
        else:
            loader = share_batches(super().get_train_dataloader())
        if has_length(loader) and not len(loader):
            raise DataError(NO_BATCH)
        return loader

    def get_eval_dataloader(self, eval_dataset=None):
        """As the parent's, with all pairs even if `dataloader_drop_last` is set, because each is a query."""
        chosen = as_stream(self.eval_dataset if eval_dataset is None else eval_dataset)
        if isinstance(chosen, PairStream):
            return stream_loader(self, chosen, training=False)
        with self._every_pair(self.task.measuring_collator):
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset):
        """As the parent's, with all pairs even if `dataloader_drop_last` is set, because each is searched."""
        test_dataset = as_stream(test_dataset)
        if isinstance(test_dataset, PairStream):
            return stream_loader(self, test_dataset, training=False)
        with self._every_pair(self.task.measuring_collator):
            return super().get_test_dataloader(test_dataset)

    def training_pairs_loader(self):
        """All training pairs in their order, without augmentation."""
        with self._every_pair(self.task.plain_collator):
            return super().get_test_dataloader(without_augmentation(self.train_dataset))

    @contextmanager
    def _every_pair(self, collator: Any):
        """Loaders made in the block yield all pairs, collated by `collator`."""
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        of_training, self.data_collator = self.data_collator, collator
        try:
            yield
        finally:
            self.args.dataloader_drop_last = drop_last
            self.data_collator = of_training

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch=None) -> torch.Tensor:
        pretraining = self.pretraining
        if not (model.training and pretraining.training):  # evaluation changes the mode of the unwrapped model
            model.train()
        inputs = self._prepare_inputs(inputs)
        rows, batch = inputs.pop("row", None), {"labels": inputs.pop("labels")}
        objective = pretraining.objective
        # By update, not by batch: all micro batches of an update have the same views, in all processes.
        cross_modal = objective.needs_cross_modal and self.state.global_step % self.args.paired_every == 0
        with self.compute_loss_context_manager():
            outputs = model(**inputs, paired=cross_modal)
        if rows is not None:
            batch["row"] = rows
            for name, table in self.training_state.tables.items():
                batch[name] = table[rows.cpu()].to(rows.device)
        # From here on every process holds the whole batch, so the losses are equal in all processes.
        outputs, batch = gather_outputs(outputs, batch)
        share_random_state(self.args.device)
        if self.players:
            fixed = detached(outputs)
            for updates in self.players.values():
                updates.step(batch, fixed, self.training_state, self.compute_loss_context_manager)
        with self.compute_loss_context_manager():
            losses = objective(batch, outputs, self.training_state)
        self.loss_terms.add(losses.terms)
        loss = losses.total / self.current_gradient_accumulation_steps
        self.accelerator.backward(loss)
        return loss.detach()

    def _evaluate(self, trial, ignore_keys_for_eval, skip_scheduler: bool = False) -> dict[str, float]:
        metrics = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
        if self.args.schedules_by_metric and not skip_scheduler:
            metric = metrics[f"eval_{(self.args.metric_for_best_model or 'map').removeprefix('eval_')}"]
            for updates in self.players.values():
                updates.step_schedule(metric)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the parent's, with the terms of the loss; the final mean loss covers the whole run."""
        if "loss" in logs and self.loss_terms.count:
            logs.update(self.loss_terms.take_means())
        if "train_loss" in logs:
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 0.001)
        super().log(logs, start_time)

    def begin_training(self) -> None:
        """Makes the objective's tables over the training pairs, unless a checkpoint has them."""
        objective = self.pretraining.objective
        if objective.needs_tables and self.training_state.encode is None:
            raise DataError(f"{objective.name} keeps {NEEDS_ROWS}")
        if not self.training_state.tables:
            objective.on_train_begin(self.training_state)

    def end_epoch(self) -> None:
        """Updates the objective's tables over the training pairs."""
        self.pretraining.objective.on_epoch_end(self.training_state)

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys=None):
        """The unimodal continuous codes, `((B, K), (B, K))`; no loss."""
        inputs = self._prepare_inputs(inputs)
        labels = inputs.pop("labels", None)
        inputs.pop("row", None)
        with torch.no_grad(), self.compute_loss_context_manager():
            if self.is_fsdp_enabled:  # as in `encode_training_pairs`
                outputs = model(**inputs)
                image_hash, text_hash = outputs.image_hash, outputs.text_hash
            else:
                towers = self.pretraining.cmfah
                image_hash = towers.get_image_hash(**inputs)
                text_hash = towers.get_text_hash(**inputs)
        return None, (image_hash.float(), text_hash.float()), labels

    def evaluation_loop(
        self,
        dataloader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As the parent's; an evaluation adds the MAP of both directions against the database."""
        output = self._predictions(dataloader, description, ignore_keys, metric_key_prefix)
        if description == "Evaluation":
            database = self.task.searched(self.train_dataset, self.eval_dataset)
            found = self._predictions(self.get_test_dataloader(database), "Database", ignore_keys, "database")
            metrics = [self.task.metrics(output, found, metric_key_prefix) if self.is_world_process_zero() else {}]
            # From the main process, so that all processes choose the same best model and stop together.
            broadcast_object_list(metrics)
            output = output._replace(metrics={**(output.metrics or {}), **metrics[0]})
        return output

    def _predictions(self, dataloader, description: str, ignore_keys, prefix: str) -> EvalLoopOutput:
        if not isinstance(dataloader.dataset, StreamPart):
            return super().evaluation_loop(dataloader, description, False, ignore_keys, prefix)
        model = cast(nn.Module, self.model).eval()
        return predict_stream(self, dataloader, lambda inputs: self.prediction_step(model, inputs, False)[1:])

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        if not self.args.should_save:
            super()._save(output_dir, state_dict)
            return
        folder = Path(output_dir if output_dir is not None else self.args.output_dir)
        token, self.args.hub_token = self.args.hub_token, None
        try:
            # A checkpoint is staged as a whole by the store.
            with replacing_files(folder) if self.store.staging is None else nullcontext(folder) as written:
                super()._save(str(written), state_dict)
                # The parent's copy of the arguments is a pickle; ours is text.
                (written / "training_args.bin").unlink(missing_ok=True)
                (written / TRAINING_ARGS_NAME).write_text(self.args.to_json_string() + "\n", encoding="utf-8")
        finally:
            self.args.hub_token = token

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any):
        """As the parent's; `resume_from_checkpoint` is as in `find_checkpoint`.

        Raises:
            CheckpointError: If the checkpoint is incomplete, of another model or other data, or cannot be written, or
                if another training uses the output folder.
            DataError: If there was no batch to train on.
        """
        output = make_output_folder(self.args.output_dir)
        # The process that writes holds the lock of the folder. If it fails, the other processes end with it.
        with held(output, "checkpoints") if self.args.should_save else nullcontext():
            found = find_checkpoint(resume_from_checkpoint, output)
            self.accelerator.wait_for_everyone()  # all processes have looked before unfinished checkpoints are removed
            if self.args.should_save:
                remove_unfinished(output)
                if found is None:
                    begin_anew(output)
            if found is not None:
                check_same_model(self.pretraining.config, found)
            self.store.resumed_from = found
            result = super().train(None if found is None else str(found), *args, **kwargs)
        if not self.state.global_step:
            raise DataError(NO_BATCH)
        return result

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # The parent checks only after a step, and a finished run has no step left.
        if not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)

    def _get_output_dir(self, trial) -> str:
        return super()._get_output_dir(trial) if self.store.staging is None else str(self.store.staging)

    def _save_checkpoint(self, model: nn.Module, trial) -> None:
        parent_save = super()._save_checkpoint
        self.store.save(lambda: parent_save(model, trial), Path(self._get_output_dir(trial)))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        self.store.save_state(Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        if not self.is_fsdp_enabled:
            self.store.check_state(Path(checkpoint))
        super()._load_optimizer_and_scheduler(checkpoint)
        self.store.load_state(Path(checkpoint))

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Creates the repository `hub_model_id`, if it does not exist.

        Raises:
            HubError: If no id is given, or the Hub refuses it.
        """
        if self.is_world_process_zero():
            self.hub_model_id = self.hub.repo_id  # type: ignore[assignment]  # the parent's begins as None
            self.push_in_progress = None
            self.hub.make_repository(token, private)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the parent's, but nothing is pushed: `push_to_hub` does that."""
        super().save_model(output_dir, _internal_call=True)

    def push_to_hub(  # type: ignore[override]  # it returns what `push_model` returns
        self, commit_message: str | None = None, blocking: bool = True, *args: Any, **kwargs: Any
    ) -> "PushedModel | Future[PushedModel] | None":
        """Saves the model to `output_dir` and pushes it, in one commit, with its card: `HubUploads.push_saved`."""
        return self.hub.push_saved(commit_message, blocking, *args, **kwargs)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes the model card into `output_dir`, where the model has been saved: `HubUploads.write_card`."""
        self.hub.write_card(*args, **kwargs)
