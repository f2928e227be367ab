"""Image encoders: the regions of images, from a torchvision VGG, any `AutoBackbone` of `transformers`, or half of a
dual encoder.

An image encoder computes `R` regions of each image on a grid, in row-major order from the top left. A dual encoder also
computes a vector.

Shape suffixes: B images, R regions, D feature width, C channels of the backbone, E width of a dual encoder's vectors.
"""

from collections.abc import Callable

import torch
import torch.utils.checkpoint
from torch import nn
from transformers import PreTrainedConfig

from .adapters import add_adapters, train_adapters_only
from .configuration_cmfah import CMFAHConfig
from .configuration_files import UNFIT
from .dual_encoder import CMFAHDualImageEncoder
from .encoder_output import Embedded, input_dtype, with_vector, without_vector
from .fused_cmfah import EPSILON
from .model_files import ModelFileError


class CMFAHTorchvisionBackbone(nn.Module):
    """The convolutional part of a torchvision VGG, under torchvision's own names (`features.0.weight`, ...)."""

    def __init__(self, name: str):
        super().__init__()
        import torchvision  # type: ignore[import-untyped]  # it has no stubs

        self.features = getattr(torchvision.models, name)(weights=None, init_weights=False).features
        self.channels = [next(m.out_channels for m in reversed(self.features) if isinstance(m, nn.Conv2d))]
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Callable[..., torch.Tensor] = torch.utils.checkpoint.checkpoint

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if not (self.gradient_checkpointing and self.training):
            return self.features(pixel_values)
        stage: list[nn.Module] = []
        for module in self.features:  # stages end with poolings, whose small outputs are kept
            stage.append(module)
            if isinstance(module, nn.MaxPool2d):
                pixel_values = self._gradient_checkpointing_func(nn.Sequential(*stage).__call__, pixel_values)
                stage = []
        return pixel_values


