"""Plots of results: precision-recall curves, precision at k, attention over an image, answers, a label graph."""

import os
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from cmfah_hf.evaluation.drawing import COLORS, DASHES, INK, new_plot, style_axes, write_plot
from cmfah_hf.evaluation.pointing import Boxes, boxes_by_word, region_weights
from cmfah_hf.retrieval.codes import as_array

if TYPE_CHECKING:
    import networkx

Curves = Mapping[str, Mapping[str, np.ndarray]]

_LABELS = {"hamming": "Hamming", "aqd": "AQD", "i2t": "image → text", "t2i": "text → image", "random": "random order"}


def plot_precision_recall(curves: Curves, path: str | os.PathLike, title: str | None = None) -> Path:
    """Draws the precision-recall curves of `RetrievalEvaluator.curves` into a PNG (or whatever `path` ends in).

    Args:
        curves: By name, each with `precision` and `recall`. The name `"random"` is drawn as a gray baseline. Curves
            of several methods can share a plot, under names of your own.
        path: The file; its folder is made.
        title: A line above the plot.
    """
    figure, axes = new_plot(title)
    for name, curve, style in _styled(curves):
        # One point alone (an exhaustive tie) would be no line at all.
        marker = "o" if len(curve["recall"]) == 1 else None
        axes.plot(curve["recall"], curve["precision"], marker=marker, label=_label(name), **style)
    axes.set(xlabel="Recall", ylabel="Precision", xlim=(0, 1))
    return _finish(figure, axes, path)


