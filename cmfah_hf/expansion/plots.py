"""A picture of the words around a word: those of the graph, those of the knowledge, and the hops between them.

Drawn on a Figure of its own, never through pyplot; equal expanders give equal pictures.
"""

import os
from math import cos, pi, sin, sqrt
from pathlib import Path

from cmfah_hf.atomic import atomic_file
from cmfah_hf.errors import QueryError
from cmfah_hf.expansion.expander import GraphExpander

_INK, _FAINT = "#22262B", "#B8C0C8"
_OWN, _GRAPH, _KNOWLEDGE = "#E69F00", "#0072B2", "#009E73"  # told apart with any kind of colour vision
# matplotlib's own font knows no Han characters; these do, where one of them is installed.
_FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "SimHei", "PingFang SC")


def plot_neighbourhood(
    expander: GraphExpander, word: str, path: str | os.PathLike, words: int = 12, related: int = 7
) -> Path:
    """Draws a word, the words that a walk from it visits most, and the words that the knowledge relates to it.

    Both stand around it clockwise, the first at the top. The width of a line grows with the probability of the hop;
    between the words around, the likeliest hop of each is drawn. Broken lines are the knowledge's.

    Args:
        expander: A fitted expander.
        word: A word of its graph or of its knowledge.
        path: The file, a PNG or whatever it ends in; its folder is made.
        words: Words of the graph that are drawn, at most.
        related: Words of the knowledge that are drawn beside them, at most.

    Raises:
        QueryError: If it is not one word, or neither the graph nor the knowledge knows it.
    """
    from matplotlib import font_manager
    from matplotlib.figure import Figure

    own = expander.graph.split(word)
    visits = expander.expected_visits(word) if len(own) == 1 else {}
    known = expander.knowledge.related_to(own) if expander.knowledge is not None and len(own) == 1 else []
    if not visits and not known:
        raise QueryError(f"{word!r} is no single word of the graph or of the knowledge; give one of their words.")
    (word,) = own
    visited = [other for other in visits if other != word][:words]
    told = [other for other, _ in known if other not in visited][:related]
    places = _places(word, [*visited, *told])

    installed = set(font_manager.get_font_names())
    font = {"family": [name for name in _FONTS if name in installed], "color": _INK, "parse_math": False}
    figure = Figure(figsize=(9, 7.6), dpi=120, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 0.94))
    axes.set(xlim=(-1.25, 1.25), ylim=(-1.1, 1.1))
    axes.axis("off")
    for a, b, probability in _hops(expander, word, visited):
        middle = word in (a, b)
        axes.plot(
            *zip(places[a], places[b], strict=True), color=_GRAPH if middle else _FAINT, zorder=2 if middle else 1,
            linewidth=0.6 + 10 * sqrt(probability) if middle else 0.6 + 5 * sqrt(probability), alpha=0.7,
        )  # fmt: skip
    for other in told:
        line = zip(places[word], places[other], strict=True)
        axes.plot(*line, color=_KNOWLEDGE, linewidth=1.3, linestyle=(0, (4, 3)), zorder=2)
    for names, color in (([word], _OWN), (visited, _GRAPH), (told, _KNOWLEDGE)):
        for name in names:
            box = {"boxstyle": "round,pad=0.4", "facecolor": "white", "edgecolor": color, "linewidth": 2}
            size = 17 if name == word else 12
            axes.text(*places[name], name, ha="center", va="center", zorder=4, fontsize=size, bbox=box, **font)
    said = [("visited most by walks on the graph", _GRAPH)] + [("related by the knowledge", _KNOWLEDGE)] * bool(told)
    for x, (line, color) in zip((0.05, 0.5), said, strict=False):
        figure.text(x, 0.965, "■", color=color, fontsize=14, va="center", family="DejaVu Sans")
        figure.text(x + 0.025, 0.965, line, fontsize=12, va="center", **font)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format=Path(path).suffix[1:].lower() or "png")
    return Path(path)


def _places(word: str, around: list[str]) -> dict[str, tuple[float, float]]:
    """The word in the middle, the others on an ellipse, every other one a little nearer, so that none hides another."""
    places = {word: (0.0, 0.0)}
    for number, other in enumerate(around):
        angle, radius = pi / 2 - 2 * pi * number / len(around), 0.98 if number % 2 == 0 or len(around) < 9 else 0.72
        places[other] = (radius * 1.08 * cos(angle), radius * sin(angle))
    return places


def _hops(expander: GraphExpander, word: str, visited: list[str]) -> list[tuple[str, str, float]]:
    """The hops from the word to those around it, and of each of these the likeliest to another of them."""
    numbers = expander.graph.word_numbers
    if word not in numbers:
        return []
    own = numbers[word]
    around = [numbers[other] for other in visited]
    hops_WW = expander.transitions[[own, *around]][:, around].toarray()
    found = [(word, other, p) for other, p in zip(visited, hops_WW[0].tolist(), strict=True) if p > 0]
    for place, other in enumerate(visited):
        hops_WW[place + 1, place] = 0.0
        best = int(hops_WW[place + 1].argmax())
        if hops_WW[place + 1, best] > 0:
            found.append((other, visited[best], float(hops_WW[place + 1, best])))
    return found
