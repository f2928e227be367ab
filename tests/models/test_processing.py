"""Images and texts as inputs of the towers, against Pillow, torchvision and NumPy."""

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from transformers import AutoProcessor, CLIPImageProcessor, ResNetConfig, ViTImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from cmfah_hf.models import CMFAHProcessor
from cmfah_hf.models.processing_cmfah import backbone_normalization

MEAN, STD = [0.5, 0.25, 0.125], [0.5, 0.25, 0.2]
VOCABULARY = ["beach", "dog", "海", "हिन्दी", "سلام", "🐶", "york's"]


@pytest.fixture(scope="module")
def processor(make_config):
    return CMFAHProcessor.from_vocabulary(make_config(), VOCABULARY, MEAN, STD)


def noise(size, seed=0, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (*size, channels)).astype(np.uint8)


def bytes_of(pixel_values):
    """Red, green and blue in 0..255, as a (height, width, 3) array."""
    values = pixel_values.double().numpy().transpose(1, 2, 0)
    return (values * STD + MEAN) * 255


def test_image_of_the_model_size_is_only_normalized(processor):
    values = noise((32, 32))
    found = processor(images=Image.fromarray(values), return_tensors="pt").pixel_values
    assert (found.shape, found.dtype) == ((1, 3, 32, 32), torch.float32)
    expected = (values / 255 - MEAN) / STD
    np.testing.assert_allclose(found[0].numpy().transpose(1, 2, 0), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(160, 80), (80, 240), (100, 100)])
@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}},
        {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
        {"size": {"height": 48, "width": 48}, "crop_size": {"height": 32, "width": 32}},
        {"do_resize": False, "crop_size": {"height": 32, "width": 64}},
        {"size": {"height": 48, "width": 48}, "crop_size": None, "do_center_crop": False},
    ],
)
def test_the_part_that_is_seen_is_the_one_in_the_pixels(processor, settings, size):
    """An image of its own coordinates: red grows with x and green with y, so that the pixels name their places."""
    width, height = size
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    image = Image.fromarray((np.stack([x, y, 0 * x], axis=-1) * 255).astype(np.uint8))
    cropping = CMFAHProcessor(CLIPImageProcessor(**settings, do_normalize=False), processor.tokenizer)
    pixels = cropping(images=image, return_tensors="pt").pixel_values[0].double().numpy()
    x_of_columns, y_of_rows = pixels[0].mean(axis=0) * width, pixels[1].mean(axis=1) * height
    left, top, right, bottom = cropping.seen_box(width, height)
    for places, first, last, tolerance in ((x_of_columns, left, right, width), (y_of_rows, top, bottom, height)):
        inner = slice(1, -1)  # bicubic resizing overshoots at the borders
        expected = first + (np.arange(len(places)) + 0.5) * (last - first) / len(places)
        np.testing.assert_allclose(places[inner], expected[inner], atol=0.012 * tolerance)


