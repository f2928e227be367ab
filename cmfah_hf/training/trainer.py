"""`CMFAHTrainer`: a `Trainer` for models with an objective, which may have several players."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.trainer_utils import EvalLoopOutput, SchedulerType, has_length

from cmfah_hf.data.collator import PairCollator
from cmfah_hf.data.relevance import PairRelevance, Relevance
from cmfah_hf.data.streams import PairStream, StreamPart
from cmfah_hf.errors import CheckpointError, DataError
from cmfah_hf.evaluation import RetrievalEvaluator
from cmfah_hf.methods import CMFAHForPreTraining, TrainingState
from cmfah_hf.models import CMFAHProcessor
from cmfah_hf.training.arguments import CMFAHTrainingArguments
from cmfah_hf.training.batch_norm import use_global_statistics
from cmfah_hf.training.checkpoint_contents import check_optimizer, check_schedule, read_torch_file
from cmfah_hf.training.hub_trainer import HubTrainer
from cmfah_hf.training.players import PlayerUpdates
from cmfah_hf.training.processes import (
    broadcast_figures,
    broadcast_from_main,
    detached,
    gather_outputs,
    share_batches,
)
from cmfah_hf.training.ranges import taken
from cmfah_hf.training.resuming import NO_BATCH
from cmfah_hf.training.run_folder import replacing_files
from cmfah_hf.training.stream_loaders import (
    StreamPlaceCallback,
    as_stream,
    as_training_stream,
    predict_stream,
    stream_loader,
)

logger = logging.getLogger(__name__)

# The tables of the objective's `TrainingState`, such as the binary codes of all training pairs.
TABLES_NAME = "codes.safetensors"
TRAINING_ARGS_NAME = "training_args.json"
AUGMENTING_COLUMN = "region_features_mirrored"


def without_augmentation(pairs):
    """A data set without the column that holds its pictures' mirror images, for whoever measures and does not train."""
    if isinstance(pairs, PairStream):  # in evaluation it gives none
        return pairs
    if not hasattr(pairs, "column_names"):
        return _Rows(pairs, augmented=False) if has_length(pairs) and not isinstance(pairs, Mapping) else pairs
    return pairs.remove_columns(AUGMENTING_COLUMN) if AUGMENTING_COLUMN in (pairs.column_names or ()) else pairs


class _Rows(torch.utils.data.Dataset):
    """Rows of a list or of torch's own data sets, with their numbers under `row` or without what augments them."""

    def __init__(self, rows: Sequence[dict[str, Any]], numbered: bool = False, augmented: bool = True):
        self.rows, self.numbered, self.augmented = rows, numbered, augmented

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        row = dict(self.rows[number])
        if self.numbered:
            row["row"] = number
        if not self.augmented:
            row.pop(AUGMENTING_COLUMN, None)
        return row


