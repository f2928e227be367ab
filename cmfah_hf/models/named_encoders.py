"""Configurations of encoders that are given by name: a VGG of torchvision, a name of timm, a folder, or a Hub id."""

from pathlib import Path
from typing import Any, Literal

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES
from transformers.utils import CONFIG_NAME

from .configuration_files import TORCHVISION_BACKBONES
from .model_files import find_file, pinned, read_object, split_revision
from .remote_code import has_code, is_allowed, is_remote, pin_code, refused
from .sentence_files import sentence_settings


def resolve_backbone(name: str, **config_overrides) -> PreTrainedConfig | None:
    """The configuration of an image backbone given by name.

    Args:
        name: One of torchvision's VGGs, a timm model name, or a folder or Hub id, perhaps with `@REVISION`, with a
            `transformers` backbone.
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

    Of `NAME@REVISION`, its `name_or_path` is `NAME@COMMIT`, by which the tokenizer and the weights are found.
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
        place, revision = split_revision(name)
        at = pinned(place, file, revision) if revision else {}
        config = AutoConfig.from_pretrained(place, trust_remote_code=is_allowed(), **at, **overrides)
        if at:
            config.name_or_path = f"{place}@{at['revision']}"
        return pin_code(config, place)
    except OSError as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise OSError(
            f"{name!r} is no {what}, in a folder or on the Hub ({reason}); check it, or give a folder."
        ) from error


def check_kind(part: str, encoder: PreTrainedConfig) -> None:
    """Raises a `ValueError` if an encoder is of another kind than `part`, the setting that holds its configuration.

    Only what a configuration tells is checked; `dual_encoder_class` also looks at the model. An encoder with code of
    its own may name its half for images in any way.
    """
    kind, is_own = encoder.model_type, not is_remote(encoder)
    has_images = any(getattr(encoder, name, None) is not None for name in ("vision_config", "image_config"))
    text = encoder.get_text_config()
    reads_texts = all(getattr(text, name, None) for name in ("vocab_size", "hidden_size"))
    if part == "backbone_config" and is_own and kind not in MODEL_FOR_BACKBONE_MAPPING_NAMES:
        raise ValueError(f"backbone: a {kind} model is no image backbone; give one, such as a ResNet or DINOv2.")
    if part == "text_backbone_config" and is_own and has_images:
        raise ValueError(f"text_backbone: a {kind} model encodes images too; give it as dual_encoder, or a text model.")
    if part == "text_backbone_config" and (not reads_texts or not getattr(encoder, "hidden_size", None)):
        raise ValueError(f"text_backbone: a {kind} model encodes no texts; give a text model, such as a BERT.")
    if part == "dual_encoder_config" and (not reads_texts or (is_own and not has_images)):
        raise ValueError(
            f"dual_encoder: a {kind} model encodes no {'images' if reads_texts else 'texts'}; give a dual encoder, "
            "such as a CLIP or SigLIP."
        )


def image_size_of(encoder: PreTrainedConfig) -> int | None:
    """Width and height of the images of a dual encoder; None if its configuration does not say."""
    vision: Any = getattr(encoder, "vision_config", None) or getattr(encoder, "image_config", None)
    size, patches = getattr(vision, "image_size", None), getattr(vision, "num_patches", None)
    if size is None and patches is not None:  # SigLIP 2, which takes any size
        return round(patches**0.5) * vision.patch_size
    return size[0] if isinstance(size, (list, tuple)) else size
