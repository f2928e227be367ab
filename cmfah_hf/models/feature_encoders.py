"""Encoders and hash head of towers that hash one pooled feature of each item, `[feature-hash]`.

Shape suffixes: B items, P positions (regions or tokens), C width of a position or a feature, V words, D feature width,
G prototypes.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import nn

from .configuration_feature_hash import FeatureHashConfig
from .encoder_output import Embedded, input_dtype
from .fused_cmfah import EPSILON
from .image_encoder import CMFAHImageEncoder
from .modules_cmfah import CMFAHHashHead, masked_mean
from .text_encoder import CMFAHDualText, CMFAHTextBackbone, CMFAHTextEncoder

# Of `[prototypes]`: the factor within the sigmoid, and the share of the prototypes in a feature.
_SHARPNESS, _SHARE = 5.0, 0.2


class FeaturePerceptron(nn.Module):
    """The activation after the first layer, and the further layers, with one after each."""

    def __init__(self, config: FeatureHashConfig):
        super().__init__()
        self.activation = nn.ReLU() if config.activation == "relu" else nn.Tanh()
        widths = [*config.mlp_sizes, config.hidden_size]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))

    def forward(self, x_BD: torch.Tensor) -> torch.Tensor:
        """`(B, D)`, features."""
        x_BD = self.activation(x_BD)
        for layer in self.layers:
            x_BD = self.activation(layer(x_BD))
        return x_BD


def first_layer(width: int, config: FeatureHashConfig) -> nn.Linear:
    """The first layer of the perceptron over features of `width` values."""
    return nn.Linear(width, [*config.mlp_sizes, config.hidden_size][0])


def embedded(encoder: Any, features_BC: torch.Tensor) -> Embedded:
    """The perceptron's output as one position, and the features that it reads as vectors."""
    scaled_BC = features_BC
    if encoder.config.normalize_regions:
        wide = torch.promote_types(features_BC.dtype, torch.float32)
        length_B1 = torch.linalg.vector_norm(features_BC, dim=1, keepdim=True, dtype=wide).clamp(min=EPSILON)
        scaled_BC = features_BC * (features_BC.shape[1] ** 0.5 / length_B1).to(features_BC.dtype)
    read_BD = encoder.mlp(encoder.projection(encoder.kernel(encoder.dropout(scaled_BC))))
    return Embedded(read_BD[:, None], None, scaled_BC)


