"""`ImageTextEncoder`: raw images and texts to their codes. What runs the towers is up to its implementations.

`torch_encoder.py` runs them in PyTorch, `onnx/encoder.py` in ONNX Runtime. Without torch and transformers.

Shape suffixes: N items, K hash bits.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence, Sized
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from cmfah_hf.models.text_reading import TextReader
from cmfah_hf.retrieval.image_options import ImageOptions
from cmfah_hf.retrieval.items import batches_of
from cmfah_hf.retrieval.known_words import unknown_words
from cmfah_hf.retrieval.preparation import read_image
from cmfah_hf.retrieval.terms import checked_texts

if TYPE_CHECKING:
    from cmfah_hf.expansion import GraphExpander

Backend = Literal["torch", "onnx"]
BACKENDS: tuple[Backend, ...] = ("torch", "onnx")


class ImageTextEncoder(ABC):
    """Encodes images and texts separately.

    Attributes:
        backend: The library that runs the towers.
        expander: The graph that expanded the model's training texts; it expands queries too.
        image_options: Options of reading and encoding images.
    """

    backend: ClassVar[Backend]
    expander: "GraphExpander | None"
    image_options: ImageOptions

    @property
    @abstractmethod
    def name(self) -> str:
        """The folder or Hub id that the model was loaded from; empty for one made in memory."""

    @property
    @abstractmethod
    def revision(self) -> str | None:
        """The commit on the Hub that the model was loaded from, or None."""

    @property
    @abstractmethod
    def hash_bits(self) -> int:
        """`K`, the number of bits of a code."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """The fingerprint of this model, stored in every index that is filled here."""

    @property
    @abstractmethod
    def reader(self) -> TextReader:
        """The reader of texts: their words, and the known ones among them."""

    @property
    @abstractmethod
    def prepare(self) -> Callable[..., Any]:
        """`ImagePreparation.prepared`: batches of images, which threads read while the model encodes others."""

    @abstractmethod
    def encode_pixels(self, pixel_values: Any) -> np.ndarray:
        """Continuous codes `(N, K)` in (-1, 1), float32, of images `(N, 3, H, W)` as `prepare` returns them."""

    @abstractmethod
    def encode_expanded(self, texts: list[str]) -> np.ndarray:
        """Continuous codes `(N, K)` in (-1, 1), float32, of texts as `expand` returns them, in one batch."""

    def expand(self, texts: Sequence[str]) -> list[str]:
        """The texts as the model was trained to read them: with the words that the graph adds."""
        texts, expander = checked_texts(texts), self.expander
        return [" ".join(expander.expand(text)) for text in texts] if expander else texts

    def ignored_words(self, text: str | Sequence[str]) -> list[str]:
        """The words of texts that a search ignores, because neither the vocabulary nor the expander has them.

        Each word is listed once, in the order of the text.
        """
        texts = checked_texts([text] if isinstance(text, str) else text)
        return list(dict.fromkeys(word for own in texts for word in unknown_words(own, self.reader, self.expander)))

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

    def encode_texts(self, texts: Iterable[str], batch_size: int = 256, progress: bool = False) -> np.ndarray:
        """Continuous codes `(N, K)` in (-1, 1), float32, of texts (the unimodal view).

        A text without a known word gets the code of the empty text.

        Args:
            texts: Strings, without the words that the graph adds.
            batch_size: Texts encoded at once.
            progress: Show a progress bar.
        """
        batches = batches_of(texts, batch_size, "Texts", progress)
        return np.concatenate([self._no_codes(), *(self.encode_expanded(self.expand(batch)) for batch in batches)])

    def _no_codes(self) -> np.ndarray:
        return np.empty((0, self.hash_bits), np.float32)
