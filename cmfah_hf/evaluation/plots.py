"""Plots of results: precision-recall curves, precision at k, attention over an image, search results, label graphs.

Figures are matplotlib `Figure` objects instead of pyplot's: without windows or global state, and usable in any thread.
"""

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

from cmfah_hf.atomic import atomic_file
from cmfah_hf.evaluation.pointing import Box, Boxes, boxes_by_word, region_weights
from cmfah_hf.retrieval.codes import as_array

if TYPE_CHECKING:
    import networkx

Curves = Mapping[str, Mapping[str, np.ndarray]]

# Distinguishable with any color vision (Okabe and Ito); the dashes distinguish neighbors in grayscale.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#332288", "#882255")
DASHES = ("-", (0, (5, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (1.2, 1.2)))
INK, FAINT = "#22262B", "#D9DDE2"
_LABELS = {"hamming": "Hamming", "aqd": "AQD", "i2t": "image → text", "t2i": "text → image", "random": "random order"}


def new_plot(title: str | None = None) -> tuple[Figure, Axes]:
    """An empty plot with one pair of axes and a title."""
    figure = Figure(figsize=(6.4, 4.4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    if title:
        axes.set_title(title, fontsize=12, color=INK, loc="left", weight="bold", parse_math=False)
    return figure, axes


def style_axes(axes: Axes) -> None:
    """Applies the common style to grid, spines and legend."""
    axes.grid(color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#8B929A")
    axes.tick_params(colors=INK, labelsize=9)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)


def write_plot(figure: Figure, path: str | os.PathLike) -> Path:
    """Writes a figure atomically, in the format of the path's suffix, by default PNG."""
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format=Path(path).suffix[1:].lower() or "png", facecolor="white")
    return Path(path)


def plot_precision_recall(curves: Curves, path: str | os.PathLike, title: str | None = None) -> Path:
    """Plots the precision-recall curves of `RetrievalEvaluator.curves`.

    Args:
        curves: By name, each with `precision` and `recall`; `"random"` is drawn as a gray baseline. Curves of several
            methods can share a plot, under any names.
        path: The file, in the format of its suffix; its folder is created.
        title: A line above the plot.
    """
    figure, axes = new_plot(title)
    for name, curve, style in _styled(curves):
        # A single point, as of one tie of all items, would not be visible as a line.
        marker = "o" if len(curve["recall"]) == 1 else None
        axes.plot(curve["recall"], curve["precision"], marker=marker, label=_label(name), **style)
    axes.set(xlabel="Recall", ylabel="Precision", xlim=(0, 1))
    return _finish(figure, axes, path)


def plot_precision_at_k(curves: Curves, path: str | os.PathLike, title: str | None = None) -> Path:
    """Plots precision over the number of retrieved items, on a logarithmic axis; see `plot_precision_recall`.

    Each of the curves has `k` and `precision_at_k`.
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
    seen: Box | None = None,
) -> Path:
    """Plots the image, and one panel per word with its attention to the regions, on a common scale from 0.

    Args:
        image: The image.
        weights: `(R, W)`, attention of each word to each region (`[attention-t]`, see docs/method.md), or `(R,)` of
            one word.
        words: The `W` words.
        path: The file; its folder is created.
        boxes: Boxes of the objects that the words name, which are drawn; see `pointing.Boxes`.
        region_grid: Rows and columns of the grid; a square by default.
        seen: The part of the image that the grid covers, as a box. None: the whole image.

    Raises:
        QueryError: If weights, words, boxes and grid do not fit together, or a weight is NaN.
    """
    weights = as_array(weights)
    weights_RW, grid = region_weights(weights[:, None] if weights.ndim == 1 else weights, words, region_grid)
    word_boxes = boxes_by_word(words, boxes) if boxes is not None else [[] for _ in words]
    image = image.convert("RGB")
    left, top, right, bottom = seen or (0, 0, *image.size)
    covered = max(1, round(right - left)), max(1, round(bottom - top))
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
        heat = Image.fromarray(weights_R.reshape(grid).astype(np.float32)).resize(covered, Image.Resampling.BICUBIC)
        heat = np.clip(np.asarray(heat), 0, scale.vmax)
        panel.imshow(image.convert("L"), cmap="gray", vmin=-90, vmax=285)
        # Weak attention is transparent, so that the image is visible.
        edges = (left - 0.5, right - 0.5, bottom - 0.5, top - 0.5)  # a pixel's center has whole coordinates
        panel.imshow(heat, cmap=colors, norm=scale, alpha=0.8 * np.sqrt(scale(heat)), extent=edges)
        panel.set(xlim=(-0.5, image.width - 0.5), ylim=(image.height - 0.5, -0.5))
        panel.set_title(word, fontsize=11, color=INK, weight="bold", parse_math=False)
        for x, y, end_x, end_y in its_boxes:
            for color, line in (("black", 3.2), ("#7CFFCB", 1.6)):
                panel.add_patch(Rectangle((x, y), end_x - x, end_y - y, fill=False, ec=color, lw=line))
    bar = figure.colorbar(ScalarMappable(scale, colors), ax=list(axes), shrink=0.8, aspect=28, pad=0.015)
    bar.set_label("attention weight", fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8, colors=INK)
    bar.outline.set_visible(False)
    return write_plot(figure, path)


def plot_results(
    query: str | Image.Image, images: Sequence[Image.Image], titles: Sequence[str], path: str | os.PathLike
) -> Path:
    """Plots the images that a search found side by side, nearest first.

    Args:
        query: The text or image of the query. An image is drawn first.
        images: The results.
        titles: A line above each result, such as its score.
        path: The file; its folder is created.
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
    """Plots a graph of `read_label_graph`: labels on a circle, with arrows to labels that co-occur with them.

    The area of a dot grows with the number of items with the label, the width of an arrow with the probability.
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
