"""Drawings of the things in synthetic scenes.

A `Pen` draws a thing on its own transparent layer, in coordinates from 0 to 1 (x to the right, y down), larger than
needed. Scaling it down makes the edges smooth, and its alpha channel gives the exact bounding box.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

Color = tuple[int, int, int] | tuple[int, int, int, int]
Point = tuple[float, float]

INK = (45, 38, 52)
WHITE = (250, 249, 245)
# Transparent: draws a hole.
NOTHING = (0, 0, 0, 0)
BROWN = (133, 88, 52)
BRIGHT: tuple[Color, ...] = (
    (226, 66, 60),
    (242, 140, 40),
    (250, 205, 60),
    (92, 178, 74),
    (42, 160, 160),
    (58, 122, 214),
    (132, 88, 190),
    (236, 112, 168),
)
# Layers are drawn this many times larger than they appear.
OVERSAMPLING = 3


class Pen:
    """Draws filled, ink-outlined shapes in unit coordinates on a transparent layer, and picks colors at random."""

    def __init__(self, width: int, height: int, rng: np.random.Generator):
        self.layer = Image.new("RGBA", (width * OVERSAMPLING, height * OVERSAMPLING))
        self.rng = rng
        self._draw = ImageDraw.Draw(self.layer)
        self._scale = (self.layer.width - 1, self.layer.height - 1)
        self._line = max(2, round(0.028 * min(self.layer.size)))

    def bright(self, count: int = 1) -> list[Color]:
        """`count` different bright colors."""
        return [BRIGHT[i] for i in self.rng.permutation(len(BRIGHT))[:count]]

    def polygon(self, points: Sequence[Point], fill: Color, ink: bool = True) -> None:
        self._draw.polygon(self._to_pixels(points), fill=fill, outline=INK if ink else None, width=self._line)

    def ellipse(self, x0: float, y0: float, x1: float, y1: float, fill: Color, ink: bool = True) -> None:
        box = self._to_pixels([(x0, y0), (x1, y1)])
        self._draw.ellipse(box, fill=fill, outline=INK if ink else None, width=self._line)

    def rectangle(self, x0: float, y0: float, x1: float, y1: float, fill: Color, round_by: float = 0.0) -> None:
        radius = round_by * min(self.layer.size)
        box = self._to_pixels([(x0, y0), (x1, y1)])
        self._draw.rounded_rectangle(box, radius, fill=fill, outline=INK, width=self._line)

    def slice(self, x0: float, y0: float, x1: float, y1: float, start: float, end: float, fill: Color) -> None:
        """A slice of an ellipse, from `start` to `end` degrees clockwise from three o'clock."""
        box = self._to_pixels([(x0, y0), (x1, y1)])
        self._draw.pieslice(box, start, end, fill=fill, outline=INK, width=self._line)

    def arc(self, x0: float, y0: float, x1: float, y1: float, start: float, end: float, width: float) -> None:
        box = self._to_pixels([(x0, y0), (x1, y1)])
        self._draw.arc(box, start, end, fill=INK, width=self._thick(width))

    def line(self, points: Sequence[Point], fill: Color = INK, width: float = 0.03) -> None:
        self._draw.line(self._to_pixels(points), fill=fill, width=self._thick(width), joint="curve")

    def _thick(self, width: float) -> int:
        return max(1, round(width * min(self.layer.size)))

    def _to_pixels(self, points: Sequence[Point]) -> list[Point]:
        return [(x * self._scale[0], y * self._scale[1]) for x, y in points]


def _circle(x: float, y: float, radius: float, angles: Iterable[float]) -> list[Point]:
    """Points on a circle at `angles` in degrees, clockwise from three o'clock."""
    return [(x + radius * math.cos(math.radians(a)), y + radius * math.sin(math.radians(a))) for a in angles]


