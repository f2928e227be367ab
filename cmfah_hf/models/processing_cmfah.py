"""From pictures and texts as people have them to what the towers read."""

from collections.abc import Sequence

from PIL import Image
from transformers import BatchFeature
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack

from .configuration_cmfah import TORCHVISION_BACKBONES, CMFAHConfig
from .image_modes import to_rgb
from .tokenization_cmfah import build_word_tokenizer, split_words


class CMFAHProcessorKwargs(ProcessingKwargs, total=False):
    _defaults = {"text_kwargs": {"padding": True}}


def backbone_normalization(config: CMFAHConfig) -> tuple[Sequence[float], Sequence[float]]:
    """The mean and standard deviation, of red, green and blue in 0..1, that a backbone's published weights expect."""
    from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    if config.backbone in TORCHVISION_BACKBONES:
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

        image_processor = AutoImageProcessor.from_pretrained(config.backbone_config.name_or_path)
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


__all__ = ["CMFAHProcessor"]
