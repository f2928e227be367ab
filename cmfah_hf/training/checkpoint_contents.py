"""Checks of a checkpoint's files before `Trainer` reads them, without running code that they name.

A checksum shows that a file matches the list, but not that the list is right. Each file is therefore read here as the
trainer reads it: JSON by its types, safetensors by the names and shapes of the model's tensors, and PyTorch's own files
(optimizers, schedules, scalers, random generators) with `weights_only=True`.
"""

import pickle
import random
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import safe_globals

from cmfah_hf.documents import read_json
from cmfah_hf.errors import CheckpointError
from cmfah_hf.methods.pretraining import PRETRAINING_MODELS, current_name

_WEIGHTS = "model.safetensors"
_LOADABLE = (".pt", ".pth", ".bin", ".safetensors")
# Keys by which optimizers differ; other keys depend on the version of PyTorch.
_OPTIMIZER_KEYS = ("betas", "momentum", "alpha", "rho", "lr_decay")
# The fields of transformers' `TrainerState`.
_STATE_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("epoch", "logging_steps", "save_steps", "num_train_epochs", "total_flos"), (int, float)),
    **dict.fromkeys(("global_step", "max_steps", "num_input_tokens_seen"), (int,)),
    **dict.fromkeys(("eval_steps", "best_metric"), (int, float, NoneType)),
    **dict.fromkeys(("train_batch_size", "best_global_step"), (int, NoneType)),
    **dict.fromkeys(("best_model_checkpoint", "trial_name"), (str, NoneType)),
    **dict.fromkeys(("is_local_process_zero", "is_world_process_zero", "is_hyper_param_search"), (bool,)),
    **{"log_history": (list,), "trial_params": (dict, NoneType), "stateful_callbacks": (dict,)},
}
# Errors of an unpickler of tensors and plain values when it reads other bytes.
_UNPICKLING_ERRORS = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError),
    *(AssertionError, OverflowError, OSError, struct.error),
)
_ZIP_ERRORS = (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, EOFError, struct.error, RuntimeError)


def check_contents(folder: Path, step: int, listed: set[str]) -> None:
    """Raises a `CheckpointError` that names the file, if a checkpoint matches its list but cannot be loaded.

    `step` is that in its name, -1 without one, and `listed` are the files in its list.
    """
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and path.suffix in _LOADABLE and name not in listed:
            raise CheckpointError(f"{name} is not in its list of files")
    _check_weights(folder)
    for name in sorted(listed):
        check = next((check for pattern, check in _CHECKS if re.fullmatch(pattern, name)), None)
        if check is not None:
            with _naming(name):
                check(folder / name)
    _check_state(folder / TRAINER_STATE_NAME, step)


def check_schedule(schedule: Any, path: Path, content: Any) -> None:
    """Raises a `CheckpointError` unless a saved schedule has the type of the present one.

    PyTorch sets all entries of a schedule's state as attributes.
    """
    ours = schedule.state_dict()
    fits = isinstance(content, dict) and content.keys() == ours.keys()
    numbers = (int, float)
    fits = fits and all(
        type(content[name]) is type(value) or (isinstance(content[name], numbers) and isinstance(value, numbers))
        for name, value in ours.items()
    )
    if not fits:
        raise CheckpointError(f"{path}: the schedule of another lr_scheduler_type; resume with that one.")


def check_optimizer(optimizer: torch.optim.Optimizer, path: Path, content: Any) -> None:
    """Raises a `CheckpointError` unless a saved optimizer has the type and the parameters of the present one."""
    ours = optimizer.state_dict()["param_groups"]
    theirs = content["param_groups"]
    fits = [len(group["params"]) for group in ours] == [len(group["params"]) for group in theirs]
    fits = fits and all(
        (name in own) == (name in other) for own, other in zip(ours, theirs, strict=True) for name in _OPTIMIZER_KEYS
    )
    if fits:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        numbers = [number for group in theirs for number in group["params"]]
        fits = all(
            not value.ndim or value.shape == parameter.shape
            for number, parameter in zip(numbers, parameters, strict=True)
            for value in content["state"].get(number, {}).values()
            if isinstance(value, torch.Tensor)
        )
    if not fits:
        raise CheckpointError(f"{path}: the state of another optimizer or model; resume with the `optim` of that run.")


