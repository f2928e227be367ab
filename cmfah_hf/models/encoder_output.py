"""Output of the image and text encoders, which the towers read, and its type.

Shape suffixes: B items, P positions (regions or tokens), D feature width, C width of positions of a dual encoder, E
width of its vectors.
"""

from typing import NamedTuple

import torch
from torch import nn


class Embedded(NamedTuple):
    """Encoded images or texts.

    Attributes:
        positions: `(B, P, D)`, regions or tokens; zero where masked.
        mask: `(B, P)`, true at the positions that exist. None: all exist.
        pooled: `(B, E)`, the vectors of a dual encoder, of unit length. None with other encoders.
    """

    positions: torch.Tensor
    mask: torch.Tensor | None = None
    pooled: torch.Tensor | None = None


def with_vector(positions_BPC: torch.Tensor, pooled_BE: torch.Tensor) -> torch.Tensor:
    """Positions and vectors of a dual encoder in one tensor to keep, `(B, 1 + P, max(C, E))`, the vectors first."""
    width = max(positions_BPC.shape[-1], pooled_BE.shape[-1])
    both = (pooled_BE[:, None].to(positions_BPC.dtype), positions_BPC)
    return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[-1])) for part in both], dim=1)


def without_vector(kept: torch.Tensor, channels: int, pooled_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The positions `(B, P, C)` and vectors `(B, E)` of what `with_vector` returned.

    Raises:
        ValueError: If it has another width.
    """
    if kept.shape[-1] != max(channels, pooled_dim):
        raise ValueError(
            f"Features of {kept.shape[-1]} channels are not those of this dual encoder, which have "
            f"{max(channels, pooled_dim)}; extract them again with this model's encoder."
        )
    return kept[:, 1:, :channels], kept[:, 0, :pooled_dim]


def input_dtype(layer: nn.Linear) -> torch.dtype:
    """The type of a layer's inputs: that of its weights, or float32 if PyTorch has quantized them."""
    weight = layer.weight  # of a dynamically quantized layer, a method
    return weight.dtype if isinstance(weight, torch.Tensor) else torch.float32
