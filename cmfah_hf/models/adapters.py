"""Low-rank adapters of encoders (LoRA, Hu et al. 2021), by peft: `y = W x + B A x`, where only `A` and `B` are trained.

`A` and `B` have `lora_rank` rows and columns. A checkpoint of a training holds them; a finished model holds the sum.
"""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .configuration_cmfah import CMFAHConfig

_PART, _HEAD = ".lora_", "hash_head"


def add_adapters(backbone: nn.Module, rank: int) -> None:
    """Adds an adapter to each linear layer of an encoder, which changes nothing at first, and fixes all its weights.

    Raises:
        ValueError: If the encoder has no linear layers, or peft is not installed.
    """
    # Exactly this type: attention of torch reads the weights of its own type directly.
    names = [name for name, module in backbone.named_modules() if type(module) is nn.Linear]
    if not names:
        raise ValueError("lora_rank adapts linear layers, and the encoder has none; leave it out.")
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError("lora_rank needs the package peft; `pip install peft` to use it.") from error
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=names), backbone)
    train_adapters_only(backbone)


def train_adapters_only(backbone: nn.Module) -> None:
    """Fixes all weights of an encoder but those of its adapters."""
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(_PART in name)


def adapt_encoders(model: nn.Module, rank: int) -> None:
    """Adds adapters to the encoders of a model that are not frozen, after their weights were loaded.

    Raises:
        ValueError: As `add_adapters`.
    """
    _set_rank(model, rank)
    encoders: list[Any] = [module for module in model.modules() if hasattr(module, "adapt")]
    for encoder in encoders:
        encoder.adapt()


def modules_to_save(model: nn.Module) -> list[str]:
    """The names that an adapter made by peft's own functions needs as `modules_to_save`, so that it gives equal codes
    when it is loaded again: the heads, which are trained with it, and all batch norms, whose statistics change in
    training even where their weights are fixed. An adapter holds nothing else of the model.
    """
    heads = [name for name, _ in model.named_modules() if name.rpartition(".")[2] == _HEAD]
    norms = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    return heads + [name for name in norms if not name.startswith(tuple(f"{head}." for head in heads))]


def merge_adapters(model: nn.Module) -> None:
    """Adds the adapters, if any, to the weights of the encoders of a model, which then is an ordinary one."""
    _set_rank(model, None)
    layers: list[tuple[str, Any]] = [
        (name, module) for name, module in model.named_modules() if hasattr(module, "lora_A")
    ]
    for name, layer in layers:
        layer.merge()
        parent, _, own = name.rpartition(".")
        base = layer.get_base_layer()
        setattr(model.get_submodule(parent), own, base.requires_grad_(True))


def _set_rank(model: nn.Module, rank: int | None) -> None:
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, CMFAHConfig):
            config.lora_rank = rank
