"""Drawing shared by all plots: colors, axes of one style, and files written whole.

Figures are matplotlib `Figure` objects, never pyplot's, so there is no window and no global state, and any thread may
draw.
"""

import os
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cmfah_hf.atomic import atomic_file

# Distinguishable with any color vision (Okabe and Ito); the dashes distinguish neighbors in grayscale.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#332288", "#882255")
DASHES = ("-", (0, (5, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (1.2, 1.2)))
INK, FAINT = "#22262B", "#D9DDE2"


def new_plot(title: str | None = None) -> tuple[Figure, Axes]:
    """An empty plot with one pair of axes, and a title above it."""
    figure = Figure(figsize=(6.4, 4.4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    if title:
        axes.set_title(title, fontsize=12, color=INK, loc="left", weight="bold", parse_math=False)
    return figure, axes


def style_axes(axes: Axes) -> None:
    """Grid, spines and legend in the style of all plots."""
    axes.grid(color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#8B929A")
    axes.tick_params(colors=INK, labelsize=9)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)


def write_plot(figure: Figure, path: str | os.PathLike) -> Path:
    """Writes a figure whole or not at all, in the format that the path ends in; PNG by default."""
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format=Path(path).suffix[1:].lower() or "png", facecolor="white")
    return Path(path)
