"""`PairCollator` against direct calls of the processor and hand-written labels."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from cmfah_hf.data.collator import PairCollator
from cmfah_hf.data.images import decoding
from cmfah_hf.errors import ImageError

CLASSES = ["boat", "car", "cat", "tree"]


def image(seed: int, size=(40, 28), mode="RGB") -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)


def as_png(image: Image.Image) -> dict:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return {"path": None, "bytes": buffer.getvalue()}


def test_images_texts_labels_and_rows(processor):
    images = [image(0), image(1, (17, 50)), image(2, mode="L")]
    rows = [
        {"id": "a", "image": images[0], "text": "red boat", "labels": ["tree", "boat"], "row": 5},
        {"id": "b", "image": as_png(images[1]), "text": "", "labels": [], "row": 0},
        {"id": "c", "image": images[2], "text": "Cat, unheard of", "labels": None, "row": 2},
    ]
    batch = PairCollator(processor, CLASSES)(rows)
    assert batch.keys() == {"pixel_values", "input_ids", "attention_mask", "labels", "row"}

    by_hand = [processor(images=[image.convert("RGB")], return_tensors="pt")["pixel_values"] for image in images]
    torch.testing.assert_close(batch["pixel_values"], torch.cat(by_hand), rtol=0, atol=0)
    texts = processor(text=["red boat", "", "Cat, unheard of"], return_tensors="pt")
    assert torch.equal(batch["input_ids"], texts["input_ids"])
    assert torch.equal(batch["attention_mask"], texts["attention_mask"])
    ids = processor.tokenizer.convert_tokens_to_ids(["red", "boat", "cat"])
    assert batch["input_ids"].tolist() == [[ids[0], ids[1], 0], [0, 0, 0], [ids[2], 1, 1]]
    assert batch["labels"].tolist() == [[1, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert batch["labels"].dtype == torch.float32
    assert batch["row"].tolist() == [5, 0, 2]


def test_large_images_are_prepared_one_by_one(processor, monkeypatch):
    rows = [{"image": image(seed), "text": "boat"} for seed in range(3)]
    whole = PairCollator(processor)(rows)
    prepared, prepare = [], type(processor).__call__

    def noted(self, images=None, text=None, **kwargs):
        prepared.append(len(images or ()))
        return prepare(self, images=images, text=text, **kwargs)

    monkeypatch.setattr(type(processor), "__call__", noted)
    monkeypatch.setattr(decoding, "_PIXELS_AT_ONCE", 1)
    batch = PairCollator(processor)(rows)
    assert [count for count in prepared if count] == [1, 1, 1]
    assert torch.equal(batch["pixel_values"], whole["pixel_values"])


def test_no_classes_and_no_row_column(processor):
    batch = PairCollator(processor)([{"id": "a", "image": image(0), "text": "boat", "labels": ["boat"]}])
    assert batch.keys() == {"pixel_values", "input_ids", "attention_mask"}


def test_rows_without_a_labels_column_have_no_class(processor):
    batch = PairCollator(processor, CLASSES)([{"id": "a", "image": image(0), "text": "boat"}])
    assert batch["labels"].tolist() == [[0, 0, 0, 0]]


def test_unknown_labels_are_ignored_and_named(processor, caplog):
    batch = PairCollator(processor, CLASSES)([{"image": image(0), "text": "", "labels": ["zebra", "cat"]}])
    assert batch["labels"].tolist() == [[0, 0, 1, 0]]
    assert "'zebra'" in caplog.text


def test_text_column_and_its_fallback(processor):
    rows = [
        {"image": image(0), "text": "boat", "expanded_text": "boat sea"},
        {"image": image(1), "text": "tree"},  # not expanded
    ]
    ids = PairCollator(processor, text_column="expanded_text")(rows)["input_ids"].tolist()
    boat, sea, tree = processor.tokenizer.convert_tokens_to_ids(["boat", "sea", "tree"])
    assert ids == [[boat, sea], [tree, 0]]


def test_cached_regions_replace_images(processor):
    regions = np.random.default_rng(0).normal(size=(3, 4, 16)).astype(np.float16)
    rows = [{"text": "boat", "region_features": own} for own in regions]
    batch = PairCollator(processor)(rows)
    assert "pixel_values" not in batch
    assert batch["region_features"].dtype == torch.float16
    assert torch.equal(batch["region_features"], torch.from_numpy(regions))


def test_mirror_image_is_drawn_with_probability_one_half(processor):
    plain, mirrored = np.zeros((4, 16), np.float16), np.ones((4, 16), np.float16)
    torch.manual_seed(0)
    both = [{"text": "", "region_features": plain, "region_features_mirrored": mirrored}] * 200
    taken = PairCollator(processor)(both)["region_features"].float().mean(dim=(1, 2))
    assert set(taken.tolist()) == {0.0, 1.0}
    assert 70 <= taken.sum() <= 130  # 200 fair coin flips leave this range with probability 1 / 60,000
    unmirrored = PairCollator(processor)([{"text": "", "region_features": plain}] * 50)["region_features"]
    assert not unmirrored.any()


def test_damaged_image_is_named_by_its_row(processor):
    cut = {"path": None, "bytes": as_png(image(0))["bytes"][:600]}
    with pytest.raises(ImageError, match=r"^im7: damaged or cut short"):
        PairCollator(processor)([{"id": "im7", "image": cut, "text": ""}])
