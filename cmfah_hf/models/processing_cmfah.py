"""From pictures and texts as people have them to what the towers read."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_base import ImageProcessingMixin
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack
from transformers.utils import PROCESSOR_NAME

from .configuration_cmfah import CMFAHConfig
from .image_modes import to_rgb
from .model_files import ModelFileError, find_file, hub_arguments, pinned, read_object
from .tokenization_cmfah import build_word_tokenizer, load_word_tokenizer, split_words

_MOST_PIXELS_A_SIDE = 2_048
_SWITCHES = (
    "do_resize",
    "do_rescale",
    "do_normalize",
    "do_convert_rgb",
    "do_center_crop",
    "do_pad",
    "default_to_square",
)
_SIZES = ("size", "crop_size", "pad_size")
# What says what a file is, and does not change an image.
_UNUSED = ("auto_map", "processor_class", "image_processor_type", "feature_extractor_type", "model_input_names")


class CMFAHProcessorKwargs(ProcessingKwargs, total=False):
    _defaults = {"text_kwargs": {"padding": True}}


def backbone_normalization(config: CMFAHConfig) -> tuple[Sequence[float], Sequence[float]]:
    """The mean and standard deviation, of red, green and blue in 0..1, that a backbone's published weights expect."""
    from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    if config.backbone_config is None:  # a VGG of torchvision, or none
        return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    if config.backbone_config.model_type == "timm_backbone":
        try:
            import timm
        except ImportError as error:
            raise ValueError("This model's backbone is timm's; `pip install timm` to use it.") from error
        pretrained = timm.get_pretrained_cfg(config.backbone_config.backbone)
        return (pretrained.mean, pretrained.std) if pretrained else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    if config.backbone_config.name_or_path:
        from transformers import AutoImageProcessor

        place = config.backbone_config.name_or_path
        image_processor = AutoImageProcessor.from_pretrained(place, trust_remote_code=False)
        return image_processor.image_mean, image_processor.image_std
    return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD


class CMFAHProcessor(ProcessorMixin):
    r"""
    Pictures through an image processor of `transformers`, texts through a word-level tokenizer.

    Pictures of any mode are made RGB first (16 bits scaled, transparency over white), then resized to the model's
    square without keeping their aspect, so that no thing at the border is cut off. Words that the vocabulary does not
    hold become `[UNK]`, which the model passes over; a text without a word is valid.

    Args:
        image_processor: An image processor with the backbone's mean, standard deviation and size.
        tokenizer: A fast tokenizer over the fitted vocabulary, such as `build_word_tokenizer` gives.

    Example:

    ```python
    >>> processor = CMFAHProcessor.from_vocabulary(CMFAHConfig(), ["beach", "dog"])
    >>> processor(text=["A dog!", ""], return_tensors="pt").input_ids.tolist()
    [[1, 3], [0, 0]]
    ```"""

    valid_processor_kwargs = CMFAHProcessorKwargs

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        super().__init__(image_processor, tokenizer, **kwargs)

    @classmethod
    def from_vocabulary(
        cls,
        config: CMFAHConfig,
        vocabulary: Sequence[str],
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
    ) -> "CMFAHProcessor":
        """The processor of a new model.

        Args:
            config: The model's configuration: its backbone and picture size.
            vocabulary: The words of the word table, from row 2 on.
            image_mean, image_std: Of red, green and blue in 0..1. None: what the backbone's published weights expect.
        """
        from transformers import ViTImageProcessor

        if image_mean is None or image_std is None:
            default_mean, default_std = backbone_normalization(config)
            image_mean, image_std = image_mean or default_mean, image_std or default_std
        image_processor = ViTImageProcessor(
            size={"height": config.image_size, "width": config.image_size},
            resample=Image.Resampling.BICUBIC,
            image_mean=list(image_mean),
            image_std=list(image_std),
        )
        return cls(image_processor, build_word_tokenizer(vocabulary))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """The processor that was saved in a folder or repository.

        Only `processor_config.json`, `tokenizer.json` and `tokenizer_config.json` are read, from nowhere but there, and
        only what a processor of this kind has is taken from them: no code, no templates.

        Raises:
            ModelFileError: If a file is damaged, leads elsewhere, or is another kind of processor's.
            OSError: If a file is missing, or the Hub cannot be reached.
        """
        source, hub = pretrained_model_name_or_path, hub_arguments(kwargs)
        files: dict[str, Path] = {}
        for name in (PROCESSOR_NAME, "tokenizer.json", "tokenizer_config.json"):
            found = find_file(source, name, hub)
            if found is None:
                raise OSError(f"{source} has no {name}; save the processor again.")
            hub, files[name] = pinned(source, found, hub), found
        settings = read_object(files[PROCESSOR_NAME]).get("image_processor")
        image_processor = _load_image_processor(settings, files[PROCESSOR_NAME], kwargs)
        tokenizer_settings = read_object(files["tokenizer_config.json"])
        return cls(image_processor, load_word_tokenizer(files["tokenizer.json"], tokenizer_settings))

    def __call__(self, images=None, text=None, **kwargs: Unpack[CMFAHProcessorKwargs]) -> BatchFeature:
        """
        Args:
            images: A picture or a list of pictures (PIL of any mode, arrays or tensors).
            text: A text or a list of texts.

        Returns:
            `pixel_values` `(B, 3, H, W)` of pictures, `input_ids` and `attention_mask` `(B, W)` of texts.
        """
        if isinstance(images, Image.Image):
            images = to_rgb(images)
        elif isinstance(images, (list, tuple)):
            images = [to_rgb(image) if isinstance(image, Image.Image) else image for image in images]
        texts = [text] if isinstance(text, str) else text
        if isinstance(texts, (list, tuple)) and not any(split_words(t) for t in texts if isinstance(t, str)):
            kwargs = {**kwargs, "padding": "max_length", "max_length": 1}  # no word anywhere still makes a column
        return super().__call__(images=images, text=text, **kwargs)

    def known_words(self, text: str) -> list[str]:
        """The words of `text` that the vocabulary holds, in their order."""
        tokenizer = self.tokenizer
        return [word for word in split_words(text) if tokenizer.convert_tokens_to_ids(word) != tokenizer.unk_token_id]

    def has_known_tokens(self, text: str) -> bool:
        """Whether `text` says anything to the model: whether it knows any of its words."""
        return bool(self.known_words(text))


def _load_image_processor(settings: Any, path: Path, options: dict[str, Any]) -> ImageProcessingMixin:
    """An image processor of `transformers` out of the settings that it saved, each of which is checked."""
    name = settings.get("image_processor_type") if isinstance(settings, dict) else None
    if not isinstance(name, str) or not re.fullmatch(r"\w+ImageProcessor(Pil|Fast)?", name):
        raise ModelFileError(f"{path} names no image processor; save the processor again.")
    found = getattr(transformers, name, None)
    if not isinstance(found, type) or not issubclass(found, ImageProcessingMixin):
        raise ModelFileError(f"{path}: transformers has no image processor {name[:80]!r}.")
    kept = {key: value for key, value in settings.items() if value is not None and key not in _UNUSED}
    for key, value in kept.items():
        if not _is_valid(key, value):
            raise ModelFileError(f"{path}: {str(key)[:40]} is {str(value)[:60]!r}, which no image processor here has.")
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


__all__ = ["CMFAHProcessor"]
