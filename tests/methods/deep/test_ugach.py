"""UGACH: neighbors, hinge and policy gradient against brute force, and training with its generator."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from dual_encoders import dual_encoder_config
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from scipy.spatial.distance import cdist

from cmfah_hf.data.similarity import PairSimilarity
from cmfah_hf.methods import FeatureHashForPreTraining, TrainingState
from cmfah_hf.methods.deep import ugach
from cmfah_hf.methods.deep.ugach import UGACHObjectiveConfig, encode_pairs, nearest_pairs
from cmfah_hf.models import FeatureHashConfig

UNLABELED = {"classes": (), "activation": "tanh"}
SIDES = (("image", "text"), ("text", "image"))


@pytest.fixture
def whole(deep_model):
    """A function to a model in float64, the state of six training pairs, and their batch with the towers' outputs."""

    def make(neighbors: int = 1, **chosen):
        model = deep_model("ugach", dtype=torch.float64, **UNLABELED, **chosen)
        rng = np.random.default_rng(5)
        image, text = torch.tensor(rng.normal(size=(6, 6))), torch.tensor(rng.normal(size=(6, 5)))
        columns = [torch.arange(6), torch.tensor([1, 2, 3, 4, 5, 0]), torch.tensor([2, 0, 1, 5, 3, 4])]
        outputs = model(region_features=image[:, None], token_features=text[:, None], paired=False)
        tables = {"image_vectors": outputs.image_vectors, "text_vectors": outputs.text_vectors}
        tables["positives"] = torch.stack(columns[: 1 + 2 * neighbors], dim=1)
        batch = {"labels": torch.arange(6), "row": torch.arange(6), **tables}
        return model, batch, outputs, TrainingState(6, tables=tables, towers=model.cmfah)

    return make


def sigmoid(x):
    return 1 / (1 + (-x).exp())


def distance(x, y):
    return sum((sigmoid(a) - sigmoid(b)) ** 2 for a, b in zip(x, y, strict=True))


@settings(max_examples=30)
@given(count=st.integers(2, 30), width=st.integers(1, 5), neighbors=st.integers(1, 6), block=st.integers(1, 200))
def test_neighbors_are_those_of_brute_force(count, width, neighbors, block):
    vectors = np.random.default_rng(count).normal(loc=3, size=(count, width))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ugach, "_BLOCK_VALUES", block)
        found = nearest_pairs(torch.tensor(vectors), neighbors)
    distances = cdist(vectors, vectors)
    np.fill_diagonal(distances, np.inf)
    assert np.array_equal(found.numpy(), distances.argsort(axis=1)[:, : min(neighbors, count - 1)])


def test_neighbors_of_one_pair_and_of_equal_ones():
    assert nearest_pairs(torch.ones(1, 4), 5).shape == (1, 0)
    found = nearest_pairs(torch.ones(4, 3), 3)
    assert [sorted(row) for row in found.tolist()] == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]


def test_tables_have_the_features_and_neighbors_of_all_pairs(deep_model, deep_trainer, deep_pairs):
    model = deep_model("ugach", **UNLABELED, neighbors=3)
    trainer = deep_trainer(model, similarity=PairSimilarity())
    trainer.begin_training()
    tables, pairs = trainer.training_state.tables, deep_pairs(24)
    expected = [np.arange(24)[:, None]]
    for side in ("image", "text"):
        vectors = np.array([pair[f"{side}_features"] for pair in pairs], np.float64)
        kept = tables[f"{side}_vectors"].double().numpy()
        cosines = (kept * vectors).sum(1) / np.linalg.norm(kept, axis=1) / np.linalg.norm(vectors, axis=1)
        np.testing.assert_allclose(cosines, 1, rtol=1e-6)
        distances = cdist(kept, kept)
        np.fill_diagonal(distances, np.inf)
        expected.append(distances.argsort(axis=1)[:, :3])
    assert np.array_equal(tables["positives"].numpy(), np.concatenate(expected, axis=1))


@pytest.mark.parametrize("pretrain_epochs", [0, 1])
def test_the_hinge_and_its_gradient_are_those_of_loops(whole, monkeypatch, pretrain_epochs):
    model, batch, outputs, state = whole(candidate_share=0.7, pretrain_epochs=pretrain_epochs, negatives=3)
    objective, seen = model.objective, []
    draw_pairs = objective.draw_pairs
    monkeypatch.setattr(objective, "draw_pairs", lambda *given: seen.append(draw_pairs(*given)) or seen[-1])
    torch.manual_seed(3)
    found = objective(batch, outputs, state)
    assert list(found.terms) == ["image_to_text", "text_to_image"]
    logits = {"image": outputs.image_logits, "text": outputs.text_logits}
    total = 0.0
    for drawn, (query, other) in zip(seen, SIDES, strict=True):
        hinges = [
            (8 / 8 + distance(logits[query][i], logits[other][near]) - distance(logits[query][i], logits[other][far]))
            for i in range(6)
            if drawn.counted[i]
            for near, far in zip(drawn.positives[i], drawn.negatives[i], strict=True)
        ]
        total = total + sum(hinge if hinge > 0 else 0 * hinge for hinge in hinges) / len(hinges)
    assert found.total.item() == pytest.approx(total.item(), rel=1e-10)
    weights = list(model.cmfah.parameters())
    gradients = [torch.autograd.grad(loss, weights, retain_graph=True) for loss in (found.total, total)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-11)
    assert all(parameter.grad is None for parameter in objective.generator.parameters())


