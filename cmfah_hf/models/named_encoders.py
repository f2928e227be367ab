"""Configurations of encoders that are given by name: a VGG of torchvision, a name of timm, a folder, or a Hub id."""

from pathlib import Path
from typing import Any, Literal

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.utils import CONFIG_NAME

from .configuration_files import TORCHVISION_BACKBONES
from .model_files import find_file, read_object
from .remote_code import has_code, is_allowed, pin_code, refused
from .sentence_files import sentence_settings


def resolve_backbone(name: str, **config_overrides) -> PreTrainedConfig | None:
    """The configuration of an image backbone given by name.

    Args:
        name: One of torchvision's VGGs, a timm model name, or a folder or Hub id with a `transformers` backbone.
        config_overrides: Fields of the backbone's configuration to set, such as `out_indices`.

    Returns:
        None for torchvision's VGGs, which have no configuration.

    Raises:
        OSError: If the name is none of these, or the Hub cannot be reached.
    """
    if name in TORCHVISION_BACKBONES:
        return None
    if not Path(name).is_dir() and "/" not in name:
        from transformers import TimmBackboneConfig

        try:
            import timm
        except ImportError as error:
            raise ValueError(f"The backbone {name!r} looks like a timm name; `pip install timm` to use it.") from error
        if timm.is_model(name):
            return TimmBackboneConfig(backbone=name, **config_overrides)
    return configuration_of(name, "backbone of torchvision, of timm", config_overrides)


def configuration_of(
    name: str, what: str, overrides: dict[str, Any], sentences: Literal["text", "dual"] | None = None
) -> PreTrainedConfig:
    """The configuration in a folder or on the Hub; an `OSError` without one.

    `sentences` is the kind of an encoder that may be one of sentence-transformers.
    """
    try:
        if sentences is not None:
            overrides = {**overrides, **sentence_settings(name, sentences == "dual").location}
        hub = {key: overrides[key] for key in ("subfolder",) if key in overrides}
        file = find_file(name, CONFIG_NAME, hub)
        settings = read_object(file) if file is not None else {}
        if has_code(settings) and settings.get("model_type") not in CONFIG_MAPPING and not is_allowed():
            raise refused(name, "its own")
        return pin_code(AutoConfig.from_pretrained(name, trust_remote_code=is_allowed(), **overrides), name)
    except OSError as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise OSError(
            f"{name!r} is no {what}, in a folder or on the Hub ({reason}); check it, or give a folder."
        ) from error


def image_size_of(encoder: PreTrainedConfig) -> int | None:
    """Width and height of the images of a dual encoder; None if its configuration does not say."""
    vision: Any = getattr(encoder, "vision_config", None) or getattr(encoder, "image_config", None)
    size, patches = getattr(vision, "image_size", None), getattr(vision, "num_patches", None)
    if size is None and patches is not None:  # SigLIP 2, which takes any size
        return round(patches**0.5) * vision.patch_size
    return size[0] if isinstance(size, (list, tuple)) else size
