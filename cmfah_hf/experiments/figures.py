"""Plots of results over code lengths or by method, and of curves, with the spread over seeds."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from cmfah_hf.evaluation.plots import COLORS, DASHES, new_plot, style_axes, write_plot
from cmfah_hf.experiments.curves import Curve, mean_curves
from cmfah_hf.experiments.report import DIRECTIONS, Summary, select, summarize
from cmfah_hf.experiments.results import Result

_GRAY = "#9AA1A9"


def plot_results(
    results: Sequence[Result],
    path: str | os.PathLike,
    metric: str = "map",
    split: str = "query",
    direction: str = "mean",
) -> Path:
    """Plots a figure by method: a line over the code lengths, or a point per method if there is only one length.

    Args:
        results: The results, of one data set and database.
        path: The file, in the format of its suffix; its folder is created.
        metric, split, direction: The figure.

    Raises:
        CMFAHError: If there is no such figure.
    """
    summaries = summarize(select(results, {"metric": metric, "split": split, "direction": direction}))
    names = ("data", "title", "database", "encoding", "ranking")
    differing = [name for name in names if len({one.of[name] for one in summaries}) > 1]
    lines: dict[str, list[Summary]] = {}
    for one in summaries:
        lines.setdefault(", ".join(str(one.of[name]) for name in differing) or str(one.of["title"]), []).append(one)
    figure, axes = new_plot()
    lengths = sorted({one.of["bits"] for one in summaries if one.of["bits"] is not None})
    if len(lengths) > 1:
        for number, (name, points) in enumerate(lines.items()):
            of_codes = sorted((one for one in points if one.of["bits"] is not None), key=lambda one: one.of["bits"])
            style: dict[str, Any] = {"label": name, "color": COLORS[number % len(COLORS)]}
            style["linestyle"] = DASHES[number % len(DASHES)]
            if of_codes:
                bits, means = [one.of["bits"] for one in of_codes], [one.mean for one in of_codes]
                axes.errorbar(bits, means, [one.spread or 0.0 for one in of_codes], capsize=3, **style)
            else:  # real values have no code length
                axes.axhline(points[0].mean, **style)
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, [str(length) for length in lengths])
        axes.set(xlabel="Bits", ylabel=f"{metric.upper()}, {DIRECTIONS[direction]}")
    else:
        for number, points in enumerate(reversed(lines.values())):
            for one in points:
                axes.errorbar([one.mean], [number], xerr=[one.spread or 0.0], fmt="o", capsize=3, color=COLORS[0])
        axes.set_yticks(range(len(lines)), list(reversed(lines)))
        axes.set(xlabel=f"{metric.upper()}, {DIRECTIONS[direction]}")
    style_axes(axes)
    return write_plot(figure, path)


def plot_curves(curves: Sequence[Curve], path: str | os.PathLike, kind: str = "precision@k") -> Path:
    """Plots curves by method, a panel for each direction: means over the seeds, and the standard deviation as a band.

    Args:
        curves: As from `curves_of_runs`, of this kind.
        path: The file, in the format of its suffix; its folder is created.
        kind: `"precision@k"` or `"precision-recall"`.
    """
    means = mean_curves(curves, kind)
    of_methods = [one for one in means if one.ranking != "random"] or means
    names = ("data", "title", "bits", "protocol", "database", "encoding", "ranking")
    differing = [name for name in names if name == "title" or len({getattr(one, name) for one in of_methods}) > 1]
    lines: dict[str, list[Curve]] = {}
    for one in of_methods:
        lines.setdefault(", ".join(str(getattr(one, name)) for name in differing), []).append(one)
    # Methods on the same data share the curve of a random order.
    random = {(one.direction, *one.y.round(3)): one for one in means if one.ranking == "random"}
    directions = [name for name in DIRECTIONS if any(one.direction == name for one in of_methods)]
    figure = Figure(figsize=(6.4 * len(directions), 4.4), dpi=150, layout="constrained")
    all_axes = figure.subplots(1, len(directions), squeeze=False, sharey=True)[0]
    for axes, direction in zip(all_axes, directions, strict=True):
        for number, (label, of_line) in enumerate(lines.items()):
            for one in (one for one in of_line if one.direction == direction):
                color, dashes = COLORS[number % len(COLORS)], DASHES[number % len(DASHES)]
                # A single point, as of one tie of all items, would not be visible as a line.
                marker = "o" if len(one.x) == 1 else None
                axes.plot(one.x, one.y, color=color, linestyle=dashes, marker=marker, label=label)
                axes.fill_between(one.x, one.y - one.spread, one.y + one.spread, color=color, alpha=0.15, lw=0)
        for number, one in enumerate(one for one in random.values() if one.direction == direction):
            axes.plot(one.x, one.y, color=_GRAY, linestyle=":", label="_" if number else "random order", zorder=1)
        x_label = "Retrieved items k" if kind == "precision@k" else "Recall"
        axes.set(xlabel=x_label, ylabel="Precision", title=DIRECTIONS[direction])
        style_axes(axes)
    all_axes[0].set_ylim(bottom=0)  # of all panels
    return write_plot(figure, path)
