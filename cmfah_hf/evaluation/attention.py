"""Attention between the regions of an image and the words of its text. Shapes: `R` regions, `W` words, `T` tokens."""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from cmfah_hf.errors import QueryError
from cmfah_hf.models import CMFAHModel, CMFAHProcessor


class WordAttention(NamedTuple):
    """Attention between the words of a text and the regions of an image.

    Attributes:
        words: The `W` known words, in their order.
        weights: `(R, W)`.
        grid: Rows and columns of the regions.
        seen: Left, top, right and bottom of the part of the image that the regions cover, in pixels.
    """

    words: list[str]
    weights: np.ndarray
    grid: tuple[int, int]
    seen: tuple[float, float, float, float]


@torch.inference_mode()
def attention_of_words(model: CMFAHModel, processor: CMFAHProcessor, image: Image.Image, text: str) -> WordAttention:
    """Attention weights between the regions and words of a pair.

    If both modalities attend, they are products of two weights: of the region for the word (`[attention-v]`), which
    distinguishes the words of a region, and of the word for the region (`[attention-t]`), which distinguishes the
    regions of a word. The weight of a word of several tokens is the sum of their weights.

    Raises:
        QueryError: If the model has no attention, or no word is known.
    """
    if model.config.attention == "none":
        raise QueryError("This model's attention is 'none': no word attends to a region; use a model with attention.")
    spans = processor.word_spans(text)
    if not spans:
        raise QueryError(f"No word of {text!r} is known to the model, so there is no attention to show.")
    inputs = processor(images=[image], text=[text], return_tensors="pt").to(model.device)
    outputs = model(**inputs, output_attentions=True)
    weights_RT = torch.ones((), device=model.device)
    if model.config.attends_image:
        weights_RT = weights_RT * outputs.image_model_output.attentions[-1][0, 0]
    if model.config.attends_text:
        weights_RT = weights_RT * outputs.text_model_output.attentions[-1][0, 0].T
    weights_RW = torch.stack([weights_RT[:, tokens].sum(dim=1) for _, tokens in spans], dim=1)
    grid = model.image_model.embeddings.region_grid(*inputs["pixel_values"].shape[2:])
    words = [word for word, _ in spans]
    return WordAttention(words, weights_RW.float().cpu().numpy(), grid, processor.seen_box(*image.size))
