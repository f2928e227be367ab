"""Scenes drawn by code: pictures of several things with the noisy tags that people give them.

They need no download, come with labels and bounding boxes, and scene `i` of a seed is the same picture and text
whatever else is drawn, in any process.
"""

import copy
import io
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from cmfah_hf.data.imagefolder import write_imagefolder
from cmfah_hf.data.scene_backgrounds import BACKGROUNDS, draw_background
from cmfah_hf.data.scene_drawings import KINDS, draw_shard, draw_thing
from cmfah_hf.errors import DataError

if TYPE_CHECKING:
    import datasets

__all__ = ["SCENE_CLASSES", "Scene", "draw_scene", "load_scenes", "make_scenes", "write_imagefolder"]

SCENE_CLASSES = sorted(KINDS)
# Queries begin here, so they are the same whatever the number of training scenes, and never one of them.
FIRST_QUERY = 900_000

# Tags that say nothing of what is to be seen.
_CAMERAS = ["nikon", "canon", "sony", "leica", "iphone", "macro", "photo", "photography"]
_MOODS = ["love", "happy", "fun", "nofilter", "instagood", "picoftheday", "art", "explore"]
_OCCASIONS = ["2019", "2021", "travel", "holiday", "friends", "summer", "weekend"]
_CHATTER = [*_CAMERAS, *_MOODS, *_OCCASIONS]
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_ALL_WORDS = frozenset(
    [word for kind in KINDS.values() for word in kind.words]
    + [word for background in BACKGROUNDS.values() for word in background.words]
    + _CHATTER
)

_NUM_KINDS, _NUM_KINDS_ODDS = (1, 2, 3), (0.5, 0.35, 0.15)
# Out of place, but now and then there all the same: a car at sea keeps a model from reading the background alone.
_ODDS_AWAY_FROM_HOME = 0.06
_ODDS_OF_FLOCK = 0.25
_ODDS_UNNAMED = 0.12
_ODDS_OF_SYNONYM = 0.45
_ODDS_OF_TYPO = 0.08
_ODDS_OF_BACKGROUND_TAG = 0.5
_MAX_OVERLAP = 0.12
# Least and greatest height of a thing as a part of the picture's, by how many things there are.
_SIZES, _CROWDED = {1: (0.42, 0.62), 2: (0.34, 0.48), 3: (0.29, 0.4)}, (0.25, 0.34)
# And of things and shards among clutter.
_SMALL, _SHARDS = (0.2, 0.26), (0.08, 0.24)
_MIN_SIDE = 32


@dataclass(frozen=True)
class Scene:
    """One scene: an RGB picture, its tags, the kinds of things in it (sorted), and a box for every thing."""

    image: Image.Image
    text: str
    labels: list[str]
    boxes: list[dict[str, Any]]


def draw_scene(index: int, seed: int = 0, image_size: int = 128, clutter: int = 0) -> Scene:
    """Draw scene number `index`.

    With `clutter` the things are small, and as many shards in their colours and sizes lie about: few of the regions of
    such a picture say what it shows.

    Returns:
        The scene. A box has the thing's `label`; the `word` by which the text names it, empty if the text does not;
        and its `box`, the pixels `[left, top, right, bottom]` with right and bottom just outside.
    """
    rng = np.random.default_rng([seed, index])
    background = list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]
    labels = sorted(_choose_kinds(background, rng))
    image = draw_background(background, image_size, rng)
    if clutter:
        _strew(image, clutter, rng)

    things = [kind for kind in labels for _ in range(1 if clutter else _how_many(kind, len(labels), rng))]
    boxes: list[tuple[int, int, int, int]] = []
    for kind in things:
        layer, box = _place(kind, _SMALL if clutter else _SIZES.get(len(things), _CROWDED), image_size, boxes, rng)
        image.paste(layer, box, layer)
        boxes.append(box)

    words = {kind: _name(kind, rng) for kind in labels}
    tags = [word for word in words.values() if word]
    if rng.random() < _ODDS_OF_BACKGROUND_TAG:
        tags += _some(BACKGROUNDS[background].words, 1 + int(rng.random() < 0.3), rng)
    tags += _some(_CHATTER, int(rng.integers(4)), rng)
    text = " ".join(_some(tags, len(tags), rng))
    described = [
        {"label": kind, "word": words[kind], "box": list(box)} for kind, box in zip(things, boxes, strict=True)
    ]
    return Scene(image, text, labels, described)


def make_scenes(num: int, seed: int = 0, image_size: int = 128, start: int = 0, clutter: int = 0):
    """The scenes `start` to `start + num - 1` as a `datasets.Dataset`.

    Args:
        num: How many.
        seed: Another seed gives other scenes.
        image_size: The pictures' width and height in pixels, 32 or more.
        start: The number of the first.
        clutter: Shards in every picture, see `draw_scene`.

    Returns:
        A data set in memory with `id` (`scene-000017`), `image` (PNG), `text`, `labels` and `boxes` (see `draw_scene`).

    Raises:
        DataError: If a number is out of range.
    """
    for name, value, least in (
        ("num", num, 1),
        ("seed", seed, 0),
        ("image_size", image_size, _MIN_SIDE),
        ("start", start, 0),
        ("clutter", clutter, 0),
    ):
        if value < least:
            raise DataError(f"{name}={value}: scenes need {least} or more.")
    # A format that is set on it must not be set on what is kept.
    return copy.copy(_drawn(num, seed, image_size, start, clutter))


