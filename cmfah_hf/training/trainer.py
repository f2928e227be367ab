"""CMFAH's alternating updates as a `Trainer`."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, get_scheduler
from transformers.trainer_utils import EvalLoopOutput, has_length

from cmfah_hf.data.collator import PairCollator
from cmfah_hf.evaluation import RetrievalEvaluator
from cmfah_hf.models import CMFAHForPreTraining, CMFAHProcessor
from cmfah_hf.models.losses import sign
from cmfah_hf.training.arguments import CMFAHTrainingArguments

logger = logging.getLogger(__name__)

DISCRIMINATOR_OPTIMIZER_NAME = "discriminator_optimizer.pt"
CODES_NAME = "codes.safetensors"
TRAINING_ARGS_NAME = "training_args.json"


def without_augmentation(pairs):
    """A data set without the column that holds its pictures' mirror images, for whoever measures and does not train."""
    augmenting = "region_features_mirrored"
    return pairs.remove_columns(augmenting) if augmenting in (pairs.column_names or ()) else pairs


class CMFAHTrainer(Trainer):
    """Trains a `CMFAHForPreTraining` by `[algorithm-1]`: for each batch the discriminators, then the towers.

    The towers see a batch once; the discriminators learn from its features, detached, and with the discriminators as
    they then are the towers' loss is computed and sent back. Each player has an optimizer and a schedule of its own,
    and both are in the checkpoint, as is `B`, the codes of all training pairs. What is evaluated, and what decides
    which model is best, is retrieval with each modality encoded alone: the evaluation pairs are the queries, the
    training pairs (or `database`) are what is searched.

    Args:
        model: The towers with what trains them.
        args: A `CMFAHTrainingArguments`.
        train_dataset: Rows as `PairCollator` reads them.
        eval_dataset: The validation pairs. Never the test queries.
        processing_class: The model's `CMFAHProcessor`, saved with it.
        text_column: The column that the texts are read from.
        database: The pairs that evaluation searches. None: the training pairs.
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
        data_collator=None,
        callbacks: Sequence[TrainerCallback] | None = None,
        **kwargs: Any,
    ):
        if data_collator is None:
            classes = [model.config.id2label[i] for i in range(model.config.num_labels)]
            data_collator = PairCollator(processing_class, classes, text_column)
        self.learns_by_row = args.codes_update == "epoch" and train_dataset is not None and has_length(train_dataset)
        if self.learns_by_row and "row" not in train_dataset.column_names:
            train_dataset = train_dataset.add_column("row", list(range(len(train_dataset))))
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=without_augmentation(eval_dataset) if hasattr(eval_dataset, "column_names") else eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            **kwargs,
        )
        self.database = database
        self.evaluator = RetrievalEvaluator(metrics=("map", "random"), ranking="hamming")
        self.codes: torch.Tensor | None = None  # B of [algorithm-1], int8 (N, K); None until the first epoch has ended
        self.discriminator_optimizer = None
        self.discriminator_scheduler = None
        self._term_sums: dict[str, torch.Tensor] = {}
        self._term_count = 0
        self.loss_is_scaled_for_ga = False
        # Outside their own step the discriminators are fixed. So the towers' optimizer does not hold them, and a
        # distributed wrapper of the model does not wait for their gradients.
        self._discriminators.requires_grad_(False)
        self.add_callback(_CodesCallback(self))
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience))

    @property
    def plain_train_dataset(self):
        """The training pairs as they are, without what augments them."""
        return without_augmentation(self.train_dataset)

    @property
    def _discriminators(self) -> nn.ModuleList:
        model = self._unwrapped(self.model)
        return nn.ModuleList([model.image_discriminator, model.text_discriminator])

    def _unwrapped(self, model: nn.Module) -> CMFAHForPreTraining:
        # Most often there is nothing to unwrap, and `unwrap_model` takes milliseconds to find that out.
        return model if isinstance(model, CMFAHForPreTraining) else self.accelerator.unwrap_model(model)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """0: the parent's estimate is for models of tokens, and for it counts all parameters in every step."""
        return 0

    def create_optimizer(self, model=None):
        optimizer = super().create_optimizer(model)
        if self.discriminator_optimizer is None:
            optimizer_class, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            kwargs = {**kwargs, "lr": self.args.discriminator_learning_rate}
            # Said for the group, as for the towers' groups: PyTorch's optimizers have defaults of their own.
            group = {"params": list(self._discriminators.parameters()), "weight_decay": self.args.weight_decay}
            self.discriminator_optimizer = optimizer_class([group], **kwargs)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        self.discriminator_optimizer = self.accelerator.prepare_optimizer(self.discriminator_optimizer)
        self.discriminator_scheduler = get_scheduler(
            self.args.lr_scheduler_type,
            optimizer=self.discriminator_optimizer,
            num_warmup_steps=self.args.get_warmup_steps(num_training_steps),
            num_training_steps=num_training_steps,
            scheduler_specific_kwargs=self.args.lr_scheduler_kwargs,
        )
        return scheduler

    def get_test_dataloader(self, test_dataset):
        """As the parent's, but to the last pair, also with `dataloader_drop_last`: each has a code and is searched."""
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_test_dataloader(test_dataset)
        finally:
            self.args.dataloader_drop_last = drop_last

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch=None) -> torch.Tensor:
        if not model.training:
            model.train()
        inputs = self._prepare_inputs(inputs)
        rows, labels = inputs.pop("row", None), inputs.pop("labels")
        pretraining = self._unwrapped(model)
        with self.compute_loss_context_manager():
            outputs = model(**inputs)
        if pretraining.config.adversarial_weight:
            self._discriminators_step(pretraining, outputs)
        with self.compute_loss_context_manager():
            codes = self.codes[rows.cpu()].to(labels.device) if self.codes is not None and rows is not None else None
            loss, terms = pretraining.towers_losses(outputs, labels, codes)
        for name, value in terms.items():
            self._term_sums[name] = self._term_sums.get(name, 0.0) + value.detach()
        self._term_count += 1
        loss = loss / self.current_gradient_accumulation_steps
        self.accelerator.backward(loss)
        return loss.detach()

    def _discriminators_step(self, pretraining: CMFAHForPreTraining, outputs) -> None:
        """One update of both discriminators with the towers fixed, `[adversarial]`."""
        discriminators = self._discriminators.requires_grad_(True)
        with self.compute_loss_context_manager():
            loss = pretraining.discriminators_loss(outputs.image_features.detach(), outputs.text_features.detach())
        self.accelerator.backward(loss / self.current_gradient_accumulation_steps)
        discriminators.requires_grad_(False)
        if self.accelerator.sync_gradients:
            if self.accelerator.num_processes > 1:
                for parameter in discriminators.parameters():
                    parameter.grad = self.accelerator.reduce(parameter.grad, reduction="mean")
            self.discriminator_optimizer.step()
            self.discriminator_scheduler.step()
            self.discriminator_optimizer.zero_grad()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the parent's, with the terms of the loss beside their total."""
        if "loss" in logs and self._term_count:
            logs.update({f"loss_{name}": (sum_ / self._term_count).item() for name, sum_ in self._term_sums.items()})
            self._term_sums, self._term_count = {}, 0
        super().log(logs, start_time)

    def update_codes(self) -> None:
        """`B = sgn(H_v + H_t)` over all training pairs, each pair seen together, `[algorithm-1]`."""
        model = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        model.eval()
        codes = torch.empty(len(self.train_dataset), model.config.hash_bits, dtype=torch.int8)
        for inputs in self.get_test_dataloader(self.plain_train_dataset):
            inputs = self._prepare_inputs(inputs)
            rows = inputs.pop("row")
            inputs.pop("labels")
            with torch.no_grad(), self.compute_loss_context_manager():
                outputs = model.cmfah(**inputs)
            batch_codes = sign(outputs.image_hash.float() + outputs.text_hash.float()).to(torch.int8)
            rows, batch_codes = self.accelerator.gather_for_metrics((rows, batch_codes))
            codes[rows.cpu()] = batch_codes.cpu()
        self.codes = codes
        model.train(was_training)

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys=None):
        """The hash values of each modality encoded alone, `((B, K), (B, K))`; no loss."""
        inputs = self._prepare_inputs(inputs)
        towers = self._unwrapped(model).cmfah
        with torch.no_grad(), self.compute_loss_context_manager():
            image_hash = towers.get_image_hash(inputs.get("pixel_values"), inputs.get("region_features"))
            text_hash = towers.get_text_hash(inputs["input_ids"], inputs["attention_mask"])
        return None, (image_hash.float(), text_hash.float()), inputs.get("labels")

    def evaluation_loop(
        self,
        dataloader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As the parent's, and in an evaluation the MAP of both directions against the database."""
        output = super().evaluation_loop(dataloader, description, False, ignore_keys, metric_key_prefix)
        if description == "Evaluation":
            database = self.plain_train_dataset if self.database is None else self.database
            found = super().evaluation_loop(
                self.get_test_dataloader(database), "Database", False, ignore_keys, "database"
            )
            figures = self.evaluator(*output.predictions, *found.predictions, output.label_ids, found.label_ids)
            i2t, t2i = figures["hamming/i2t/map"], figures["hamming/t2i/map"]
            maps = {"map": (i2t + t2i) / 2, "map_i2t": i2t, "map_t2i": t2i, "map_random": figures["random/map"]}
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in maps.items()})
        return output

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        super()._save(output_dir, state_dict)
        # The parent's copy of the arguments is a pickle; ours is text.
        folder = Path(output_dir if output_dir is not None else self.args.output_dir)
        (folder / "training_args.bin").unlink(missing_ok=True)
        (folder / TRAINING_ARGS_NAME).write_text(self.args.to_json_string() + "\n", encoding="utf-8")

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if not self.args.should_save:
            return
        state = {
            "optimizer": self.discriminator_optimizer.state_dict(),
            "scheduler": self.discriminator_scheduler.state_dict(),
        }
        torch.save(state, Path(output_dir) / DISCRIMINATOR_OPTIMIZER_NAME)
        if self.codes is not None:
            save_file({"codes": self.codes}, Path(output_dir) / CODES_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        state = torch.load(Path(checkpoint) / DISCRIMINATOR_OPTIMIZER_NAME, map_location="cpu", weights_only=True)
        self.discriminator_optimizer.load_state_dict(state["optimizer"])
        self.discriminator_scheduler.load_state_dict(state["scheduler"])
        codes = Path(checkpoint) / CODES_NAME
        self.codes = load_file(codes)["codes"] if codes.is_file() else None


class _CodesCallback(TrainerCallback):
    """Makes `B` anew at the end of an epoch, before that epoch's checkpoint is written."""

    def __init__(self, trainer: CMFAHTrainer):
        self.trainer = trainer

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.trainer.learns_by_row:
            self.trainer.update_codes()