@pytest.mark.parametrize("size", [(50, 50), (64, 20), (7, 90), (1, 1), (31, 33)])
def test_any_size_is_resized_without_cropping(processor, size):
    coarse = Image.fromarray(noise((max(1, size[0] // 3), max(1, size[1] // 3)))).resize(size[::-1])
    found = bytes_of(processor(images=[coarse], return_tensors="pt").pixel_values[0])
    by_pillow = np.asarray(coarse.resize((32, 32), Image.Resampling.BICUBIC)).astype(float)
    by_torchvision = torchvision.transforms.v2.functional.resize(
        torchvision.transforms.v2.functional.pil_to_tensor(coarse),
        [32, 32],
        torchvision.transforms.InterpolationMode.BICUBIC,
        antialias=True,
    )
    assert np.abs(found - by_pillow).max() <= 2.01  # each rounds twice, to integer gray levels
    np.testing.assert_allclose(found, by_torchvision.permute(1, 2, 0).double().numpy(), atol=1e-2)


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 77, (77, 77, 77)),
        ("LA", (100, 255), (100, 100, 100)),
        ("La", (0, 0), (255, 255, 255)),
        ("PA", (0, 0), (255, 255, 255)),
        ("RGB", (9, 8, 7), (9, 8, 7)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("RGBa", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBX", (9, 8, 7, 6), (9, 8, 7)),
        ("CMYK", (255, 0, 0, 0), (0, 255, 255)),
        ("YCbCr", (76, 85, 255), (254, 0, 0)),
        ("LAB", (255, 128, 128), (255, 255, 255)),
        ("HSV", (0, 255, 255), (255, 0, 0)),
        ("I", 200, (200, 200, 200)),
        ("I", 65535, (255, 255, 255)),
        ("F", 0.2, (51, 51, 51)),
        ("I;16", 257 * 40, (40, 40, 40)),
        ("I;16L", 257 * 40, (40, 40, 40)),
        ("I;16B", 257 * 40, (40, 40, 40)),
    ],
)
def test_every_pillow_mode(processor, mode, color, expected):
    image = Image.new(mode, (6, 4), color)
    single = processor(images=image, return_tensors="pt").pixel_values
    listed = processor(images=[image, Image.new("RGB", (3, 9))], return_tensors="pt").pixel_values
    assert single.shape == (1, 3, 32, 32)
    assert torch.equal(single[0], listed[0])
    assert np.abs(bytes_of(single[0]) - expected).max() <= 1.01


def test_palettes(processor):
    image = Image.new("P", (32, 32))
    image.putpalette([200, 10, 10, 10, 200, 10])
    image.paste(1, (16, 0, 32, 32))
    found = bytes_of(processor(images=[image], return_tensors="pt").pixel_values[0])
    np.testing.assert_allclose(found[:, :16], np.broadcast_to([200, 10, 10], (32, 16, 3)), atol=0.01)
    np.testing.assert_allclose(found[:, 16:], np.broadcast_to([10, 200, 10], (32, 16, 3)), atol=0.01)


def test_arrays_and_tensors_as_images(processor):
    values = noise((32, 32))
    expected = processor(images=Image.fromarray(values), return_tensors="pt").pixel_values
    for images in (values, torch.from_numpy(values).permute(2, 0, 1), [values]):
        torch.testing.assert_close(processor(images=images, return_tensors="pt").pixel_values, expected)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("A dog, on the BEACH!", [1, 3, 1, 1, 2]),
        ("海dog海", [4, 3, 4]),
        ("हिन्दी سلام 🐶", [5, 6, 7]),
        ("New-York's", [1, 8]),
        ("เมฆ", [1]),
        ("[PAD] dog", [1, 3]),
    ],
)
def test_word_ids_and_unknown_words(processor, text, rows):
    inputs = processor(text=text, return_tensors="pt")
    assert inputs.input_ids.tolist() == [rows]
    assert inputs.attention_mask.tolist() == [[1] * len(rows)]
    assert set(inputs) == {"input_ids", "attention_mask"}


def test_padding_is_masked_at_any_value(processor):
    inputs = processor(text=["dog", "", "beach dog 海", "?!"], return_tensors="pt")
    assert inputs.input_ids.tolist() == [[3, 0, 0], [0, 0, 0], [2, 3, 4], [0, 0, 0]]
    assert inputs.attention_mask.tolist() == [[1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 0, 0]]


@pytest.mark.parametrize("text", ["", "...", ["", ""], ["", "\ufffd", " \n"]])
def test_texts_without_words_give_one_masked_column(processor, text):
    inputs = processor(text=text, return_tensors="pt")
    size = 1 if isinstance(text, str) else len(text)
    for values in (inputs.input_ids, inputs.attention_mask):
        assert values.dtype == torch.int64
        assert values.tolist() == [[0]] * size


def test_pairs_and_empty_input(processor):
    inputs = processor(images=[Image.new("L", (5, 5))] * 2, text=["dog", "dog beach"], return_tensors="pt")
    assert {name: tuple(values.shape) for name, values in inputs.items()} == {
        "pixel_values": (2, 3, 32, 32),
        "input_ids": (2, 2),
        "attention_mask": (2, 2),
    }
    with pytest.raises(ValueError, match="at least one"):
        processor()


def test_known_words(processor):
    assert processor.known_words("The DOG, a cat & the dog's beach: dog 海水") == ["dog", "beach", "dog", "海"]
    assert processor.known_words("[UNK] [PAD] \ufffd") == []


def test_saved_processor_round_trip(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    images, text = [Image.fromarray(noise((20, 50), seed)) for seed in (1, 2)], ["a dog!", "海 [PAD]"]
    expected = processor(images=images, text=text, return_tensors="pt")
    for again in (CMFAHProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(again) is CMFAHProcessor
        found = again(images=images, text=text, return_tensors="pt")
        assert set(found) == set(expected)
        for name in expected:
            assert torch.equal(found[name], expected[name]), name
        assert again(text=[""], return_tensors="pt").input_ids.tolist() == [[0]]


@pytest.mark.parametrize("settings", [{"backbone": "vgg11"}, {}])
def test_backbones_of_unknown_origin_use_imagenet_statistics(make_config, settings):
    config = make_config(**settings)
    assert [list(values) for values in backbone_normalization(config)] == [IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD]
    image_processor = CMFAHProcessor.from_vocabulary(config, ["dog"]).image_processor
    assert list(image_processor.image_mean) == IMAGENET_DEFAULT_MEAN
    assert list(image_processor.image_std) == IMAGENET_DEFAULT_STD


def test_timm_backbone_uses_its_own_statistics(make_config):
    timm = pytest.importorskip("timm")
    name = "vit_small_patch16_224"  # all 0.5, unlike ImageNet's
    mean, std = backbone_normalization(make_config(backbone=name))
    pretrained = timm.get_pretrained_cfg(name)
    assert (list(mean), list(std)) == (list(pretrained.mean), list(pretrained.std))
    assert list(mean) != IMAGENET_DEFAULT_MEAN


def test_backbone_from_a_folder_uses_the_settings_of_its_processor(make_config, tmp_path):
    ResNetConfig(depths=[1, 1], hidden_sizes=[4, 8]).save_pretrained(tmp_path)
    ViTImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(tmp_path)
    config = make_config(backbone=str(tmp_path))
    assert [list(values) for values in backbone_normalization(config)] == [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]
    chosen = CMFAHProcessor.from_vocabulary(config, ["dog"], image_std=[1.0, 1.0, 1.0]).image_processor
    assert (list(chosen.image_mean), list(chosen.image_std)) == ([0.1, 0.2, 0.3], [1.0, 1.0, 1.0])