def test_the_policy_gradient_is_that_of_the_expected_reward(whole, monkeypatch):
    """The mean of the generator's gradients over all draws, by their probabilities, for one query per direction."""
    model, batch, outputs, state = whole(candidate_share=1.0, pretrain_epochs=0, negatives=1, neighbors=0)
    objective = model.objective
    generator = objective.generator.requires_grad_(True)
    weights = list(generator.parameters())
    query = 2
    batch = {name: rows[query : query + 1] for name, rows in batch.items()}
    used = ("image_logits", "text_logits", "image_vectors", "text_vectors")
    alone = type(outputs)(**{name: outputs[name][query : query + 1].detach() for name in used})
    expected, choices = 0.0, []
    for one, other in SIDES:
        own = generator[one](state.tables[f"{one}_vectors"])[query]
        scores = [-distance(own, logits) for logits in generator[other](state.tables[f"{other}_vectors"])]
        others = [j for j in range(6) if j != query]
        normalizer = sum(scores[j].exp() for j in others)
        chances = {j: scores[j].exp() / normalizer for j in others}
        of_query = getattr(outputs, f"{one}_logits")[query]
        of_others = getattr(outputs, f"{other}_logits")
        for j in others:
            hinge = 1 + distance(of_query, of_others[query]) - distance(of_query, of_others[j])
            expected = expected + chances[j] * sigmoid(hinge.clamp(min=0)).detach()
        choices.append([(j, chances[j].item()) for j in others])
    by_enumeration = [torch.zeros_like(weight) for weight in weights]
    total_chance = 0.0
    candidates = torch.tensor([4, 0, 2, 5, 1, 3])
    monkeypatch.setattr(torch, "randperm", lambda size: candidates)
    for drawn in product(*choices):
        remaining = list(drawn)

        def chosen(probabilities, count, remaining=remaining):
            row, chance = remaining.pop(0)
            (column,) = (candidates == row).nonzero()[:, 0].tolist()
            assert probabilities[0, column].item() == pytest.approx(chance, rel=1e-9)
            return torch.tensor([[column]])

        monkeypatch.setattr(ugach, "draw", chosen)
        chance = math.prod(chance for _, chance in drawn)
        total_chance += chance
        loss = objective.generator_loss(batch, alone, state)
        for total, gradient in zip(by_enumeration, torch.autograd.grad(loss, weights), strict=True):
            total += chance * gradient
    assert total_chance == pytest.approx(1)
    for ours, theirs in zip(by_enumeration, torch.autograd.grad(-expected, weights), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-11)


def test_draws_have_the_generators_probabilities_and_no_positive(whole):
    model, batch, outputs, state = whole(candidate_share=1.0, pretrain_epochs=0, negatives=4000)
    drawn = model.objective.draw_pairs(batch, outputs, state, "image", "text")
    assert drawn.counted.all()
    for i in range(6):
        positives = set(batch["positives"][i].tolist())
        rows, counts = drawn.negatives[i].unique(return_counts=True)
        assert set(rows.tolist()) == set(range(6)) - positives
        assert set(drawn.positives[i].tolist()) == positives
        for row, count in zip(rows, counts, strict=True):
            (chance,) = drawn.log_probabilities[i][drawn.negatives[i] == row].exp().unique()
            assert count.item() / 4000 == pytest.approx(chance.item(), abs=0.04)


def test_a_query_whose_candidates_are_all_positives_does_not_count(whole):
    model, batch, outputs, state = whole(candidate_share=1.0, pretrain_epochs=0)
    everything = torch.arange(6).expand(6, 6)
    only_first = torch.cat([batch["positives"][:1].expand(1, 3), batch["positives"][:1]], dim=1)
    assert only_first.shape == (1, 6)
    state.tables["positives"] = batch["positives"] = torch.cat([only_first, everything[1:]])
    drawn = model.objective.draw_pairs(batch, outputs, state, "text", "image")
    assert drawn.counted.tolist() == [True, *[False] * 5]
    state.tables["positives"] = batch["positives"] = everything
    losses = model.objective(batch, outputs, state)
    losses.total.backward()
    assert losses.total.item() == 0
    assert all(parameter.grad.abs().max() == 0 for parameter in model.cmfah.parameters())
    model.objective.generator.requires_grad_(True)
    generator_loss = model.objective.generator_loss(batch, outputs, state)
    generator_loss.backward()
    assert generator_loss.item() == 0
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.objective.generator.parameters())


