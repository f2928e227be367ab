"""`DelegatingEncoder`: an encoder that has another one do its work, for classes that add to it.

Shape suffixes: N items, K hash bits.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from cmfah_hf.errors import QueryError
from cmfah_hf.models.text_reading import TextReader
from cmfah_hf.retrieval.encoder import ImageTextEncoder
from cmfah_hf.retrieval.image_options import ImageOptions

if TYPE_CHECKING:
    from cmfah_hf.expansion import GraphExpander
    from cmfah_hf.models import CMFAHModel, CMFAHProcessor
    from cmfah_hf.retrieval.torch_encoder import TorchEncoder


class DelegatingEncoder(ImageTextEncoder):
    """An encoder with the parts of another one, of any backend. Parts in PyTorch are a `QueryError` without PyTorch.

    Attributes:
        encoder: The other one.
    """

    def __init__(self, encoder: ImageTextEncoder):
        self.encoder = encoder

    @property
    def _torch(self) -> "TorchEncoder":
        if self.encoder.backend != "torch":
            raise QueryError(f"This needs the model in PyTorch; load it without backend={self.encoder.backend!r}.")
        return cast("TorchEncoder", self.encoder)

    @property
    def model(self) -> "CMFAHModel":
        """The towers in PyTorch."""
        return self._torch.model

    @property
    def processor(self) -> "CMFAHProcessor":
        """Their processor."""
        return self._torch.processor

    @processor.setter
    def processor(self, processor: "CMFAHProcessor") -> None:
        self._torch.processor = processor

    @property
    def expander(self) -> "GraphExpander | None":
        return self.encoder.expander

    @expander.setter
    def expander(self, expander: "GraphExpander | None") -> None:
        self.encoder.expander = expander

    @property
    def image_options(self) -> ImageOptions:
        return self.encoder.image_options

    @image_options.setter
    def image_options(self, options: ImageOptions) -> None:
        self.encoder.image_options = options

    @property
    def name(self) -> str:
        return self.encoder.name

    @property
    def revision(self) -> str | None:
        return self.encoder.revision

    @property
    def hash_bits(self) -> int:
        return self.encoder.hash_bits

    @property
    def fingerprint(self) -> str:
        return self.encoder.fingerprint

    @property
    def reader(self) -> TextReader:
        return self.encoder.reader

    @property
    def prepare(self) -> Callable[..., Any]:
        return self.encoder.prepare

    def encode_pixels(self, pixel_values: Any) -> np.ndarray:
        return self.encoder.encode_pixels(pixel_values)

    def encoding_pool(self) -> ThreadPoolExecutor | None:
        return self.encoder.encoding_pool()

    def encode_expanded(self, texts: list[str]) -> np.ndarray:
        return self.encoder.encode_expanded(texts)

    def encode_pairs(
        self, images: Iterable[Any], texts: Iterable[str], batch_size: int = 32, progress: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `TorchEncoder.encode_pairs`; `QueryError` with another backend."""
        return self._torch.encode_pairs(images, texts, batch_size, progress)