class CMFAHTrainer(HubTrainer):
    """Trains the towers of a model with an objective, and the objective's players, `[algorithm-1]`.

    The towers encode a batch once. Each player of the objective takes a step on these outputs, detached; then the
    towers' loss is computed with all players fixed, and the towers take theirs. Each player has an optimizer and a
    schedule of its own, which are in the checkpoint, as are the objective's tables over the training pairs. Evaluation,
    which selects the best model, is unimodal retrieval: the evaluation pairs are the queries, and the training pairs
    (or `database`) are searched.

    On several processes each encodes its share of a batch, and the losses are those of the whole (docs/training.md).

    Args:
        model: A model with an objective, such as a `CMFAHForPreTraining`.
        args: A `CMFAHTrainingArguments`.
        train_dataset: Rows as `PairCollator` reads them: a data set, map-style or a stream, of `datasets` or of torch,
            or a list. The rows of a stream of `datasets` are counted first, unless `max_steps` is given; a
            `PairStream` may bring its counts.
        eval_dataset: The validation pairs. Never the test queries.
        processing_class: The model's `CMFAHProcessor`, saved with it.
        text_column: The column that the texts are read from.
        database: The pairs that evaluation searches. None: the training pairs; where pairs are alike to nothing but
            themselves, the evaluation pairs.
        relevance: The similarity of training pairs. None: by the labels of the model's classes.
        measured: The similarity of pairs in evaluation. None: the same.
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
        relevance: Relevance | None = None,
        measured: Relevance | None = None,
        data_collator=None,
        callbacks: Sequence[TrainerCallback] | None = None,
        **kwargs: Any,
    ):
        if data_collator is None:
            classes = [model.config.id2label[i] for i in range(model.config.num_labels)]
            data_collator = PairCollator(processing_class, classes, text_column, relevance)
        self.measuring_collator = data_collator
        if measured is not None:
            self.measuring_collator = PairCollator(processing_class, None, text_column, measured)
        train_dataset = as_training_stream(train_dataset, args)
        eval_dataset, database = as_stream(eval_dataset), as_stream(database)
        self.learns_by_row = args.codes_update == "epoch" and train_dataset is not None and has_length(train_dataset)
        self.learns_by_row = self.learns_by_row and not isinstance(train_dataset, PairStream)
        if self.learns_by_row and not hasattr(train_dataset, "column_names"):
            train_dataset = _Rows(train_dataset, numbered=True)
        elif self.learns_by_row and "row" not in train_dataset.column_names:
            train_dataset = train_dataset.add_column("row", list(range(len(train_dataset))))
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=without_augmentation(eval_dataset),
            processing_class=processing_class,
            callbacks=callbacks,
            **kwargs,
        )
        self.measured = measured or relevance
        # A partner is not among the training pairs, so with nothing else to find, the evaluation pairs are searched.
        searches_own = database is None and isinstance(self.measured, PairRelevance)
        self.database = self.eval_dataset if searches_own else database
        self.evaluator = RetrievalEvaluator(metrics=("map", "random"), ranking="hamming")
        self.training_state = TrainingState()
        if self.learns_by_row:
            self.training_state = TrainingState(len(self.train_dataset), encode=self._encode_training_pairs)
        self.players = {player.name: PlayerUpdates(player, self) for player in self._pretraining.objective.players()}
        self._term_sums: dict[str, torch.Tensor] = {}
        self._term_count = 0
        self.loss_is_scaled_for_ga = False
        self._make_model_fit_for_processes()
        self.add_callback(_ObjectiveCallback(self))
        self.add_callback(StreamPlaceCallback())
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience))

    @property
    def plain_train_dataset(self):
        """The training pairs as they are, without what augments them."""
        return without_augmentation(self.train_dataset)

    def _make_model_fit_for_processes(self) -> None:
        model = self._pretraining
        use_global_statistics(model)
        broadcast_from_main([*model.parameters(), *model.buffers()], self.args.device)
        if self.is_fsdp_enabled:
            plugin = self.accelerator.state.fsdp_plugin
            # Players stay whole in every process: their steps are taken outside the sharded model's `forward`.
            plugin.ignored_modules = [
                module for updates in self.players.values() for module in updates.player.module.children()
            ]
            if plugin.fsdp_version == 2:
                # The objective reads its layers outside `forward` too, in float32; autocast sees to the rest.
                plugin.mixed_precision_policy = None

    @property
    def _pretraining(self) -> CMFAHForPreTraining:
        """The model without its wrappers. Not with `keep_torch_compile`, which tears a compiled model's wrapper off."""
        if isinstance(self.model, CMFAHForPreTraining):  # most often; `unwrap_model` takes milliseconds to find it out
            return self.model
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """0: the parent's estimate is for models of tokens, and for it counts all parameters in every step."""
        return 0

    @property
    def _schedules_by_metric(self) -> bool:
        return self.args.lr_scheduler_type in (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)

    def create_optimizer(self, model=None):
        with taken(self.args, "optim", "optim_args"):
            optimizer = super().create_optimizer(model)
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
        """As the parent's; of several processes each gets its share of every batch, the last one of an epoch too."""
        if isinstance(self.train_dataset, PairStream):
            loader = stream_loader(self, self.train_dataset, training=True)
        else:
            loader = share_batches(super().get_train_dataloader())
        if has_length(loader) and not len(loader):
            raise DataError(NO_BATCH)
        return loader

    def get_eval_dataloader(self, eval_dataset=None):
        """As the parent's, but to the last pair, also with `dataloader_drop_last`: each is a query."""
        chosen = as_stream(self.eval_dataset if eval_dataset is None else eval_dataset)
        if isinstance(chosen, PairStream):
            return stream_loader(self, chosen, training=False)
        with self._every_pair():
            return super().get_eval_dataloader(eval_dataset)

    def _get_dataloader(self, *args: Any, is_training: bool = False, **kwargs: Any):
        training_collator = self.data_collator
        self.data_collator = training_collator if is_training else self.measuring_collator
        try:
            return super()._get_dataloader(*args, is_training=is_training, **kwargs)
        finally:
            self.data_collator = training_collator

    def get_test_dataloader(self, test_dataset):
        """As the parent's, but to the last pair, also with `dataloader_drop_last`: each has a code and is searched."""
        test_dataset = as_stream(test_dataset)
        if isinstance(test_dataset, PairStream):
            return stream_loader(self, test_dataset, training=False)
        with self._every_pair():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _every_pair(self):
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            yield
        finally:
            self.args.dataloader_drop_last = drop_last

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch=None) -> torch.Tensor:
        pretraining = self._pretraining
        if not (model.training and pretraining.training):  # evaluation sees the model without its wrapper
            model.train()
        inputs = self._prepare_inputs(inputs)
        rows, batch = inputs.pop("row", None), {"labels": inputs.pop("labels")}
        objective = pretraining.objective
        # By the update and not by the batch: all micro batches of an update have the same views, in all processes.
        cross_modal = objective.needs_cross_modal and self.state.global_step % self.args.paired_every == 0
        with self.compute_loss_context_manager():
            outputs = model(**inputs, paired=cross_modal)
        if rows is not None:
            for name, table in self.training_state.tables.items():
                batch[name] = table[rows.cpu()].to(rows.device)
        # From here on every process holds the whole batch, so all losses are the same in all of them.
        outputs, batch = gather_outputs(outputs, batch)
        if self.players:
            fixed = detached(outputs)
            for updates in self.players.values():
                updates.step(fixed, self.compute_loss_context_manager())
        with self.compute_loss_context_manager():
            losses = objective(batch, outputs, self.training_state)
        for name, value in losses.terms.items():
            self._term_sums[name] = self._term_sums.get(name, 0.0) + value.detach()
        self._term_count += 1
        loss = losses.total / self.current_gradient_accumulation_steps
        self.accelerator.backward(loss)
        return loss.detach()

    def _evaluate(self, trial, ignore_keys_for_eval, skip_scheduler: bool = False) -> dict[str, float]:
        metrics = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
        if self._schedules_by_metric and not skip_scheduler:
            metric = metrics[f"eval_{self.args.metric_for_best_model.removeprefix('eval_')}"]
            for updates in self.players.values():
                updates.step_schedule(metric)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the parent's, with the terms of the loss beside their total."""
        if "loss" in logs and self._term_count:
            logs.update({f"loss_{name}": (sum_ / self._term_count).item() for name, sum_ in self._term_sums.items()})
            self._term_sums, self._term_count = {}, 0
        super().log(logs, start_time)

    def end_epoch(self) -> None:
        """Lets the objective update its tables over the training pairs."""
        self._pretraining.objective.on_epoch_end(self.training_state)

    def _encode_training_pairs(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Rows and cross-modal continuous codes of all training pairs, as `TrainingState.encode`."""
        model = self._pretraining
        was_training = model.training
        model.eval()
        try:
            for inputs in self.get_test_dataloader(self.plain_train_dataset):
                inputs = self._prepare_inputs(inputs)
                rows = inputs.pop("row")
                inputs.pop("labels")
                with torch.no_grad(), self.compute_loss_context_manager():
                    if self.is_fsdp_enabled:  # sharded weights are whole within the whole model's `forward` alone
                        outputs = self.model(**inputs)
                        values = outputs.image_model_output.hash_values, outputs.text_model_output.hash_values
                    else:
                        outputs = model.cmfah(**inputs)
                        values = outputs.image_hash, outputs.text_hash
                found = self.accelerator.gather_for_metrics((rows, values[0].float(), values[1].float()))
                rows, image_BK, text_BK = (tensor.cpu() for tensor in found)
                yield rows, image_BK, text_BK
        finally:
            model.train(was_training)

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys=None):
        """The hash values of each modality encoded alone, `((B, K), (B, K))`; no loss."""
        inputs = self._prepare_inputs(inputs)
        labels = inputs.pop("labels", None)
        inputs.pop("row", None)
        with torch.no_grad(), self.compute_loss_context_manager():
            if self.is_fsdp_enabled:  # as in `_encode_training_pairs`
                outputs = model(**inputs)
                image_hash, text_hash = outputs.image_hash, outputs.text_hash
            else:
                towers = self._pretraining.cmfah
                image_hash = towers.get_image_hash(inputs.get("pixel_values"), inputs.get("region_features"))
                text_hash = towers.get_text_hash(inputs["input_ids"], inputs["attention_mask"])
        return None, (image_hash.float(), text_hash.float()), labels

    def evaluation_loop(
        self,
        dataloader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As the parent's, and in an evaluation the MAP of both directions against the database."""
        output = self._predictions(dataloader, description, ignore_keys, metric_key_prefix)
        if description == "Evaluation":
            database = self.plain_train_dataset if self.database is None else self.database
            found = self._predictions(self.get_test_dataloader(database), "Database", ignore_keys, "database")
            names = ("hamming/i2t/map", "hamming/t2i/map", "random/map")
            figures = None
            if self.is_world_process_zero():
                labels = output.label_ids, found.label_ids
                if self.measured is not None:
                    labels = self.measured.relevant(*labels)
                found_by_name = self.evaluator(*output.predictions, *found.predictions, *labels)
                figures = [found_by_name[name] for name in names]
            # The main process's, so that all choose the same best model and stop together.
            i2t, t2i, random = broadcast_figures(figures, len(names), self.args.device)
            maps = {"map": (i2t + t2i) / 2, "map_i2t": i2t, "map_t2i": t2i, "map_random": random}
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in maps.items()})
        return output

    def _predictions(self, dataloader, description: str, ignore_keys, prefix: str) -> EvalLoopOutput:
        if not isinstance(dataloader.dataset, StreamPart):
            return super().evaluation_loop(dataloader, description, False, ignore_keys, prefix)
        self.model.eval()
        return predict_stream(self, dataloader, lambda inputs: self.prediction_step(self.model, inputs, False)[1:])

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        if not self.args.should_save:
            super()._save(output_dir, state_dict)
            return
        folder = Path(output_dir if output_dir is not None else self.args.output_dir)
        token, self.args.hub_token = self.args.hub_token, None
        try:
            # A checkpoint is staged as a whole.
            with replacing_files(folder) if self._staging is None else nullcontext(folder) as written:
                super()._save(str(written), state_dict)
                # The parent's copy of the arguments is a pickle; ours is text.
                (written / "training_args.bin").unlink(missing_ok=True)
                (written / TRAINING_ARGS_NAME).write_text(self.args.to_json_string() + "\n", encoding="utf-8")
        finally:
            self.args.hub_token = token

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if not self.args.should_save:
            return
        for updates in self.players.values():
            updates.save(Path(output_dir))
        if self.training_state.tables:
            save_file(self.training_state.tables, Path(output_dir) / TABLES_NAME)

    def _save_scaler(self, output_dir: str) -> None:
        super()._save_scaler(output_dir)
        if self.args.should_save:
            for updates in self.players.values():
                updates.save_scaler(Path(output_dir))

    def _load_scaler(self, checkpoint: str | None) -> None:
        super()._load_scaler(checkpoint)
        if checkpoint is not None:
            for updates in self.players.values():
                updates.load_scaler(Path(checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        if not self.is_fsdp_enabled:
            self._check_optimizer_and_scheduler(Path(checkpoint))
        super()._load_optimizer_and_scheduler(checkpoint)
        for updates in self.players.values():
            updates.load(Path(checkpoint))
        path = Path(checkpoint) / TABLES_NAME
        self.training_state.tables = load_file(path) if path.is_file() and self.learns_by_row else {}
        for table in self.training_state.tables.values():
            if len(table) != len(self.train_dataset):
                raise CheckpointError(
                    f"{path} is of {len(table)} training pairs, and there are {len(self.train_dataset)} now; go on "
                    "with the data that the run was begun with, or start in another folder."
                )

    def _check_optimizer_and_scheduler(self, checkpoint: Path) -> None:
        optimizer, schedule = checkpoint / OPTIMIZER_NAME, checkpoint / SCHEDULER_NAME
        if optimizer.is_file() and schedule.is_file():  # as the parent asks
            check_optimizer(self.optimizer, optimizer, read_torch_file(optimizer))
            check_schedule(self.lr_scheduler, schedule, read_torch_file(schedule))

    def _progress(self) -> dict[str, torch.Tensor]:
        terms = {f"term/{name}": sum_.detach().clone() for name, sum_ in self._term_sums.items()}
        return {**super()._progress(), **terms, "term_count": torch.tensor(self._term_count)}

    def _set_progress(self, tensors: dict[str, torch.Tensor]) -> None:
        super()._set_progress(tensors)
        self._term_count = int(tensors["term_count"])
        self._term_sums = {
            name.removeprefix("term/"): sum_.to(self.args.device)
            for name, sum_ in tensors.items()
            if name.startswith("term/")
        }


class _ObjectiveCallback(TrainerCallback):
    """Ends the objective's epochs, before their checkpoints are written, and advances the players' schedules.

    The schedules advance where the towers' does, so that no overflow leads them apart.
    """

    def __init__(self, trainer: CMFAHTrainer):
        self.trainer = trainer

    def on_optimizer_step(self, args, state, control, **kwargs):
        trainer = self.trainer
        if not trainer._schedules_by_metric and not trainer.accelerator.optimizer_step_was_skipped:
            for updates in trainer.players.values():
                updates.step_schedule()

    def on_epoch_end(self, args, state, control, **kwargs):
        self.trainer.end_epoch()
