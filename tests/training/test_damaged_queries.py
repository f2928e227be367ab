"""Unreadable query images in the attention plot and in the pointing game."""

import shutil

import pytest

from cmfah_hf import CMFAHModel, CMFAHProcessor
from cmfah_hf.data import load_image_text
from cmfah_hf.errors import ImageError
from cmfah_hf.training.evaluate import pointing_accuracy
from cmfah_hf.training.illustration import draw_attention
from cmfah_hf.training.settings.arguments import DataArguments


@pytest.fixture
def undrawn_plots():
    """Here, plots are drawn."""


@pytest.fixture
def towers(trained):
    return CMFAHModel.from_pretrained(trained.folder), CMFAHProcessor.from_pretrained(trained.folder)


@pytest.fixture
def pairs(trained, tmp_path):
    """The folder of query pairs, which tests modify."""
    return shutil.copytree(trained.scenes, tmp_path / "pairs")


def cut_short(paths):
    for path in paths:
        path.write_bytes(path.read_bytes()[:40])


def test_attention_plot_uses_the_first_readable_image(towers, pairs, tmp_path):
    images = sorted((pairs / "query").glob("*.png"))
    known = [len(set(towers[1].known_words(text))) for text in load_image_text(pairs, split="query")["text"]]
    kept = max(range(len(known)), key=known.__getitem__)  # the last one that is tried
    cut_short(path for number, path in enumerate(images) if number != kept)
    drawn = draw_attention(*towers, load_image_text(pairs, split="query"), DataArguments(), tmp_path)
    assert drawn is not None
    assert drawn.stat().st_size > 1000
    cut_short([images[kept]])
    assert draw_attention(*towers, load_image_text(pairs, split="query"), DataArguments(), tmp_path) is None


def test_pointing_game_names_a_damaged_image(towers, pairs):
    cut_short((pairs / "query").glob("*.png"))
    with pytest.raises(ImageError, match=r"^row 0: not an image"):
        pointing_accuracy(*towers, load_image_text(pairs, split="query"))
