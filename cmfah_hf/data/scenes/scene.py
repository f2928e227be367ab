"""One synthetic scene: things placed on a background, and noisy tags like those of photo sites.

Scene `i` of a seed has the same image and text in any process, whatever else is drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from cmfah_hf.data.scenes.backgrounds import BACKGROUNDS, draw_background
from cmfah_hf.data.scenes.drawings import KINDS, draw_shard, draw_thing

Box = tuple[int, int, int, int]

SCENE_CLASSES = sorted(KINDS)

# Tags that do not describe the image.
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
# Things are sometimes out of place: a car at sea keeps a model from classifying the background alone.
_ODDS_AWAY_FROM_HOME = 0.06
_ODDS_OF_FLOCK = 0.25
_ODDS_UNNAMED = 0.12
_ODDS_OF_SYNONYM = 0.45
_ODDS_OF_TYPO = 0.08
_ODDS_OF_BACKGROUND_TAG = 0.5
_MAX_OVERLAP = 0.12
# Minimum and maximum height of a thing as a fraction of the image's, by the number of things.
_SIZES, _CROWDED = {1: (0.42, 0.62), 2: (0.34, 0.48), 3: (0.29, 0.4)}, (0.25, 0.34)
# The same for things and shards in cluttered scenes.
_SMALL, _SHARDS = (0.2, 0.26), (0.08, 0.24)


@dataclass(frozen=True)
class Scene:
    """One scene: an RGB image, its tags, the kinds of things in it (sorted), and a box for every thing."""

    image: Image.Image
    text: str
    labels: list[str]
    boxes: list[dict[str, Any]]


def draw_scene(index: int, seed: int = 0, image_size: int = 128, clutter: int = 0) -> Scene:
    """Draws scene number `index`.

    With `clutter` the things are small, and that number of shards in the same colors and sizes is added, so that only
    a few regions of the image show its labels.

    Returns:
        The scene. A box has the thing's `label`; `word`, its name in the text, empty if the text does not name it; and
        `box`, the pixels `[left, top, right, bottom]`, right and bottom exclusive.
    """
    rng = np.random.default_rng([seed, index])
    background = list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]
    labels = sorted(_choose_kinds(background, rng))
    image = draw_background(background, image_size, rng)
    if clutter:
        _add_clutter(image, clutter, rng)

    things = [kind for kind in labels for _ in range(1 if clutter else _num_things(kind, len(labels), rng))]
    boxes: list[Box] = []
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


def _choose_kinds(background: str, rng: np.random.Generator) -> list[str]:
    odds = np.array([1.0 if background in kind.homes else _ODDS_AWAY_FROM_HOME for kind in KINDS.values()])
    # A kind with few backgrounds gets a larger share there, so that all labels are about equally frequent.
    odds /= [len(kind.homes) ** 0.8 for kind in KINDS.values()]
    count = int(rng.choice(_NUM_KINDS, p=_NUM_KINDS_ODDS))
    return [str(kind) for kind in rng.choice(list(KINDS), size=count, replace=False, p=odds / odds.sum())]


def _num_things(kind: str, num_kinds: int, rng: np.random.Generator) -> int:
    if not KINDS[kind].in_flocks or num_kinds > 3 or rng.random() >= _ODDS_OF_FLOCK:
        return 1
    return int(rng.integers(2, 4)) if num_kinds < 3 else 2


def _place(
    kind: str, size: tuple[float, float], side: int, taken: list[Box], rng: np.random.Generator
) -> tuple[Image.Image, Box]:
    """A thing of random size and a box for it with little overlap with those before; it shrinks in crowded scenes."""
    low, high = size
    height = side * (low + (high - low) * rng.random())
    drawn = draw_thing(kind, round(height), rng)
    placed: list[tuple[float, Image.Image, Box]] = []
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
            if overlap <= _MAX_OVERLAP:
                return layer, box
            placed.append((overlap, layer, box))
    _, layer, box = min(placed, key=lambda place: place[0])
    return layer, box


def _add_clutter(image: Image.Image, count: int, rng: np.random.Generator) -> None:
    """Adds `count` shards at random places."""
    low, high = _SHARDS
    for _ in range(count):
        layer = draw_shard(round(image.height * (low + (high - low) * rng.random())), rng)
        x, y = (int(rng.integers(free + 1)) for free in (image.width - layer.width, image.height - layer.height))
        image.paste(layer, (x, y), layer)


def _overlap(one: Box, other: Box) -> float:
    """The common area of two boxes as a fraction of the smaller box."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))


def _name(kind: str, rng: np.random.Generator) -> str:
    """The word for a thing in the text: its name, a synonym, a misspelling of either, or nothing."""
    if rng.random() < _ODDS_UNNAMED:
        return ""
    own, *synonyms = KINDS[kind].words
    word = synonyms[rng.integers(len(synonyms))] if rng.random() < _ODDS_OF_SYNONYM else own
    return _misspell(word, rng) if len(word) > 3 and rng.random() < _ODDS_OF_TYPO else word


def _misspell(word: str, rng: np.random.Generator) -> str:
    """`word` with two letters swapped, or one dropped, doubled or mistyped; unchanged if that gives a known word."""
    at = int(rng.integers(1, len(word) - 1))
    wrong = (
        word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        word[:at] + word[at + 1 :],
        word[:at] + word[at] + word[at:],
        word[:at] + _LETTERS[rng.integers(len(_LETTERS))] + word[at + 1 :],
    )[rng.integers(4)]
    return word if wrong in _ALL_WORDS else wrong


def _some(words: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    """`count` of the words in random order."""
    return [words[i] for i in rng.permutation(len(words))[:count]]
