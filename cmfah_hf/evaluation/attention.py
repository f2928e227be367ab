"""Attention between the regions of an image and the words of its text. Shapes: `R` regions, `W` words."""

from typing import Any

import numpy as np
import torch

from cmfah_hf.errors import QueryError
from cmfah_hf.models import CMFAHModel, CMFAHProcessor


@torch.inference_mode()
def attention_of_words(
    model: CMFAHModel, processor: CMFAHProcessor, image: Any, text: str
) -> tuple[list[str], np.ndarray]:
    """Attention weights between the regions and words of a pair.

    If both sides attend, it is the product of two weights: the region's for the word (`[attention-v]`), which
    distinguishes the words of a region, and the word's for the region (`[attention-t]`), which distinguishes the
    regions of a word.

    Args:
        model: The towers.
        processor: Their processor.
        image: The image.
        text: Its text.

    Returns:
        The `W` words of the text that are in the model's vocabulary, and their weights `(R, W)`.

    Raises:
        QueryError: If the model has no attention, or no word is known.
    """
    if model.config.attention == "none":
        raise QueryError("This model's attention is 'none': no word attends to a region; use a model with attention.")
    words = processor.known_words(text)
    if not words:
        raise QueryError(f"No word of {text!r} is known to the model, so there is no attention to show.")
    inputs = processor(images=[image], text=[" ".join(words)], return_tensors="pt").to(model.device)
    outputs = model(**inputs, output_attentions=True)
    weights_RW = torch.ones((), device=model.device)
    if model.config.attends_image:
        weights_RW = weights_RW * outputs.image_model_output.attentions[-1][0, 0]
    if model.config.attends_text:
        weights_RW = weights_RW * outputs.text_model_output.attentions[-1][0, 0].T
    return words, weights_RW.float().cpu().numpy()