def test_codes_of_both_ranges_have_the_same_bits(whole):
    _, _, outputs, _ = whole()
    for logits, values in ((outputs.image_logits, outputs.image_hash), (outputs.text_logits, outputs.text_hash)):
        assert torch.equal(sigmoid(logits) >= 0.5, values >= 0)
        torch.testing.assert_close(sigmoid(2 * logits), (1 + values) / 2)


@pytest.mark.parametrize(
    "kind",
    [
        {"image_feature_dim": 6, "text_feature_dim": 5},
        {"image_feature_dim": 6, "vocab_size": 9},
        {"image_feature_dim": 6, "vocab_size": 9, "normalize_regions": False},
        {"dual_encoder_config": dual_encoder_config("clip"), "image_size": 32},
    ],
)
def test_kept_features_are_encoded_like_their_items(kind):
    model = FeatureHashForPreTraining(FeatureHashConfig(hidden_size=12, hash_bits=8, **kind), method="ugach").eval()
    generator = torch.Generator().manual_seed(0)
    inputs = {"region_features": torch.rand(5, 1, 6, generator=generator)}
    if "dual_encoder_config" in kind:
        inputs = {"pixel_values": torch.rand(5, 3, 32, 32, generator=generator)}
    if "text_feature_dim" in kind:
        inputs["token_features"] = torch.rand(5, 1, 5, generator=generator)
    else:
        inputs["input_ids"] = torch.randint(2, 9, (5, 4), generator=generator)
    outputs = model(**inputs)
    tables = {"image_vectors": outputs.image_vectors, "text_vectors": outputs.text_vectors}
    state, rows = TrainingState(5, tables=tables, towers=model.cmfah), torch.tensor([[3, 0], [3, 4]])
    for side in ("image", "text"):
        torch.testing.assert_close(encode_pairs(state, side, rows), getattr(outputs, f"{side}_logits")[rows])
        assert model.objective.generator[side](tables[f"{side}_vectors"]).shape == (5, 8)


def test_codes_do_not_depend_on_the_batch(deep_model, assert_codes_ignore_the_batch):
    assert_codes_ignore_the_batch(deep_model("ugach", **UNLABELED))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("neighbors", 0),
        ("negatives", 0),
        ("generator_steps", 0),
        ("pretrain_epochs", -1),
        ("candidate_share", 0),
        ("candidate_share", 1.5),
        ("margin_per_bit", 0),
        ("generator_learning_rate", 0),
    ],
)
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}; give"):
        UGACHObjectiveConfig(**{name: value})


def test_towers_that_it_cannot_train_are_refused(deep_model, whole):
    with pytest.raises(ValueError, match="set normalize_features to false"):
        deep_model("ugach", normalize_features=True)
    with pytest.raises(ValueError, match="set freeze_backbone and freeze_text_backbone to true"):
        deep_model("ugach", freeze_text_backbone=False)
    model, batch, outputs, _ = whole()
    with pytest.raises(ValueError, match="which must be numbered"):
        model.objective({"labels": batch["labels"]}, outputs, TrainingState())


def test_training_separates_clusters_that_it_is_not_told(deep_model, deep_trainer, share_of_equal_classes):
    chosen = {"candidate_share": 0.5, "pretrain_epochs": 8, "neighbors": 8, "generator_learning_rate": 1e-3}
    model = deep_model("ugach", hash_bits=16, **UNLABELED, **chosen)
    trainer = deep_trainer(model, similarity=PairSimilarity(), num_train_epochs=15, logging_steps=3)
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged[7] < 0.6 * logged[0]  # afterwards, negatives become harder
    assert int(model.objective.epochs) == 15
    assert share_of_equal_classes(trainer) >= 0.9


def test_the_generator_waits_for_the_towers(deep_model, deep_trainer):
    for epochs, moves in ((1, False), (2, True)):
        model = deep_model("ugach", **UNLABELED, candidate_share=0.5, pretrain_epochs=1)
        before = {name: tensor.clone() for name, tensor in model.objective.generator.state_dict().items()}
        deep_trainer(model, f"{epochs}", similarity=PairSimilarity(), num_train_epochs=epochs).train()
        after = model.objective.generator.state_dict()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items()) is not moves


def test_an_interrupted_training_resumes_exactly(resume):
    chosen = {**UNLABELED, "candidate_share": 0.5, "pretrain_epochs": 1}
    # Step 4 is within the second epoch, the first of the generator.
    _, resumed, checkpoint = resume("ugach", step=4, similarity=PairSimilarity(), **chosen)
    assert set(load_file(checkpoint / "codes.safetensors")) == {"image_vectors", "text_vectors", "positives"}
    assert int(resumed.model.objective.epochs) == 3


def test_the_objective_is_saved(deep_model, reload):
    model = deep_model("ugach", **UNLABELED, neighbors=4)
    model.objective.epochs.finished.fill_(5)
    assert any(name.startswith("generator.text.") for name in reload(model).objective.state_dict())
