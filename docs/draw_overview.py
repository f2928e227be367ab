"""Draws docs/images/overview.png: a sentence, its 64 bits, and the images that lie nearest to it.

    python docs/draw_overview.py [FILE]

The model is the one that comes with the package, the images are drawn scenes that it was not trained on.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from cmfah_hf import CrossMediaRetriever
from cmfah_hf.data import load_scenes
from cmfah_hf.retrieval.codes import unpack
from cmfah_hf.space.settings import bundled_space

QUERY = "boat sun"
INK, SOFT, ONE, ZERO, OTHER = "#20242A", "#6B727A", "#2F5D8C", "#DCE6F0", "#D6453D"


def draw_bits(
    axes, bits: np.ndarray, left: float, bottom: float, size: float, against: np.ndarray | None = None
) -> None:
    """64 bits as 8 x 8 squares; those that differ from others are red."""
    step = size / 8
    for number, bit in enumerate(bits):
        row, column = divmod(number, 8)
        color = OTHER if against is not None and bit != against[number] else ONE if bit > 0 else ZERO
        corner = (left + column * step, bottom + (7 - row) * step)
        axes.add_patch(Rectangle(corner, step * 0.88, step * 0.88, color=color, lw=0))


def main(path: Path) -> None:
    """Searches, and draws what was found."""
    scenes = load_scenes(1, 300)["query"]
    retriever = CrossMediaRetriever.from_pretrained(bundled_space() / "model")
    retriever.add_images(scenes)
    query = np.sign(retriever.encode_texts([QUERY])[0])
    found = retriever.search(text=QUERY, k=5, metric="hamming")
    codes = unpack(retriever.images.codes, 64)
    ids = retriever.images.ids.tolist()

    figure = Figure(figsize=(11, 3.3), dpi=150)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 11), ylim=(0, 3.3))
    axes.set_axis_off()
    text = {"color": INK, "ha": "center", "va": "center"}
    axes.add_patch(FancyBboxPatch((0.3, 1.65), 1.5, 0.5, boxstyle="round,pad=0.08", fc="#F4F6F8", ec=SOFT, lw=1))
    axes.text(1.05, 1.9, f'"{QUERY}"', fontsize=14, weight="bold", **text)
    axes.text(1.05, 2.62, "a sentence, or an image", fontsize=10, **{**text, "color": SOFT})
    draw_bits(axes, query, 2.65, 1.25, 1.3)
    axes.text(3.3, 2.82, "64 bits, 8 bytes", fontsize=10, **{**text, "color": SOFT})
    axes.text(3.3, 0.95, "real values too,\nto break ties", fontsize=8.5, **{**text, "color": SOFT})
    for start, end in ((1.98, 2.52), (4.1, 4.72)):
        axes.add_patch(
            FancyArrowPatch((start, 1.9), (end, 1.9), arrowstyle="-|>", mutation_scale=16, color=SOFT, lw=1.5)
        )
    axes.text(
        7.85,
        3.1,
        "the images whose bits differ least, exactly, out of millions",
        fontsize=10,
        **{**text, "color": SOFT},
    )
    for number, (name, distance) in enumerate(zip(found.ids[0], found.scores[0], strict=True)):
        left, row = 4.9 + number * 1.21, ids.index(name)
        axes.imshow(scenes[row]["image"], extent=(left, left + 1.08, 1.78, 2.86), zorder=1)
        draw_bits(axes, codes[row], left + 0.14, 0.78, 0.8, query)
        axes.text(left + 0.54, 0.5, f"{abs(distance):.0f} bits differ", fontsize=9, **text)
    axes.set(xlim=(0, 11), ylim=(0, 3.3), aspect="auto")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor="white", metadata={"Software": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "images" / "overview.png")
