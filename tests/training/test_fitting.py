"""Methods over one feature as runs: shallow ones are fitted, and deep ones trained."""

import json

import datasets
import numpy as np
import pytest
import torch

from cmfah_hf.data import load_image_text
from cmfah_hf.errors import CMFAHError
from cmfah_hf.evaluation import RetrievalEvaluator
from cmfah_hf.methods import hasher_class
from cmfah_hf.models import FeatureHashModel, FeatureMapModel
from cmfah_hf.training import parse_run, train
from cmfah_hf.training.evaluate import evaluate_folder

CLASSES = ["boat", "car", "sea"]


@pytest.fixture(scope="module")
def features_folder(tmp_path_factory):
    """60 training and 18 query pairs of three classes, as features of both modalities in Parquet."""
    folder = tmp_path_factory.mktemp("features")
    random = np.random.default_rng(0)
    centers = random.normal(size=(3, 7)), random.normal(size=(3, 5))
    for split, count in (("train", 60), ("query", 18)):
        numbers = np.arange(count) % 3
        images, texts = (each[numbers] + random.normal(size=(count, each.shape[1])) / 2 for each in centers)
        rows = {
            "id": [f"{split}-{number}" for number in range(count)],
            "text": [CLASSES[number] for number in numbers],
            "labels": [[CLASSES[number]] for number in numbers],
            "image_features": images.astype(np.float32).tolist(),
            "text_features": texts.astype(np.float32).tolist(),
        }
        datasets.Dataset.from_dict(rows).to_parquet(folder / f"{split}.parquet")
    return folder


def run_of(folder, output, *arguments):
    given = [
        "--dataset",
        str(folder),
        "--expand",
        "false",
        "--hash_bits",
        "16",
        "--output_dir",
        str(output),
        *arguments,
    ]
    return parse_run(None, [*given, "--use_cpu", "true"])


def features(folder, split):
    rows = load_image_text(str(folder))[split].with_format(None)
    images, texts = (np.asarray(rows[name][:], np.float32) for name in ("image_features", "text_features"))
    return images, texts, rows["labels"][:]


@pytest.mark.parametrize(
    ("method", "arguments", "other"),
    [
        ("scm", [], None),
        ("seph", ["--anchors", "20"], "query_pair"),
        ("scratch", ["--anchors", "20", "--rounds", "3"], "query_learnt"),
        ("cmfh", ["--similarity", "pairs"], "query_pair"),
    ],
)
def test_a_shallow_method_is_fitted_to_all_pairs_and_measured(method, arguments, other, features_folder, tmp_path):
    arguments = ["--method", method, "--refit", "true", "--normalize_regions", "false", *arguments]
    arguments += ["--metrics", "map", "map_stable", "random"]
    metrics = train(run_of(features_folder, tmp_path / "model", *arguments))
    assert (metrics["method"], metrics["epoch"], metrics["train_pairs"]) == (method, 0.0, 54)
    images, texts, labels = features(features_folder, "train")
    multi_hot = np.array([[name in of_pair for name in CLASSES] for of_pair in labels], float)
    # The order of the pairs in the fit is not that of the data.
    found = FeatureMapModel.from_pretrained(tmp_path / "model").eval()
    asked, asking, of_queries = features(features_folder, "query")
    with torch.no_grad():
        codes = [
            (
                found.get_image_hash(region_features=torch.tensor(own_images)[:, None]).numpy(),
                found.get_text_hash(token_features=torch.tensor(own_texts)[:, None]).numpy(),
            )
            for own_images, own_texts in ((asked, asking), (images, texts))
        ]
    figures = RetrievalEvaluator(("map", "map_stable", "random"))(*codes[0], *codes[1], of_queries, labels)
    for name in ("hamming/t2i/map", "hamming/t2i/map_stable"):  # with ties in the order of the data
        assert metrics["query"][name] == pytest.approx(figures[name])
    assert figures["hamming/t2i/map"] > figures["random/map"] + 0.2
    if method == "scm":  # without anything random, and of any order
        hasher = hasher_class(method)(bits=16).fit(images, texts, multi_hot)
        expected = RetrievalEvaluator()(
            hasher.encode_image(asked), hasher.encode_text(asking), hasher.encode_image(images),
            hasher.encode_text(texts), of_queries, labels,
        )  # fmt: skip
        for name in ("hamming/i2t/map", "hamming/t2i/map", "aqd/i2t/map"):
            assert metrics["query"][name] == pytest.approx(expected[name], abs=2e-3)
    others = {"query_pair", "query_learnt"} & metrics.keys()
    assert others == ({other} if other else set())
    if other:
        assert metrics[other]["hamming/t2i/map"] > metrics[other]["random/map"] + 0.2
    again = evaluate_folder(str(tmp_path / "model"), str(features_folder))
    assert again["hamming/i2t/map"] == pytest.approx(metrics["query"]["hamming/i2t/map"])
    assert json.loads((tmp_path / "model" / "config.json").read_text())["objective"]["_name"] == method


