"""Every Pillow mode as RGB, against the arithmetic written out in NumPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from cmfah_hf.models.image_modes import to_rgb


def pixels(image):
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@settings(max_examples=30)
@given(arrays(np.uint8, (3, 4, 4)))
def test_transparency_is_composited_on_white(values):
    alpha = values[..., 3:] / 255
    expected = values[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(pixels(to_rgb(Image.fromarray(values))) - expected).max() <= 1
    gray = Image.fromarray(values[..., [0, 3]])
    assert gray.mode == "LA"
    assert np.abs(pixels(to_rgb(gray)) - expected[..., :1]).max() <= 1


def test_rgb_without_transparency_is_returned_as_is():
    image = Image.new("RGB", (2, 2), (1, 2, 3))
    assert to_rgb(image) is image


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("CMYK", (255, 0, 0, 0), (0, 255, 255)),
        ("YCbCr", (76, 85, 255), (254, 0, 0)),
        ("HSV", (0, 255, 255), (255, 0, 0)),
        ("LAB", (255, 128, 128), (255, 255, 255)),
        ("RGBX", (9, 8, 7, 6), (9, 8, 7)),
        ("RGBa", (0, 0, 0, 0), (255, 255, 255)),
        ("La", (0, 0), (255, 255, 255)),
        ("PA", (0, 0), (255, 255, 255)),
    ],
)
def test_other_modes(mode, color, expected):
    found = pixels(to_rgb(Image.new(mode, (2, 3), color)))
    assert found.shape == (3, 2, 3)
    assert np.abs(found - expected).max() <= 1


def test_palettes_with_and_without_transparency(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([200, 10, 10, 10, 200, 10])
    image.putpixel((1, 0), 1)
    assert pixels(to_rgb(image)).tolist() == [[[200, 10, 10], [10, 200, 10]]]
    for name, transparency in (("index.png", 1), ("table.png", bytes([255, 0])), ("index.gif", 1)):
        image.save(tmp_path / name, transparency=transparency)
        with Image.open(tmp_path / name) as opened:
            opened.load()
            assert pixels(to_rgb(opened)).tolist() == [[[200, 10, 10], [255, 255, 255]]], name


def test_color_key_transparency_of_rgb_and_gray(tmp_path):
    for mode, colors in (("RGB", [(1, 2, 3), (9, 9, 9)]), ("L", [5, 9])):
        image = Image.new(mode, (2, 1), colors[0])
        image.putpixel((1, 0), colors[1])
        image.save(tmp_path / "key.png", transparency=colors[1])
        with Image.open(tmp_path / "key.png") as opened:
            opened.load()
            assert pixels(to_rgb(opened))[0, 1].tolist() == [255, 255, 255]
            assert pixels(to_rgb(opened))[0, 0].tolist() == list(np.broadcast_to(colors[0], 3))


@settings(max_examples=30)
@given(arrays(np.uint16, (2, 3)))
def test_16_bit_gray_is_scaled_and_not_clipped(values):
    expected = np.rint(values / 257)
    for mode, kind in (("I;16", "<u2"), ("I;16B", ">u2")):
        image = Image.frombytes(mode, (3, 2), values.astype(kind).tobytes())
        found = pixels(to_rgb(image))
        assert (found == expected[..., None]).all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 100, 255], [0, 100, 255]),
        ([0, 257 * 100, 65535], [0, 100, 255]),
        ([-10, 0, 90], [0, 26, 255]),
        ([0, 50_000, 100_000], [0, 128, 255]),
        ([7, 7, 7], [7, 7, 7]),
        ([90_000, 90_000, 90_000], [0, 0, 0]),
    ],
)
@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bit_gray_is_scaled_by_its_range(mode, values, expected):
    array = np.array([values], dtype=np.int32 if mode == "I" else np.float32)
    image = Image.fromarray(array)
    assert image.mode == mode
    assert pixels(to_rgb(image))[0, :, 0].tolist() == expected


def test_float_gray_in_unit_range_and_with_non_finite_values():
    image = Image.fromarray(np.array([[0.0, 0.5, 1.0, np.nan, np.inf]], dtype=np.float32))
    assert pixels(to_rgb(image))[0, :, 2].tolist() == [0, 128, 255, 0, 0]


@settings(max_examples=40)
@given(arrays(np.float32, (2, 4), elements=st.floats(width=32, allow_nan=True)))
def test_any_float_image_keeps_the_order_of_its_values(values):
    found = pixels(to_rgb(Image.fromarray(values)))[..., 0].ravel()
    flat = np.where(np.isfinite(values), values, 0).ravel()
    order = np.argsort(flat, kind="stable")
    assert (np.diff(found[order]) >= 0).all()
