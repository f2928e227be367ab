"""Pixel values of images that are decoded on demand.

Shape suffixes: N images, H and W sides of the images that the model sees.
"""

from collections.abc import Iterable
from typing import Any

import torch
from PIL import Image

from cmfah_hf.data.images.decoding import few_at_a_time


def pixel_values_of(processor: Any, images: Iterable[Image.Image]) -> torch.Tensor:
    """`(N, 3, H, W)` of images, decoded and resized in batches (`few_at_a_time`)."""

    def prepared(batch: list[Image.Image]) -> torch.Tensor:
        return processor(images=batch, return_tensors="pt")["pixel_values"]

    parts = list(map(prepared, few_at_a_time(images)))
    return torch.cat(parts) if parts else torch.empty(0, 3, *processor.image_shape)
