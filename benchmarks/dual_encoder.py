"""A pretrained dual encoder of transformers with its own processor: images and texts to vectors.

Shapes: `N` items, `E` width of the vectors.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer


class DualEncoder:
    """Any model of transformers with `get_image_features` and `get_text_features`, from a folder or the Hub."""

    def __init__(self, name: str | Path, batch: int = 128):
        self.model = AutoModel.from_pretrained(name).eval()
        self.image_processor = AutoImageProcessor.from_pretrained(name)
        self.tokenizer = AutoTokenizer.from_pretrained(name)
        self.batch = batch
        text_config = getattr(self.model.config, "text_config", self.model.config)
        self.most_tokens = int(getattr(text_config, "max_position_embeddings", 64))

    def images(self, images: Sequence[Any]) -> np.ndarray:
        """The vectors of images, `(N, E)` float32, of the length that the model gives."""
        return self._encoded(images, lambda part: self.image_processor(part, return_tensors="pt"), "image")

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """The vectors of texts, `(N, E)` float32; texts are cut off at the model's maximum length."""

        def inputs(part: list[str]) -> Any:
            # SigLIP was trained on texts padded to one length, CLIP ignores the padding.
            padding = "max_length" if "siglip" in self.model.config.model_type else True
            return self.tokenizer(
                part, padding=padding, truncation=True, max_length=self.most_tokens, return_tensors="pt"
            )

        return self._encoded(texts, inputs, "text")

    @torch.inference_mode()
    def _encoded(self, items: Sequence[Any], inputs: Any, side: str) -> np.ndarray:
        encode = getattr(self.model, f"get_{side}_features")
        vectors = []
        for start in range(0, len(items), self.batch):
            output = encode(**inputs(list(items[start : start + self.batch])))
            vectors.append(getattr(output, "pooler_output", output).float().numpy())
        return np.concatenate(vectors)
