"""Photographs and published weights from the folder named by the environment variable CMFAH_DATA."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file

from cmfah_hf.data import load_image_text
from cmfah_hf.models import CMFAHConfig, CMFAHImageModel, CMFAHModel, CMFAHProcessor
from cmfah_hf.retrieval import CrossMediaRetriever
from cmfah_hf.training import bundled_configuration, keep_regions, parse_run, train
from cmfah_hf.training.backbone import load_backbone_weights
from cmfah_hf.training.evaluate import encode_pairs

FOLDER = Path(os.environ.get("CMFAH_DATA", ""))
WEIGHTS, PAIRS = FOLDER / "weights" / "vgg19-imagenet", FOLDER / "data" / "coco-pairs"

pytestmark = [
    pytest.mark.photographs,
    pytest.mark.skipif(
        not os.environ.get("CMFAH_DATA") or not WEIGHTS.is_dir() or not PAIRS.is_dir(),
        reason="CMFAH_DATA names no folder with data/coco-pairs and weights/vgg19-imagenet",
    ),
]
# Expected by the weights: 0..255 minus these means, in the order red, green, blue.
CHANNEL_MEANS = np.array([123.68, 116.779, 103.939])


@pytest.fixture(scope="module")
def settings():
    return parse_run(bundled_configuration("cmfah-coco-pairs.yaml"), ["--use_cpu", "true"])


@pytest.fixture(scope="module")
def tower(settings):
    tower = CMFAHImageModel(CMFAHConfig(**settings.model)).eval()
    load_backbone_weights(tower, "weights/vgg19-imagenet")  # below CMFAH_DATA
    return tower


def test_regions_match_torchvision_vgg19_on_the_same_pixels(settings, tower):
    config = tower.config
    processor = CMFAHProcessor.from_vocabulary(config, [], settings.data.image_mean, settings.data.image_std)
    image = Image.open(sorted((PAIRS / "train").glob("*.jpg"))[0]).convert("RGB")
    pixel_values = processor(images=[image], return_tensors="pt")["pixel_values"]
    resized = np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC), np.float64) - CHANNEL_MEANS
    np.testing.assert_allclose(pixel_values[0].permute(1, 2, 0).numpy(), resized, atol=1.01)

    network = torchvision.models.vgg19(weights=None, init_weights=False).features.eval()
    state = load_file(WEIGHTS / "model.safetensors")
    network.load_state_dict({name: state[f"features.{name}"].float() for name in network.state_dict()})
    with torch.no_grad():
        expected = network(pixel_values)[0].flatten(1).T
        found = tower.embeddings.extract_regions(pixel_values)[0]
    assert found.shape == (49, 512)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert (found > 0).float().mean() > 0.05


@pytest.mark.slow
def test_a_run_over_a_few_photographs(settings, tower, tmp_path):
    for split, count in (("train", 24), ("query", 8)):
        lines = (PAIRS / split / "metadata.jsonl").read_text(encoding="utf-8").splitlines()[:count]
        (tmp_path / "few" / split).mkdir(parents=True)
        (tmp_path / "few" / split / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        for line in lines:
            name = json.loads(line)["file_name"]
            shutil.copy(PAIRS / split / name, tmp_path / "few" / split / name)
    (tmp_path / "texts.txt").write_text("a horse in a field\n", encoding="utf-8")
    run = parse_run(
        bundled_configuration("cmfah-coco-pairs.yaml"),
        ["--dataset", str(tmp_path / "few"), "--output_dir", str(tmp_path / "model"), "--num_train_epochs", "2",
         "--word_corpus", str(tmp_path / "texts.txt"), "--word_min_count", "1", "--use_cpu", "true",
         "--per_device_train_batch_size", "8"],
    )  # fmt: skip
    metrics = train(run)
    assert (metrics["query"]["queries"], metrics["query"]["database"]) == (8, 24)
    assert 0 < metrics["query"]["hamming/t2i/map"] < 1

    saved = CMFAHModel.from_pretrained(tmp_path / "model")
    backbone = tower.embeddings.backbone.state_dict()
    for name, tensor in saved.image_model.embeddings.backbone.state_dict().items():
        assert torch.equal(tensor, backbone[name]), name
    # The cached regions, in half precision, give the same results as the pixels.
    retriever = CrossMediaRetriever.from_pretrained(tmp_path / "model")
    queries = load_image_text(tmp_path / "few", split="query")
    kept = keep_regions(queries, retriever.model.image_model, retriever.processor).remove_columns("image")
    encoded = encode_pairs(retriever.model, retriever.processor, kept, "text")
    image_hash, text_hash = encoded.images, encoded.texts
    np.testing.assert_allclose(retriever.encode_images(queries["image"]), image_hash, atol=5e-3)
    assert np.abs(image_hash - image_hash[0]).max() > 0.01
    assert text_hash.shape == (8, 64)