class FeatureImageEncoder(CMFAHImageEncoder):
    """The mean of an image's regions, or its vector of a dual encoder, through a perceptron."""

    keeps_one = True

    def __init__(self, config: FeatureHashConfig):
        super().__init__(config)
        self.channels, self.pooled_dim = self.pooled_dim or self.channels, None
        self.projection = first_layer(self.channels, config)
        self.kernel, self.mlp = nn.Identity(), FeaturePerceptron(config)
        self.dropout = nn.Dropout(config.dropout)

    def extract_regions(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The feature of each image as one region, `(B, 1, C)`, which can be given as `region_features`."""
        feature_map, pooled_BE = self._encode(pixel_values)
        return (feature_map.flatten(2).mean(dim=2) if pooled_BE is None else pooled_BE)[:, None]

    def _embed(self, regions_BRC: torch.Tensor, pooled_BE: torch.Tensor | None) -> Embedded:
        return embedded(self, regions_BRC.mean(dim=1))


class _OneFeature(CMFAHTextEncoder):
    """The mean of a text's tokens, or its vector of a dual encoder, through a perceptron."""

    keeps_one = True

    def __init__(self, config: FeatureHashConfig):
        super().__init__(config)
        self.kernel, self.mlp = nn.Identity(), FeaturePerceptron(config)

    def extract_tokens(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The feature of each text as one token, `(B, 1, C)`, and its mask, which can be given as `token_features`."""
        features_BC = self._feature(*self._hidden(input_ids, attention_mask, None))
        return features_BC[:, None], torch.ones_like(input_ids[:, :1], dtype=torch.bool)

    def _feature(self, hidden_BPC: torch.Tensor, mask_BP: torch.Tensor, pooled_BE: torch.Tensor | None) -> torch.Tensor:
        if pooled_BE is not None:
            return pooled_BE
        return masked_mean(hidden_BPC * mask_BP[..., None].to(hidden_BPC.dtype), mask_BP)

    def _embed(self, hidden_BPC: torch.Tensor, mask_BP: torch.Tensor, pooled_BE: torch.Tensor | None) -> Embedded:
        return embedded(self, self._feature(hidden_BPC, mask_BP, pooled_BE))


class FeatureTextBackbone(_OneFeature, CMFAHTextBackbone):
    """A text model of `transformers`."""

    def __init__(self, config: FeatureHashConfig):
        super().__init__(config)
        self.projection = first_layer(self.channels, config)


class FeatureDualText(_OneFeature, CMFAHDualText):
    """The text half of a dual encoder."""

    def __init__(self, config: FeatureHashConfig):
        super().__init__(config)
        self.channels, self.pooled_dim = config.pooled_dim or self.channels, None
        self.projection = first_layer(self.channels, config)


class GivenTextFeatures(_OneFeature):
    """Features that are given as `token_features` `(B, 1, C)`."""

    def __init__(self, config: FeatureHashConfig):
        super().__init__(config)
        self.channels = config.text_feature_dim or 1
        self.projection = first_layer(self.channels, config)

    def _freeze(self) -> None:
        pass

    def get_input_embeddings(self) -> nn.Module:
        return self.projection  # as of the image tower

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.projection = value  # type: ignore[assignment]  # transformers' signature allows any module

    def _hidden(self, *args: Any) -> Any:
        raise ValueError(f"This model reads no texts; give token_features of {self.channels} values.")


class BagOfWords(GivenTextFeatures):
    """The binary bag of a text's words, `(B, 1, V)`, without padding and unknown words."""

    def __init__(self, config: FeatureHashConfig):
        super().__init__(config)
        self.channels = config.vocab_size
        self.projection = first_layer(self.channels, config)

    def _hidden(
        self, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, inputs_embeds: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """As the parent's, from `input_ids` alone."""
        if input_ids is None or inputs_embeds is not None:
            raise ValueError("A bag of words is made of input_ids, and not of inputs_embeds.")
        seen_BW = torch.ones_like(input_ids, dtype=input_dtype(self.projection))
        if attention_mask is not None:
            seen_BW = seen_BW * attention_mask
        bag_BV = seen_BW.new_zeros(input_ids.shape[0], self.channels)
        bag_BV = bag_BV.scatter_reduce(1, input_ids, seen_BW, "amax")
        for token in (self.config.pad_token_id, self.config.unk_token_id):
            if token is not None:
                bag_BV = bag_BV.index_fill(1, torch.tensor([token], device=bag_BV.device), 0)
        return bag_BV[:, None], torch.ones_like(input_ids[:, :1], dtype=torch.bool), None


def build_feature_text_encoder(config: FeatureHashConfig) -> CMFAHTextEncoder:
    """The text encoder of a configuration, with random weights."""
    if config.dual_encoder_config is not None:
        return FeatureDualText(config)
    if config.text_feature_dim is not None:
        return GivenTextFeatures(config)
    return BagOfWords(config) if config.text_backbone_config is None else FeatureTextBackbone(config)


class Prototypes(nn.Module):
    """`[prototypes]`: features of unit length, moved towards the prototypes that they resemble.

    Rows of zeros are no prototypes; all are zeros at first.
    """

    weight: torch.Tensor

    def __init__(self, count: int, width: int):
        super().__init__()
        self.register_buffer("weight", torch.zeros(count, width))

    def forward(self, features_BD: torch.Tensor) -> torch.Tensor:
        """`(B, D)`, features with attention."""
        features_BD = nn.functional.normalize(features_BD, dim=1, eps=EPSILON)
        weight_GD = self.weight.to(features_BD.dtype)
        mask_BG = (_SHARPNESS * features_BD @ weight_GD.mT).sigmoid() * weight_GD.any(dim=1)
        mixed_BD = mask_BG @ weight_GD / mask_BG.sum(dim=1, keepdim=True).clamp(min=EPSILON)
        return (1 - _SHARE) * features_BD + _SHARE * mixed_BD


class FeatureHashHead(CMFAHHashHead):
    """`[hash]`, of features that attend to prototypes if the towers have them."""

    def __init__(self, config: FeatureHashConfig, temperature: float):
        super().__init__(config, temperature)
        self.vectors = None  # those of a dual encoder are the features
        count = config.num_prototypes
        self.prototypes = None if count is None else Prototypes(count, config.hidden_size)

    def forward(self, features_BD: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As the parent's."""
        if self.prototypes is not None:
            features_BD = self.prototypes(features_BD)
        return super().forward(features_BD, *args, **kwargs)
