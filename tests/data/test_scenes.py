"""Synthetic scenes: deterministic, with correct labels, boxes and words."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmfah_hf.data import load_image_text, load_scenes, make_scenes
from cmfah_hf.data.scenes import SCENE_CLASSES, draw_scene
from cmfah_hf.data.scenes import scene as scenes
from cmfah_hf.data.scenes.backgrounds import BACKGROUNDS
from cmfah_hf.data.scenes.drawings import KINDS, draw_thing
from cmfah_hf.errors import DataError
from cmfah_hf.models.tokenization_cmfah import split_words


@pytest.fixture(scope="module")
def many():
    return [draw_scene(i, seed=3, image_size=64) for i in range(150)]


def fingerprint(indices, seed=0):
    digest = hashlib.sha256()
    for i in indices:
        scene = draw_scene(i, seed)
        digest.update(scene.image.tobytes() + json.dumps([scene.text, scene.labels, scene.boxes]).encode())
    return digest.hexdigest()


def test_a_new_process_draws_the_same_pixels_and_words():
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import hashlib, json\n"
        "from cmfah_hf.data.scenes import draw_scene\n"
        "digest = hashlib.sha256()\n"
        "for i in reversed(range(3)): draw_scene(i)\n"
        "for i in (0, 1, 2, 77):\n"
        "    scene = draw_scene(i)\n"
        "    digest.update(scene.image.tobytes() + json.dumps([scene.text, scene.labels, scene.boxes]).encode())\n"
        "print(digest.hexdigest())\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(Path(__file__).parents[2])],
        env=os.environ | {"PYTHONHASHSEED": "123"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == fingerprint((0, 1, 2, 77))
    assert fingerprint((0, 1, 2, 77), seed=1) != result.stdout.strip()


def test_a_scene_does_not_depend_on_their_number(rows_of):
    assert rows_of(make_scenes(6, image_size=32).select(range(4, 6))) == rows_of(make_scenes(2, image_size=32, start=4))


def test_changes_to_one_drawing_do_not_affect_the_next():
    first, second = make_scenes(3, image_size=48), make_scenes(3, image_size=48)
    first.set_format("numpy", columns=["text"])
    assert set(first[0]) == {"text"}
    assert set(second[0]) > {"image", "labels"}
    assert set(make_scenes(3, image_size=48)[0]) == set(second[0])
    assert first._fingerprint != second._fingerprint
    with pytest.raises(DataError, match="num=0"):
        make_scenes(0, image_size=48)


def test_train_and_query_scenes_differ(rows_of):
    small, large = load_scenes(3, 4, image_size=32), load_scenes(8, 4, image_size=32)
    assert rows_of(small["query"]) == rows_of(large["query"])
    assert not set(large["train"]["id"]) & set(large["query"]["id"])
    assert large["train"]["id"][0] == "scene-000000"
    with pytest.raises(DataError, match="num_train=900001: at most 900000"):
        load_scenes(900_001)


def test_boxes_are_tight(monkeypatch):
    """On a background of a unique color, the drawn pixels are those that differ from it."""
    key = (1, 254, 3)
    original = scenes.draw_background

    def blank(name, side, rng):
        original(name, side, rng)  # uses as many random numbers
        return Image.new("RGB", (side, side), key)

    monkeypatch.setattr(scenes, "draw_background", blank)
    unoccluded = 0
    for i in range(60):
        scene = draw_scene(i, seed=1, image_size=96)
        drawn = (np.asarray(scene.image) != key).any(axis=-1)
        inside = np.zeros_like(drawn)
        for box in scene.boxes:
            x0, y0, x1, y1 = box["box"]
            assert 0 <= x0 < x1 <= 96
            assert 0 <= y0 < y1 <= 96
            inside[y0:y1, x0:x1] = True
        assert not (drawn & ~inside).any()
        if len(scene.boxes) == 1:
            rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
            # An edge pixel may be nearly transparent and keep the background color.
            tight = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            assert np.abs(np.subtract(tight, scene.boxes[0]["box"])).max() <= 1
            unoccluded += 1
    assert unoccluded >= 5


def test_labels_boxes_and_words_agree(many):
    for scene in many:
        assert scene.labels == sorted({box["label"] for box in scene.boxes})
        assert 1 <= len(scene.labels) <= 4
        tags = scene.text.split()
        assert split_words(scene.text) == tags
        for box in scene.boxes:
            assert box["word"] == "" or box["word"] in tags
        assert scene.image.size == (64, 64)
        assert scene.image.mode == "RGB"


def test_overlap_of_things_is_small(many):
    pairs = [(a["box"], b["box"]) for scene in many for i, a in enumerate(scene.boxes) for b in scene.boxes[:i]]
    overlaps = []
    for one, other in pairs:
        grid = np.zeros((2, 64, 64), dtype=bool)
        for layer, (x0, y0, x1, y1) in zip(grid, (one, other), strict=True):
            layer[y0:y1, x0:x1] = True
        overlaps.append(grid.all(axis=0).sum() / grid.sum(axis=(1, 2)).min())
    assert np.mean(np.array(overlaps) <= 0.13) > 0.9
    assert max(overlaps) < 0.75


def test_tags_are_as_noisy_as_those_of_people(many):
    known = {kind: set(KINDS[kind].words) for kind in KINDS}
    words = [(box["label"], box["word"]) for scene in many for box in scene.boxes]
    named = [(label, word) for label, word in words if word]
    assert 0.03 < 1 - len(named) / len(words) < 0.3  # some things are not named,
    assert 0.25 < np.mean([word != label for label, word in named]) < 0.7  # many have another name,
    assert 0.01 < np.mean([word not in known[label] for label, word in named]) < 0.2  # some are misspelled,
    all_known = set().union(*known.values(), *(b.words for b in BACKGROUNDS.values()))
    assert np.mean([any(tag in scenes._CHATTER for tag in scene.text.split()) for scene in many]) > 0.5
    assert not all_known & set(scenes._CHATTER)


def test_classes_are_balanced(many):
    counts = [sum(name in scene.labels for scene in many) for name in SCENE_CLASSES]
    assert len(SCENE_CLASSES) >= 10
    assert min(counts) > 0.25 * np.mean(counts)
    assert max(counts) < 2.5 * np.mean(counts)


def test_words_of_things_are_disjoint():
    words = [word for kind in KINDS.values() for word in kind.words] + [
        w for b in BACKGROUNDS.values() for w in b.words
    ]
    assert len(words) == len(set(words))
    assert [kind.words[0] for kind in KINDS.values()] == list(KINDS)
    assert all(kind.homes <= set(BACKGROUNDS) for kind in KINDS.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_thing_fills_its_layer_and_differs_from_the_others(kind):
    layer = draw_thing(kind, 60, np.random.default_rng(0))
    assert layer.getbbox(alpha_only=True) == (0, 0, *layer.size)
    assert 45 <= max(layer.size) <= 60 * 1.4 + 20
    alpha = np.asarray(layer.getchannel("A")) / 255
    assert 0.15 < alpha.mean() < 0.95
    shapes = {
        other: draw_thing(other, 60, np.random.default_rng(0)).resize((40, 40)) for other in KINDS if other != kind
    }
    mine = np.asarray(layer.resize((40, 40))).astype(float)
    for other, shape in shapes.items():
        assert np.abs(mine - np.asarray(shape).astype(float)).mean() > 15, other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num": 0}, "num=0: scenes need 1 or more"),
        ({"num": 1, "image_size": 31}, "image_size=31: scenes need 32"),
        ({"num": 1, "seed": -1}, "seed=-1"),
        ({"num": 1, "start": -1}, "start=-1"),
    ],
)
def test_out_of_range_arguments(arguments, message):
    with pytest.raises(DataError, match=message):
        make_scenes(**arguments)


@pytest.mark.parametrize("size", [32, 50, 200])
def test_other_sizes(size):
    for i in range(12):
        scene = draw_scene(i, image_size=size)
        assert scene.image.size == (size, size)
        assert all(max(box["box"]) <= size and min(box["box"]) >= 0 for box in scene.boxes)


def test_clutter_changes_images_and_sizes_but_not_texts_and_labels(monkeypatch):
    plain = [draw_scene(i, image_size=96) for i in range(12)]
    shards = []
    original = scenes.draw_shard
    monkeypatch.setattr(scenes, "draw_shard", lambda height, rng: shards.append(original(height, rng)) or shards[-1])
    cluttered = [draw_scene(i, image_size=96, clutter=24) for i in range(12)]
    assert len(shards) == 12 * 24
    assert max(max(layer.size) for layer in shards) <= round(0.24 * 96)
    for one, other in zip(plain, cluttered, strict=True):
        assert one.labels == other.labels
        assert not np.array_equal(np.asarray(one.image), np.asarray(other.image))
        assert [box["label"] for box in other.boxes] == other.labels  # clutter adds no labeled boxes
        heights = [bottom - top for _, top, _, bottom in (box["box"] for box in other.boxes)]
        assert max(heights) <= 1.5 * 0.26 * 96  # rotated things are higher than upright ones
    assert [scene.image.tobytes() for scene in cluttered] == [
        draw_scene(i, image_size=96, clutter=24).image.tobytes() for i in range(12)
    ]


def test_cluttered_scenes_by_name(rows_of):
    found = load_image_text("cluttered-scenes", split="query", num_train=1, num_query=2, image_size=32)
    assert rows_of(found) == rows_of(make_scenes(2, image_size=32, start=900_000, clutter=24))
    with pytest.raises(DataError, match="clutter=-1: scenes need 0 or more"):
        make_scenes(1, clutter=-1)