# A run draws what it trains on, and again what it is measured on; drawing takes as long as some epochs.
@lru_cache(maxsize=4)
def _drawn(num: int, seed: int, image_size: int, start: int, clutter: int) -> "datasets.Dataset":
    import datasets

    text = datasets.Value("string")
    features = datasets.Features(
        {
            "id": text,
            "image": datasets.Image(),
            "text": text,
            "labels": datasets.List(text),
            "boxes": datasets.List({"label": text, "word": text, "box": datasets.List(datasets.Value("int64"))}),
        }
    )
    columns: dict[str, list[Any]] = {name: [] for name in features}
    for index in range(start, start + num):
        scene = draw_scene(index, seed, image_size, clutter)
        columns["id"].append(f"scene-{index:06d}")
        columns["image"].append({"path": None, "bytes": _to_png(scene.image)})
        columns["text"].append(scene.text)
        columns["labels"].append(scene.labels)
        columns["boxes"].append(scene.boxes)
    return datasets.Dataset.from_dict(columns, features=features)


def load_scenes(num_train: int = 2000, num_query: int = 300, seed: int = 0, image_size: int = 128, clutter: int = 0):
    """The scenes as a `datasets.DatasetDict` with `train` and `query`, which never share a scene.

    Args:
        num_train: Scenes of `train`.
        num_query: Scenes of `query`.
        seed: Of all that is drawn.
        image_size: Width and height in pixels.
        clutter: Shards strewn over each scene, in the colours and sizes of things.

    Raises:
        DataError: If a number is out of range.
    """
    import datasets

    if num_train > FIRST_QUERY:
        raise DataError(f"num_train={num_train}: at most {FIRST_QUERY}, because the queries begin there.")
    return datasets.DatasetDict(
        train=make_scenes(num_train, seed, image_size, clutter=clutter),
        query=make_scenes(num_query, seed, image_size, FIRST_QUERY, clutter),
    )


def _choose_kinds(background: str, rng: np.random.Generator) -> list[str]:
    odds = np.array([1.0 if background in kind.homes else _ODDS_AWAY_FROM_HOME for kind in KINDS.values()])
    # A kind at home on few backgrounds gets a larger share there, so that the labels come out about equally often.
    odds /= [len(kind.homes) ** 0.8 for kind in KINDS.values()]
    count = int(rng.choice(_NUM_KINDS, p=_NUM_KINDS_ODDS))
    return [str(kind) for kind in rng.choice(list(KINDS), size=count, replace=False, p=odds / odds.sum())]


def _how_many(kind: str, num_kinds: int, rng: np.random.Generator) -> int:
    if not KINDS[kind].in_flocks or num_kinds > 3 or rng.random() >= _ODDS_OF_FLOCK:
        return 1
    return int(rng.integers(2, 4)) if num_kinds < 3 else 2


def _place(
    kind: str, size: tuple[float, float], side: int, taken: list[tuple[int, int, int, int]], rng: np.random.Generator
) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """A thing of random size, and the box where it covers little of those before it; smaller where it is crowded."""
    low, high = size
    height = side * (low + (high - low) * rng.random())
    best: tuple[float, Image.Image, tuple[int, int, int, int]] | None = None
    drawn = draw_thing(kind, round(height), rng)
    for shrink in (1.0, 0.85, 0.7):
        layer = drawn
        if shrink < 1 or max(drawn.size) > side:
            limit = min(round(shrink * max(drawn.size)), side)
            layer = ImageOps.contain(drawn, (limit, limit), Image.Resampling.BOX)
            layer = layer.crop(layer.getbbox(alpha_only=True))
        free_x, free_y = side - layer.width, side - layer.height
        top, bottom = (part * side - layer.height / 2 for part in KINDS[kind].heights)
        top, bottom = max(0, round(top)), min(free_y, round(bottom))
        for _ in range(12):
            x = int(rng.integers(free_x + 1))
            y = int(rng.integers(min(top, bottom), bottom + 1)) if bottom > 0 else 0
            box = (x, y, x + layer.width, y + layer.height)
            overlap = max((_overlap(box, other) for other in taken), default=0.0)
            if best is None or overlap < best[0]:
                best = (overlap, layer, box)
            if overlap <= _MAX_OVERLAP:
                return layer, box
    return best[1], best[2]


def _strew(image: Image.Image, count: int, rng: np.random.Generator) -> None:
    """Lays so many shards anywhere on the picture."""
    low, high = _SHARDS
    for _ in range(count):
        layer = draw_shard(round(image.height * (low + (high - low) * rng.random())), rng)
        x, y = (int(rng.integers(free + 1)) for free in (image.width - layer.width, image.height - layer.height))
        image.paste(layer, (x, y), layer)


def _overlap(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    """The common area of two boxes as a part of the smaller box."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))


def _name(kind: str, rng: np.random.Generator) -> str:
    """What the text calls a thing: its name, a synonym, one of them misspelt, or nothing."""
    if rng.random() < _ODDS_UNNAMED:
        return ""
    own, *synonyms = KINDS[kind].words
    word = synonyms[rng.integers(len(synonyms))] if rng.random() < _ODDS_OF_SYNONYM else own
    return _misspell(word, rng) if len(word) > 3 and rng.random() < _ODDS_OF_TYPO else word


def _misspell(word: str, rng: np.random.Generator) -> str:
    """`word` with two letters swapped, one dropped, doubled or mistyped; as it is if that gives another known word."""
    at = int(rng.integers(1, len(word) - 1))
    wrong = (
        word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        word[:at] + word[at + 1 :],
        word[:at] + word[at] + word[at:],
        word[:at] + _LETTERS[rng.integers(len(_LETTERS))] + word[at + 1 :],
    )[rng.integers(4)]
    return word if wrong in _ALL_WORDS else wrong


def _some(words, count: int, rng: np.random.Generator) -> list[str]:
    """`count` of the words in random order."""
    return [words[i] for i in rng.permutation(len(words))[:count]]


def _to_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    # Drawing many scenes is mostly compressing them; the smallest level is three times as fast and hardly larger.
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
