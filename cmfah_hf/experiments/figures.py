"""Plots of results over code lengths or by method, with the spread over seeds."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cmfah_hf.evaluation.plots import COLORS, DASHES, new_plot, style_axes, write_plot
from cmfah_hf.experiments.report import DIRECTIONS, Summary, select, summarize
from cmfah_hf.experiments.results import Result


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
