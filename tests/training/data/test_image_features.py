"""Matrices of image features `(N, D)` in place of images: one region each, in training and evaluation."""

import json

import numpy as np
import pytest
import scipy.io
import torch

from cmfah_hf.cli import main
from cmfah_hf.data import convert_matrices, load_image_text, open_matrices
from cmfah_hf.data.collator import PairCollator
from cmfah_hf.errors import DataError
from cmfah_hf.models import CMFAHConfig, CMFAHModel, CMFAHProcessor
from cmfah_hf.training import parse_run, train
from cmfah_hf.training.evaluate import encode_pairs, evaluate_folder

WIDTH = 24


@pytest.fixture(scope="module")
def matrices(tmp_path_factory):
    """A `.mat` file of 60 pairs with features near their class means."""
    rng = np.random.default_rng(0)
    labels = (rng.random((60, 4)) < 0.4).astype(np.uint8)
    labels[np.arange(60), rng.integers(0, 4, 60)] = 1
    tags = np.concatenate([labels, rng.integers(0, 2, (60, 3), dtype=np.uint8)], axis=1)
    features = rng.normal(size=(60, WIDTH)).astype(np.float32)
    features[:, :4] += 3 * labels
    path = tmp_path_factory.mktemp("matrices") / "feat.mat"
    scipy.io.savemat(path, {"XAll": features, "YAll": tags, "LAll": labels})
    return path


def train_on(matrices, write_config, folder, *arguments):
    data = {"dataset": str(matrices), "query_split": None}
    config = write_config(
        folder / "run.yaml", model={"backbone_config": None}, data=data, training={"num_train_epochs": 1}
    )
    return train(parse_run(config, ["--output_dir", str(folder / "out"), *arguments]))


@pytest.fixture(scope="module")
def trained_on_features(write_config, matrices, tmp_path_factory):
    """The folder of a model trained on the features, and the metrics of the run."""
    folder = tmp_path_factory.mktemp("features")
    metrics = train_on(matrices, write_config, folder)
    return folder / "out", metrics


def test_a_run_trains_on_features(trained_on_features, matrices):
    folder, metrics = trained_on_features
    assert metrics["train_pairs"] + metrics["validation_pairs"] == 60
    assert 0 < metrics["validation"] <= 1
    model = CMFAHModel.from_pretrained(folder)
    assert (model.config.image_feature_dim, model.config.backbone, model.config.backbone_config) == (WIDTH, None, None)
    assert not [name for name in model.state_dict() if "backbone" in name]
    with pytest.raises(ValueError, match=f"no image backbone; give region_features of {WIDTH} channels"):
        model.get_image_hash(pixel_values=torch.zeros(1, 3, 32, 32))
    pairs = load_image_text(matrices)["train"]
    images = encode_pairs(model, CMFAHProcessor.from_pretrained(folder), pairs, "text").images
    regions_N1D = torch.from_numpy(scipy.io.loadmat(matrices)["XAll"])[:, None]
    with torch.inference_mode():
        expected = model.eval().get_image_hash(region_features=regions_N1D).numpy()
    np.testing.assert_allclose(images, expected, atol=1e-6)


def test_a_stream_of_features(write_config, matrices, tmp_path):
    metrics = train_on(matrices, write_config, tmp_path, "--streaming", "true")
    assert metrics["train_pairs"] + metrics["validation_pairs"] == 60
    assert CMFAHModel.from_pretrained(tmp_path / "out").config.image_feature_dim == WIDTH


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_parquet_of_features_needs_no_images(write_config, matrices, tmp_path, streaming):
    convert_matrices(open_matrices(matrices), tmp_path / "pairs")
    expected = list(load_image_text(matrices, split="train"))
    for pairs in (
        load_image_text(tmp_path / "pairs", split="train"),
        load_image_text(tmp_path / "pairs", split="train", streaming=True),
        load_image_text(tmp_path / "pairs", split="train", streaming=True, batch_size=7),  # by `datasets`
    ):
        assert list(pairs.features) == ["id", "text", "labels", "image_features", "tags"]
        assert list(pairs) == expected
    metrics = train_on(tmp_path / "pairs", write_config, tmp_path, "--streaming", streaming)
    assert metrics["train_pairs"] + metrics["validation_pairs"] == 60
    assert CMFAHModel.from_pretrained(tmp_path / "out").config.image_feature_dim == WIDTH


def test_the_command_evaluates_on_features(trained_on_features, matrices, capsys):
    folder, _ = trained_on_features
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(folder), str(matrices), "--query-split", "train", "--database-split", "train", "--json"])
    assert not ended.value.code
    figures = json.loads(capsys.readouterr().out)
    assert figures["queries"] == 60
    assert 0 < figures["hamming/i2t/map"] <= 1


def test_features_are_the_one_region_of_an_image(matrices):
    pairs = load_image_text(matrices)["train"]
    values = np.asarray(scipy.io.loadmat(matrices)["XAll"])

    def texts(text, return_tensors):
        return {"input_ids": torch.zeros(len(text), 1, dtype=torch.long)}

    batch = PairCollator(texts)([pairs[row] for row in range(5)])
    assert batch["region_features"].shape == (5, 1, WIDTH)
    np.testing.assert_array_equal(batch["region_features"][:, 0].numpy(), values[:5])


def test_matrix_of_features_is_validated(tmp_path):
    with pytest.raises(ValueError, match="image_feature_dim is 0; give 1 or more, or None"):
        CMFAHConfig(image_feature_dim=0)
    config = CMFAHConfig(image_feature_dim=7)
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["image_feature_dim"] == 7
    assert CMFAHConfig.from_pretrained(tmp_path).image_feature_dim == 7


def test_features_of_another_width_are_refused(trained_on_features, matrices, tmp_path):
    folder, _ = trained_on_features
    other = tmp_path / "other.mat"
    content = {name: value for name, value in scipy.io.loadmat(matrices).items() if not name.startswith("_")}
    scipy.io.savemat(other, {**content, "XAll": content["XAll"][:, :8]})
    with pytest.raises(DataError, match=f"other.mat: its images have 8 features, and the model reads {WIDTH}"):
        evaluate_folder(str(folder), str(other), query_split="train", database_split="train")


def test_tags_alone_are_refused(matrices, write_config, tmp_path):
    content = {name: value for name, value in scipy.io.loadmat(matrices).items() if name in ("YAll", "LAll")}
    scipy.io.savemat(tmp_path / "tags.mat", content)
    with pytest.raises(DataError, match=r"tags\.mat: there are neither images nor features of images; add either"):
        train_on(tmp_path / "tags.mat", write_config, tmp_path)


def test_images_for_a_model_of_features_are_refused(trained_on_features, scenes_folder):
    with pytest.raises(DataError, match=f"the model reads {WIDTH} features of an image, and the data has images"):
        evaluate_folder(str(trained_on_features[0]), str(scenes_folder))
