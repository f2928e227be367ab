"""Resizing in NumPy against torchvision, bit for bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from cmfah_hf.retrieval.onnx.resizing import resized

MODES = {
    0: InterpolationMode.NEAREST_EXACT,
    1: InterpolationMode.LANCZOS,
    2: InterpolationMode.BILINEAR,
    3: InterpolationMode.BICUBIC,
}
SIDE = st.integers(1, 90)
NEW_SIDE = st.integers(2, 90)  # of a single column, PyTorch mistakes the layout of the colors


def expected(image_CHW, height, width, resample):
    tensor = torch.from_numpy(image_CHW)[None]
    return functional.resize(tensor, [height, width], interpolation=MODES[resample], antialias=True)[0].numpy()


@pytest.mark.parametrize("resample", MODES)
@settings(max_examples=40)
@given(
    height=SIDE, width=SIDE, new_height=NEW_SIDE, new_width=NEW_SIDE, seed=st.integers(0, 99), contrast=st.booleans()
)
def test_every_size_has_the_bits_of_torchvision(resample, height, width, new_height, new_width, seed, contrast):
    image_CHW = np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8)
    if contrast:  # beyond 0..255 between its values, where sums are cut off
        image_CHW = np.where(image_CHW > 127, 255, 0).astype(np.uint8)
    found = resized(image_CHW, new_height, new_width, resample)
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected(image_CHW, new_height, new_width, resample))


@pytest.mark.parametrize("resample", MODES)
@pytest.mark.parametrize("sides", [(1500, 1000, 224, 224), (97, 2001, 64, 96), (64, 48, 400, 301)])
def test_photographs_of_usual_sizes(resample, sides):
    height, width, *new = sides
    image_CHW = np.random.default_rng(0).integers(0, 256, (3, height, width), dtype=np.uint8)
    assert np.array_equal(resized(image_CHW, *new, resample), expected(image_CHW, *new, resample))
