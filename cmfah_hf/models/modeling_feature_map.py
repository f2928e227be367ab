"""Towers that map one feature of each image and text to scores, for the shallow methods that CMFAH is compared with.

Shape suffixes: B items, A radial basis functions, C width of a feature, D width of scores, equal to the hash bits.
"""

from typing import Any

import torch
from torch import nn
from transformers import initialization as init

from .configuration_feature_map import FeatureMapConfig
from .feature_encoders import FeatureImageEncoder, build_feature_text_encoder
from .modeling_cmfah import CMFAHImageModel, CMFAHModel, CMFAHPreTrainedModel, CMFAHTextModel
from .safe_weights import load_from_wholes


class RadialBasis(nn.Module):
    """`[feature-map]`: `exp(-|x - a|^2 / width)` for each anchor `a`."""

    def __init__(self, anchors: int, channels: int):
        super().__init__()
        self.anchors = nn.Parameter(torch.empty(anchors, channels), requires_grad=False)
        self.width = nn.Parameter(torch.empty(1), requires_grad=False)

    def forward(self, x_BC: torch.Tensor) -> torch.Tensor:
        """`(B, A)`, of `(B, C)`."""
        distances_BA = torch.cdist(x_BC, self.anchors, compute_mode="donot_use_mm_for_euclid_dist")
        return torch.exp(-distances_BA.square() / self.width)


class Centered(nn.Module):
    """Features minus their mean in the fit, whose subtraction within a bias would lose digits."""

    def __init__(self, channels: int):
        super().__init__()
        self.mean = nn.Parameter(torch.empty(channels), requires_grad=False)

    def forward(self, x_BC: torch.Tensor) -> torch.Tensor:
        """`(B, C)`, of `(B, C)`."""
        return x_BC - self.mean


class Scores(nn.Module):
    """The hash head of these towers: the scores as they are."""

    mlp = None

    def __init__(self, *_: Any):
        super().__init__()

    def forward(self, scores_BD: torch.Tensor, *others: Any) -> torch.Tensor:
        """`(B, D)`, unchanged."""
        return scores_BD


class FeatureMapPreTrainedModel(CMFAHPreTrainedModel):
    """Base class of these models."""

    config: FeatureMapConfig
    config_class = FeatureMapConfig
    _build_head = Scores

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, RadialBasis):
            init.normal_(module.anchors)
            init.constant_(module.width, module.anchors.shape[1])
        elif isinstance(module, Centered):
            init.zeros_(module.mean)


def _as_map(encoder: Any, anchors: int | None) -> Any:
    """An encoder of features with a map in place of its perceptron."""
    channels = encoder.projection.in_features
    encoder.kernel = Centered(channels) if anchors is None else RadialBasis(anchors, channels)
    encoder.projection = nn.Linear(anchors or channels, encoder.config.hash_bits)
    encoder.mlp = nn.Identity()
    return encoder


class FeatureMapImageModel(FeatureMapPreTrainedModel, CMFAHImageModel):
    """The image tower, used like CMFAH's."""

    def _build_encoder(self, config: FeatureMapConfig) -> Any:
        return _as_map(FeatureImageEncoder(config), config.image_anchors)


class FeatureMapTextModel(FeatureMapPreTrainedModel, CMFAHTextModel):
    """The text tower, used like CMFAH's."""

    def _build_encoder(self, config: FeatureMapConfig) -> Any:
        return _as_map(build_feature_text_encoder(config), config.text_anchors)


class FeatureMapModel(FeatureMapPreTrainedModel, CMFAHModel):
    """Both towers, `[feature-map]`, used like CMFAH's.

    Example:

    ```python
    >>> import torch
    >>> from cmfah_hf import FeatureMapConfig, FeatureMapModel

    >>> model = FeatureMapModel(FeatureMapConfig(image_feature_dim=128, text_feature_dim=10))
    >>> model.get_text_hash(token_features=torch.rand(2, 1, 10)).shape  # features of texts, one position each
    torch.Size([2, 64])
    ```"""

    image_model_class = FeatureMapImageModel
    text_model_class = FeatureMapTextModel


load_from_wholes(FeatureMapImageModel, FeatureMapTextModel)


__all__ = ["FeatureMapImageModel", "FeatureMapModel", "FeatureMapPreTrainedModel", "FeatureMapTextModel"]
