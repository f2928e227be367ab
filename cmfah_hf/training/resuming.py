"""A `Trainer` that can be broken off at any moment and goes on as if it had not been.

`Trainer` restores weights, optimizer, schedule, the position in the data and the random generators. What it leaves out
is here: sums that stand between two logs, the count of early stopping, what happens at the end of an epoch whose last
step was saved, runs that had already stopped, and whether the checkpoint is whole.
"""

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from cmfah_hf.errors import CheckpointError, DataError
from cmfah_hf.models import CMFAHConfig
from cmfah_hf.training.checkpoints import (
    begin_anew,
    check_whole,
    disk_errors,
    find_checkpoint,
    finish_checkpoint,
    rotate,
)
from cmfah_hf.training.run_folder import UNFINISHED_NAME, held, make_output_folder, remove_unfinished

logger = logging.getLogger(__name__)

PROGRESS_NAME = "progress"
NO_BATCH = (
    "There is not one batch to train on; take more pairs, a smaller per_device_train_batch_size, or "
    "--dataloader_drop_last false."
)


class ResumingTrainer(Trainer):
    """A `Trainer` whose resumed run equals the unbroken one, from checkpoints that are whole or not there.

    A subclass that keeps sums of its own between two logs adds them in `_progress` and takes them in `_set_progress`.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        arguments = kwargs.get("args")
        if arguments is not None and arguments.should_save:
            make_output_folder(arguments.output_dir)
        super().__init__(*args, **kwargs)
        self._staging: str | None = None  # the run's folder as far as the writing of a checkpoint is concerned
        self._checkpoint: str | None = None  # the one that this training goes on from
        self._epoch_has_ended = False
        self._save_at_epoch_end = False
        self.add_callback(_ResumeCallback(self))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any):
        """As the parent's; what to resume from is as in `find_checkpoint`.

        Raises:
            CheckpointError: If the checkpoint is not whole, is of another model or other data, or cannot be written, or
                if another training is at work in the output folder.
            DataError: If there was not one batch to train on.
        """
        output = make_output_folder(self.args.output_dir)
        # Of several processes the one that writes holds the folder. The others are ended with it, should it fail.
        with held(output, "checkpoints") if self.args.should_save else nullcontext():
            found = find_checkpoint(resume_from_checkpoint, output)
            self.accelerator.wait_for_everyone()  # each process has looked before what is half-written goes
            if self.args.should_save:
                remove_unfinished(output)
                if found is None:
                    begin_anew(output)
            self._checkpoint = None
            result = super().train(None if found is None else str(found), *args, **kwargs)
        if not self.state.global_step:
            raise DataError(NO_BATCH)
        return result

    # Writing

    def _get_output_dir(self, trial) -> str:
        return self._staging or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial) -> None:
        """As the parent's, below `unfinished/` and renamed at the end; only then the older ones are removed.

        A checkpoint of an epoch's last step is put off until the epoch's end, for a run that is resumed from it begins
        with the next epoch: the epoch's log, its evaluation and its codes have to be in it.
        """
        at_an_end = self.state.epoch is not None and float(self.state.epoch).is_integer()
        if (at_an_end or self.control.should_training_stop) and not self._epoch_has_ended:
            self._save_at_epoch_end = True
            return
        run_dir = Path(self._get_output_dir(trial))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        best = self.state.best_global_step
        best_folder = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{best}"
        staged, final = run_dir / UNFINISHED_NAME / name, run_dir / name
        try:
            with disk_errors(run_dir, f"the checkpoint of step {self.state.global_step}"):
                if best is not None and best_folder.is_dir():
                    self.state.best_model_checkpoint = str(best_folder)
                self._staging = str(staged.parent)
                super()._save_checkpoint(model, trial)
                self._staging = None
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    if best == self.state.global_step:
                        self.state.best_model_checkpoint = str(final)
                    self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
                    finish_checkpoint(staged, final)
        except BaseException:
            remove_unfinished(run_dir)
            raise
        finally:
            self._staging = None
        if self.args.should_save:
            rotate(run_dir, self.args.save_total_limit, final, self.state.best_model_checkpoint)
        if best == self.state.global_step:
            self.state.best_model_checkpoint = str(final)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._staging is None:  # not before it is whole
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        save_file(self._progress(), self._progress_file(output_dir))

    def _progress_file(self, folder: str) -> Path:
        # Of each process its own, as its random generators.
        rank = f"_{self.args.process_index}" if self.args.world_size > 1 else ""
        return Path(folder) / f"{PROGRESS_NAME}{rank}.safetensors"

    def _progress(self) -> dict[str, torch.Tensor]:
        """What stands between two logs."""
        return {
            "loss_since_log": self._tr_loss.detach().clone(),
            "loss_logged": torch.tensor(self._total_loss_scalar, dtype=torch.float64),
            "last_logged_step": torch.tensor(self._globalstep_last_logged),
        }

    # Reading

    def _set_progress(self, tensors: dict[str, torch.Tensor]) -> None:
        self._tr_loss = tensors["loss_since_log"].to(self.args.device)
        self._total_loss_scalar = tensors["loss_logged"].item()
        self._globalstep_last_logged = int(tensors["last_logged_step"])

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        check_same_model(self.model.config, resume_from_checkpoint)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _init_training_state(self, max_steps, num_update_steps_per_epoch, num_train_epochs, checkpoint, trial):
        result = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, checkpoint, trial
        )
        self._checkpoint = checkpoint
        if checkpoint is not None and self.args.load_best_model_at_end:
            self.state.best_model_checkpoint = _best_checkpoint(Path(checkpoint))
        return result

    def _load_callback_state(self) -> None:
        """As the parent's; where that restores nothing, callbacks still get their counts, with their new limits."""
        super()._load_callback_state()
        if self.args.restore_callback_states_from_checkpoint:
            return
        for callback in self.callback_handler.callbacks:
            kept = self.state.stateful_callbacks.get(type(callback).__name__)
            if isinstance(callback, ExportableState) and isinstance(kept, dict):
                for name, value in kept.get("attributes", {}).items():
                    if type(value) is type(getattr(callback, name, None)):  # a count
                        setattr(callback, name, value)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # The parent asks only after a step, and a run that is over has none left.
        if not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the parent's; the final mean of the loss is the whole run's, and not that since it was resumed."""
        if "train_loss" in logs:
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 0.001)
        super().log(logs, start_time)


class _ResumeCallback(TrainerCallback):
    """Puts back what `Trainer` resets before the first step, and the checkpoints of an epoch's last step to its end."""

    def __init__(self, trainer: ResumingTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        trainer = self.trainer
        trainer._epoch_has_ended = trainer._save_at_epoch_end = False
        if trainer._checkpoint is None:
            return
        progress = trainer._progress_file(trainer._checkpoint)
        if progress.is_file():
            trainer._set_progress(load_file(progress))
        stopped = any(
            callback.early_stopping_patience_counter >= callback.early_stopping_patience
            for callback in trainer.callback_handler.callbacks
            if isinstance(callback, EarlyStoppingCallback)
        )
        if stopped or state.global_step >= state.max_steps:
            control.should_training_stop = True

    def on_step_begin(self, args, state, control, **kwargs):
        self.trainer._epoch_has_ended = False

    def on_epoch_end(self, args, state, control, **kwargs):
        self.trainer._epoch_has_ended = True
        control.should_save = control.should_save or self.trainer._save_at_epoch_end
        self.trainer._save_at_epoch_end = False


def check_same_model(config: Any, checkpoint: str | Path) -> None:
    """Raises a `CheckpointError` that names the first setting in which a checkpoint's model is another one."""
    theirs = type(config).from_pretrained(checkpoint).to_dict()
    ours = config.to_dict()
    # The classes first: where they differ, the data is another. Without the parent's settings, of which `Trainer` sets
    # some.
    own = [name for kind in type(config).__mro__ if issubclass(kind, CMFAHConfig) for name in kind.__annotations__]
    for name in ("id2label", *own):
        if _plain(ours.get(name)) != _plain(theirs.get(name)):
            raise CheckpointError(
                f"{checkpoint}: a checkpoint of another model, whose {name} is {_short(theirs.get(name))} and not "
                f"{_short(ours.get(name))}; go on with the settings that it was begun with, or start in another folder."
            )


def _plain(value: Any) -> Any:
    """A setting as JSON would give it back: keys are strings, sequences lists, and who wrote it is left out."""
    if isinstance(value, dict):
        left_out = ("transformers_version", "dtype", "_name_or_path")
        return {str(key): _plain(item) for key, item in value.items() if key not in left_out}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _best_checkpoint(checkpoint: Path) -> str | None:
    """The folder of the best model so far: beside the checkpoint, also where the run was moved.

    Raises:
        CheckpointError: If it is gone or damaged; the run could not end with its best model.
    """
    recorded = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).best_model_checkpoint
    if recorded is None:
        return None
    beside = checkpoint.parent / Path(recorded).name
    best = beside if beside.is_dir() else Path(recorded)
    if not best.is_dir():
        raise CheckpointError(
            f"{best}: the best model so far is gone from there, so the run cannot end with it; put it back, or go on "
            "with --load_best_model_at_end false."
        )
    check_whole(best)
    return str(best)
