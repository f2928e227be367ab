"""Towers that hash one pooled feature of each image and text, for the deep methods that CMFAH is compared with."""

from .configuration_feature_hash import FeatureHashConfig
from .feature_encoders import FeatureHashHead, FeatureImageEncoder, build_feature_text_encoder
from .modeling_cmfah import CMFAHImageModel, CMFAHModel, CMFAHPreTrainedModel, CMFAHTextModel
from .safe_weights import load_from_wholes


class FeatureHashPreTrainedModel(CMFAHPreTrainedModel):
    """Base class of these models."""

    config: FeatureHashConfig
    config_class = FeatureHashConfig


class FeatureHashImageModel(FeatureHashPreTrainedModel, CMFAHImageModel):
    """The image tower, used like CMFAH's."""

    def _build_encoder(self, config: FeatureHashConfig) -> FeatureImageEncoder:  # type: ignore[override]
        return FeatureImageEncoder(config)

    def _build_head(self, config: FeatureHashConfig, temperature: float) -> FeatureHashHead:  # type: ignore[override]
        return FeatureHashHead(config, temperature)


class FeatureHashTextModel(FeatureHashPreTrainedModel, CMFAHTextModel):
    """The text tower, used like CMFAH's."""

    def _build_encoder(self, config: FeatureHashConfig):  # type: ignore[override]
        return build_feature_text_encoder(config)

    def _build_head(self, config: FeatureHashConfig, temperature: float) -> FeatureHashHead:  # type: ignore[override]
        return FeatureHashHead(config, temperature)


class FeatureHashModel(FeatureHashPreTrainedModel, CMFAHModel):
    """Both towers, `[feature-hash]`, used like CMFAH's.

    Example:

    ```python
    >>> from cmfah_hf import CMFAHProcessor, FeatureHashModel

    >>> model = FeatureHashModel.from_pretrained("path/to/checkpoint")
    >>> processor = CMFAHProcessor.from_pretrained("path/to/checkpoint")
    >>> hash_values = model.get_text_hash(**processor(text=["a dog on the beach"], return_tensors="pt"))  # (1, K)
    ```"""

    image_model_class = FeatureHashImageModel
    text_model_class = FeatureHashTextModel


load_from_wholes(FeatureHashImageModel, FeatureHashTextModel)


__all__ = ["FeatureHashImageModel", "FeatureHashModel", "FeatureHashPreTrainedModel", "FeatureHashTextModel"]
