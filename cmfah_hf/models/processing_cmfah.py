"""The processor, which converts images and texts to inputs of the towers."""

import json
import logging
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import BatchFeature, PreTrainedConfig
from transformers.image_processing_base import ImageProcessingMixin
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack
from transformers.utils import PROCESSOR_NAME

from .backbone_tokenizer import load_backbone_tokenizer, tokenizer_of_backbone
from .configuration_cmfah import CMFAHConfig
from .image_modes import to_rgb
from .image_settings import load_image_processor
from .model_files import ModelFileError, find_file, hub_arguments, pinned, read_object, split_revision
from .remote_code import is_remote
from .sentence_files import check_prompt, sentence_settings
from .similar_words import check_unknown_words
from .text_reading import TextReader
from .tokenization_cmfah import SPECIAL_TOKENS, word_offsets
from .word_rules import WordRules, rules_of
from .word_tokenizer import build_word_tokenizer, load_word_tokenizer

logger = logging.getLogger(__name__)


class CMFAHProcessorKwargs(ProcessingKwargs, total=False):
    _defaults = {"text_kwargs": {"padding": True}}  # type: ignore[misc]  # as in transformers' own processors


def backbone_normalization(config: CMFAHConfig) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of red, green and blue in 0..1 that the published weights of a backbone expect."""
    from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    if config.backbone_config is None:  # a VGG of torchvision, or no backbone
        return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    backbone_config = config.backbone_config
    assert isinstance(backbone_config, PreTrainedConfig)
    if backbone_config.model_type == "timm_backbone":
        try:
            import timm
        except ImportError as error:
            raise ValueError("This model's backbone is timm's; `pip install timm` to use it.") from error
        pretrained = timm.get_pretrained_cfg(backbone_config.backbone)
        return (pretrained.mean, pretrained.std) if pretrained else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    if backbone_config.name_or_path:
        from transformers import AutoImageProcessor

        name, revision = split_revision(backbone_config.name_or_path)
        image_processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False, **revision)
        return image_processor.image_mean, image_processor.image_std
    return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD


class CMFAHProcessor(ProcessorMixin, TextReader):
    r"""
    Prepares images with an image processor of `transformers`, and texts with the tokenizer of the text encoder.

    Images of any mode are converted to RGB (16 bits scaled, transparency over white), then resized to a square without
    keeping their aspect ratio, so that nothing is cropped. A word-level tokenizer maps words outside its vocabulary to
    `[UNK]`, which the model ignores; a text without words is valid. A text backbone has its own tokenizer, which
    truncates long texts.

    Args:
        image_processor: An image processor with the mean, standard deviation and size of the backbone.
        tokenizer: A fast tokenizer, from `build_word_tokenizer` or of a text backbone.
        word_level: Whether the tokenizer is from `build_word_tokenizer`.
        text_prompt: Begins each text, as a text backbone was trained with; no word of it is a word of the text.
        word_rules: How texts become words, with a word-level tokenizer; a `WordRules`, or None for `split_words`.
        unknown_words: With a word-level tokenizer: words outside the vocabulary are left out ("ignore"), or read as the
            similar known words that `SimilarWords` finds ("similar").

    Example:

    ```python
    >>> processor = CMFAHProcessor.from_vocabulary(CMFAHConfig(), ["beach", "dog"])
    >>> processor(text=["A dog!", ""], return_tensors="pt").input_ids.tolist()
    [[1, 3], [0, 0]]
    ```"""

    valid_processor_kwargs = CMFAHProcessorKwargs

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        word_level: bool = True,
        text_prompt: str = "",
        word_rules: WordRules | None = None,
        unknown_words: str = "ignore",
        **kwargs: Any,
    ):
        super().__init__(image_processor, tokenizer, **kwargs)
        self.word_level, self.text_prompt = word_level, text_prompt
        self.word_rules, self.unknown_words = word_rules or WordRules(), unknown_words
        self._told_of_truncation = False

    @classmethod
    def from_vocabulary(
        cls,
        config: CMFAHConfig,
        vocabulary: Sequence[str],
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        word_rules: WordRules | None = None,
        unknown_words: str = "ignore",
    ) -> "CMFAHProcessor":
        """The processor of a new model with word vectors.

        Args:
            config: The model's configuration, for its backbone and image size.
            vocabulary: The words of the word table, from row 2 on.
            image_mean, image_std: Of red, green and blue in 0..1. None: those that the published weights of the
                backbone expect.
            word_rules, unknown_words: As in the class.
        """
        parts = _new_image_processor(config, image_mean, image_std), build_word_tokenizer(vocabulary)
        return cls(*parts, word_rules=word_rules, unknown_words=unknown_words)

    @classmethod
    def from_backbones(
        cls, config: CMFAHConfig, image_mean: Sequence[float] | None = None, image_std: Sequence[float] | None = None
    ) -> "CMFAHProcessor":
        """The processor of a new model with a text backbone or a dual encoder, with the tokenizer of that encoder.

        A dual encoder brings its own image processor too.

        Args:
            config: The model's configuration, with the `text_backbone` or `dual_encoder` given by folder or Hub id.
            image_mean, image_std: As in `from_vocabulary`; not read with a dual encoder.

        Raises:
            ValueError: If there is no such encoder, or its tokenizer cannot be used.
            OSError: If it has no tokenizer or image processor, or the Hub cannot be reached.
        """
        if isinstance(config.dual_encoder_config, PreTrainedConfig):
            sentence = sentence_settings(config.dual_encoder_config.name_or_path, dual=True)
            tokenizer = tokenizer_of_backbone(config.dual_encoder_config, sentence, dual=True)
            image_processor = _dual_image_processor(config, sentence.location)
            return cls(image_processor, tokenizer, word_level=False, text_prompt=sentence.prompt)
        if not isinstance(config.text_backbone_config, PreTrainedConfig):
            raise ValueError("This model has word vectors and no pretrained text encoder; use from_vocabulary.")
        sentence = sentence_settings(config.text_backbone_config.name_or_path)
        tokenizer = tokenizer_of_backbone(config.text_backbone_config, sentence)
        image_processor = _new_image_processor(config, image_mean, image_std)
        return cls(image_processor, tokenizer, word_level=False, text_prompt=sentence.prompt)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the parent's arguments are keywords here
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> "CMFAHProcessor":
        """Loads a processor from a folder or repository.

        Only `processor_config.json`, `tokenizer.json` and `tokenizer_config.json` are read, without code or templates.

        Args:
            pretrained_model_name_or_path: The folder or Hub id.
            kwargs: Where on the Hub, as `transformers` takes it. `image_processor` and `tokenizer` take the place of
                the saved ones. Settings of the image processor (`do_normalize=False`) and special tokens
                (`cls_token="[CLS]"`) take precedence over the saved ones.

        Raises:
            ModelFileError: If a file is damaged, outside the folder, or of another type of processor, or if the words
                of its texts need a library that is not installed.
            OSError: If a file is missing, or the Hub cannot be reached.
        """
        source, hub = pretrained_model_name_or_path, hub_arguments(kwargs)
        files: dict[str, Path] = {}
        for name in (PROCESSOR_NAME, "tokenizer.json", "tokenizer_config.json"):
            found = find_file(source, name, hub)
            if found is None:
                raise OSError(f"{source} has no {name}; save the processor again.")
            hub, files[name] = pinned(source, found, hub), found
        settings = read_object(files[PROCESSOR_NAME])
        image_processor = kwargs.get("image_processor") or load_image_processor(
            settings.get("image_processor"), files[PROCESSOR_NAME], kwargs
        )
        word_level = settings.get("word_level", True)
        if not isinstance(word_level, bool):
            raise ModelFileError(
                f"{files[PROCESSOR_NAME]}: word_level is {str(word_level)[:40]!r}; give true or false."
            )
        tokenizer = kwargs.get("tokenizer")
        if tokenizer is None:
            load = load_word_tokenizer if word_level else load_backbone_tokenizer
            tokenizer = load(files["tokenizer.json"], read_object(files["tokenizer_config.json"]))
        for name in kwargs.keys() & set(tokenizer.SPECIAL_TOKENS_ATTRIBUTES):
            setattr(tokenizer, name, kwargs[name])
        path = files[PROCESSOR_NAME]
        prompt = check_prompt(settings.get("text_prompt", ""), path)
        unknown_words = check_unknown_words(kwargs.get("unknown_words", settings.get("unknown_words", "ignore")), path)
        rules = rules_of(settings.get("word_rules"), path)
        return cls(image_processor, tokenizer, word_level, prompt, rules, unknown_words)

    def to_dict(self) -> dict[str, Any]:
        """The settings as `processor_config.json` holds them."""
        settings = super().to_dict()
        for name in ("_told_of_truncation", "_similar", *(["text_prompt"] if not self.text_prompt else [])):
            settings.pop(name, None)
        settings |= {"word_rules": self.word_rules.to_dict(), "unknown_words": self.unknown_words}
        for name, value in (("word_rules", WordRules().to_dict()), ("unknown_words", "ignore")):
            if settings[name] == value:  # as files from before there were rules
                del settings[name]
        settings["image_processor"].pop("auto_map", None)  # the class in the repository is the processor's
        return settings

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """As `transformers` saves a processor; saving does not change it."""
        files = super().save_pretrained(save_directory, push_to_hub, **kwargs)
        for part in (self, self.image_processor):
            vars(part).pop("auto_map", None)
        return files

    def __call__(self, images=None, text=None, **kwargs: Unpack[CMFAHProcessorKwargs]) -> BatchFeature:
        """
        Args:
            images: An image or a list of images (PIL of any mode, arrays or tensors).
            text: A text or a list of texts.

        Returns:
            `pixel_values` `(B, 3, H, W)` of images, `input_ids` and `attention_mask` `(B, W)` of texts.
        """
        if isinstance(images, Image.Image):
            images = to_rgb(images)
        elif isinstance(images, (list, tuple)):
            images = [to_rgb(image) if isinstance(image, Image.Image) else image for image in images]
        if self.text_prompt and text is not None:
            text = self.text_prompt + text if isinstance(text, str) else [self.text_prompt + one for one in text]
        if self._prepares_texts and text is not None:
            texts = [text] if isinstance(text, str) else text  # what is no text is for the tokenizer to refuse
            read = [self._prepared(one) if isinstance(one, str) else one for one in texts]
            text = read[0] if isinstance(text, str) else read
        texts = [text] if isinstance(text, str) else text
        options: dict[str, Any] = {**kwargs}
        if not self.word_level:
            options.setdefault("truncation", True)
        elif isinstance(texts, (list, tuple)) and not any(self.words(t) for t in texts if isinstance(t, str)):
            options |= {"padding": "max_length", "max_length": 1}  # one column even without any word
        made = super().__call__(images=images, text=text, **options)
        if texts is not None and not self.word_level:
            self._tell_of_truncation(made["input_ids"], texts)
        return made

    def _tell_of_truncation(self, input_ids: Any, texts: Sequence[str]) -> None:
        """Warns once if a text is longer than the encoder takes."""
        most = self.tokenizer.model_max_length
        if self._told_of_truncation or len(input_ids[0]) < most:
            return
        rows = self.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        if any(len(row) > most for row in rows):
            self._told_of_truncation = True
            logger.warning("Texts are cut off after %d tokens, the most that their encoder takes.", most)

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of `pixel_values`."""
        settings = self.image_processor
        size = settings.crop_size if getattr(settings, "do_center_crop", None) else settings.size
        return size["height"], size["width"]

    @property
    def least_size(self) -> tuple[int, int] | None:
        """Width and height below which an image would be enlarged to `pixel_values`; None if images are not resized."""
        settings = self.image_processor
        if not settings.do_resize:
            return None
        shortest = settings.size.get("shortest_edge")
        return (shortest, shortest) if shortest else (settings.size["width"], settings.size["height"])

    def seen_box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the part of an image that `pixel_values` show, in pixels of the image.

        A center crop leaves out the ends of the longer side. One larger than the image adds a border.
        """
        settings = self.image_processor
        if not getattr(settings, "do_center_crop", None):
            return 0.0, 0.0, float(width), float(height)
        scale_x = scale_y = 1.0
        if settings.do_resize:
            shortest = settings.size.get("shortest_edge")
            scale_x = (shortest / min(width, height)) if shortest else settings.size["width"] / width
            scale_y = scale_x if shortest else settings.size["height"] / height
        half_width = settings.crop_size["width"] / scale_x / 2
        half_height = settings.crop_size["height"] / scale_y / 2
        return width / 2 - half_width, height / 2 - half_height, width / 2 + half_width, height / 2 + half_height

    def word_spans(self, text: str) -> list[tuple[str, list[int]]]:
        """The known words of `text`, each with its token positions in `processor(text=[text])`."""
        if self.word_level:
            spans, position = [], sum(len(read) or 1 for _, read in self.readings(self.text_prompt))
            for word, read in self.readings(text):
                spans.append((word, list(range(position, position + len(read)))))
                position += len(read) or 1  # an unknown word is a token too
            return [(word, positions) for word, positions in spans if positions]
        encoded = self.tokenizer(self.text_prompt + text, truncation=True, return_offsets_mapping=True)
        before = len(self.text_prompt)
        offsets = [
            (position, max(first - before, 0), end - before)
            for position, (first, end) in enumerate(encoded["offset_mapping"])
            if max(first, before) < end
        ]
        found = [
            (word, [position for position, first, end in offsets if first < word_end and word_start < end])
            for word, word_start, word_end in word_offsets(text)
        ]
        return [(word, positions) for word, positions in found if positions]

    def _knows(self, word: str) -> bool:
        return self.tokenizer.convert_tokens_to_ids(word) != self.tokenizer.unk_token_id

    def _vocabulary(self) -> Collection[str]:
        return self.tokenizer.get_vocab().keys() - set(SPECIAL_TOKENS)

    def _has_tokens(self, text: str) -> bool:
        return bool(self.tokenizer(text, add_special_tokens=False, truncation=True)["input_ids"])

    def check_model(self, config: CMFAHConfig) -> None:
        """Raises a `ValueError` if the tokenizer is not the one that the model was trained with."""
        rows = len(self.tokenizer)
        has_backbone = config.text_backbone_config is not None or config.dual_encoder_config is not None
        fits = rows == config.vocab_size and self.tokenizer.pad_token_id == config.pad_token_id
        if has_backbone == self.word_level or not (rows <= config.vocab_size if has_backbone else fits):
            raise ValueError("its tokenizer is not the one that its model was trained with; save both again")


def _new_image_processor(
    config: CMFAHConfig, image_mean: Sequence[float] | None, image_std: Sequence[float] | None
) -> ImageProcessingMixin:
    from transformers import ViTImageProcessor

    if image_mean is None or image_std is None:
        default_mean, default_std = backbone_normalization(config)
        image_mean, image_std = image_mean or default_mean, image_std or default_std
    return ViTImageProcessor(
        size={"height": config.image_size, "width": config.image_size},
        resample=Image.Resampling.BICUBIC,
        image_mean=list(image_mean),
        image_std=list(image_std),
    )


def _dual_image_processor(config: CMFAHConfig, location: dict[str, str]) -> ImageProcessingMixin:
    """The image processor of a dual encoder, from the folder or repository of its configuration.

    One with settings of its own, such as the cutting into patches of SigLIP 2, is replaced by a square resize with the
    same normalization.
    """
    from transformers import AutoImageProcessor

    encoder = config.dual_encoder_config
    assert isinstance(encoder, PreTrainedConfig)
    if not encoder.name_or_path:
        raise ValueError("dual_encoder_config names no source of an image processor; give dual_encoder.")
    name, revision = split_revision(encoder.name_or_path)
    found = AutoImageProcessor.from_pretrained(name, trust_remote_code=is_remote(encoder), **revision, **location)
    settings = json.loads(found.to_json_string())  # `to_dict` holds tuples
    try:
        return load_image_processor(settings, Path(encoder.name_or_path), {})
    except ModelFileError:
        return _new_image_processor(config, settings.get("image_mean"), settings.get("image_std"))


__all__ = ["CMFAHProcessor"]
