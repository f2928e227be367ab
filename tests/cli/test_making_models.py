"""Commands that make models, `cmfah train` and `cmfah compress`: printed figures and unreadable images."""

import shutil

import numpy as np
from dual_encoders import write_dual_encoder
from PIL import Image


def test_training_prints_the_figures_of_both_databases(cmfah, write_config, scenes_folder, tmp_path):
    changes = {"data": {"dataset": str(scenes_folder), "expand": False}, "training": {"num_train_epochs": 1}}
    config = write_config(tmp_path / "run.yaml", **changes)
    done = cmfah("train", config, "--protocol", "unseen", "--output_dir", tmp_path / "model")
    assert done.code == 0, done.err
    before, title, after = done.out.partition("The same queries against the training pairs\n")
    assert title
    assert "Test queries, one modality at a time\n" in before
    assert "hamming  map " in after


def test_compression_counts_unreadable_images_and_names_the_first(cmfah, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    encoder, images = write_dual_encoder("clip", tmp_path / "clip"), tmp_path / "images"
    images.mkdir()
    generator = np.random.default_rng(0)
    for number in range(20):
        Image.fromarray(generator.integers(0, 255, (20, 30, 3), np.uint8)).save(images / f"{number:02}.png")
        shutil.copy(encoder / "config.json", images / f"broken-{number:02}.png")
    done = cmfah("compress", encoder, images, "--output", tmp_path / "model", "--bits", 16)
    assert done.code == 0, done.err
    assert "20 images in 2 bytes each, 20 left out as unreadable" in done.out
    named = [line for line in caplog.messages if line.startswith("Left out: ")]
    assert len(named) == 10
    assert "Left out 20 of 40 images, because they cannot be read; the first 10 are named above." in caplog.messages
