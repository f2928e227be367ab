"""Loading of weights from safetensors, with checks before the model is built.

Pickles are never loaded, because they can run code. `transformers` gets the tensors instead of the folder, so it does
not read other files there: adapters, quantized or distributed checkpoints, files that a configuration names.
"""

import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from transformers import PreTrainedModel
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import PrefixChange, WeightConverter, WeightRenaming
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from .model_files import ModelFileError, find_file, is_file, is_folder, read_object, split_revision

# Alignment in bytes of tensors that PyTorch allocates on a CPU.
_ALIGNMENT = 64
# Limits of modules without tensors and of parameters that are not in the checkpoint.
_MODULES_A_TENSOR, _FURTHER_MODULES = 5, 2_000
_FURTHER_ELEMENTS = 2**27
# Types of weights and counts. The conversion of others is not defined by the file.
_TYPES = {torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.bool}


# The account of the Hub that opens pull requests with converted weights.
_CONVERTER = "SFconvertbot"


class MissingWeightsError(OSError):
    """A folder or repository without weights as safetensors."""


def find_weights(source: Any, variant: str | None, hub: dict[str, Any]) -> list[Path]:
    """The safetensors files with the weights of a model: a folder, a Hub id, or such a file.

    Raises:
        ModelFileError: If the index of the files is damaged, or names anything but safetensors next to it.
        MissingWeightsError: If there are none.
        OSError: If the repository cannot be reached.
    """
    if is_file(source):
        if not str(source).endswith(".safetensors"):
            raise ModelFileError(f"{source} is no safetensors file, and pickles are never loaded; give one.")
        return [Path(source)]
    if variant is not None and (not variant or "/" in variant or "\\" in variant):
        raise ModelFileError(f"variant={variant!r} is a part of a file's name; give it without slashes.")
    name, index_name = (_with_variant(each, variant) for each in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME))
    found = find_file(source, name, hub)
    if found is not None:
        return [found]
    index = find_file(source, index_name, hub)
    if index is None:
        raise MissingWeightsError(
            f"{source} has no weights as safetensors ({name}), and pickles are never loaded; ask for the model in that "
            "format, or save it again."
        )
    files = []
    for name in shard_names(index):
        shard = find_file(source, name, hub)
        if shard is None:
            raise ModelFileError(f"{index} names {name}, which is not there; restore it, or save the model again.")
        files.append(shard)
    return files


def encoder_weights(source: Any, hub: dict[str, Any]) -> list[Path]:
    """As `find_weights`, of a published encoder: where the main branch has only pickles, those of the Hub's conversion.

    The Hub converts models by a pull request, whose commit is in the paths of the files.

    Raises:
        ModelFileError: If the index of the files is damaged, or names anything but safetensors next to it.
        OSError: If there are none, or the repository cannot be reached.
    """
    name, named = split_revision(source)
    try:
        return find_weights(source, None, hub)
    except MissingWeightsError:
        if is_folder(source) or is_file(source):
            raise
        is_main = not named and "revision" not in hub
        commit = _conversion_of(name, hub.get("token")) if is_main else None
        if commit is None:
            where = "main branch" if is_main else "revision"
            raise OSError(
                f"{source} has no weights as safetensors in its {where}, pickles are never loaded, and there is no "
                f"conversion of them by the Hub; give another revision, as {name}@refs/pr/1, or a folder"
            ) from None
    return find_weights(name, None, {**hub, "revision": commit})


def _conversion_of(repo_id: str, token: Any) -> str | None:
    """The commit of an open pull request with the Hub's conversion to safetensors, next to the same pickles as in main.

    Pull requests of others are not used, because anyone can open one.
    """
    api = HfApi(token=token)
    try:
        requests = list(
            api.get_repo_discussions(
                repo_id, author=_CONVERTER, discussion_type="pull_request", discussion_status="open"
            )
        )
    except HfHubHTTPError as error:
        if error.response.status_code in (403, 404):  # the repository has no discussions
            return None
        raise
    wanted = _pickles(api.model_info(repo_id, files_metadata=True))
    for request in requests:
        if request.author == _CONVERTER and request.is_pull_request and request.status == "open":
            found = api.model_info(repo_id, revision=request.git_reference, files_metadata=True)
            if wanted and _pickles(found) == wanted:
                return found.sha
    return None


def _pickles(info: Any) -> dict[str, str | None]:
    """The pickled weights of a revision, by name, with the ids of their content."""
    files = info.siblings or []
    return {file.rfilename: file.blob_id for file in files if file.rfilename.endswith(".bin")}


def shard_names(index: Path) -> list[str]:
    """The sorted files of an index of weights. Raises a `ModelFileError` if they are not safetensors next to it."""
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFileError(f"{index} has no weight_map of tensors; restore it, or save the model again.")
    for name in weight_map.values():
        if not isinstance(name, str) or not name.endswith(".safetensors") or "/" in name or "\\" in name:
            raise ModelFileError(
                f"{index} names {str(name)[:80]!r}; weights are only read from safetensors files next to it."
            )
    return sorted(set(weight_map.values()))


