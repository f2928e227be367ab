"""`TorchEncoder`: a model, its processor and its word graph in PyTorch.

Shape suffixes: N items, K hash bits, C colors, H and W sides of the images that the model sees.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import Image

from cmfah_hf.data.images import decode_image
from cmfah_hf.data.images.pixels import pixel_values_of
from cmfah_hf.errors import QueryError
from cmfah_hf.expansion import GraphExpander
from cmfah_hf.models import CMFAHModel, CMFAHProcessor
from cmfah_hf.models.image_parts import in_parts, pool_of_threads
from cmfah_hf.models.text_reading import TextReader
from cmfah_hf.retrieval.encoder import BATCHES_AT_ONCE, ImageTextEncoder
from cmfah_hf.retrieval.fingerprint import LazyFingerprint
from cmfah_hf.retrieval.image_options import ImageOptions
from cmfah_hf.retrieval.items import batches_of
from cmfah_hf.retrieval.preparation import ImagePreparation, Size


class TorchEncoder(ImageTextEncoder):
    """Encodes images and texts in PyTorch, separately or as pairs.

    Args:
        model: The towers.
        processor: Their processor.
        expander: The graph that expanded the model's training texts; it expands queries too.
        device: The device to encode on. None: an accelerator if there is one.
        image_options: Options of reading and encoding images.

    Attributes:
        files: What is known of the files of the model, by which its fingerprint is kept.
    """

    backend = "torch"

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

    def know_files(self, state: str | None, fingerprint: str | None) -> None:
        """Takes over the state of the files that the parts were loaded from, and the fingerprint kept for it."""
        self._fingerprint.know(state, fingerprint, self.model, self.processor, self.expander)

    @property
    def name(self) -> str:
        return str(self.model.name_or_path)

    @property
    def revision(self) -> str | None:
        return getattr(self.model.config, "_commit_hash", None)

    @property
    def hash_bits(self) -> int:
        return self.model.config.hash_bits

    @property
    def fingerprint(self) -> str:
        """The fingerprint of this model, stored in every index that is filled here. Computed when first used."""
        return self._fingerprint.of(self.model, self.processor, self.expander)

    @property
    def reader(self) -> TextReader:
        return self.processor

    @property
    def prepare(self) -> Callable[..., Any]:
        pixels = TorchPixels(self.processor, self.model.device)
        return ImagePreparation(pixels, self.image_options).prepared

    def encode_pixels(self, pixel_values: torch.Tensor) -> np.ndarray:
        """Continuous codes `(N, K)` of images `(N, 3, H, W)`. On a CPU, in parts, by threads."""
        if not isinstance(self.model, CMFAHModel):
            raise QueryError("This model was loaded for texts only; load it without texts_only to encode images.")
        return np.concatenate(in_parts(self._codes_of_images, pixel_values))

    def encoding_pool(self) -> ThreadPoolExecutor | None:
        """On a CPU, threads that share those of PyTorch: batches do not wait for each other at every operation."""
        threads = torch.get_num_threads()
        if threads == 1 or self.model.device.type != "cpu":
            return None
        workers = min(threads, BATCHES_AT_ONCE)
        return pool_of_threads(workers, "batches", threads // workers)

    @torch.inference_mode()
    def _codes_of_images(self, pixel_values: torch.Tensor) -> np.ndarray:
        with torch.autocast(pixel_values.device.type, torch.bfloat16, enabled=self.image_options.half):
            return _as_array(self.model.get_image_hash(pixel_values))

    @torch.inference_mode()
    def encode_expanded(self, texts: list[str]) -> np.ndarray:
        inputs = self.processor(text=texts, return_tensors="pt").to(self.model.device)
        return _as_array(self.model.get_text_hash(inputs["input_ids"], inputs["attention_mask"]))

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
            inputs = self.processor(text=self.expand(own_texts), return_tensors="pt")
            inputs["pixel_values"] = pixel_values_of(self.processor, map(decode_image, own_images))
            outputs = self.model(**inputs.to(self.model.device))
            image_parts.append(_as_array(outputs.image_hash))
            text_parts.append(_as_array(outputs.text_hash))
        return np.concatenate(image_parts), np.concatenate(text_parts)


class TorchPixels:
    """A `PixelMaker` of the processor of a model, with tensors on the model's device."""

    def __init__(self, processor: CMFAHProcessor, device: torch.device):
        self._processor, self._device = processor, device

    @property
    def least_size(self) -> Size | None:
        return self._processor.least_size

    def pixels(self, images: list[Image.Image]) -> torch.Tensor:
        """Pixels `(N, 3, H, W)`, for a GPU in page-locked memory, from which it copies while it computes."""
        pixels_NCHW = self._processor(images=images, return_tensors="pt")["pixel_values"]
        return pixels_NCHW.pin_memory() if self._device.type == "cuda" else pixels_NCHW

    def joined(self, parts: list[torch.Tensor]) -> torch.Tensor:
        moved = [part.to(self._device, non_blocking=True) for part in parts]
        return moved[0] if len(moved) == 1 else torch.cat(moved)

    def pool(self, workers: int) -> ThreadPoolExecutor:
        return pool_of_threads(workers, "images")


def _as_array(hash_values: torch.Tensor) -> np.ndarray:
    return hash_values.float().cpu().numpy()
