"""Towers that hash one pooled feature of each image and text, for the deep methods that CMFAH is compared with."""

from .configuration_feature_hash import FeatureHashConfig
from .feature_encoders import FeatureHashHead, FeatureImageEncoder, build_feature_text_encoder
from .modeling_cmfah import CMFAHImageModel, CMFAHModel, CMFAHPreTrainedModel, CMFAHTextModel
from .safe_weights import load_from_wholes


class FeatureHashPreTrainedModel(CMFAHPreTrainedModel):
    """Base class of these models."""

    config: FeatureHashConfig
    config_class = FeatureHashConfig
    _build_head = FeatureHashHead


class FeatureHashImageModel(FeatureHashPreTrainedModel, CMFAHImageModel):
    """The image tower, used like CMFAH's."""

    _build_encoder = FeatureImageEncoder


class FeatureHashTextModel(FeatureHashPreTrainedModel, CMFAHTextModel):
    """The text tower, used like CMFAH's."""

    _build_encoder = staticmethod(build_feature_text_encoder)


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