def plot_precision_at_k(curves: Curves, path: str | os.PathLike, title: str | None = None) -> Path:
    """Draws precision over the number of retrieved items, on a logarithmic axis.

    Args:
        curves: By name, each with `k` and `precision_at_k`; see `plot_precision_recall`.
        path: The file; its folder is made.
        title: A line above the plot.
    """
    figure, axes = new_plot(title)
    for name, curve, style in _styled(curves):
        axes.plot(curve["k"], curve["precision_at_k"], label=_label(name), **style)
    deepest = max((int(np.max(curve["k"])) for curve in curves.values()), default=1)
    axes.set_xscale("log")
    axes.set(xlabel="Retrieved items k", ylabel="Precision at k", xlim=(1, max(deepest, 2)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return _finish(figure, axes, path)


def plot_attention(
    image: Image.Image,
    weights: Any,
    words: Sequence[str],
    path: str | os.PathLike,
    boxes: Boxes | None = None,
    region_grid: tuple[int, int] | None = None,
) -> Path:
    """Draws the image, and one panel per word in which the regions that the word attends to are highlighted.

    All panels share one scale from 0, so uniform attention looks uniform.

    Args:
        image: The image; the region grid covers all of it.
        weights: `(R, W)`, how much each word attends to each region (`[attention-t]`, see docs/method.md), or `(R,)` of
            one word.
        words: The `W` words.
        path: The file; its folder is made.
        boxes: The boxes of the objects that the words name, drawn if given; see `pointing.Boxes`.
        region_grid: Rows and columns of the grid; a square by default.

    Raises:
        QueryError: If weights, words, boxes and grid do not fit together, or a weight is NaN.
    """
    weights = as_array(weights)
    weights_RW, grid = region_weights(weights[:, None] if weights.ndim == 1 else weights, words, region_grid)
    word_boxes = boxes_by_word(words, boxes) if boxes is not None else [[] for _ in words]
    image = image.convert("RGB")
    scale, colors = Normalize(0, float(weights_RW.max()) or 1.0), colormaps["plasma"]

    panels = len(words) + 1
    rows = ceil(panels / 5)
    columns = ceil(panels / rows)
    panel_height = 2.6 * min(max(image.height / image.width, 0.5), 2)
    figure = Figure(figsize=(2.6 * columns + 0.9, (panel_height + 0.35) * rows), dpi=150, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in axes:
        panel.set_axis_off()
    axes[0].imshow(image)
    axes[0].set_title("image", fontsize=11, color="#6B727A", style="italic")
    for panel, word, weights_R, its_boxes in zip(axes[1:], words, weights_RW.T, word_boxes, strict=False):
        heat = Image.fromarray(weights_R.reshape(grid).astype(np.float32)).resize(image.size, Image.Resampling.BICUBIC)
        heat = np.clip(np.asarray(heat), 0, scale.vmax)
        panel.imshow(image.convert("L"), cmap="gray", vmin=-90, vmax=285)
        # Weak attention stays transparent, so that the image remains visible under it.
        panel.imshow(heat, cmap=colors, norm=scale, alpha=0.8 * np.sqrt(scale(heat)))
        panel.set_title(word, fontsize=11, color=INK, weight="bold", parse_math=False)
        for left, top, right, bottom in its_boxes:
            for color, line in (("black", 3.2), ("#7CFFCB", 1.6)):
                panel.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, ec=color, lw=line))
    bar = figure.colorbar(ScalarMappable(scale, colors), ax=list(axes), shrink=0.8, aspect=28, pad=0.015)
    bar.set_label("attention weight", fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8, colors=INK)
    bar.outline.set_visible(False)
    return write_plot(figure, path)


def plot_results(
    query: str | Image.Image, images: Sequence[Image.Image], titles: Sequence[str], path: str | os.PathLike
) -> Path:
    """Draws the images that answer a query side by side, nearest first.

    Args:
        query: The text of the query, or its image, which is drawn first.
        images: The answers.
        titles: A line above each answer, such as its score.
        path: The file; its folder is made.
    """
    shown = list(zip(images, titles, strict=True))
    if isinstance(query, Image.Image):
        shown.insert(0, (query, "query"))
    figure = Figure(figsize=(1.9 * len(shown) + 0.2, 2.5), dpi=150, layout="constrained")
    axes = figure.subplots(1, len(shown), squeeze=False).ravel()
    for panel, (image, title) in zip(axes, shown, strict=True):
        panel.imshow(image.convert("RGB"))
        panel.set_axis_off()
        panel.set_title(title, fontsize=9, color=INK, parse_math=False)
    figure.suptitle(query if isinstance(query, str) else "nearest images", fontsize=12, color=INK, weight="bold")
    return write_plot(figure, path)


def plot_label_graph(graph: "networkx.DiGraph[str]", path: str | os.PathLike) -> Path:
    """Draws a label graph of `read_label_graph`: the labels on a circle, an arrow to each label that co-occurs.

    A dot's area grows with the number of items that have the label, an arrow's width with the probability.

    Args:
        graph: Nodes with `count`, edges with `probability`.
        path: The file; its folder is made.
    """
    names = list(graph)
    size = min(14.0, 5.0 + 0.07 * len(names))
    figure = Figure(figsize=(size, size), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal")
    angles = np.linspace(0, 2 * np.pi, len(names), endpoint=False)
    places = {name: (float(np.cos(a)), float(np.sin(a))) for name, a in zip(names, angles, strict=True)}
    counts = {name: int(graph.nodes[name]["count"]) for name in names}
    colors, largest = colormaps["viridis_r"], max(counts.values(), default=1) or 1
    for start, end, edge in graph.edges(data=True):
        probability = float(edge["probability"])
        arrow = {"arrowstyle": "-|>", "color": colors(probability), "lw": 0.6 + 1.6 * probability, "shrinkB": 7}
        axes.annotate("", places[end], places[start], arrowprops={**arrow, "connectionstyle": "arc3,rad=0.12"})
    for name, angle in zip(names, angles, strict=True):
        x, y = places[name]
        axes.scatter([x], [y], s=12 + 150 * counts[name] / largest, color=COLORS[0], zorder=3)
        turned = float(np.degrees(angle))
        is_left = 90 < turned < 270
        axes.text(
            1.08 * x,
            1.08 * y,
            name,
            rotation=turned + 180 if is_left else turned,
            rotation_mode="anchor",
            ha="right" if is_left else "left",
            va="center",
            fontsize=9 if len(names) < 60 else 6,
            color=INK,
            parse_math=False,
        )
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), colors), ax=axes, shrink=0.5, aspect=28, pad=0.01)
    bar.set_label("probability of the label at the arrow's head", fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8, colors=INK)
    bar.outline.set_visible(False)
    return write_plot(figure, path)


def _styled(curves: Curves) -> list[tuple[str, Mapping[str, np.ndarray], dict[str, Any]]]:
    named = [name for name in curves if name != "random"]
    styles: dict[str, dict[str, Any]] = {
        name: {"color": COLORS[i % len(COLORS)], "linestyle": DASHES[i % len(DASHES)], "linewidth": 2}
        for i, name in enumerate(named)
    }
    styles["random"] = {"color": "#9AA1A9", "linestyle": (0, (2, 2)), "linewidth": 1.4, "zorder": 1}
    return [(name, curve, styles[name]) for name, curve in curves.items()]


def _label(name: str) -> str:
    return ", ".join(_LABELS.get(part, part) for part in name.split("/"))


def _finish(figure: Figure, axes: Axes, path: str | os.PathLike) -> Path:
    axes.set_ylim(0, 1)
    style_axes(axes)
    return write_plot(figure, path)