def _shard(pen: Pen) -> None:
    fill, other = pen.bright(2)
    angles = pen.rng.random() * 360 + np.sort(pen.rng.random(int(pen.rng.integers(3, 7)))) * 360
    match int(pen.rng.integers(4)):
        case 0:
            pen.polygon(_circle(0.5, 0.5, 0.48, angles), fill)
        case 1:
            x, y = 0.3 * pen.rng.random(2)
            pen.ellipse(x, y, 0.99 - 0.3 * pen.rng.random(), 0.99 - 0.3 * pen.rng.random(), fill)
        case 2:
            y = 0.4 * pen.rng.random()
            pen.rectangle(0.01, y, 0.99, 0.99, fill, round_by=0.2 * pen.rng.random())
            pen.rectangle(0.2, y + 0.15, 0.6, y + 0.35, WHITE)
        case _:
            pen.slice(0.02, 0.02, 0.98, 0.98, angles[0], angles[0] + 90 + 180 * pen.rng.random(), fill)
    pen.line(_circle(0.5, 0.5, 0.3, angles[:3]), fill=other, width=0.07)


def _ball(pen: Pen) -> None:
    colors = pen.bright(3)
    start = float(pen.rng.integers(60))
    for i in range(6):
        color = WHITE if i % 2 else colors[i // 2]
        pen.slice(0.03, 0.03, 0.97, 0.97, start + 60 * i, start + 60 * (i + 1), color)
    pen.ellipse(0.41, 0.41, 0.59, 0.59, WHITE)


def _balloon(pen: Pen) -> None:
    (color,) = pen.bright()
    pen.line([(0.5, 0.72), (0.42, 0.82), (0.56, 0.9), (0.48, 0.99)], width=0.035)
    pen.polygon([(0.5, 0.66), (0.38, 0.76), (0.62, 0.76)], color)
    pen.ellipse(0.06, 0.02, 0.94, 0.7, color)
    pen.ellipse(0.22, 0.12, 0.42, 0.28, WHITE, ink=False)


def _bird(pen: Pen) -> None:
    body, wing = pen.bright(2)
    for x in (0.42, 0.54):
        pen.line([(x, 0.78), (x, 0.98), (x + 0.09, 0.98)], fill=(200, 120, 30), width=0.035)
    pen.polygon([(0.25, 0.52), (0.01, 0.36), (0.04, 0.62), (0.3, 0.7)], wing)
    pen.polygon([(0.88, 0.26), (1.0, 0.35), (0.86, 0.4)], (245, 160, 40))
    pen.ellipse(0.17, 0.36, 0.8, 0.84, body)
    pen.ellipse(0.55, 0.1, 0.91, 0.52, body)
    # Covers the outlines where head and body meet.
    pen.ellipse(0.54, 0.38, 0.76, 0.6, body, ink=False)
    pen.polygon([(0.28, 0.5), (0.62, 0.54), (0.42, 0.76)], wing)
    pen.ellipse(0.7, 0.22, 0.79, 0.32, INK, ink=False)


def _boat(pen: Pen) -> None:
    hull, left, right = pen.bright(3)
    pen.line([(0.48, 0.04), (0.48, 0.72)], fill=BROWN, width=0.05)
    pen.polygon([(0.44, 0.08), (0.44, 0.62), (0.1, 0.62)], WHITE)
    pen.polygon([(0.53, 0.04), (0.53, 0.62), (0.93, 0.62)], left if pen.rng.random() < 0.5 else right)
    pen.polygon([(0.01, 0.7), (0.99, 0.7), (0.82, 0.98), (0.18, 0.98)], hull)


def _car(pen: Pen) -> None:
    (color,) = pen.bright()
    glass = (196, 228, 244)
    pen.polygon([(0.18, 0.5), (0.32, 0.04), (0.7, 0.04), (0.86, 0.5)], color)
    pen.polygon([(0.26, 0.46), (0.36, 0.14), (0.49, 0.14), (0.49, 0.46)], glass)
    pen.polygon([(0.54, 0.46), (0.54, 0.14), (0.67, 0.14), (0.77, 0.46)], glass)
    pen.rectangle(0.01, 0.42, 0.99, 0.82, color, round_by=0.16)
    pen.ellipse(0.9, 0.48, 0.98, 0.62, (255, 238, 150))
    for x in (0.14, 0.64):
        pen.ellipse(x, 0.62, x + 0.22, 0.99, (56, 54, 62))
        pen.ellipse(x + 0.07, 0.74, x + 0.15, 0.87, (200, 202, 208), ink=False)


def _cup(pen: Pen) -> None:
    color, band = pen.bright(2)
    pen.ellipse(0.56, 0.3, 0.98, 0.78, color)
    pen.ellipse(0.66, 0.41, 0.87, 0.67, NOTHING)
    pen.polygon([(0.05, 0.18), (0.75, 0.18), (0.67, 0.97), (0.13, 0.97)], color)
    pen.polygon([(0.08, 0.45), (0.72, 0.45), (0.7, 0.64), (0.1, 0.64)], band)
    pen.ellipse(0.05, 0.06, 0.75, 0.3, WHITE)
    pen.ellipse(0.13, 0.11, 0.67, 0.26, (98, 60, 38), ink=False)


def _fish(pen: Pen) -> None:
    body, fin = pen.bright(2)
    pen.polygon([(0.66, 0.5), (0.99, 0.1), (0.9, 0.5), (0.99, 0.9)], fin)
    pen.polygon([(0.3, 0.25), (0.5, 0.01), (0.62, 0.28)], fin)
    pen.polygon([(0.38, 0.78), (0.52, 0.99), (0.58, 0.72)], fin)
    pen.ellipse(0.01, 0.15, 0.76, 0.85, body)
    pen.arc(0.05, 0.25, 0.33, 0.75, -70, 70, width=0.035)
    pen.ellipse(0.11, 0.34, 0.23, 0.52, WHITE)
    pen.ellipse(0.15, 0.39, 0.2, 0.48, INK, ink=False)


def _flower(pen: Pen) -> None:
    (petals,) = pen.bright()
    green = (70, 150, 62)
    pen.line([(0.5, 0.5), (0.5, 0.99)], fill=green, width=0.07)
    pen.polygon([(0.5, 0.9), (0.2, 0.66), (0.26, 0.84)], green)
    pen.polygon([(0.5, 0.84), (0.82, 0.62), (0.74, 0.8)], green)
    for x, y in _circle(0.5, 0.33, 0.2, range(0, 360, 60)):
        pen.ellipse(x - 0.15, y - 0.125, x + 0.15, y + 0.125, petals)
    pen.ellipse(0.37, 0.22, 0.63, 0.44, (255, 215, 70) if petals != BRIGHT[2] else (150, 90, 40))


def _house(pen: Pen) -> None:
    roof, door = pen.bright(2)
    wall = ((246, 226, 190), (240, 240, 232), (236, 190, 160), (196, 214, 226))[pen.rng.integers(4)]
    pen.rectangle(0.68, 0.1, 0.8, 0.4, (160, 92, 72))
    pen.rectangle(0.12, 0.42, 0.88, 0.98, wall)
    pen.polygon([(0.01, 0.48), (0.5, 0.03), (0.99, 0.48)], roof)
    pen.rectangle(0.55, 0.6, 0.75, 0.98, door)
    pen.rectangle(0.22, 0.57, 0.44, 0.79, (180, 222, 246))
    pen.line([(0.33, 0.57), (0.33, 0.79)])
    pen.line([(0.22, 0.68), (0.44, 0.68)])


def _kite(pen: Pen) -> None:
    top, right, bottom, left, middle = (0.5, 0.01), (0.95, 0.3), (0.5, 0.72), (0.05, 0.3), (0.5, 0.3)
    one, two = pen.bright(2)
    pen.line([bottom, (0.4, 0.8), (0.58, 0.89), (0.46, 0.99)], width=0.04)
    for x, y in ((0.42, 0.81), (0.54, 0.89)):
        pen.polygon([(x - 0.1, y - 0.035), (x + 0.1, y + 0.035), (x + 0.1, y - 0.035), (x - 0.1, y + 0.035)], one)
    for corners, color in (
        ((top, right, middle), one),
        ((right, bottom, middle), two),
        ((bottom, left, middle), one),
        ((left, top, middle), two),
    ):
        pen.polygon(corners, color)


def _moon(pen: Pen) -> None:
    outer = _circle(0.48, 0.5, 0.47, range(50, 311, 10))
    inner = _circle(0.82, 0.5, 0.36, range(260, 99, -10))
    pen.polygon(outer + inner, (250, 240, 190))
    for x, y, radius in ((0.2, 0.42, 0.05), (0.3, 0.66, 0.06), (0.3, 0.24, 0.035)):
        pen.ellipse(x - radius, y - radius, x + radius, y + radius, (226, 212, 150), ink=False)


def _mushroom(pen: Pen) -> None:
    cap = ((214, 52, 46), (214, 52, 46), (186, 116, 60), (132, 88, 190))[pen.rng.integers(4)]
    pen.rectangle(0.34, 0.45, 0.66, 0.98, (246, 234, 210), round_by=0.12)
    pen.slice(0.02, 0.03, 0.98, 1.07, 180, 360, cap)
    for x, y, radius in ((0.3, 0.36, 0.07), (0.54, 0.2, 0.08), (0.74, 0.4, 0.065), (0.5, 0.43, 0.045)):
        pen.ellipse(x - radius, y - radius, x + radius, y + radius, WHITE, ink=False)


def _star(pen: Pen) -> None:
    color = (BRIGHT[2], BRIGHT[2], BRIGHT[1], BRIGHT[7])[pen.rng.integers(4)]
    outer, inner = _circle(0.5, 0.53, 0.5, range(-90, 270, 72)), _circle(0.5, 0.53, 0.23, range(-54, 306, 72))
    pen.polygon([point for pair in zip(outer, inner, strict=True) for point in pair], color)


def _sun(pen: Pen) -> None:
    start = float(pen.rng.integers(30))
    for i in range(12):
        angle = start + 30 * i
        tip, *base = (*_circle(0.5, 0.5, 0.49, [angle]), *_circle(0.5, 0.5, 0.3, [angle - 12, angle + 12]))
        pen.polygon([tip, *base], (248, 160, 40))
    pen.ellipse(0.21, 0.21, 0.79, 0.79, (255, 212, 58))


def _tree(pen: Pen) -> None:
    green = ((62, 142, 64), (96, 164, 58), (40, 118, 82), (206, 128, 46))[pen.rng.integers(4)]
    pen.rectangle(0.42, 0.62, 0.58, 0.99, BROWN)
    if pen.rng.random() < 0.4:
        for y, half in ((0.42, 0.44), (0.22, 0.37), (0.01, 0.29)):
            pen.polygon([(0.5, y), (0.5 + half, y + 0.36), (0.5 - half, y + 0.36)], green)
        return
    crown = ((0.05, 0.3, 0.52, 0.7), (0.48, 0.3, 0.95, 0.7), (0.2, 0.02, 0.8, 0.52))
    for box in crown:
        pen.ellipse(*box, green)
    # Covers the outlines inside the crown.
    pen.ellipse(0.24, 0.18, 0.76, 0.64, green, ink=False)
    for x, y in ((0.36, 0.2), (0.62, 0.3), (0.28, 0.44), (0.5, 0.5)):
        pen.arc(x - 0.08, y - 0.05, x + 0.08, y + 0.07, 20, 160, width=0.025)


def _umbrella(pen: Pen) -> None:
    one, two = pen.bright(2)
    pen.line([(0.5, 0.02), (0.5, 0.9)], width=0.05)
    pen.arc(0.5, 0.78, 0.72, 0.99, 0, 180, width=0.05)
    pen.slice(0.01, 0.07, 0.99, 1.0, 180, 360, one)
    pen.slice(0.28, 0.07, 0.72, 1.0, 180, 360, two)


@dataclass(frozen=True)
class Kind:
    """A kind of thing."""

    draw: Callable[[Pen], None]
    words: tuple[str, ...]  # its name and synonyms
    homes: frozenset[str]  # backgrounds on which it is common
    heights: tuple[float, float]  # range of its center, as fractions of the image's height
    aspect: float = 1.0  # width divided by height
    in_flocks: bool = False  # whether several may appear in one scene
    turn: int = 0  # maximum rotation in degrees


def _kind(draw: Callable[[Pen], None], words: str, homes: str, heights: tuple[float, float], **options: Any) -> Kind:
    return Kind(draw, tuple(words.split()), frozenset(homes.split()), heights, **options)


_HIGH, _LOW, _ANY = (0.0, 0.45), (0.6, 1.0), (0.0, 1.0)

# The first word is the kind's name. No two kinds have a word in common.
KINDS: dict[str, Kind] = {
    "ball": _kind(_ball, "ball beachball football", "room meadow desert", _LOW, in_flocks=True, turn=30),
    "balloon": _kind(_balloon, "balloon balloons", "sky meadow room", _HIGH, aspect=0.66, in_flocks=True, turn=12),
    "bird": _kind(_bird, "bird birds birdie", "sky meadow sea", _ANY, aspect=1.15, in_flocks=True),
    "boat": _kind(_boat, "boat ship sailboat yacht", "sea", (0.5, 0.8)),
    "car": _kind(_car, "car auto automobile vehicle", "meadow desert night", _LOW, aspect=1.8),
    "cup": _kind(_cup, "cup mug teacup coffee", "room", _LOW, aspect=1.1),
    "fish": _kind(_fish, "fish fishes goldfish", "sea", _LOW, aspect=1.5, in_flocks=True, turn=12),
    "flower": _kind(_flower, "flower blossom bloom daisy", "meadow room", _LOW, aspect=0.72, in_flocks=True),
    "house": _kind(_house, "house home cottage building", "meadow night desert", (0.5, 0.85)),
    "kite": _kind(_kite, "kite kites", "sky meadow desert", _HIGH, aspect=0.8, turn=25),
    "moon": _kind(_moon, "moon crescent lunar", "night", _HIGH, aspect=0.82, turn=20),
    "mushroom": _kind(_mushroom, "mushroom toadstool fungus", "meadow night", _LOW, in_flocks=True),
    "star": _kind(_star, "star stars", "night sky", _HIGH, in_flocks=True, turn=15),
    "sun": _kind(_sun, "sun sunshine sunny", "sky meadow sea desert", _HIGH),
    "tree": _kind(_tree, "tree trees oak", "meadow night", (0.4, 0.85), aspect=0.82, in_flocks=True),
    "umbrella": _kind(_umbrella, "umbrella parasol brolly", "room desert sea", _LOW),
}


def draw_shard(height: int, rng: np.random.Generator) -> Image.Image:
    """A random shape, RGBA, with the colors, outline and size of a thing; at most `height` pixels high."""
    pen = Pen(max(6, height), max(6, height), rng)
    _shard(pen)
    layer = pen.layer.reduce(OVERSAMPLING)
    return layer.crop(layer.getbbox(alpha_only=True))


def draw_thing(kind: str, height: int, rng: np.random.Generator) -> Image.Image:
    """One thing on a transparent RGBA layer cropped to its visible pixels; no side exceeds 1.4 times `height`."""
    what = KINDS[kind]
    width = min(height * what.aspect, 1.4 * height)
    pen = Pen(max(6, round(width)), max(6, round(width / what.aspect)), rng)
    what.draw(pen)
    layer = pen.layer
    if rng.random() < 0.5:
        layer = layer.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if what.turn:
        angle = what.turn * (2 * rng.random() - 1)
        layer = layer.rotate(angle, expand=True)
    layer = layer.reduce(OVERSAMPLING)
    return layer.crop(layer.getbbox(alpha_only=True))
