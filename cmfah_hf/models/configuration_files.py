"""Checks of `config.json`: no references to other places or code, no sizes that take minutes to build."""

import os
import re
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from types import NoneType
from typing import Any, get_args, get_origin

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_BACKBONE_MAPPING_NAMES,
    MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from .model_files import ModelFileError
from .remote_code import has_code, remote_config

TORCHVISION_BACKBONES = ("vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn")
# Settings that make `transformers` read further files, code, or other types of weights.
_FOREIGN = (
    *("quantization_config", "configuration_files", "transformers_weights", "fusion_config", "distributed_config"),
    *("per_layer_config", "kernel_config", "use_pretrained_backbone", "backbone_kwargs"),
)
# Settings that name an implementation of attention. Others than those below may be code on the Hub.
_IMPLEMENTATIONS = (
    *("_attn_implementation", "_attn_implementation_internal", "attn_implementation"),
    *("_experts_implementation", "experts_implementation"),
)
_OWN_IMPLEMENTATIONS = (None, "eager", "sdpa")
_DTYPES = (None, "auto", "float32", "float16", "bfloat16", "float64")
_OWN_CODE = re.compile(r"[a-z]+_(cmfah|scahn|feature_(hash|map))\.(CMFAH|SCAHN|Feature(Hash|Map)|CrossModal)\w+")

# Maximum values. Beyond them, building a model takes minutes, or sizes overflow.
_MOST = 10**7
_MOST_LAYERS = 4_096
_LARGEST = {
    "image_size": 4_096, "num_channels": 3, "word_dim": 10**6, "text_filters": 10**6, "text_kernel_sizes": 1_000,
    "hidden_size": 10**6, "num_hidden_layers": _MOST_LAYERS, "num_concepts": 10**6, "num_labels": 10**5,
    "hash_bits": 65_536, "queue_size": 10**6, "image_temperature": 10**4, "text_temperature": 10**4,
    "pooled_dim": 10**6, "shared_mlp_size": 10**6, "lora_rank": 4_096, "mlp_sizes": 10**6, "text_feature_dim": 10**6,
    "image_anchors": 10**6, "text_anchors": 10**6, "num_prototypes": 10**5,
}  # fmt: skip
# Settings of a backbone that may be mappings.
_MAPPINGS = {
    "backbone_config": ("id2label", "label2id"),
    "text_backbone_config": ("id2label", "label2id", "rope_parameters"),
    "dual_encoder_config": ("id2label", "label2id", "rope_parameters"),
}
# Settings of a dual encoder that are the settings of its parts.
_PARTS = ("text_config", "vision_config", "image_config", "multimodal_config", "image_codebook_config")
# Patterns of the settings that locate the weights of an encoder on the Hub.
_SOURCES = {
    "encoder_source": r"[\w.-]{1,96}/[\w.-]{1,96}",
    "encoder_revision": r"[0-9a-f]{40}",
    "encoder_digest": r"[0-9a-f]{32}",
    "encoder_subfolder": r"None|[\w-][\w.-]{0,95}",
}
_LAYERS = re.compile("depth|layer|block|stage|repeat|group")
_MOST_WIDTHS = 100

# Allowed `model_type`s of each backbone, and their name in messages.
_BACKBONES: dict[str, tuple[Mapping[str, Any], str]] = {
    "backbone_config": (MODEL_FOR_BACKBONE_MAPPING_NAMES, "image backbone"),
    "text_backbone_config": ({**MODEL_MAPPING_NAMES, **MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES}, "text model"),
    "dual_encoder_config": (MODEL_MAPPING_NAMES, "dual encoder"),
}

# Errors of the constructors of `transformers` for inconsistent values. They share no type.
UNFIT = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError),
    *(StrictDataclassError, TypeError, ValueError),
)


