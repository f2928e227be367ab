"""Backgrounds of synthetic scenes."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from cmfah_hf.data.scenes.drawings import Color


@dataclass(frozen=True)
class Background:
    """A background: its colors above the horizon, from the top down, and below it, and its tags."""

    words: tuple[str, ...]
    above: tuple[Color, Color]
    below: tuple[Color, Color] | None = None
    # Called with the drawing, the side and the horizon in pixels, and the random generator.
    details: Callable[[ImageDraw.ImageDraw, int, int, np.random.Generator], None] | None = None


def _clouds(draw: ImageDraw.ImageDraw, side: int, horizon: int, rng: np.random.Generator) -> None:
    for _ in range(3):
        x, y, size = rng.random() * side, rng.random() * side * 0.8, (0.05 + 0.05 * rng.random()) * side
        for dx, dy, part in ((-1.2, 0.2, 0.75), (0.0, 0.0, 1.0), (1.2, 0.25, 0.7)):
            cx, cy, radius = x + dx * size, y + dy * size, part * size
            draw.ellipse((cx - radius, cy - radius * 0.75, cx + radius, cy + radius * 0.75), fill=(244, 249, 253))


def _hills(draw: ImageDraw.ImageDraw, side: int, horizon: int, rng: np.random.Generator) -> None:
    x = rng.random() * side
    draw.ellipse((x - 0.7 * side, 0.5 * side, x + 0.5 * side, 1.1 * side), fill=(128, 190, 98))
    for _ in range(14):
        x, y = rng.random() * side, (0.7 + 0.29 * rng.random()) * side
        draw.line([(x, y), (x + 0.012 * side, y - 0.03 * side)], fill=(84, 150, 66), width=max(1, side // 100))


def _waves(draw: ImageDraw.ImageDraw, side: int, horizon: int, rng: np.random.Generator) -> None:
    for _ in range(12):
        x, y, width = rng.random() * side, horizon + (side - horizon) * rng.random(), 0.12 * side
        draw.arc((x, y, x + width, y + width / 2.5), 20, 160, fill=(170, 214, 236), width=max(1, side // 90))


def _specks(draw: ImageDraw.ImageDraw, side: int, horizon: int, rng: np.random.Generator) -> None:
    radius = side / 220
    for x, y in rng.random((24, 2)) * (side, side * 0.6):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(206, 212, 236))


def _dunes(draw: ImageDraw.ImageDraw, side: int, horizon: int, rng: np.random.Generator) -> None:
    for color in ((232, 196, 128), (222, 180, 108)):
        x, y = rng.random() * side, (0.62 + 0.12 * rng.random()) * side
        draw.ellipse((x - 0.9 * side, y, x + 0.7 * side, y + 0.8 * side), fill=color)


def _furnishing(draw: ImageDraw.ImageDraw, side: int, horizon: int, rng: np.random.Generator) -> None:
    step = side // 8
    for x in range(int(rng.integers(step)), side, step):
        draw.line([(x, 0), (x, horizon)], fill=(226, 204, 188), width=max(1, side // 60))
    draw.rectangle((0, horizon - 0.04 * side, side, horizon), fill=(250, 246, 238))
    for part in (0.25, 0.6):
        y = horizon + part * (side - horizon)
        draw.line([(0, y), (side, y)], fill=(158, 110, 74), width=max(1, side // 120))


BACKGROUNDS: dict[str, Background] = {
    "sky": Background(("sky", "clouds", "blue"), ((92, 168, 228), (206, 232, 246)), None, _clouds),
    "meadow": Background(
        ("meadow", "grass", "field", "green"),
        ((150, 208, 240), (222, 240, 246)),
        ((140, 198, 96), (98, 168, 74)),
        _hills,
    ),
    "sea": Background(
        ("sea", "ocean", "water", "waves"), ((172, 216, 242), (230, 242, 248)), ((86, 164, 208), (34, 96, 158)), _waves
    ),
    "night": Background(
        ("night", "dark", "evening"), ((22, 24, 62), (66, 62, 116)), ((44, 62, 68), (26, 38, 44)), _specks
    ),
    "desert": Background(
        ("desert", "sand", "dunes"), ((246, 208, 160), (252, 234, 204)), ((238, 206, 142), (214, 168, 96)), _dunes
    ),
    "room": Background(
        ("room", "indoor", "interior"),
        ((240, 222, 208), (234, 212, 196)),
        ((190, 138, 96), (172, 120, 82)),
        _furnishing,
    ),
}


def draw_background(name: str, side: int, rng: np.random.Generator) -> Image.Image:
    """An RGB background of `side` x `side` pixels."""
    background = BACKGROUNDS[name]
    large = 2 * side
    horizon = large if background.below is None else int(large * (0.56 + 0.08 * rng.random()))
    rows = np.empty((large, 1, 3), dtype=np.float64)
    rows[:horizon, 0] = np.linspace(*background.above, horizon)
    if background.below is not None:
        rows[horizon:, 0] = np.linspace(*background.below, large - horizon)
    # The brightness varies, so that no background has fixed colors.
    rows = np.clip(rows * (0.92 + 0.12 * rng.random()), 0, 255).astype(np.uint8)
    image = Image.fromarray(rows).resize((large, large), Image.Resampling.NEAREST)
    if background.details is not None:
        background.details(ImageDraw.Draw(image), large, horizon, rng)
    return image.reduce(2)
