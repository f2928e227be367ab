"""The linear reference: C is chosen on validation pairs and never on queries."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from dual_encoders import write_tokenizer
from transformers import BertConfig, BertModel, BertTokenizer

from cmfah_hf.evaluation.levels import relevance
from cmfah_hf.experiments import features
from cmfah_hf.experiments.features import Items
from cmfah_hf.experiments.reference import choose_strengths, curves_of, fit, measure, posteriors, ranked_map
from cmfah_hf.models import CMFAHConfig

CLASSES, WIDTH = 5, 12


@pytest.fixture(scope="module")
def make_items():
    """A function from a size and a seed to items whose features are noisy sums of class directions."""
    directions = np.random.default_rng(7).normal(size=(2, CLASSES, WIDTH))

    def make(size: int, seed: int, noise: float = 2.0) -> Items:
        rng = np.random.default_rng(seed)
        labels = rng.random((size, CLASSES)) < 0.3
        labels[np.arange(size), rng.integers(0, CLASSES, size)] = True
        features = {
            name: labels @ directions[side] + noise * rng.normal(size=(size, WIDTH))
            for side, name in enumerate(("image", "text"))
        }
        return Items(features, labels)

    return make


def test_the_chosen_strengths_are_the_best_of_the_grid(make_items):
    train, queries, database = make_items(120, 0), make_items(40, 1), make_items(80, 2)
    grid = (1e-4, 0.01, 1.0)
    chosen, best = choose_strengths(train, queries, database, grid)
    relevant = relevance(queries.labels, database.labels)
    means = {}
    for image in grid:
        for text in grid:
            models = {"image": fit(train, "image", image), "text": fit(train, "text", text)}
            maps = [
                ranked_map(posteriors(models[q], queries, q), posteriors(models[d], database, d), relevant)
                for q, d in (("image", "text"), ("text", "image"))
            ]
            means[image, text] = np.mean(maps)
    assert max(means, key=means.get) == (chosen["image"], chosen["text"])
    assert best["eval_map"] == pytest.approx(max(means.values()))
    assert best["eval_map"] == pytest.approx((best["eval_map_i2t"] + best["eval_map_t2i"]) / 2)
    assert best["eval_map_random"] < best["eval_map"]


def test_posteriors_rank_better_than_chance_and_have_unit_length(make_items):
    train, queries = make_items(200, 0, 0.5), make_items(50, 1, 0.5)
    fitted = {name: fit(train, name, 1.0) for name in ("image", "text")}
    np.testing.assert_allclose(np.linalg.norm(posteriors(fitted["image"], queries, "image"), axis=1), 1)
    figures = measure(fitted, queries, train)
    assert min(figures["cosine/i2t/map"], figures["cosine/t2i/map"]) > 1.3 * figures["random/map"]


def test_curves_are_those_of_the_ranking_by_cosine(make_items):
    train, queries = make_items(200, 0), make_items(30, 1)
    fitted = {name: fit(train, name, 1.0) for name in ("image", "text")}
    curves = curves_of(fitted, queries, train)
    assert set(curves) == {"cosine/i2t", "cosine/t2i", "random"}
    relevant = relevance(queries.labels, train.labels)
    for direction, (asked, found) in {"i2t": ("image", "text"), "t2i": ("text", "image")}.items():
        scores = posteriors(fitted[asked], queries, asked) @ posteriors(fitted[found], train, found).T
        ranked = np.take_along_axis(relevant, np.argsort(-scores, axis=1), axis=1)
        curve = curves[f"cosine/{direction}"]
        expected = [ranked[:, : int(k)].mean() for k in curve["k"]]
        np.testing.assert_allclose(curve["precision_at_k"], expected, atol=1e-9)


def test_a_class_of_all_or_no_items_is_a_constant(make_items):
    items = make_items(30, 0)
    items.labels[:, 0], items.labels[:, 1] = True, False
    models = fit(items, "image", 1.0)
    assert models[:2] == [1.0, 0.0]
    assert not np.isnan(posteriors(models, items, "image")).any()


def test_images_are_fitted_with_their_mirror_images(make_items):
    items, queries = make_items(60, 0), make_items(20, 1)
    mirrored = items.features["image"][:, ::-1].copy()
    both = Items(items.features, items.labels, mirrored)
    doubled = Items(
        {
            name: np.concatenate([items.features[name], other])
            for name, other in (("image", mirrored), ("text", mirrored))
        },
        np.concatenate([items.labels, items.labels]),
    )
    found, expected = (posteriors(fit(own, "image", 0.3), queries, "image") for own in (both, doubled))
    np.testing.assert_array_equal(found, expected)
    assert not np.allclose(found, posteriors(fit(items, "image", 0.3), queries, "image"), atol=1e-3)
    texts = [posteriors(fit(own, "text", 0.3), queries, "text") for own in (both, items)]
    np.testing.assert_array_equal(*texts)


def test_mirror_images_are_the_means_of_their_kept_regions():
    rng = np.random.default_rng(0)
    names = ("region_features", "region_features_mirrored")
    regions = {name: rng.normal(size=(4, 3, 6)).astype(np.float32) for name in names}
    columns = {"text": ["a b"] * 4, "labels": [["x"], ["y"], ["x"], ["y"]]}
    with_mirrored = Dataset.from_dict({**columns, **{name: list(values) for name, values in regions.items()}})
    items = features.read_items(
        {"train": with_mirrored, "query": with_mirrored.remove_columns(names[1])},
        with_mirrored,
        lambda texts: np.eye(4),
    )
    means = regions[names[1]].mean(axis=1)
    expected = means / np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(items["train"].mirrored, expected, rtol=1e-5)
    assert items["query"].mirrored is None


def test_a_missing_scikit_learn_names_the_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    with pytest.raises(ValueError, match=r"pip install \"cmfah-hf\[experiments\]\""):
        features.read_items({}, Dataset.from_dict({"text": []}))


def test_texts_of_a_text_backbone_are_the_means_of_its_tokens(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    bert = BertModel(BertConfig(**sizes, vocab_size=300, max_position_embeddings=16)).eval()
    bert.save_pretrained(tmp_path)
    write_tokenizer("BertTokenizer", tmp_path)
    texts = ["a dog on the beach", "sea"]
    found = features.mean_tokens(CMFAHConfig(text_backbone=str(tmp_path), image_feature_dim=4), texts)
    for row, text in zip(found, texts, strict=True):
        ids = BertTokenizer.from_pretrained(tmp_path)(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            mean = bert(input_ids=ids).last_hidden_state[0].mean(dim=0).numpy()
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-5)