def checked_settings(
    settings: dict[str, Any], config_class: type[PreTrainedConfig], where: str | os.PathLike
) -> dict[str, Any]:
    """The checked settings of a model of this package, from the content of a `config.json`; `where` is it in errors.

    Names of other packages' code (`auto_map`, `custom_pipelines`) and sources of backbones are left out.

    Raises:
        ModelFileError: If a setting is unknown, refers to another place, or is too large.
    """
    if not isinstance(settings, dict):
        raise ModelFileError(f"{where} holds no settings but a {type(settings).__name__}.")
    known = {field.name for field in fields(config_class)}
    kept = {}
    for name, value in settings.items():
        _check_setting(name, value, where)
        _check_size(name, value, _LARGEST.get(name, _MOST), where)
        if name not in known and name.startswith("_") and name not in _IMPLEMENTATIONS:
            continue
        if name not in known and callable(getattr(config_class, name, None)):
            raise ModelFileError(f"{where}: {name!r} is no setting; remove it.")
        kept[name] = value
    _check_types(kept, config_class, where)
    _check_places(kept, where)
    for name in ("text_kernel_sizes", "mlp_sizes"):
        if len(kept.get(name) or ()) > _MOST_WIDTHS:
            raise ModelFileError(f"{where}: {name} has more than {_MOST_WIDTHS} widths.")
    for name in ("auto_map", "custom_pipelines"):
        if name in kept:
            kept[name] = _own_code(kept[name])
    for name, kinds in _BACKBONES.items():
        if isinstance(kept.get(name), dict):
            kept[name] = _backbone_config(name, kept[name], kinds, where)
    return kept


def _check_places(settings: dict[str, Any], where: str | os.PathLike) -> None:
    """Rejects names of encoders that would have to be looked up elsewhere.

    Only a commit of a repository on the Hub, with a digest of its weights, can stand for the weights of an encoder.
    """
    backbone = settings.get("backbone")
    if backbone is not None and settings.get("backbone_config") is None and backbone not in TORCHVISION_BACKBONES:
        raise ModelFileError(
            f"{where}: its backbone {str(backbone)[:80]!r} would have to be looked up elsewhere; a saved model has a "
            "VGG of torchvision there, or a backbone_config."
        )
    for part in ("text_backbone", "dual_encoder"):
        if settings.get(part) is not None:
            raise ModelFileError(
                f"{where}: its {part} {str(settings[part])[:80]!r} would have to be looked up elsewhere; a saved model "
                f"has a {part}_config."
            )
    if settings.get("encoder_source") is None:
        return
    for name, form in _SOURCES.items():
        found = str(settings.get(name))
        if not re.fullmatch(form, found) or ".." in found:
            raise ModelFileError(
                f"{where}: {name} is {found[:80]!r}; the weights of an encoder are those of a commit of a repository "
                "on the Hub."
            )


def _check_setting(name: str, value: Any, where: str | os.PathLike) -> None:
    if not isinstance(name, str):
        raise ModelFileError(f"{where}: the setting {name!r} is no text.")
    if name in _FOREIGN and value not in (None, False, {}, []):
        raise ModelFileError(f"{where} has {name}, which no model of this package has; remove it.")
    if name in _IMPLEMENTATIONS and value not in _OWN_IMPLEMENTATIONS:
        raise ModelFileError(
            f"{where}: {name} is {str(value)[:80]!r}, which may name code on the Hub; give it to from_pretrained."
        )
    if name in ("dtype", "torch_dtype") and str(value).removeprefix("torch.") not in map(str, _DTYPES):
        raise ModelFileError(f"{where}: {name} is {str(value)[:80]!r}; give one of float32, float16 and bfloat16.")


def _check_size(name: str, value: Any, largest: int, where: str | os.PathLike) -> None:
    """Rejects numbers that are too large, also within lists."""
    for each in _items(value) or (value,):
        if isinstance(each, (int, float)) and not abs(each) <= largest:
            raise ModelFileError(f"{where}: {name} is {str(each)[:40]}, and {largest:,} is the most.")


def _check_types(settings: dict[str, Any], config_class: type[PreTrainedConfig], where: str | os.PathLike) -> None:
    """Rejects values of other types. The configuration checks types too, but computes with the values first."""
    for name, (types, items) in _own_types(config_class).items():  # type: ignore[arg-type]  # classes are hashable
        if name in settings:
            value = settings[name]
            fits = _is_of(value, types) and all(_is_of(item, items) for item in _items(value))
            if not fits:
                raise ModelFileError(f"{where}: {name} is {str(value)[:60]!r}, which is of another type.")
    labels = settings.get("id2label")
    if labels is not None and not (
        isinstance(labels, dict)
        and {str(number) for number in labels} == {str(number) for number in range(len(labels))}
        and all(isinstance(name, str) for name in labels.values())
    ):
        raise ModelFileError(f"{where}: id2label does not name the classes from 0 on; restore it.")
    if not isinstance(settings.get("label2id"), (dict, NoneType)):
        raise ModelFileError(f"{where}: label2id does not number the classes; restore it.")


def _items(value: Any) -> list[Any] | tuple[Any, ...]:
    return value if isinstance(value, (list, tuple)) else ()


