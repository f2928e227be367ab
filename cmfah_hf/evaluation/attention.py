"""Which regions of a picture and words of a text attend to each other. Shapes: `R` regions, `W` words."""

from typing import Any

import numpy as np
import torch

from cmfah_hf.errors import QueryError
from cmfah_hf.models import CMFAHModel, CMFAHProcessor


@torch.inference_mode()
def attention_of_words(
    model: CMFAHModel, processor: CMFAHProcessor, image: Any, text: str
) -> tuple[list[str], np.ndarray]:
    """Which regions and words of a pair attend to each other.

    Where both sides attend, a region's weight of a word (`[attention-v]`) times the word's weight of the region
    (`[attention-t]`): the first tells the words of a region apart, the second the regions of a word.

    Args:
        model: The towers.
        processor: Their processor.
        image: The picture.
        text: Its text.

    Returns:
        The `W` words of the text that the model knows, and their weights `(R, W)`.

    Raises:
        QueryError: If the model has no attention, or no word is known.
    """
    if model.config.attention == "none":
        raise QueryError("This model's attention is 'none': no word attends to a region; train with another.")
    words = processor.known_words(text)
    if not words:
        raise QueryError(f"No word of {text!r} is known to the model, so there is no attention to see.")
    inputs = processor(images=[image], text=[" ".join(words)], return_tensors="pt").to(model.device)
    outputs = model(**inputs, output_attentions=True)
    weights_RW = torch.ones((), device=model.device)
    if model.config.attends_image:
        weights_RW = weights_RW * outputs.image_model_output.attentions[-1][0, 0]
    if model.config.attends_text:
        weights_RW = weights_RW * outputs.text_model_output.attentions[-1][0, 0].T
    return words, weights_RW.float().cpu().numpy()
