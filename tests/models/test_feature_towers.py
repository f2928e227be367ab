"""Towers over one feature, perceptrons and maps, against NumPy; and their round trips."""

import json

import numpy as np
import pytest
import torch
from dual_encoders import dual_encoder_config
from transformers import AutoConfig, AutoModel, BertConfig

from cmfah_hf.methods import SCM, SCRATCH
from cmfah_hf.methods.shallow.objectives import fill_towers
from cmfah_hf.models import FeatureHashConfig, FeatureHashModel, FeatureMapConfig, FeatureMapModel
from cmfah_hf.models.model_files import ModelFileError

GIVEN = {"image_feature_dim": 6, "text_feature_dim": 5, "hash_bits": 8, "hidden_size": 7}


def random_model(config, seed=0):
    torch.manual_seed(seed)
    kind = {"feature_hash": FeatureHashModel, "feature_map": FeatureMapModel}[config.model_type]
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) / 2)
    return model


def by_formula(tower, features, activation, scaled=True):
    """`tanh(W a(... a(W_1 x)))`, with x of root mean square 1."""
    x = np.asarray(features, np.float64)
    if scaled:
        x = x / np.linalg.norm(x, axis=1, keepdims=True) * np.sqrt(x.shape[1])
    for layer in (tower.embeddings.projection, *tower.embeddings.mlp.layers):
        x = activation(x @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy())
    head = tower.hash_head.dense
    return np.tanh(x @ head.weight.detach().double().numpy().T + head.bias.detach().double().numpy())


@pytest.mark.parametrize("sizes", [[], [9, 4]])
@pytest.mark.parametrize(("activation", "function"), [("relu", lambda x: np.maximum(x, 0)), ("tanh", np.tanh)])
@pytest.mark.parametrize("scaled", [True, False])
def test_codes_are_those_of_a_perceptron_over_given_features(sizes, activation, function, scaled):
    model = random_model(FeatureHashConfig(**GIVEN, mlp_sizes=sizes, activation=activation, normalize_regions=scaled))
    random = np.random.default_rng(1)
    images, texts = random.normal(size=(4, 6)), random.normal(size=(4, 5))
    found = model.get_image_hash(region_features=torch.tensor(images).float()[:, None]).detach().numpy()
    np.testing.assert_allclose(found, by_formula(model.image_model, images, function, scaled), atol=1e-5)
    found = model.get_text_hash(token_features=torch.tensor(texts).float()[:, None]).detach().numpy()
    np.testing.assert_allclose(found, by_formula(model.text_model, texts, function, scaled), atol=1e-5)


def test_the_feature_of_an_image_is_the_mean_of_its_regions(make_config):
    backbone = make_config().backbone_config
    config = FeatureHashConfig(backbone_config=backbone, image_size=32, vocab_size=30, hash_bits=8, hidden_size=7)
    model = random_model(config)
    pixels = torch.rand(3, 3, 32, 32)
    regions = model.image_model.embeddings.backbone(pixels).feature_maps[-1].flatten(2).mT
    expected = by_formula(model.image_model, regions.mean(dim=1).detach(), lambda x: np.maximum(x, 0))
    kept = model.image_model.embeddings.extract_regions(pixels)
    assert kept.shape == (3, 1, 8)
    for given in ({"pixel_values": pixels}, {"region_features": kept}, {"region_features": regions}):
        np.testing.assert_allclose(model.get_image_hash(**given).detach(), expected, atol=1e-5)