def _is_of(value: Any, types: tuple[type, ...]) -> bool:
    return isinstance(value, types) and (not isinstance(value, bool) or bool in types)


@cache
def _own_types(config_class: type[PreTrainedConfig]) -> dict[str, tuple[tuple[type, ...], tuple[type, ...]]]:
    """The types of each setting of this package, and of its items if it is a list."""
    found: dict[str, tuple[tuple[type, ...], tuple[type, ...]]] = {}
    for kind in config_class.__mro__[: config_class.__mro__.index(PreTrainedConfig)]:
        for name, annotation in kind.__annotations__.items():
            types = get_args(annotation) or (annotation,)
            items = tuple(item for each in types for item in get_args(each) if isinstance(item, type))
            found.setdefault(name, (tuple(get_origin(each) or each for each in types), items))
    return found


def _backbone_config(
    part: str, settings: dict[str, Any], kinds: tuple[Mapping[str, Any], str], where: str | os.PathLike
) -> PreTrainedConfig:
    """The configuration of a backbone from the setting `part`."""
    kind, (allowed, what) = settings.get("model_type"), kinds
    if has_code(settings) and kind not in CONFIG_MAPPING and part != "backbone_config":
        return remote_config(settings, part, where)
    if not isinstance(kind, str) or kind not in allowed:
        raise ModelFileError(
            f"{where}: {part} has the model_type {str(kind)[:80]!r}, which is no {what} that transformers knows."
        )
    config_class = CONFIG_MAPPING[kind]
    kept = _backbone_settings(part, settings, config_class, where)
    if part == "backbone_config" and kept.get("num_channels", 3) != 3:
        raise ModelFileError(f"{where}: its backbone reads {kept['num_channels']} channels, and images have 3.")
    if kind == "timm_backbone":
        _check_timm(kept.get("backbone"), where)
    try:
        return AutoConfig.for_model(**kept)
    except UNFIT as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelFileError(f"{where}: no {config_class.__name__} can be made of its {part} ({reason}).") from error


def _backbone_settings(
    part: str, settings: dict[str, Any], config_class: type[PreTrainedConfig], where: str | os.PathLike
) -> dict[str, Any]:
    """The checked settings of a backbone, without names of places."""
    known = {field.name for field in fields(config_class)}
    kept = {}
    for name, value in settings.items():
        _check_setting(name, value, where)
        _check_size(name, value, _MOST_LAYERS if _LAYERS.search(str(name)) else _MOST, where)
        if part == "dual_encoder_config" and name in _PARTS and isinstance(value, dict):
            kept[name] = _part_settings(value, where)
            continue
        if (isinstance(value, dict) and name not in _MAPPINGS[part]) or name == "backbone_config":
            raise ModelFileError(f"{where}: {name} of its {part} holds further settings; remove it.")
        if name not in known and (name.startswith("_") or name == "name_or_path"):
            continue
        if callable(getattr(config_class, name, None)):
            raise ModelFileError(f"{where}: {name!r} is no setting of a backbone; remove it.")
        kept[name] = value
    return kept


def _part_settings(settings: dict[str, Any], where: str | os.PathLike) -> dict[str, Any]:
    """The checked settings of one half of a dual encoder, whose `model_type` its class may not name."""
    kind = settings.get("model_type")
    if str(kind).startswith("timm"):  # whose names may be places
        raise ModelFileError(f"{where}: a half of its dual encoder is timm's, which is not supported.")
    is_known = isinstance(kind, str) and kind in CONFIG_MAPPING
    config_class = CONFIG_MAPPING[str(kind)] if is_known else PreTrainedConfig
    return _backbone_settings("dual_encoder_config", settings, config_class, where)


def _check_timm(name: Any, where: str | os.PathLike) -> None:
    try:
        import timm
    except ImportError as error:
        raise ModelFileError(f"{where}: its backbone is timm's; `pip install timm` to use it.") from error
    if not isinstance(name, str) or not timm.is_model(name):  # timm also accepts folders and Hub ids as names
        raise ModelFileError(f"{where}: timm has no model of the name {str(name)[:80]!r}.")


def _own_code(named: Any) -> dict[str, Any]:
    """The entries that refer to code of this package."""
    if not isinstance(named, dict):
        return {}
    return {
        purpose: code
        for purpose, code in named.items()
        if isinstance(reference := code.get("impl") if isinstance(code, dict) else code, str)
        and _OWN_CODE.fullmatch(reference)
    }
