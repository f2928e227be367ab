"""An image processor of `transformers` from its saved settings, each of which is checked."""

import re
from pathlib import Path
from typing import Any

import transformers
from PIL import Image
from transformers.image_processing_base import ImageProcessingMixin

from .model_files import ModelFileError

_MOST_PIXELS_A_SIDE = 2_048
_SWITCHES = (
    *("do_resize", "do_rescale", "do_normalize", "do_convert_rgb", "do_center_crop", "do_pad"),
    *("default_to_square", "rescale_offset", "include_top"),
)
_SIZES = ("size", "crop_size", "pad_size")
# Settings that name the type of a file and do not affect images.
_UNUSED = ("auto_map", "processor_class", "image_processor_type", "feature_extractor_type", "model_input_names")


def load_image_processor(settings: Any, path: Path, options: dict[str, Any]) -> ImageProcessingMixin:
    """The image processor of saved settings.

    Args:
        settings: The settings, of any type.
        path: Their file, for messages.
        options: Arguments of `from_pretrained`, of which those that the settings have take precedence over them.

    Raises:
        ModelFileError: If a setting is not supported, or none names an image processor.
    """
    name = settings.get("image_processor_type") if isinstance(settings, dict) else None
    if not isinstance(name, str) or not re.fullmatch(r"\w+ImageProcessor(Pil|Fast)?", name):
        raise ModelFileError(f"{path} names no image processor; save the processor again.")
    found = getattr(transformers, name, None)
    if not isinstance(found, type) or not issubclass(found, ImageProcessingMixin):
        raise ModelFileError(f"{path}: transformers has no image processor {name[:80]!r}.")
    kept = {key: value for key, value in settings.items() if value is not None and key not in _UNUSED}
    for key, value in kept.items():
        if not _is_valid(key, value):
            raise ModelFileError(f"{path}: {str(key)[:40]} is {str(value)[:60]!r}, which is not supported.")
    return found.from_dict(kept, **{key: value for key, value in options.items() if key in kept})


def _is_valid(key: str, value: Any) -> bool:
    if key in _SWITCHES:
        return isinstance(value, bool)
    if key in _SIZES:
        return (
            isinstance(value, dict)
            and set(value) in ({"height", "width"}, {"shortest_edge"})
            and all(type(side) is int and 1 <= side <= _MOST_PIXELS_A_SIDE for side in value.values())
        )
    if key in ("image_mean", "image_std"):
        lowest = 1e-3 if key == "image_std" else -1e3
        return isinstance(value, list) and len(value) == 3 and all(_is_number(each, lowest, 1e3) for each in value)
    if key == "resample":
        return type(value) is int and value in list(Image.Resampling)
    return key == "rescale_factor" and _is_number(value, 1e-6, 1.0)


def _is_number(value: Any, lowest: float, highest: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and lowest <= value <= highest
