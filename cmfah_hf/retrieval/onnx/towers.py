"""The towers of a model as modules from tensors to codes, as exports take them, and random inputs of any size for them.

Shape suffixes: B items, W tokens, K hash bits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import Dim

from cmfah_hf.models import CMFAHConfig, CMFAHModel
from cmfah_hf.retrieval.onnx.files import INPUTS, OUTPUTS


class _ImageCodes(nn.Module):
    def __init__(self, model: CMFAHModel):
        super().__init__()
        self.tower = model.image_model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.tower(pixel_values).hash_values.float()


class _TextCodes(nn.Module):
    def __init__(self, model: CMFAHModel):
        super().__init__()
        self.tower = model.text_model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.tower(input_ids, attention_mask).hash_values.float()


@dataclass(frozen=True)
class Tower:
    """One tower of a model, for exports.

    Attributes:
        name: `"vision"` or `"text"`.
        module: From the tensors of `INPUTS[name]` to continuous codes `(B, K)`, float32, of the unimodal view.
        draw: Random inputs, from the number of items and a seed; those of different seeds differ in their sizes.
        dynamic: The sizes of each input that are left open, by the number of the dimension.
    """

    name: str
    module: nn.Module
    draw: Callable[[int, int], tuple[torch.Tensor, ...]]
    dynamic: dict[str, dict[int, Any]]

    @property
    def output(self) -> str:
        """The name of the output."""
        return OUTPUTS[self.name]

    @torch.inference_mode()
    def codes(self, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Continuous codes `(B, K)` by PyTorch."""
        return self.module(*inputs)


def towers_of(model: CMFAHModel, sides: tuple[int, int] | None = None) -> list[Tower]:
    """Both towers of a model, in evaluation mode.

    Args:
        model: The model.
        sides: Height and width of the images, which a program cannot change: position embeddings belong to one size,
            and the exporter takes minutes for what `tf_efficientnet_lite2` computes of open ones. None: those of its
            configuration.
    """
    config = model.config
    height, width = sides or (config.image_size, config.image_size)
    most = _most_tokens(config)

    def images(count: int, seed: int) -> tuple[torch.Tensor, ...]:
        return (_images(count, height, width, torch.Generator().manual_seed(seed)),)

    def texts(count: int, seed: int) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        return _texts(count, 1 + (4 + seed) % most, config.vocab_size, config.pad_token_id or 0, generator)

    return [
        Tower("vision", _ImageCodes(model).eval(), images, {name: {0: Dim.DYNAMIC} for name in INPUTS["vision"]}),
        Tower(
            "text",
            _TextCodes(model).eval(),
            texts,
            {name: dict.fromkeys((0, 1), Dim.DYNAMIC) for name in INPUTS["text"]},
        ),
    ]


def _most_tokens(config: CMFAHConfig) -> int:
    """The length of the longest random text: at most 12 tokens, and no more than the encoder takes."""
    encoder: Any = config.dual_encoder_config or config.text_backbone_config
    positions = getattr(encoder.get_text_config() if encoder else None, "max_position_embeddings", None)
    return min(12, max(positions - 2, 3)) if positions else 12  # some encoders begin to count at 2


def _images(count: int, height: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """Blurred noise, which excites a tower more like images do than independent pixels."""
    coarse = torch.randn(count, 3, 8, 8, generator=generator)
    blurred = nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return blurred + 0.2 * torch.randn(count, 3, height, width, generator=generator)


def _texts(count: int, length: int, rows: int, pad: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Random tokens of texts of different lengths, padded on the right; the last of several texts is empty."""
    input_ids = torch.randint(rows, (count, length), generator=generator)
    lengths = torch.randint(1, length + 1, (count, 1), generator=generator)
    if count > 1:
        lengths[-1] = 0
    mask = (torch.arange(length) < lengths).long()
    return input_ids.masked_fill(mask == 0, pad), mask
