"""Plots of an inspection: label balance, most frequent words, words per item.

They are drawn on their own Figures, without pyplot and its global state, so that any thread can draw them.
"""

import os
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cmfah_hf.atomic import atomic_file
from cmfah_hf.data.inspection.report import Inspection
from cmfah_hf.errors import DataError

_BAR, _LINE, _INK, _FAINT, _EDGE = "#0072B2", "#D55E00", "#22262B", "#D9DDE2", "#8B929A"
# Maximum number of bars; the number of the rest is given below the plot.
_MOST_BARS = 40
_LONGEST_NAME = 28


def plot_inspection(inspection: Inspection, folder: str | os.PathLike) -> list[Path]:
    """Draws `labels.png` (if there are labels), `words.png` and `words_per_item.png` into a folder."""
    folder = Path(folder)
    files = []
    if inspection.labels is not None and inspection.labels.counts:
        labels = inspection.labels
        title = f"Items per class ({len(labels.counts)} classes, {labels.mean_per_item:.2f} labels per item)"
        files.append(_plot_bars(labels.counts, inspection.items, title, folder / "labels.png"))
    words = inspection.words
    kind = "words" if words.source == "text" else "tags"
    if words.most_frequent:
        once = words.once / words.distinct
        title = f"Most frequent {kind} ({words.distinct:,} in all, {once:.0%} of them in one item)"
        files.append(_plot_bars(words.most_frequent, inspection.items, title, folder / "words.png"))
    files.append(_plot_lengths(inspection, kind, folder / "words_per_item.png"))
    return files


def _plot_bars(counts: Mapping[str, int], items: int, title: str, path: Path) -> Path:
    shown = list(counts.items())[:_MOST_BARS]
    figure = Figure(figsize=(7.2, 0.9 + 0.24 * max(len(shown), 3)), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    places = range(len(shown))
    bars = axes.barh(places, [count for _, count in shown], color=_BAR, height=0.72)
    axes.bar_label(bars, [f"{count:,}  {count / items:.1%}" for _, count in shown], padding=4, fontsize=8, color=_INK)
    axes.set_yticks(places, [_short(name) for name, _ in shown], parse_math=False)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(0, max(count for _, count in shown) * 1.16)
    left_out = len(counts) - len(shown)
    axes.set_xlabel("Items" + (f"; {left_out:,} rarer ones are not shown" if left_out else ""))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value == int(value) else "")
    _finish(axes, title, "x")
    axes.tick_params(axis="y", length=0)
    return _write(figure, path)


def _plot_lengths(inspection: Inspection, kind: str, path: Path) -> Path:
    histogram, summary = inspection.words.histogram, inspection.words.per_item
    figure = Figure(figsize=(7.2, 4.0), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    # All lengths beyond the 99.5th percentile are one bar, so that a few very long texts do not compress the rest.
    total = sum(histogram.values())
    upto = accumulate(histogram.values())
    cut = next(length for length, passed in zip(histogram, upto, strict=True) if passed >= 0.995 * total)
    width = max(1, -(-(cut + 1) // 60))
    bins: dict[int, int] = {}
    beyond = 0
    for length, count in histogram.items():
        if length > cut:
            beyond += count
        else:
            bins[length // width] = bins.get(length // width, 0) + count
    axes.bar([place * width for place in bins], list(bins.values()), width=0.9 * width, align="edge", color=_BAR)
    last = (cut // width + 1) * width
    if beyond:
        axes.bar([last], [beyond], width=0.9 * width, align="edge", color=_EDGE, label=f"{cut + 1:,} and more")
        last += width
    # With one bar for each length, the mark is in the middle of its bar.
    middle = summary["median"] + (0.45 if width == 1 else 0)
    axes.axvline(middle, color=_LINE, linewidth=1.6, label=f"median {summary['median']:g}, mean {summary['mean']:.1f}")
    axes.set_xlim(-0.4 * width, last + 0.3 * width)
    axes.set(xlabel=f"{kind.capitalize()} per item", ylabel="Items")
    if width == 1:
        step = max(1, last // 12)
        ticks = range(0, cut + 1, step)
        axes.set_xticks([tick + 0.45 for tick in ticks], [str(tick) for tick in ticks])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value == int(value) else "")
    axes.legend(frameon=False, fontsize=9, labelcolor=_INK)
    _finish(axes, f"{kind.capitalize()} per item ({summary['empty']:,} of {total:,} have none)", "y")
    return _write(figure, path)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


def _finish(axes: Axes, title: str, grid: Literal["x", "y"]) -> None:
    axes.set_title(title, fontsize=11, color=_INK, loc="left", weight="bold", parse_math=False)
    axes.grid(axis=grid, color=_FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_EDGE)
    axes.tick_params(colors=_INK, labelsize=8.5)


def _write(figure: Figure, path: Path) -> Path:
    with atomic_file(path, DataError) as temporary:
        figure.savefig(temporary, facecolor="white", format="png")
    return path
