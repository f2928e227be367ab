import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from cmfah_hf.errors import CMFAHError, QueryError
from cmfah_hf.evaluation import RetrievalEvaluator
from cmfah_hf.evaluation.plots import plot_attention, plot_precision_at_k, plot_precision_recall


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def has_color(image, color):
    wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return (np.abs(image - wanted).max(axis=2) < 8).sum() > 100


@pytest.fixture(scope="module")
def curves():
    rng = np.random.default_rng(0)
    labels_q, labels_db = rng.random((9, 4)) < 0.4, rng.random((80, 4)) < 0.4
    values = [np.tanh(rng.normal(size=(rows, 16))) for rows in (9, 9, 80, 80)]
    return RetrievalEvaluator().curves(*values, labels_q, labels_db)


@pytest.mark.parametrize("plot", [plot_precision_recall, plot_precision_at_k])
def test_every_curve_is_drawn(tmp_path, plot, curves):
    path = plot(curves, tmp_path / "plots" / "curves.png", title="A price: $5 or $6")
    image = pixels(path)
    for color in ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#9AA1A9"):
        assert has_color(image, color)
    one = pixels(plot({"hamming/i2t": curves["hamming/i2t"]}, tmp_path / "one.png"))
    assert has_color(one, "#0072B2")
    assert not has_color(one, "#D55E00")


def heat_center(image, panel, panels):
    """The center of the strongest attention (bright yellow), as fractions of one panel's width and the height."""
    width = image.shape[1] * 0.88 / panels
    part = image[:, int(panel * width) : int((panel + 1) * width)]
    bright = (part[..., 0] > 190) & (part[..., 1] > 140) & (part[..., 2] < 110)
    y, x = np.nonzero(bright)
    return x.mean() / part.shape[1], y.mean() / part.shape[0]


def test_attention_is_drawn_at_the_attended_region(tmp_path):
    weights = np.full((49, 2), 0.001)
    weights[1 * 7 + 1, 0] = weights[5 * 7 + 5, 1] = 0.9
    path = tmp_path / "attention.png"
    plot_attention(Image.new("RGB", (140, 140), (90, 90, 90)), weights, ["dog", "$x$"], path)
    image = pixels(path)
    x, y = heat_center(image, 1, 3)
    assert x < 0.4
    assert y < 0.5
    x, y = heat_center(image, 2, 3)
    assert x > 0.6
    assert y > 0.6


def test_attention_is_drawn_over_the_part_of_the_image_that_it_covers(tmp_path):
    image, weights = Image.new("RGB", (280, 140), (90, 90, 90)), np.full((4, 1), 0.001)
    weights[1] = 0.9  # at the top right of the left half of the image
    options = {"words": ["dog"], "region_grid": (2, 2)}
    plot_attention(image, weights, path=tmp_path / "part.png", seen=(0, 0, 140, 140), **options)
    plot_attention(image, weights, path=tmp_path / "whole.png", **options)
    part, whole = (heat_center(pixels(tmp_path / f"{name}.png"), 1, 2) for name in ("part", "whole"))
    assert 0.3 < part[0] < 0.55
    assert whole[0] > 0.7


def test_boxes_are_drawn_only_if_given(tmp_path):
    image, weights = Image.new("L", (80, 60), 120), np.full(6, 1 / 6)
    options = {"words": ["dog"], "region_grid": (2, 3)}
    plot_attention(image, weights, path=tmp_path / "plain.png", **options)
    plot_attention(image, weights, path=tmp_path / "boxes.png", boxes={"dog": [(10, 10, 60, 40)]}, **options)
    assert not has_color(pixels(tmp_path / "plain.png"), "#7CFFCB")
    assert has_color(pixels(tmp_path / "boxes.png"), "#7CFFCB")


def test_weights_of_a_wrong_shape_are_refused(tmp_path):
    with pytest.raises(QueryError, match="48 regions"):
        plot_attention(Image.new("RGB", (8, 8)), np.ones((48, 1)), ["dog"], tmp_path / "never.png")
    assert not (tmp_path / "never.png").exists()


@pytest.mark.timeout(60)
def test_a_plot_never_replaces_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(CMFAHError, match="a pipe"):
        plot_precision_at_k({"x": {"k": [1, 2], "precision_at_k": [1, 0.5]}}, tmp_path / "pipe.png")
    assert (tmp_path / "pipe.png").is_fifo()


def test_pyplot_is_not_imported(tmp_path):
    script = (
        "import sys\n"
        "from cmfah_hf.evaluation.plots import plot_precision_at_k\n"
        "plot_precision_at_k({'x': {'k': [1, 2], 'precision_at_k': [1, 0.5]}}, sys.argv[1])\n"
        "print('matplotlib.pyplot' in sys.modules)\n"
    )
    command = [sys.executable, "-c", script, tmp_path / "plot.png"]
    assert subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip() == "False"
    assert (tmp_path / "plot.png").exists()
