"""`ImageTextEncoder`: a model, its processor and its word graph, which give raw images and texts their codes.

Shape suffixes: N items, K hash bits.
"""

from collections.abc import Callable, Iterable, Sequence, Sized
from typing import Any

import numpy as np
import torch

from cmfah_hf.data.images import decode_image
from cmfah_hf.errors import QueryError
from cmfah_hf.expansion import GraphExpander
from cmfah_hf.models import CMFAHModel, CMFAHProcessor
from cmfah_hf.retrieval.fingerprint import LazyFingerprint
from cmfah_hf.retrieval.image_options import ImageOptions
from cmfah_hf.retrieval.items import batches_of
from cmfah_hf.retrieval.known_words import unknown_words
from cmfah_hf.retrieval.preparation import ImagePreparation, read_image
from cmfah_hf.retrieval.terms import checked_texts


class ImageTextEncoder:
    """Encodes images and texts, separately or as pairs.

    Args:
        model: The towers.
        processor: Their processor.
        expander: The graph that expanded the model's training texts; it expands queries too.
        device: The device to encode on. None: an accelerator if there is one.
        image_options: Options of reading and encoding images.
    """

    def __init__(
        self,
        model: CMFAHModel,
        processor: CMFAHProcessor,
        expander: GraphExpander | None = None,
        device: str | torch.device | None = None,
        image_options: ImageOptions | None = None,
    ):
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        self.model = model.to(device or accelerator or "cpu").eval()
        self.processor = processor
        self.expander = expander
        self.image_options = image_options or ImageOptions()
        self._fingerprint = LazyFingerprint()

    @property
    def fingerprint(self) -> str:
        """The fingerprint of this model, stored in every index that is filled here. Computed when first used."""
        return self._fingerprint.of(self.model, self.processor, self.expander)

    def expand(self, texts: Sequence[str]) -> list[str]:
        """The texts as the model was trained to read them: with the words that the graph adds."""
        texts = checked_texts(texts)
        return [" ".join(self.expander.expand(text)) for text in texts] if self.expander else texts

    def ignored_words(self, text: str | Sequence[str]) -> list[str]:
        """The words of texts that a search ignores, because neither the vocabulary nor the expander has them.

        Each word is listed once, in the order of the text.
        """
        texts = checked_texts([text] if isinstance(text, str) else text)
        return list(dict.fromkeys(word for own in texts for word in unknown_words(own, self.processor, self.expander)))

    @torch.inference_mode()
    def encode_images(self, images: Iterable[Any], batch_size: int = 32, progress: bool = False) -> np.ndarray:
        """Continuous codes `(N, K)` in (-1, 1), float32, of images (the unimodal view).

        Args:
            images: Paths, bytes, open files or Pillow images.
            batch_size: Images encoded at once.
            progress: Show a progress bar.

        Raises:
            ImageError: If an image cannot be read; the error names it.
        """
        parts = [self._no_codes()]
        total = len(images) if isinstance(images, Sized) else None
        with self.prepare(batches_of(images, batch_size, "", False), read_image, total, progress) as prepared:
            parts += [self.encode_pixels(batch.pixel_values) for batch in prepared]
        return np.concatenate(parts)

    @property
    def prepare(self) -> Callable[..., Any]:
        """`ImagePreparation.prepared`: batches of images, which threads read while the model encodes others."""
        return ImagePreparation(self.processor, self.model.device, self.image_options).prepared

    @torch.inference_mode()
    def encode_pixels(self, pixel_values: torch.Tensor) -> np.ndarray:
        """Continuous codes `(N, K)` in (-1, 1), float32, of prepared images `(N, 3, H, W)`."""
        if not isinstance(self.model, CMFAHModel):
            raise QueryError("This model was loaded for texts only; load it without texts_only to encode images.")
        with torch.autocast(pixel_values.device.type, torch.bfloat16, enabled=self.image_options.half):
            return _as_array(self.model.get_image_hash(pixel_values))

    @torch.inference_mode()
    def encode_texts(self, texts: Iterable[str], batch_size: int = 256, progress: bool = False) -> np.ndarray:
        """Continuous codes `(N, K)` in (-1, 1), float32, of texts (the unimodal view).

        A text without a known word gets the code of the empty text.

        Args:
            texts: Strings, without the words that the graph adds.
            batch_size: Texts encoded at once.
            progress: Show a progress bar.
        """
        parts = [self._no_codes()]
        for batch in batches_of(texts, batch_size, "Texts", progress):
            inputs = self.processor(text=self.expand(batch), return_tensors="pt").to(self.model.device)
            parts.append(_as_array(self.model.get_text_hash(inputs["input_ids"], inputs["attention_mask"])))
        return np.concatenate(parts)

    @torch.inference_mode()
    def encode_pairs(
        self, images: Iterable[Any], texts: Iterable[str], batch_size: int = 32, progress: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Continuous codes of image-text pairs, each `(N, K)`, where each side sees the other (the cross-modal view).

        Only for `protocol="paired"`: a query that is encoded with its partner knows the answer.
        """
        image_parts, text_parts = [self._no_codes()], [self._no_codes()]
        for batch in batches_of(zip(images, texts, strict=True), batch_size, "Pairs", progress):
            own_images, own_texts = zip(*batch, strict=True)
            inputs = self.processor(
                images=[decode_image(image) for image in own_images], text=self.expand(own_texts), return_tensors="pt"
            ).to(self.model.device)
            outputs = self.model(**inputs)
            image_parts.append(_as_array(outputs.image_hash))
            text_parts.append(_as_array(outputs.text_hash))
        return np.concatenate(image_parts), np.concatenate(text_parts)

    def _no_codes(self) -> np.ndarray:
        return np.empty((0, self.model.config.hash_bits), np.float32)


def _as_array(hash_values: torch.Tensor) -> np.ndarray:
    return hash_values.float().cpu().numpy()
