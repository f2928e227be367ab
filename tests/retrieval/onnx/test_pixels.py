"""`pixel_values` in NumPy and Pillow against the image processors of transformers, bit for bit."""

import numpy as np
import pytest
import transformers
from PIL import Image

from cmfah_hf.errors import CheckpointError
from cmfah_hf.models.image_modes import to_rgb
from cmfah_hf.retrieval.onnx.description import image_settings
from cmfah_hf.retrieval.onnx.pixels import NumpyPixels

SQUARE = {"size": {"height": 40, "width": 32}}
CROP = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True}
PROCESSORS = {
    "square": ("ViTImageProcessor", SQUARE),
    "bicubic": ("ViTImageProcessor", {**SQUARE, "resample": 3, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2] * 3}),
    "lanczos": ("ViTImageProcessor", {**SQUARE, "resample": 1}),
    "nearest": ("ViTImageProcessor", {**SQUARE, "resample": 0}),
    "crop": ("CLIPImageProcessor", CROP),
    "a border": ("CLIPImageProcessor", {**CROP, "crop_size": {"height": 41, "width": 96}}),
    "only rescaled": ("ViTImageProcessor", {**SQUARE, "do_normalize": False}),
    "only normalized": ("ViTImageProcessor", {**SQUARE, "do_rescale": False, "image_mean": [100.0] * 3}),
    "as it is": ("ViTImageProcessor", {**SQUARE, "do_rescale": False, "do_normalize": False}),
    "another factor": ("ViTImageProcessor", {**SQUARE, "rescale_factor": 1 / 127.5}),
    "by Pillow": ("ViTImageProcessorPil", {**SQUARE, "resample": 3}),
    "crop by Pillow": ("CLIPImageProcessorPil", CROP),
    "only rescaled by Pillow": ("ViTImageProcessorPil", {**SQUARE, "do_normalize": False}),
}


class Processor:
    """The part of a model's processor that its description reads."""

    def __init__(self, name, settings):
        self.image_processor = getattr(transformers, name)(**settings)


def drawn() -> list[Image.Image]:
    """Images of several sizes and modes."""
    rng = np.random.default_rng(0)
    shapes = [(60, 80, 3), (80, 60, 3), (40, 32, 3), (20, 90, 3), (33, 33, 4), (50, 41)]
    found = [Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes]
    return [*found, found[0].convert("P"), Image.fromarray(rng.integers(0, 65536, (45, 70), dtype=np.uint16))]


@pytest.mark.parametrize("name", PROCESSORS)
def test_values_are_those_of_the_processor(name):
    processor, images = Processor(*PROCESSORS[name]), drawn()
    inputs = [to_rgb(image) for image in images]
    wanted = [processor.image_processor(image, return_tensors="pt")["pixel_values"].numpy() for image in inputs]
    found = NumpyPixels(image_settings(processor)).pixels(images)
    assert found.dtype == np.float32
    assert np.array_equal(found, np.concatenate(wanted).astype(np.float32))


def test_a_filter_that_torchvision_lacks_is_refused():
    settings = image_settings(Processor("ViTImageProcessor", {**SQUARE, "resample": 4}))
    with pytest.raises(CheckpointError, match="Pillow's filter 4"):
        NumpyPixels(settings)
