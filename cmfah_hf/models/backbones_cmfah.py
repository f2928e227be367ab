"""The image backbones: torchvision's VGGs, and all that `transformers` builds from a configuration."""

from collections.abc import Callable

import torch
from torch import nn

from .configuration_cmfah import CMFAHConfig
from .configuration_files import UNFIT
from .model_files import ModelFileError


class CMFAHTorchvisionBackbone(nn.Module):
    """The convolutional part of a torchvision VGG, under torchvision's own names (`features.0.weight`, ...)."""

    def __init__(self, config: CMFAHConfig):
        super().__init__()
        import torchvision

        self.features = getattr(torchvision.models, config.backbone)(weights=None, init_weights=False).features
        self.channels = [next(m.out_channels for m in reversed(self.features) if isinstance(m, nn.Conv2d))]
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Callable | None = None

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if not (self.gradient_checkpointing and self.training):
            return self.features(pixel_values)
        stage: list[nn.Module] = []
        for module in self.features:  # a stage ends where its pooling shrinks the map, so little is kept between them
            stage.append(module)
            if isinstance(module, nn.MaxPool2d):
                pixel_values = self._gradient_checkpointing_func(nn.Sequential(*stage).__call__, pixel_values)
                stage = []
        return pixel_values


class CMFAHGivenFeatures(nn.Module):
    """The backbone of a model whose image features are given: it has no weights and reads no images."""

    def __init__(self, config: CMFAHConfig):
        super().__init__()
        self.channels = [config.image_feature_dim]

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        raise ValueError(
            f"This model has no image backbone; give region_features of {self.channels[-1]} channels instead of images."
        )


def build_backbone(config: CMFAHConfig) -> tuple[nn.Module, int]:
    """The image backbone of `backbone_config`, with weights drawn at random, and its channels.

    Raises:
        ValueError: If none can be built of that configuration, or what it needs is not installed.
    """
    from transformers.backbone_utils import load_backbone

    try:
        backbone = load_backbone(config)
        return backbone, backbone.channels[-1]
    except ModelFileError:
        raise
    except (*UNFIT, ImportError) as error:
        kind, reason = config.backbone_config.model_type, " ".join(str(error).split())[:200]
        raise ValueError(f"No {kind} backbone can be built of its backbone_config ({reason}).") from error
