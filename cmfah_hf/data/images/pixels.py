"""Inputs of a model from images that are decoded on demand.

Shape suffixes: N images, H and W sides of the images that the model sees.
"""

from collections.abc import Iterable
from typing import Any

import torch
from PIL import Image

from cmfah_hf.data.images.decoding import few_at_a_time


def pixel_values_of(processor: Any, images: Iterable[Image.Image]) -> torch.Tensor:
    """`(N, 3, H, W)` of images, of which few are decoded at a time (`few_at_a_time`)."""
    parts = [processor(images=few, return_tensors="pt")["pixel_values"] for few in few_at_a_time(images)]
    return torch.cat(parts) if parts else torch.empty(0, 3, *processor.image_shape)
