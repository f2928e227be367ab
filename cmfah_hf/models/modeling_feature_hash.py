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
    >>> import torch
    >>> from cmfah_hf import FeatureHashConfig, FeatureHashModel

    >>> model = FeatureHashModel(FeatureHashConfig(image_feature_dim=128, text_feature_dim=10))
    >>> model.get_text_hash(token_features=torch.rand(2, 1, 10)).shape  # features of texts, one position each
    torch.Size([2, 64])
    ```"""

    image_model_class = FeatureHashImageModel
    text_model_class = FeatureHashTextModel


load_from_wholes(FeatureHashImageModel, FeatureHashTextModel)


__all__ = ["FeatureHashImageModel", "FeatureHashModel", "FeatureHashPreTrainedModel", "FeatureHashTextModel"]