def test_a_text_is_the_binary_bag_of_its_known_words():
    config = FeatureHashConfig(image_feature_dim=6, vocab_size=9, hash_bits=8, hidden_size=7)
    model = random_model(config)
    ids = torch.tensor([[4, 2, 4, 1, 0], [8, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    bags = np.zeros((3, 9))
    bags[0, [4, 2]] = bags[1, 8] = 1
    bags[2, 5] = 1  # any, without effect
    expected = by_formula(model.text_model, bags, lambda x: np.maximum(x, 0))
    found = model.get_text_hash(ids, (ids > 0).long()).detach().numpy()
    np.testing.assert_allclose(found[:2], expected[:2], atol=1e-5)
    assert np.isfinite(found).all()
    longer = torch.nn.functional.pad(ids, (0, 3))
    assert torch.equal(model.get_text_hash(longer, (longer > 0).long()), model.get_text_hash(ids, (ids > 0).long()))


def test_the_feature_of_a_text_backbone_is_the_mean_of_its_tokens(batch):
    bert = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=30)
    model = random_model(FeatureHashConfig(image_feature_dim=6, text_backbone_config=bert, hash_bits=8, hidden_size=7))
    ids, mask = batch["input_ids"][:3], (batch["input_ids"][:3] > 0).long()
    hidden = model.text_model.embeddings.backbone(input_ids=ids, attention_mask=mask).last_hidden_state.detach()
    means = (hidden * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
    expected = by_formula(model.text_model, means, lambda x: np.maximum(x, 0))
    kept, kept_mask = model.text_model.embeddings.extract_tokens(ids, mask)
    for given in ({"input_ids": ids, "attention_mask": mask}, {"token_features": kept, "attention_mask": kept_mask}):
        np.testing.assert_allclose(model.get_text_hash(**given).detach(), expected, atol=1e-5)


def test_the_features_of_a_dual_encoder_are_its_vectors():
    config = FeatureHashConfig(dual_encoder_config=dual_encoder_config("clip"), hash_bits=8, hidden_size=7)
    torch.manual_seed(0)
    model = FeatureHashModel(config).eval()
    pixels, ids = torch.rand(2, 3, 32, 32), torch.randint(3, 300, (2, 6))
    encoder = model.image_model.embeddings
    vectors = encoder.backbone(pixels)[1].detach()
    expected = by_formula(model.image_model, vectors, lambda x: np.maximum(x, 0))
    for given in ({"pixel_values": pixels}, {"region_features": encoder.extract_regions(pixels)}):
        np.testing.assert_allclose(model.get_image_hash(**given).detach(), expected, atol=1e-5)
    kept, mask = model.text_model.embeddings.extract_tokens(ids)
    assert kept.shape == (2, 1, 24)
    found = model.get_text_hash(token_features=kept, attention_mask=mask)
    torch.testing.assert_close(found, model.get_text_hash(ids))


def data(seed=0, count=60):
    random = np.random.default_rng(seed)
    labels = np.eye(4)[np.arange(count) % 4]
    images = labels @ random.normal(size=(4, 6)) + random.normal(size=(count, 6)) / 3
    return images, labels @ random.normal(size=(4, 5)) + random.normal(size=(count, 5)) / 3, labels


@pytest.mark.parametrize("kind", [SCM, SCRATCH])
def test_towers_with_the_maps_of_a_hasher_give_its_codes(kind, tmp_path):
    images, texts, labels = data()
    hasher = kind(bits=8).fit(images, texts, labels)
    config = FeatureMapConfig(image_feature_dim=6, text_feature_dim=5, hash_bits=8, normalize_regions=False)
    model = FeatureMapModel(config).eval()
    fill_towers(model, hasher, (images, texts))
    queries, asking, _ = data(1)
    for values, scores in (
        (model.get_image_hash(region_features=torch.tensor(queries).float()[:, None]), hasher.encode_image(queries)),
        (model.get_text_hash(token_features=torch.tensor(asking).float()[:, None]), hasher.encode_text(asking)),
    ):
        is_clear = np.abs(scores) > 1e-4 * np.abs(scores).max()
        assert is_clear.mean() > 0.99
        np.testing.assert_array_equal(np.sign(values.detach().numpy())[is_clear], np.sign(scores)[is_clear])
        # In proportion to the scores, so the asymmetric distance ranks as with these.
        ratios = np.arctanh(values.detach().double().numpy()) / scores
        np.testing.assert_allclose(ratios[is_clear], np.median(ratios), rtol=1e-2)
    model.save_pretrained(tmp_path)
    again = FeatureMapModel.from_pretrained(tmp_path)
    assert (again.config.image_anchors is None) == (kind is SCM)
    given = torch.tensor(queries).float()[:, None]
    assert torch.equal(again.get_image_hash(region_features=given), model.get_image_hash(region_features=given))


@pytest.mark.parametrize(
    "config",
    [
        FeatureHashConfig(**GIVEN, mlp_sizes=[9], activation="tanh"),
        FeatureMapConfig(**GIVEN, image_anchors=3),
        FeatureMapConfig(image_feature_dim=6, vocab_size=9, hash_bits=16),
    ],
)
def test_saved_towers_are_loaded_alone_and_together(config, tmp_path):
    model = random_model(config)
    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).to_diff_dict().keys() == model.config.to_diff_dict().keys()
    again, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is type(model)
    assert not any(report.values())
    images = torch.rand(3, 1, 6)
    expected = model.get_image_hash(region_features=images)
    assert torch.equal(again.get_image_hash(region_features=images), expected)
    tower = type(model).image_model_class.from_pretrained(tmp_path)
    assert torch.equal(tower(region_features=images).hash_values, expected)
    alone = torch.cat([again.get_image_hash(region_features=image[None]) for image in images])
    torch.testing.assert_close(alone, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention": "both"}, "attention is 'both', and towers over one feature"),
        ({"shared_mlp_size": 8}, "shared_mlp_size is 8, and towers over one feature"),
        ({"activation": "gelu"}, "activation is 'gelu'; choose one of relu, tanh"),
        ({"mlp_sizes": [0]}, r"mlp_sizes is \[0\]"),
        ({"text_feature_dim": 0}, "text_feature_dim is 0"),
    ],
)
def test_settings_that_cannot_be_used_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        FeatureHashConfig(**{**GIVEN, **settings})
    with pytest.raises(ValueError, match="image_anchors is 0"):
        FeatureMapConfig(**GIVEN, image_anchors=0)


@pytest.mark.parametrize("settings", [{"mlp_sizes": [4] * 101}, {"mlp_sizes": [10**7]}, {"image_anchors": 10**7}])
def test_files_with_sizes_that_take_minutes_are_refused(settings, tmp_path):
    random_model(FeatureMapConfig(**GIVEN)).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    with pytest.raises(ModelFileError, match=next(iter(settings))):
        FeatureMapModel.from_pretrained(tmp_path)


def test_models_without_texts_say_what_they_read():
    model = random_model(FeatureHashConfig(**GIVEN))
    with pytest.raises(ValueError, match="reads no texts; give token_features of 5 values"):
        model.get_text_hash(torch.tensor([[1, 2]]))