def read_weights(files: list[Path], ignored: Iterable[str] = ()) -> dict[str, torch.Tensor]:
    """The tensors of safetensors files, by name, without those whose names match one of the ignored patterns.

    Raises:
        ModelFileError: If a file is damaged, or holds other than finite numbers.
    """
    pattern = re.compile("|".join(ignored) or r"(?!)")
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            found = load_file(file)
        except (SafetensorError, OSError, KeyError, RuntimeError) as error:  # KeyError: a type that torch lacks
            reason = " ".join(str(error).split())[:200]
            raise ModelFileError(f"{file} is damaged ({reason}); fetch it again, or save the model again.") from error
        found = {name: tensor for name, tensor in found.items() if not pattern.search(name)}
        _check_values(found, file)
        tensors.update(found)
    return tensors


@dataclass(frozen=True)
class _Loading:
    model_class: type[nn.Module]
    tensors: Mapping[str, torch.Tensor]
    prefixes: tuple[str, ...]
    source: Any
    may_differ: bool


_loading: ContextVar[_Loading | None] = ContextVar("loading", default=None)


@contextmanager
def building_for(
    model_class: type[nn.Module],
    tensors: Mapping[str, torch.Tensor],
    prefixes: tuple[str, ...],
    source: Any,
    may_differ: bool,
) -> Iterator[None]:
    """Raises a `ModelFileError` in the block, in which a model is built, as soon as it does not fit its weights.

    A configuration of a few bytes can describe a model that takes minutes to build, or more memory than available.

    Args:
        model_class: The class of the model.
        tensors: Its weights, as `read_weights` returns them.
        prefixes: Possible prefixes of their names in checkpoints of a larger model, the outermost first.
        source: The source of the weights, for messages.
        may_differ: Whether shapes may differ (`ignore_mismatched_sizes`).
    """
    thread, modules = threading.get_ident(), 0
    most = _MODULES_A_TENSOR * len(tensors) + _FURTHER_MODULES

    def count(*_: Any) -> None:
        nonlocal modules
        if threading.get_ident() == thread:
            modules += 1
            if modules > most:
                raise ModelFileError(
                    f"{source}: its config.json asks for more than {most:,} modules, and its weights are "
                    f"{len(tensors):,} tensors."
                )

    named = {_without(name, prefixes): tensor for name, tensor in tensors.items()}
    token = _loading.set(_Loading(model_class, named, prefixes, source, may_differ))
    hook = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()
        _loading.reset(token)


def check_fit(model: nn.Module) -> None:
    """Checks a model built within `building_for`, before its memory is allocated.

    Raises:
        ModelFileError: If a tensor has another shape or type, or most weights are missing.
    """
    loading = _loading.get()
    if loading is None or type(model) is not loading.model_class:
        return
    missing = 0
    for name, wanted in chain(model.named_parameters(), model.named_buffers()):
        found = loading.tensors.get(_without(name, loading.prefixes))
        if found is None:
            missing += wanted.numel()
        elif found.shape != wanted.shape and not loading.may_differ:
            raise ModelFileError(
                f"{loading.source}: the shapes of its tensors are not those of its config.json: {name!r} is "
                f"{tuple(found.shape)} and not {tuple(wanted.shape)}"
            )
        elif found.is_floating_point() != wanted.is_floating_point():
            raise ModelFileError(
                f"{loading.source}: {name!r} holds {found.dtype} and not {wanted.dtype}; save the model again."
            )
    if missing > max(_FURTHER_ELEMENTS, sum(tensor.numel() for tensor in loading.tensors.values())):
        raise ModelFileError(
            f"{loading.source}: its config.json asks for {missing:,} weights that are not there; save the model again."
        )


def add_to_digest(digest: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Adds tensors, by name, to a digest of `hashlib`; floating-point numbers count as float32."""
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else torch.int64).contiguous()
        digest.update(f"{name}{tuple(values.shape)}".encode())
        digest.update(values.numpy().data.cast("B") if values.numel() else b"")


def align_weights(model: nn.Module) -> None:
    """Copies tensors that are not aligned in a memory-mapped file to aligned memory.

    On some processors, rounding of matrix products depends on the alignment of the factors, which in a file depends on
    its header. The same weights from two files would otherwise give different bits.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % _ALIGNMENT:
            tensor.data = tensor.data.clone()


def _with_variant(name: str, variant: str | None) -> str:
    stem, ending = name.rsplit(".", 1)
    return name if variant is None else f"{stem}.{variant}.{ending}"


def _without(name: str, prefixes: tuple[str, ...]) -> str:
    for prefix in prefixes:
        name = name.removeprefix(prefix)
    return name


def _check_values(tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype not in _TYPES:
            raise ModelFileError(f"{file}: {name!r} is of the type {tensor.dtype}, which is not supported.")
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    # A sum with infinite or NaN summands is not finite. It may also overflow, so all numbers are checked then.
    sums = [tensor.sum(dtype=torch.float32) for tensor in floats.values()]
    if sums and not torch.stack(sums).isfinite().all():
        for name, tensor in floats.items():
            if not tensor.isfinite().all():
                raise ModelFileError(
                    f"{file}: {name!r} holds numbers that are not finite; the training diverged, or the file is "
                    "damaged."
                )


def load_from_wholes(image_model_class: type[PreTrainedModel], text_model_class: type[PreTrainedModel]) -> None:
    """Lets each tower load from checkpoints of both towers or of a training, in which its names have prefixes."""
    for tower, name in ((image_model_class, "image_model"), (text_model_class, "text_model")):
        prefixes: list[WeightConverter | WeightRenaming] = [
            PrefixChange(prefix_to_remove="cmfah"),
            PrefixChange(prefix_to_remove=name),
        ]
        register_checkpoint_conversion_mapping(tower.__name__, prefixes, overwrite=True)
