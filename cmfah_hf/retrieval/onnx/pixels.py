"""`NumpyPixels`: images to `pixel_values` as the image processor of a model makes them, in NumPy and Pillow.

The values are those of the processor bit for bit (docs/search.md, Backends). Processors of `transformers` resize either
in torchvision's arithmetic (`resizing.py`) or, those whose name ends in `Pil`, by Pillow.

Shape suffixes: N images, C colors, H and W sides.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from cmfah_hf.errors import CheckpointError
from cmfah_hf.models.image_modes import to_rgb
from cmfah_hf.retrieval.onnx.files import ImageSettings
from cmfah_hf.retrieval.onnx.resizing import RESAMPLES, resized
from cmfah_hf.retrieval.preparation import Size


class NumpyPixels:
    """A `PixelMaker` of the settings of an image processor, with arrays.

    Args:
        settings: The settings.

    Raises:
        CheckpointError: If they name a filter that only Pillow has for a processor of torchvision.
    """

    def __init__(self, settings: ImageSettings):
        self._by_pillow = settings.processor.endswith("Pil")
        if settings.do_resize and not self._by_pillow and settings.resample not in RESAMPLES:
            raise CheckpointError(
                f"The ONNX files resize images by Pillow's filter {settings.resample}, which {settings.processor} does "
                "not have; make them again with `cmfah export onnx MODEL`."
            )
        self._settings = settings
        self._shift_C11, self._scale_C11 = _normalization(settings, self._by_pillow)

    @property
    def least_size(self) -> Size | None:
        if not self._settings.do_resize:
            return None
        size = self._settings.size
        shortest = size.get("shortest_edge")
        return (shortest, shortest) if shortest else (size["width"], size["height"])

    def pixels(self, images: list[Image.Image]) -> np.ndarray:
        """Pixels `(N, 3, H, W)`, float32."""
        return np.stack([self._normalized(self._in_size(to_rgb(image))) for image in images])

    def joined(self, parts: list[np.ndarray]) -> np.ndarray:
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def pool(self, workers: int) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(workers, "images")

    def _in_size(self, image: Image.Image) -> np.ndarray:
        """The resized and cropped image, `(3, H, W)` uint8."""
        settings = self._settings
        if settings.do_resize:
            height, width = _target(settings.size, image.height, image.width)
            if self._by_pillow:
                image_CHW = _planes(image.resize((width, height), settings.resample))
            else:
                image_CHW = resized(_planes(image), height, width, settings.resample)
        else:
            image_CHW = _planes(image)
        if settings.do_center_crop and settings.crop_size is not None:
            image_CHW = _center(image_CHW, settings.crop_size["height"], settings.crop_size["width"])
        return image_CHW

    def _normalized(self, image_CHW: np.ndarray) -> np.ndarray:
        settings, values_CHW = self._settings, image_CHW.astype(np.float32)
        if settings.do_rescale and (self._by_pillow or not settings.do_normalize):
            factor = np.float64(settings.rescale_factor) if self._by_pillow else np.float32(settings.rescale_factor)
            values_CHW = (image_CHW * factor).astype(np.float32)
        if settings.do_normalize:
            values_CHW = (values_CHW - self._shift_C11) / self._scale_C11
        return values_CHW


def _normalization(settings: ImageSettings, by_pillow: bool) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the colors, `(3, 1, 1)` float32 each.

    A processor of torchvision multiplies both by the inverse of the rescaling, instead of rescaling the image.
    """
    mean_C = np.array(settings.image_mean, np.float32)
    std_C = np.array(settings.image_std, np.float32)
    if settings.do_rescale and not by_pillow:
        inverse = np.float32(1.0 / settings.rescale_factor)
        mean_C, std_C = mean_C * inverse, std_C * inverse
    return mean_C[:, None, None], std_C[:, None, None]


def _planes(image: Image.Image) -> np.ndarray:
    """An RGB image as `(3, H, W)` uint8."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def _target(size: dict[str, int], height: int, width: int) -> tuple[int, int]:
    """Height and width after resizing; with a shortest edge, the other side keeps the aspect ratio, rounded down."""
    if "height" in size:
        return size["height"], size["width"]
    edge = size["shortest_edge"]
    longest = int(edge * max(height, width) / min(height, width))
    return (edge, longest) if height <= width else (longest, edge)


def _center(image_CHW: np.ndarray, height: int, width: int) -> np.ndarray:
    """The part around the center; a smaller image gets a border of zeros, the larger half of it below and right."""
    missing = [max(want - side, 0) for want, side in zip((height, width), image_CHW.shape[1:], strict=True)]
    border = [(0, 0), *((total // 2, (total + 1) // 2) for total in missing)]
    image_CHW = np.pad(image_CHW, border)
    top, left = (image_CHW.shape[1] - height) // 2, (image_CHW.shape[2] - width) // 2
    return image_CHW[:, top : top + height, left : left + width]
