"""`ImageTextEncoder`: raw images and texts to their codes. What runs the towers is up to its implementations.

`torch_encoder.py` runs them in PyTorch, `onnx/encoder.py` in ONNX Runtime. Without torch and transformers.

Shape suffixes: N items, K hash bits.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from cmfah_hf.models.text_reading import TextReader
from cmfah_hf.retrieval.image_options import ImageOptions
from cmfah_hf.retrieval.items import batches_of, progress_bar
from cmfah_hf.retrieval.known_words import unknown_words
from cmfah_hf.retrieval.preparation import PreparedBatch, read_image
from cmfah_hf.retrieval.terms import checked_texts

if TYPE_CHECKING:
    from cmfah_hf.expansion import GraphExpander

# Batches of images that are encoded at the same time, at most, which bounds the memory.
BATCHES_AT_ONCE = 4
# A batch with its codes `(N, K)`, or None without a readable image.
BatchWithCodes = tuple[PreparedBatch[Any, Any], np.ndarray | None]

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

    def encoding_pool(self) -> ThreadPoolExecutor | None:
        """Threads that encode a batch of images each, up to `BATCHES_AT_ONCE`. None: the calling thread encodes all."""
        return None

    @contextmanager
    def encoding(
        self,
        batches: Iterable[Any],
        read: Callable[..., tuple[Any, Any]],
        total: int | None = None,
        progress: bool = False,
    ) -> Iterator[Iterator[BatchWithCodes]]:
        """Batches of images in their order, each with its codes; the next ones are prepared and encoded meanwhile.

        Args:
            batches, read: As of `ImagePreparation.prepared`.
            total: The number of items, if it is known.
            progress: Show a progress bar of the batches that the caller is done with.
        """
        with (
            self.prepare(batches, read) as prepared,
            closing(self._encoded(prepared)) as encoded,
            progress_bar(total, "Images", progress) as bar,
        ):
            yield _counted(encoded, bar)

    def _encoded(self, prepared: Iterator[PreparedBatch[Any, Any]]) -> Generator[BatchWithCodes, None, None]:
        first = list(islice(prepared, 2))
        pool = self.encoding_pool() if len(first) > 1 else None  # a query: threads would take longer to start
        if pool is None:
            for batch in chain(first, prepared):
                yield batch, self._codes_of(batch)
            return
        waiting: deque[tuple[PreparedBatch[Any, Any], Future[np.ndarray | None]]] = deque()
        try:
            for batch in chain(first, prepared):
                waiting.append((batch, pool.submit(self._codes_of, batch)))
                if len(waiting) > BATCHES_AT_ONCE:
                    ready, codes = waiting.popleft()
                    yield ready, codes.result()
            for ready, codes in waiting:
                yield ready, codes.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _codes_of(self, batch: PreparedBatch[Any, Any]) -> np.ndarray | None:
        return None if batch.pixel_values is None else self.encode_pixels(batch.pixel_values)

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
        with self.encoding(batches_of(images, batch_size, "", False), read_image, total, progress) as encoded:
            parts += [codes_NK for _, codes_NK in encoded if codes_NK is not None]
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


def _counted(encoded: Iterable[BatchWithCodes], bar: Any) -> Iterator[BatchWithCodes]:
    for batch, codes_NK in encoded:
        yield batch, codes_NK
        bar.update(len(batch.items))