class CMFAHGivenFeatures(nn.Module):
    """Placeholder for the backbone of a model whose image features are given; it has no weights."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = [channels]

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        raise ValueError(
            f"This model has no image backbone; give region_features of {self.channels[-1]} channels instead of images."
        )


def _build_backbone(config: CMFAHConfig) -> tuple[nn.Module, int]:
    """The image backbone of a configuration, with random weights, and its number of channels.

    Raises:
        ValueError: If the backbone cannot be built, for example without a package that it needs.
    """
    if config.dual_encoder_config is not None:
        dual = CMFAHDualImageEncoder(config)
        return dual, dual.channels[-1]
    if config.image_feature_dim is not None:
        return CMFAHGivenFeatures(config.image_feature_dim), config.image_feature_dim
    if not isinstance(config.backbone_config, PreTrainedConfig):
        vgg = CMFAHTorchvisionBackbone(str(config.backbone))
        return vgg, vgg.channels[-1]
    from transformers import AutoBackbone

    try:
        backbone = AutoBackbone.from_config(config=config.backbone_config)
        return backbone, backbone.channels[-1]
    except ModelFileError:
        raise
    except (*UNFIT, ImportError) as error:
        kind, reason = config.backbone_config.model_type, " ".join(str(error).split())[:200]
        raise ValueError(f"No {kind} backbone can be built of its backbone_config ({reason}).") from error


class CMFAHImageEncoder(nn.Module):
    """`[regions]`: the last feature map of a backbone, projected to one vector of width `D` per region."""

    # Whether `extract_regions` gives one feature of an image instead of its regions.
    keeps_one = False

    def __init__(self, config: CMFAHConfig):
        super().__init__()
        self.config = config
        self.backbone, self.channels = _build_backbone(config)
        self.adapt()
        self.projection = nn.Linear(self.channels, config.hidden_size)
        self.pooled_dim = config.pooled_dim
        self._grids: dict[tuple[int, int], tuple[int, int]] = {}

    def adapt(self) -> None:
        """Adds the adapters of the configuration, and freezes what is frozen."""
        if self.config.lora_rank is not None and not self.config.freeze_backbone:
            add_adapters(self.backbone, self.config.lora_rank)
        self._freeze()

    def _freeze(self) -> None:
        if self.config.freeze_backbone:  # including dropout and batch statistics
            self.backbone.requires_grad_(False).eval()
        elif self.config.lora_rank is not None:
            train_adapters_only(self.backbone)

    def train(self, mode: bool = True) -> "CMFAHImageEncoder":
        super().train(mode)
        self._freeze()  # `from_pretrained`, which ends with `eval()`, creates parameters that are not frozen
        return self

    def _encode(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The last feature map of the backbone, and the vectors of a dual encoder."""
        # A frozen backbone needs no graph.
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_backbone):
            output = self.backbone(pixel_values.to(input_dtype(self.projection)))
        if isinstance(output, tuple):
            return output
        return (output if isinstance(output, torch.Tensor) else output.feature_maps[-1]), None

    def extract_regions(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The regions of the backbone, `(B, R, C)`, in row-major order, which can be given as `region_features`.

        Those of a dual encoder begin with its vector: `(B, 1 + R, max(C, E))`, the narrower ones filled up with zeros.
        """
        feature_map, pooled_BE = self._encode(pixel_values)
        regions_BRC = feature_map.flatten(2).transpose(1, 2)
        return regions_BRC if pooled_BE is None else with_vector(regions_BRC, pooled_BE)

    @torch.no_grad()
    def region_grid(self, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """Rows and columns of the regions, for images of a size in pixels; None: the size that the processor makes.

        The first call for a size encodes a black image.
        """
        size = height or self.config.image_size, width or self.config.image_size
        if size not in self._grids:
            was_training = self.training
            device = next(self.parameters()).device
            black = torch.zeros(1, self.config.num_channels, *size, device=device)
            rows, columns = self.eval()._encode(black)[0].shape[2:]
            self.train(was_training)
            self._grids[size] = rows, columns
        return self._grids[size]

    def forward(
        self, pixel_values: torch.Tensor | None = None, region_features: torch.Tensor | None = None
    ) -> Embedded:
        """The regions `(B, R, D)`, and the vectors of a dual encoder.

        Args:
            pixel_values: `(B, 3, H, W)`.
            region_features: `(B, R, C)`, as `extract_regions` returns them, instead of `pixel_values`.

        Raises:
            ValueError: If neither or both are given, or the regions have another number of channels.
        """
        if region_features is None and pixel_values is not None:
            region_features = self.extract_regions(pixel_values)
        elif region_features is None or pixel_values is not None:
            raise ValueError("Give the image tower either pixel_values or region_features.")
        regions_BRC, pooled_BE = region_features.to(input_dtype(self.projection)), None
        if self.pooled_dim is not None:
            regions_BRC, pooled_BE = without_vector(regions_BRC, self.channels, self.pooled_dim)
        if regions_BRC.shape[-1] != self.channels:
            raise ValueError(
                f"region_features have {regions_BRC.shape[-1]} channels and the backbone gives {self.channels}; "
                "extract them again with this model's backbone."
            )
        return self._embed(regions_BRC, pooled_BE)

    def _embed(self, regions_BRC: torch.Tensor, pooled_BE: torch.Tensor | None) -> Embedded:
        if self.config.normalize_regions:
            # One scale per image: the relative lengths of regions separate objects from background.
            wide = torch.promote_types(regions_BRC.dtype, torch.float32)
            lengths_BR1 = torch.linalg.vector_norm(regions_BRC, dim=-1, keepdim=True, dtype=wide)
            scale_B11 = lengths_BR1.square().mean(dim=1, keepdim=True).sqrt().clamp(min=EPSILON)
            regions_BRC = regions_BRC * (regions_BRC.shape[-1] ** 0.5 / scale_B11).to(regions_BRC.dtype)
        return Embedded(self.projection(regions_BRC), None, pooled_BE)
