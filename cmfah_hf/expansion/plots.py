"""Plot of the neighborhood of a word in the graph and in the knowledge.

Drawn on its own Figure, without pyplot; equal expanders give equal plots.
"""

import os
from math import cos, pi, sin, sqrt
from pathlib import Path
from typing import Any

from cmfah_hf.atomic import atomic_file
from cmfah_hf.errors import QueryError
from cmfah_hf.expansion.expander import GraphExpander

_INK, _FAINT = "#22262B", "#B8C0C8"
_OWN, _GRAPH, _KNOWLEDGE = "#E69F00", "#0072B2", "#009E73"  # distinguishable with any kind of color vision
# matplotlib's default font has no Han characters; these do, if installed.
_FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "SimHei", "PingFang SC")


def plot_neighborhood(
    expander: GraphExpander, word: str, path: str | os.PathLike, words: int = 12, related: int = 7
) -> Path:
    """Draws a word, the words that a walk from it visits most, and its related words in the knowledge.

    They are around the word clockwise, the first at the top. The width of a line grows with the probability of the hop;
    between two other words, only the most probable hop of each is drawn. Dashed lines are those of the knowledge. At
    most `words` words of the graph and `related` of the knowledge are drawn.
    """
    from matplotlib import font_manager
    from matplotlib.figure import Figure

    own = expander.graph.split(word)
    visits = expander.expected_visits(word) if len(own) == 1 else {}
    known = expander.knowledge.related_to(own) if expander.knowledge is not None and len(own) == 1 else []
    if not visits and not known:
        raise QueryError(f"{word!r} is not a single word of the graph or of the knowledge; give one of their words.")
    (word,) = own
    visited = [other for other in visits if other != word][:words]
    from_knowledge = [other for other, _ in known if other not in visited][:related]
    places = _places(word, [*visited, *from_knowledge])

    installed = set(font_manager.get_font_names())
    font: dict[str, Any] = {
        "family": [name for name in _FONTS if name in installed],
        "color": _INK,
        "parse_math": False,
    }
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
    for other in from_knowledge:
        ends = zip(places[word], places[other], strict=True)
        axes.plot(*ends, color=_KNOWLEDGE, linewidth=1.3, linestyle=(0, (4, 3)), zorder=2)
    for names, color in (([word], _OWN), (visited, _GRAPH), (from_knowledge, _KNOWLEDGE)):
        for name in names:
            box = {"boxstyle": "round,pad=0.4", "facecolor": "white", "edgecolor": color, "linewidth": 2}
            size = 17 if name == word else 12
            axes.text(*places[name], name, ha="center", va="center", zorder=4, fontsize=size, bbox=box, **font)
    legend = [("visited most by walks on the graph", _GRAPH)]
    legend += [("related by the knowledge", _KNOWLEDGE)] * bool(from_knowledge)
    for x, (line, color) in zip((0.05, 0.5), legend, strict=False):
        figure.text(x, 0.965, "■", color=color, fontsize=14, va="center", family="DejaVu Sans")
        figure.text(x + 0.025, 0.965, line, fontsize=12, va="center", **font)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format=Path(path).suffix[1:].lower() or "png")
    return Path(path)


def _places(word: str, around: list[str]) -> dict[str, tuple[float, float]]:
    """The word in the center, the others on an ellipse, every second one closer, so that none hides another."""
    places = {word: (0.0, 0.0)}
    for number, other in enumerate(around):
        angle, radius = pi / 2 - 2 * pi * number / len(around), 0.98 if number % 2 == 0 or len(around) < 9 else 0.72
        places[other] = (radius * 1.08 * cos(angle), radius * sin(angle))
    return places


def _hops(expander: GraphExpander, word: str, visited: list[str]) -> list[tuple[str, str, float]]:
    """The hops from the word to those around it, and from each of these the most probable one to another of them."""
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
