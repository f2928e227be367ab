"""The pipeline `cross-modal-retrieval` against NumPy, the processor and the model."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from cmfah_hf.models import CMFAHModel, CMFAHProcessor

WORDS = ["beach", "dog", "sea", "street"]
TEXTS = ["a dog", "beach and sea", "nothing known", "street"]


@pytest.fixture(scope="module")
def parts(make_model):
    model = make_model(CMFAHModel)
    processor = CMFAHProcessor.from_vocabulary(model.config, WORDS, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (40, 30 + i, 3)).astype(np.uint8)) for i in range(5)]
    return pipeline("cross-modal-retrieval", model=model, processor=processor, device="cpu"), images


def image_hash(pipe, image) -> np.ndarray:
    pixel_values = pipe.processor(images=[image], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return pipe.model.get_image_hash(pixel_values)[0].numpy()


def text_hash(pipe, text) -> np.ndarray:
    inputs = pipe.processor(text=[text], return_tensors="pt")
    with torch.no_grad():
        return pipe.model.get_text_hash(inputs["input_ids"], inputs["attention_mask"])[0].numpy()


def test_continuous_and_binary_codes(parts):
    pipe, images = parts
    for query, expected in (
        ("a dog", text_hash(pipe, "a dog")),
        ({"text": "a dog"}, text_hash(pipe, "a dog")),
        (images[1], image_hash(pipe, images[1])),
        ({"image": images[1]}, image_hash(pipe, images[1])),
    ):
        found = pipe(query)
        assert np.array_equal(found["hash_values"], expected)
        assert found["code"].dtype == np.int8
        assert found["code"].tolist() == [1 if value >= 0 else -1 for value in expected]
        assert "ranking" not in found


@pytest.mark.parametrize("metric", ["aqd", "hamming"])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_candidates_of_both_modalities_are_ranked(parts, metric, batch_size):
    pipe, images = parts
    candidates = [TEXTS[0], images[0], {"text": TEXTS[1]}, {"image": images[2]}, TEXTS[2], images[0]]
    hashes = [
        text_hash(pipe, TEXTS[0]), image_hash(pipe, images[0]), text_hash(pipe, TEXTS[1]),
        image_hash(pipe, images[2]), text_hash(pipe, TEXTS[2]), image_hash(pipe, images[0]),
    ]  # fmt: skip
    query = image_hash(pipe, images[4])
    signs = np.where(np.array(hashes) >= 0, 1, -1)
    if metric == "aqd":
        scores = (signs * np.rint(query.astype(np.float64) * 2**14) / 2**14).sum(axis=1)
        order = sorted(range(6), key=lambda place: (-scores[place], place))
    else:
        scores = (signs != np.where(query >= 0, 1, -1)).sum(axis=1)
        order = sorted(range(6), key=lambda place: (scores[place], place))
    found = pipe({"image": images[4], "candidates": candidates}, metric=metric, batch_size=batch_size)["ranking"]
    assert [hit["index"] for hit in found] == order
    assert [hit["score"] for hit in found] == pytest.approx([float(scores[place]) for place in order], abs=1e-4)
    assert pipe({"image": images[4], "candidates": candidates}, metric=metric, top_k=2)["ranking"] == found[:2]


def test_a_list_holds_queries(parts):
    pipe, images = parts
    found = pipe(["a dog", images[0], {"text": "sea", "candidates": []}], batch_size=2)
    assert np.array_equal(found[0]["hash_values"], text_hash(pipe, "a dog"))
    assert np.array_equal(found[1]["hash_values"], image_hash(pipe, images[0]))
    assert found[2]["ranking"] == []


def test_image_file_is_rotated_upright_and_keeps_its_mode(parts, tmp_path):
    pipe, images = parts
    rotated, clear = tmp_path / "rotated.png", tmp_path / "clear.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # EXIF: rotate by 90 degrees
    images[0].save(rotated, exif=exif)
    transparent = images[0].convert("RGBA")
    transparent.putalpha(100)
    transparent.save(clear)
    upright = images[0].transpose(Image.Transpose.ROTATE_270)
    assert np.array_equal(pipe({"image": str(rotated)})["hash_values"], image_hash(pipe, upright))
    assert np.array_equal(pipe({"image": clear})["hash_values"], image_hash(pipe, transparent))


@pytest.mark.parametrize(
    ("query", "settings", "part"),
    [
        ("nothing known", {}, "No word of 'nothing known' is among the 6"),
        ({"image": "/nowhere.png"}, {}, "/nowhere.png: not an image"),
        ({"words": "a dog"}, {}, "not a mapping of words"),
        ({"text": "a dog", "image": "x.png"}, {}, "not a mapping of text, image"),
        (3, {}, "not a int"),
        ({"text": "a dog", "candidates": "sea"}, {}, "candidates is a str"),
        ({"text": "a dog", "candidates": [3]}, {}, "not a int"),
        ("a dog", {"metric": "cosine"}, "metric is 'cosine'"),
        ("a dog", {"top_k": 0}, "top_k is 0"),
        ("a dog", {"limit": 3}, "no setting 'limit'"),
    ],
)
def test_invalid_inputs_are_reported_in_one_line(parts, query, settings, part):
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the message is checked below
        parts[0](query, **settings)
    assert part in str(raised.value)
    assert "\n" not in str(raised.value)