def test_a_held_out_database_is_not_fitted_to(features_folder, tmp_path):
    arguments = ["--method", "scratch", "--anchors", "20", "--refit", "true", "--protocol", "unseen"]
    metrics = train(run_of(features_folder, tmp_path / "model", *arguments))
    assert metrics["query"]["database"] + metrics["query_seen"]["database"] == 60
    assert "query_learnt" not in metrics  # the fit has no codes of the database


@pytest.mark.slow
def test_a_deep_method_learns(features_folder, tmp_path):
    arguments = ["--method", "dcmh", "--hidden_size", "16", "--learning_rate", "3e-2", "--balance_weight", "0"]
    arguments += ["--num_train_epochs", "30", "--normalize_regions", "true", "--per_device_train_batch_size", "16"]
    arguments += ["--load_best_model_at_end", "false", "--optim", "adamw_torch"]
    metrics = train(run_of(features_folder, tmp_path / "whole", *arguments))
    assert metrics["query"]["hamming/t2i/map"] > 0.8
    model = FeatureHashModel.from_pretrained(tmp_path / "whole")
    assert model.config.text_feature_dim == 5


def test_a_schedule_over_epochs_is_that_of_the_training(features_folder, tmp_path):
    arguments = ["--method", "acmr", "--hidden_size", "8", "--num_train_epochs", "2"]
    train(run_of(features_folder, tmp_path / "model", *arguments))
    objective = json.loads((tmp_path / "model" / "config.json").read_text())["objective"]
    assert objective["num_epochs"] == 2
    train(run_of(features_folder, tmp_path / "other", *arguments, "--num_epochs", "5"))
    assert json.loads((tmp_path / "other" / "config.json").read_text())["objective"]["num_epochs"] == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "cmfh"], "^cmfh is unsupervised and uses no labels; give --similarity pairs.$"),
        (["--method", "djsrh"], "^djsrh is unsupervised and uses no labels; give --similarity pairs.$"),
        (
            ["--method", "scm", "--similarity", "pairs"],
            "^scm is supervised and needs labels; give --similarity labels.$",
        ),
        (["--method", "dcmh", "--similarity", "pairs"], "^dcmh is supervised and needs labels"),
        (["--method", "scm", "--solution", "all"], "solution is 'all'; choose 'seq' or 'orth'"),
        (["--method", "scm", "--solution", "orth"], "bits is 16, and SCM with solution='orth' has at most 3 here"),
        (["--method", "seph", "--anchors", "-1"], "anchors is -1; give a number above 0"),
        (["--method", "seph", "--anchors", "many"], "anchors"),
        (["--method", "scm", "--anchors", "5"], "no argument --anchors, which is a setting of --method"),
    ],
)
def test_what_a_method_cannot_use_is_one_line(arguments, message, features_folder, tmp_path):
    with pytest.raises(CMFAHError, match=message) as raised:
        train(run_of(features_folder, tmp_path / "model", *arguments))
    assert "\n" not in str(raised.value)


def test_a_model_over_text_features_needs_them(features_folder, scenes_folder, tmp_path):
    train(run_of(features_folder, tmp_path / "model", "--method", "scm"))
    with pytest.raises(CMFAHError, match="reads features of texts, and the data has none"):
        evaluate_folder(str(tmp_path / "model"), str(scenes_folder))
