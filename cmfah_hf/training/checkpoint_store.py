"""Checkpoints of a trainer: written atomically and resumed bit-identically.

`Trainer` restores weights, optimizer, schedule, the position in the data and the random generators. The store restores
the rest: the players and the objective's tables, sums between two logs, the count of early stopping, the end of an
epoch whose last step was saved, and runs that had already stopped.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from cmfah_hf.errors import CheckpointError
from cmfah_hf.models import CMFAHConfig
from cmfah_hf.training.checkpoint_contents import check_optimizer, check_schedule, read_torch_file
from cmfah_hf.training.checkpoints import check_whole, disk_errors, finish_checkpoint, rotate
from cmfah_hf.training.run_folder import UNFINISHED_NAME, remove_unfinished

PROGRESS_NAME = "progress"
# The tables of the objective's `TrainingState`, such as the binary codes of all training pairs.
TABLES_NAME = "codes.safetensors"


class CheckpointStore(TrainerCallback):
    """Saves and restores the checkpoints of a trainer, which calls it from its hooks."""

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.staging: Path | None = None  # the run's folder while a checkpoint is written
        self.resumed_from: Path | None = None
        self._epoch_has_ended = False
        self._save_at_epoch_end = False

    def save(self, write: Callable[[], None], run_dir: Path) -> None:
        """Writes a checkpoint below `unfinished/`, renames it, and only then removes older ones.

        The checkpoint of an epoch's last step is postponed to the end of the epoch: a run that resumes from it begins
        with the next epoch, so it must hold the epoch's log, evaluation and tables.

        Args:
            write: Writes the checkpoint as `Trainer` does, below `staging`.
            run_dir: The run's folder.
        """
        trainer, state = self.trainer, self.trainer.state
        at_an_end = state.epoch is not None and float(state.epoch).is_integer()
        if (at_an_end or trainer.control.should_training_stop) and not self._epoch_has_ended:
            self._save_at_epoch_end = True
            return
        name, best = f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}", state.best_global_step
        best_folder = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{best}"
        staged, final = run_dir / UNFINISHED_NAME / name, run_dir / name
        try:
            with disk_errors(run_dir, f"the checkpoint of step {state.global_step}"):
                if best is not None and best_folder.is_dir():
                    state.best_model_checkpoint = str(best_folder)
                self.staging = staged.parent
                write()
                self.staging = None
                trainer.accelerator.wait_for_everyone()
                if trainer.args.should_save:
                    if best == state.global_step:
                        state.best_model_checkpoint = str(final)
                    state.save_to_json(str(staged / TRAINER_STATE_NAME))
                    finish_checkpoint(staged, final)
        except BaseException:
            remove_unfinished(run_dir)
            raise
        finally:
            self.staging = None
        if trainer.args.should_save:
            rotate(run_dir, trainer.args.save_total_limit, final, state.best_model_checkpoint)
        if best == state.global_step:
            state.best_model_checkpoint = str(final)
        trainer.accelerator.wait_for_everyone()

    def save_state(self, folder: Path) -> None:
        """Writes the part of a checkpoint that `Trainer` leaves out."""
        trainer = self.trainer
        if trainer.args.should_save:
            for updates in trainer.players.values():
                updates.save(folder)
            if trainer.training_state.tables:
                save_file(trainer.training_state.tables, folder / TABLES_NAME)
        folder.mkdir(parents=True, exist_ok=True)
        progress = {
            "loss_since_log": trainer._tr_loss.detach().clone(),
            "loss_logged": torch.tensor(trainer._total_loss_scalar, dtype=torch.float64),
            "last_logged_step": torch.tensor(trainer._globalstep_last_logged),
            **trainer.loss_terms.state(),
        }
        save_file(progress, self._progress_file(folder))

    def check_state(self, folder: Path) -> None:
        """Raises a `CheckpointError` if optimizer or schedule of a checkpoint are missing, or of another model."""
        optimizer, schedule = folder / OPTIMIZER_NAME, folder / SCHEDULER_NAME
        for path in (optimizer, schedule):
            if not path.is_file():
                raise CheckpointError(
                    f"{path} is missing: the checkpoint only holds a model (save_only_model), from which no training "
                    "resumes; give another."
                )
        if self.trainer.optimizer is not None:
            check_optimizer(self.trainer.optimizer, optimizer, read_torch_file(optimizer))
            check_schedule(self.trainer.lr_scheduler, schedule, read_torch_file(schedule))

    def load_state(self, folder: Path) -> None:
        """Reads the players and the objective's tables from a checkpoint.

        Raises:
            CheckpointError: If they are missing, damaged, or of another model or other data.
        """
        trainer = self.trainer
        for updates in trainer.players.values():
            updates.load(folder)
        path, count = folder / TABLES_NAME, trainer.training_state.num_pairs
        trainer.training_state.tables = load_file(path) if path.is_file() and count else {}
        for table in trainer.training_state.tables.values():
            if len(table) != count:
                raise CheckpointError(
                    f"{path} is of {len(table)} training pairs, and there are {count} now; resume with the data of the "
                    "run, or start in another folder."
                )

    def _progress_file(self, folder: Path) -> Path:
        # One file per process, as for the random generators.
        args = self.trainer.args
        rank = f"_{args.process_index}" if args.world_size > 1 else ""
        return folder / f"{PROGRESS_NAME}{rank}.safetensors"

    def _load_progress(self, folder: Path) -> None:
        path = self._progress_file(folder)
        if not path.is_file():
            return
        trainer, tensors = self.trainer, load_file(path)
        trainer._tr_loss = tensors["loss_since_log"].to(trainer.args.device)
        trainer._total_loss_scalar = tensors["loss_logged"].item()
        trainer._globalstep_last_logged = int(tensors["last_logged_step"])
        trainer.loss_terms.load_state(tensors, trainer.args.device)

    def _restore_counts(self) -> None:
        """Restores the counts of callbacks, but not their limits, where `Trainer` does not restore callbacks."""
        trainer = self.trainer
        if trainer.args.restore_callback_states_from_checkpoint:
            return
        states: Any = trainer.state.stateful_callbacks  # annotated as a list, by name here
        for callback in trainer.callback_handler.callbacks:
            kept = states.get(type(callback).__name__)
            if isinstance(callback, ExportableState) and isinstance(kept, dict):
                for name, value in kept.get("attributes", {}).items():
                    if type(value) is type(getattr(callback, name, None)):  # a count
                        setattr(callback, name, value)

    def on_train_begin(self, args, state, control, **kwargs):
        """Restores what `Trainer` has reset, and stops a run that is already over."""
        trainer, folder = self.trainer, self.resumed_from
        self._epoch_has_ended = self._save_at_epoch_end = False
        if folder is None:
            return
        if trainer.args.load_best_model_at_end:
            trainer.state.best_model_checkpoint = _best_checkpoint(folder)
        self._restore_counts()
        self._load_progress(folder)
        stopped = any(
            callback.early_stopping_patience_counter >= callback.early_stopping_patience
            for callback in trainer.callback_handler.callbacks
            if isinstance(callback, EarlyStoppingCallback)
        )
        if stopped or trainer.state.global_step >= trainer.state.max_steps:
            control.should_training_stop = True

    def on_step_begin(self, args, state, control, **kwargs):
        self._epoch_has_ended = False

    def on_epoch_end(self, args, state, control, **kwargs):
        self._epoch_has_ended = True
        control.should_save = self._save_at_epoch_end or control.should_save
        self._save_at_epoch_end = False


def check_same_model(config: CMFAHConfig, checkpoint: Path) -> None:
    """Raises a `CheckpointError` that names the first setting in which a checkpoint's model is another one."""
    theirs = _settings(type(config).from_pretrained(checkpoint))
    ours = _settings(config)
    # The classes first: if they differ, the data differs. The parent's settings are left out; `Trainer` sets some.
    own = [name for kind in type(config).__mro__ if issubclass(kind, CMFAHConfig) for name in kind.__annotations__]
    objective = [name for name in {**ours, **theirs} if name.startswith("objective.")]
    for name in ("id2label", *own, *objective):
        if ours.get(name) != theirs.get(name):
            raise CheckpointError(
                f"{checkpoint}: a checkpoint of another model, whose {name.removeprefix('objective.')} is "
                f"{_short(theirs.get(name))} and not {_short(ours.get(name))}; resume with its settings, "
                "or start in another folder."
            )


def _settings(config: CMFAHConfig) -> dict[str, Any]:
    settings = _plain(config.to_dict())
    section = settings.pop("objective", None) or {}
    return {**settings, **{f"objective.{name}": value for name, value in section.items()}}


def _plain(value: Any) -> Any:
    """A setting with JSON types, without the entries that depend on versions and places."""
    if isinstance(value, dict):
        left_out = ("transformers_version", "dtype", "_name_or_path")
        return {str(key): _plain(item) for key, item in value.items() if key not in left_out}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _best_checkpoint(checkpoint: Path) -> str | None:
    """The folder of the best model so far: next to the checkpoint, even if the run was moved.

    Raises:
        CheckpointError: If it is missing or damaged, so that the run could not end with its best model.
    """
    recorded = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).best_model_checkpoint
    if recorded is None:
        return None
    neighbor = checkpoint.parent / Path(recorded).name
    best = neighbor if neighbor.is_dir() else Path(recorded)
    if not best.is_dir():
        raise CheckpointError(
            f"{best}: the best model so far is missing, so the run cannot end with it; restore it, or resume "
            "with --load_best_model_at_end false."
        )
    check_whole(best)
    return str(best)