@contextmanager
def _naming(file: str) -> Iterator[None]:
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{file} {error}") from error


def _tensors_in(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of each tensor of a safetensors file."""
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"is damaged ({_in_one_line(error)})") from error


def _check_weights(folder: Path) -> None:
    expected = _tensors_of_model(folder)
    if not (folder / _WEIGHTS).is_file():
        if any(folder.glob("pytorch_model_fsdp*")):  # sharded over processes
            return
        if pickles := sorted(path.name for path in folder.glob("*.bin")):
            raise CheckpointError(f"{pickles[0]} is a pickle, and weights are loaded from {_WEIGHTS} alone")
        raise CheckpointError(f"{_WEIGHTS} is missing")
    with _naming(_WEIGHTS):
        tensors = _tensors_in(folder / _WEIGHTS)
        found = {current_name(name): shape for name, (shape, _) in tensors.items()}
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise CheckpointError(f"is of another model, its tensor {name[:80]!r} is {found.get(name, 'missing')}")
        others = sorted({kind for _, kind in tensors.values()} - {"F16", "BF16", "F32", "F64", "I64"})
        if others:
            raise CheckpointError(f"holds numbers that are no weights, {others[0]}")


def _tensors_of_model(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors of the model in `config.json`, without allocating them."""
    content = read_json(folder / "config.json", CheckpointError)
    kind = content.get("model_type") if isinstance(content, dict) else None
    if not isinstance(kind, str) or kind not in PRETRAINING_MODELS:
        raise CheckpointError("config.json is not that of a model of this package")
    model_class = PRETRAINING_MODELS[kind]
    try:
        config = model_class.config_class.from_pretrained(folder)
        with torch.device("meta"):
            model = model_class(config)
    except (ValueError, TypeError, KeyError, AttributeError, OSError, RuntimeError, StrictDataclassError) as error:
        raise CheckpointError(f"config.json makes no model ({_in_one_line(error)})") from error
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def read_torch_file(path: Path) -> Any:
    """The content of a PyTorch file: tensors and plain values.

    Raises:
        CheckpointError: If the file is damaged, or holds anything else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for record in archive.infolist():
                if record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size:
                    raise CheckpointError("is damaged, it is compressed")
            if (name := archive.testzip()) is not None:
                raise CheckpointError(f"is damaged, at {name[:80]!r}")
    except _ZIP_ERRORS as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"is damaged ({_in_one_line(error)})") from error
    try:
        with safe_globals():
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except _UNPICKLING_ERRORS as error:
        raise CheckpointError(f"is damaged, or holds more than tensors ({_in_one_line(error)})") from error


def _torch_check(is_sound: Callable[[Any], bool]) -> Callable[[Path], None]:
    def check(path: Path) -> None:
        if not is_sound(read_torch_file(path)):
            raise CheckpointError("does not hold what its name says")

    return check


def _is_optimizer(content: Any) -> bool:
    if not isinstance(content, dict) or not isinstance(content.get("state"), dict):
        return False
    groups = content.get("param_groups")
    if not isinstance(groups, list) or not groups:
        return False
    numbers: set[int] = set()
    for group in groups:
        if not isinstance(group, dict) or not isinstance(group.get("params"), list):
            return False
        if not all(type(number) is int for number in group["params"]):
            return False
        numbers.update(group["params"])
    plain = (torch.Tensor, int, float, type(None))
    return all(
        number in numbers and isinstance(state, dict) and all(isinstance(value, plain) for value in state.values())
        for number, state in content["state"].items()
    )


def _is_schedule(content: Any) -> bool:
    return isinstance(content, dict) and all(isinstance(name, str) for name in content) and "last_epoch" in content


def _is_scaler(content: Any) -> bool:
    return isinstance(content, dict) and all(isinstance(value, (int, float)) for value in content.values())


def _is_player(content: Any) -> bool:
    if not isinstance(content, dict):
        return False
    return _is_optimizer(content.get("optimizer")) and _is_schedule(content.get("scheduler"))


def _is_generators(content: Any) -> bool:
    """Tries the states on new generators."""
    if not isinstance(content, dict):
        return False
    try:
        random.Random().setstate(content["python"])
        np.random.RandomState().set_state(content["numpy"])
        torch.Generator().set_state(content["cpu"])
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError, IndexError, AttributeError):
        return False
    return True


def _safetensors_check(is_sound: Callable[[dict[str, tuple[int, ...]]], bool]) -> Callable[[Path], None]:
    def check(path: Path) -> None:
        if not is_sound({name: shape for name, (shape, _) in _tensors_in(path).items()}):
            raise CheckpointError("does not hold what its name says")

    return check


def _is_progress(shapes: dict[str, tuple[int, ...]]) -> bool:
    needed = {"loss_since_log", "loss_logged", "last_logged_step"}
    return needed <= shapes.keys() and not any(shapes.values())  # all of them single numbers


def _check_state(path: Path, step: int) -> None:
    state = read_json(path, CheckpointError)
    with _naming(path.name):
        if not isinstance(state, dict) or not state.keys() <= _STATE_TYPES.keys():
            raise CheckpointError("is not the state of a training")
        for key, kinds in _STATE_TYPES.items():
            value = state.get(key)
            if key not in state or not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                raise CheckpointError(f"has an invalid {key!r}")
        if state["global_step"] < 0 or (step >= 0 and state["global_step"] != step):
            raise CheckpointError(f"is of step {state['global_step']}")
        if not all(isinstance(log, dict) and {"step", "epoch"} <= log.keys() for log in state["log_history"]):
            raise CheckpointError("has an invalid 'log_history'")
        logged = {log["step"] for log in state["log_history"] if isinstance(log["step"], int)}
        if state["best_global_step"] is not None and state["best_global_step"] not in logged:
            raise CheckpointError("has an invalid 'best_global_step'")
        callbacks = state["stateful_callbacks"].values()
        for own in (own for kept in callbacks for own in (kept if isinstance(kept, list) else [kept])):
            if not isinstance(own, dict) or not all(isinstance(own.get(part), dict) for part in ("args", "attributes")):
                raise CheckpointError("has an invalid 'stateful_callbacks'")


_PLAIN_NAMES = {
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
}


class _PlainUnpickler(pickle.Unpickler):
    """Unpickles only the types in the metadata of a sharded checkpoint."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem"):
            found = super().find_class(module, name)
            is_data = hasattr(found, "__dataclass_fields__") or (isinstance(found, type) and issubclass(found, Enum))
            if isinstance(found, type) and found.__module__ == module and is_data:
                return found
        if module == "torch" and (name == "Size" or isinstance(getattr(torch, name, None), torch.dtype)):
            return getattr(torch, name)
        if (module, name) in _PLAIN_NAMES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}"[:120])


def _check_metadata(path: Path) -> None:
    try:
        with path.open("rb") as file:
            _PlainUnpickler(file).load()
    except _UNPICKLING_ERRORS as error:
        raise CheckpointError(f"is damaged, or holds more than metadata ({_in_one_line(error)})") from error


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


_CHECKS: tuple[tuple[str, Callable[[Path], None]], ...] = (
    (r"optimizer\.pt", _torch_check(_is_optimizer)),
    (r"scheduler\.pt", _torch_check(_is_schedule)),
    (r"[a-z]+_optimizer\.pt", _torch_check(_is_player)),
    (r"([a-z]+_)?scaler\.pt", _torch_check(_is_scaler)),
    (r"rng_state(_\d+)?\.pth", _torch_check(_is_generators)),
    # FSDP names parameters instead of numbering them.
    (r"(optimizer|pytorch_model_fsdp)(_\d+)?\.bin", _torch_check(lambda content: isinstance(content, dict))),
    (r".*/\.metadata", _check_metadata),
    (r"progress(_\d+)?\.safetensors", _safetensors_check(_is_progress)),
    (r"codes\.safetensors", _safetensors_check(lambda shapes: bool(shapes) and all(shapes.values()))),
)
