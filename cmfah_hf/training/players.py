"""Optimizers, schedules and gradient scalers of the players of an objective."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel, Trainer, TrainerCallback, get_scheduler

from cmfah_hf.errors import CheckpointError
from cmfah_hf.methods.base import Batch, Player, TrainingState
from cmfah_hf.methods.outputs import CMFAHForPreTrainingOutput
from cmfah_hf.training.checkpoint_contents import check_optimizer, check_schedule, read_torch_file
from cmfah_hf.training.processes import average_gradients


class PlayerUpdates:
    """The updates of one player, with the towers' type of optimizer and schedule and a learning rate of its own.

    Accelerate prepares neither optimizer nor scaler. Its single scaler would change the scale between the gradients of
    two micro batches, and an overflow of one player would delay the schedule of another.

    Args:
        player: The player. Its parameters are fixed outside its own step, so the towers' optimizer does not hold them,
            and a distributed wrapper of the model does not wait for their gradients.
        trainer: The trainer of the towers.
    """

    def __init__(self, player: Player, trainer: Trainer):
        self.player = player
        self.trainer = trainer
        self.optimizer: Any = None
        self.schedule: Any = None
        self.scaler: torch.amp.GradScaler | None = None  # only in float16
        player.module.requires_grad_(False)

    def create_optimizer(self) -> None:
        """Makes the optimizer and, in float16, the scaler."""
        if self.optimizer is not None:
            return
        args = self.trainer.args
        model = cast(PreTrainedModel, self.trainer.model)
        kind, options = self.trainer.get_optimizer_cls_and_kwargs(args, model)
        rate = self.player.learning_rate
        if rate is None:
            rate = getattr(args, f"{self.player.name}_learning_rate", args.learning_rate)
        # Set for the group, as for the towers: PyTorch's optimizers have other defaults.
        group = {"params": list(self.player.module.parameters()), "weight_decay": args.weight_decay}
        self.optimizer = kind([group], **{**options, "lr": rate})
        if self.trainer.accelerator.scaler is not None:
            self.scaler = torch.amp.GradScaler(args.device.type)

    def create_schedule(self, num_training_steps: int) -> None:
        """Makes the schedule."""
        args = self.trainer.args
        self.schedule = get_scheduler(
            args.lr_scheduler_type,
            optimizer=self.optimizer,
            num_warmup_steps=args.get_warmup_steps(num_training_steps),
            num_training_steps=num_training_steps,
            scheduler_specific_kwargs=cast(dict[str, Any] | None, args.lr_scheduler_kwargs),
        )

    def step(
        self,
        batch: Batch,
        outputs: CMFAHForPreTrainingOutput,
        state: TrainingState,
        autocast: Callable[[], AbstractContextManager],
    ) -> None:
        """Takes the player's steps with the towers fixed, or accumulates the gradients of one micro batch for them.

        The outputs are those for the whole batch, detached; `autocast` makes the context in which losses are computed.
        """
        for _ in range(self.player.steps if self.player.is_active else 0):
            module = self.player.module.requires_grad_(True)
            with autocast():
                loss = self.player.loss(batch, outputs, state)
            loss = loss / self.trainer.current_gradient_accumulation_steps
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
            module.requires_grad_(False)
            if self.trainer.accelerator.sync_gradients:
                # Equal in all processes up to rounding; the average keeps the copies identical.
                average_gradients(module.parameters())
                if self.scaler is None:
                    self.optimizer.step()
                else:
                    self.scaler.step(self.optimizer)
                    self.scaler.update()
                self.optimizer.zero_grad()

    def step_schedule(self, metric: float | None = None) -> None:
        """Advances the schedule by one step; with a metric, if it follows the evaluations."""
        if metric is not None:
            self.schedule.step(metric)
        elif self.player.is_active:
            self.schedule.step()

    def save(self, folder: Path) -> None:
        """Writes the states of optimizer, schedule and scaler into a checkpoint."""
        state = {"optimizer": self.optimizer.state_dict(), "scheduler": self.schedule.state_dict()}
        torch.save(state, self._file(folder, "optimizer"))
        if self.scaler is not None:
            torch.save(self.scaler.state_dict(), self._file(folder, "scaler"))

    def load(self, folder: Path) -> None:
        """Reads the states of optimizer, schedule and scaler from a checkpoint.

        Raises:
            CheckpointError: If they are missing, damaged, or of another model.
        """
        path = self._file(folder, "optimizer")
        if not path.is_file():
            raise CheckpointError(
                f"{path} is missing: the checkpoint only holds a model (save_only_model), from which no training "
                "resumes; give another."
            )
        state: Mapping[str, Any] = read_torch_file(path)
        check_optimizer(self.optimizer, path, state["optimizer"])
        check_schedule(self.schedule, path, state["scheduler"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["scheduler"])
        if self.scaler is not None:
            self.scaler.load_state_dict(read_torch_file(self._file(folder, "scaler")))

    def _file(self, folder: Path, part: str) -> Path:
        return folder / f"{self.player.name}_{part}.pt"


def keep_whole(players: Iterable[PlayerUpdates], plugin: Any) -> None:
    """Excludes the players from FSDP's sharding, because they take steps outside the `forward` of the sharded model."""
    plugin.ignored_modules = [module for updates in players for module in updates.player.module.children()]
    if plugin.fsdp_version == 2:
        # The objective reads its layers outside `forward`, in float32; autocast handles the rest.
        plugin.mixed_precision_policy = None


class ObjectiveCallback(TrainerCallback):
    """Begins epochs, ends those of the objective before checkpoints are written, and advances the players' schedules.

    These advance with the schedule of the towers, so that an overflow does not separate them.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.begin_training()

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.trainer.task.begin_epoch(int(state.epoch or 0))

    def on_optimizer_step(self, args, state, control, **kwargs):
        trainer = self.trainer
        if not trainer.args.schedules_by_metric and not trainer.accelerator.optimizer_step_was_skipped:
            for updates in trainer.players.values():
                updates.step_schedule()

    def on_epoch_end(self, args, state, control, **kwargs):
        self.trainer.end_epoch()
