"""Weights as safetensors alone: a pickle can run code when it is loaded, so none is. And where they come to lie."""

from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")

# Bytes at whose multiples PyTorch begins its own tensors on a CPU.
_ALIGNMENT = 64


def align_weights(model: nn.Module) -> None:
    """Moves tensors from wherever they lie in a mapped file to where PyTorch puts its own.

    On some processors matrix products round otherwise by where their factors begin, which in a file depends on its
    header: so the same weights out of two files would not give the same bits.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % _ALIGNMENT:
            tensor.data = tensor.data.clone()


def require_safetensors(config_class: type[PreTrainedConfig], source: Any, kwargs: dict[str, Any]) -> None:
    """Refuse a folder or repository without safetensors before any other weights there are looked at.

    Args:
        config_class: Of the model. Another architecture's files are refused as that, which says more.
        source: As of `from_pretrained`; None, where the weights are given otherwise, is passed over.
        kwargs: Those of `from_pretrained`.

    Raises:
        ValueError: If `use_safetensors` is false, or what is there is another architecture's.
        OSError: If there are none, or the repository cannot be reached.
    """
    if kwargs.setdefault("use_safetensors", True) is False:
        raise ValueError("use_safetensors=False: weights in other formats are pickles, which are never loaded.")
    kwargs["use_safetensors"] = True
    if source is None or kwargs.get("state_dict") is not None or Path(str(source)).is_file():
        return
    variant = f".{kwargs['variant']}" if kwargs.get("variant") else ""
    hub = {name: kwargs[name] for name in _HUB_ARGUMENTS if kwargs.get(name) is not None}
    stem, ending = SAFE_WEIGHTS_NAME.rsplit(".", 1)
    index_stem, index_ending = SAFE_WEIGHTS_INDEX_NAME.rsplit(".", 1)
    for name in (f"{stem}{variant}.{ending}", f"{index_stem}{variant}.{index_ending}"):
        if cached_file(source, name, _raise_exceptions_for_missing_entries=False, **hub) is not None:
            return
    config_class.from_pretrained(source, **hub)
    raise OSError(
        f"{source} has no weights as safetensors ({stem}{variant}.{ending}), and pickles are never loaded; ask for "
        "the model in that format, or save it again."
    )
