"""AGAH against its formulas in loops, its prototypes and codes of classes, and trainings with it.

Letters: N training pairs, B pairs of the batch, D feature width, K bits, C classes.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmfah_hf.methods.base import EncodedBatch, TrainingState
from cmfah_hf.methods.deep.agah import AGAHObjectiveConfig, class_codes
from cmfah_hf.methods.pretraining import FeatureHashForPreTraining
from cmfah_hf.models import FeatureHashConfig, FeatureHashModel
from cmfah_hf.models.feature_encoders import Prototypes

WEIGHTS = {
    "margin": 0.4,
    "cosine_weight": 0.7,
    "code_map_weight": 0.02,
    "quantization_weight": 1.3,
    "adversarial_weight": 2.5,
}


def cosine(one, other):
    return sum(a * b for a, b in zip(one, other, strict=True)) / (length(one) * length(other))


def length(row):
    return torch.sqrt(sum(value**2 for value in row))


def with_code_map(model, seed=3):
    random = torch.Generator().manual_seed(seed)
    model.objective.code_map.copy_(torch.randint(0, 2, (3, 8), generator=random) * 2 - 1)
    return model


def test_value_and_gradient_are_those_of_the_formula(deep_model, deep_batch):
    objective = with_code_map(deep_model("agah", dtype=torch.float64, **WEIGHTS)).objective
    batch = deep_batch(5)
    losses = objective({"labels": batch.labels}, batch.outputs, TrainingState())

    outputs, labels, size = batch.outputs, batch.labels, 5
    codes, features = (outputs.image_hash, outputs.text_hash), (outputs.image_features, outputs.text_features)
    similar = [[any(labels[i, c] * labels[j, c] > 0 for c in range(3)) for j in range(size)] for i in range(size)]
    terms = dict.fromkeys(("triplet", "cosine", "code_map", "quantization", "adversarial"), 0.0)
    for number in (0, 1):
        own, other = codes[number], codes[1 - number]
        for a in range(size):
            for p in range(size):
                for n in range(size):
                    if similar[a][p] and not similar[a][n]:
                        hinge = 0.4 - cosine(own[a], other[p]) + cosine(own[a], other[n])
                        terms["triplet"] = terms["triplet"] + hinge.clamp(min=0)
            ones = cosine([value.abs() for value in own[a]], [torch.tensor(1.0).double()] * 8)
            terms["cosine"] = terms["cosine"] + 1 / (1 + torch.exp(ones))
            for c in range(3):
                product = sum(own[a, k] * objective.code_map[c, k] for k in range(8))
                terms["code_map"] = terms["code_map"] + (product - 8 * (2 * labels[a, c] - 1)) ** 2
            terms["quantization"] = terms["quantization"] + sum((h - (1 if h >= 0 else -1)) ** 2 for h in own[a])
            feature = features[number][a] / length(features[number][a])
            # The critic of the other modality.
            terms["adversarial"] = terms["adversarial"] - objective.critics[1 - number](feature)[0] / size
    weights = {"triplet": 1.0, "cosine": 0.7, "code_map": 0.02, "quantization": 1.3, "adversarial": 2.5}
    expected = sum(weights[name] * value for name, value in terms.items()) / size
    assert list(losses.terms) == list(weights)
    for name, value in terms.items():
        torch.testing.assert_close(losses.terms[name], value / size)
    torch.testing.assert_close(losses.total, expected)
    wanted = list(batch.leaves.values())
    found = torch.autograd.grad(losses.total, wanted, retain_graph=True)
    for one, by_loops in zip(found, torch.autograd.grad(expected, wanted), strict=True):
        torch.testing.assert_close(one, by_loops)


def test_critics_are_those_of_wasserstein_with_a_gradient_penalty(deep_model, deep_batch, monkeypatch):
    objective = deep_model("agah", dtype=torch.float64, gradient_penalty_weight=7.0).objective
    batch, shares = deep_batch(4), torch.tensor([[0.1], [0.5], [0.9], [0.3]], dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *size, **kwargs: shares)
    loss = objective.critics_loss({"labels": batch.labels}, batch.outputs, TrainingState())

    image, text = (
        [row.detach() / length(row.detach()) for row in features]
        for features in (batch.outputs.image_features, batch.outputs.text_features)
    )
    expected = 0.0
    for critic, own, other in ((objective.critics[0], image, text), (objective.critics[1], text, image)):
        for number in range(4):
            expected = expected + (critic(other[number])[0] - critic(own[number])[0]) / 4
            share = shares[number, 0]
            between = (share * own[number] + (1 - share) * other[number]).requires_grad_()
            (slope,) = torch.autograd.grad(critic(between)[0], between, create_graph=True)
            expected = expected + 7 * (length(slope) - 1) ** 2 / 4
    torch.testing.assert_close(loss, expected)
    wanted = list(objective.critics.parameters())
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    for one, other in zip(found, torch.autograd.grad(expected, wanted, allow_unused=True), strict=True):
        # The last bias shifts both means of a critic alike.
        assert (one is None and other is None) or torch.allclose(one, other, atol=1e-12)


def test_prototypes_move_features_towards_those_that_they_resemble():
    random = torch.Generator().manual_seed(0)
    table = torch.randn(4, 6, generator=random, dtype=torch.float64)
    table[2] = 0  # a class without pairs
    features = torch.randn(3, 6, generator=random, dtype=torch.float64, requires_grad=True)
    module = Prototypes(4, 6).double()
    module.weight.copy_(table)
    found = module(features)
    rows = []
    for row in features:
        unit = row / length(row)
        masks = [1 / (1 + torch.exp(-5 * sum(a * b for a, b in zip(unit, each, strict=True)))) for each in table]
        used = [0, 1, 3]
        mixed = sum(masks[g] * table[g] for g in used) / sum(masks[g] for g in used)
        rows.append(0.8 * unit + 0.2 * mixed)
    torch.testing.assert_close(found, torch.stack(rows))
    (one,), (other,) = (torch.autograd.grad(each.square().sum(), features) for each in (found, torch.stack(rows)))
    torch.testing.assert_close(one, other)
    module.weight.zero_()
    torch.testing.assert_close(module(features), 0.8 * torch.nn.functional.normalize(features))


def distance(image, text, labels, codes):
    """The sum of squares that the codes of classes minimize."""
    bits, value = codes.shape[1], 0.0
    for views in (image, text):
        for i in range(len(views)):
            for c in range(len(codes)):
                value += (float(views[i] @ codes[c]) - bits * (2 * float(labels[i, c]) - 1)) ** 2
    for c in range(len(codes)):
        for d in range(len(codes)):
            value += (float(codes[c] @ codes[d]) - bits * (1 if c == d else -1)) ** 2
    return value


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 4), st.integers(2, 6))
def test_no_single_change_of_a_code_in_its_turn_would_be_better(seed, count, classes, bits):
    random = torch.Generator().manual_seed(seed)
    image, text, before = (
        torch.randint(0, 2, (rows, bits), generator=random).float() * 2 - 1 for rows in (count, count, classes)
    )
    labels = torch.randint(0, 2, (count, classes), generator=random).float()
    found = class_codes(image, text, labels, before)
    assert set(found.unique().tolist()) <= {-1.0, 1.0}
    # By brute force: each entry in turn, bit by bit.
    expected = before.clone()
    for bit in range(bits):
        for row in range(classes):
            values = []
            for sign in (1.0, -1.0):
                expected[row, bit] = sign
                values.append(distance(image, text, labels, expected))
            expected[row, bit] = 1.0 if values[0] <= values[1] else -1.0
    assert torch.equal(found.float(), expected)
    assert distance(image, text, labels, found.float()) <= distance(image, text, labels, before)


def test_codes_of_classes_are_those_of_separated_pairs():
    codes = torch.tensor([[1.0, 1, 1, 1, -1, -1, -1, -1], [-1, -1, -1, -1, 1, 1, 1, 1]])
    labels = torch.eye(2).repeat(5, 1)
    assert torch.equal(class_codes(codes.repeat(5, 1), codes.repeat(5, 1), labels, torch.zeros(2, 8)).float(), codes)


def test_an_epoch_ends_with_prototypes_and_codes_of_all_pairs(deep_model):
    model = deep_model("agah").eval()
    random = torch.Generator().manual_seed(1)
    image, text = torch.randn(9, 6, generator=random), torch.randn(9, 5, generator=random)
    labels = torch.zeros(9, 3)
    labels[torch.arange(9), torch.arange(9) % 2] = 1  # the third class has no pair
    labels[0, :2] = 1

    def encode():
        for rows in torch.arange(9).split(4):
            with torch.no_grad():
                outputs = model.cmfah(region_features=image[rows, None], token_features=text[rows, None])
            parts = outputs.image_model_output, outputs.text_model_output
            codes, logits = [part.hash_values for part in parts], [part.hash_logits for part in parts]
            yield EncodedBatch(rows, *codes, labels[rows], *logits, outputs.image_vectors, outputs.text_vectors)

    with torch.no_grad():
        outputs = model.cmfah(region_features=image[:, None], token_features=text[:, None])
    sums = torch.zeros(3, 12)
    for features in (outputs.image_features, outputs.text_features):
        for i in range(9):
            for c in range(3):
                sums[c] += labels[i, c] * features[i] / length(features[i])
    state = TrainingState(9, encode=encode, towers=model.cmfah)
    model.objective.on_train_begin(state)
    image_head, text_head = model.cmfah.image_model.hash_head, model.cmfah.text_model.hash_head
    for c in (0, 1):
        torch.testing.assert_close(image_head.prototypes.weight[c], sums[c] / length(sums[c]))
    assert not image_head.prototypes.weight[2].any()
    assert torch.equal(image_head.prototypes.weight, text_head.prototypes.weight)
    codes = class_codes(outputs.image_hash.sign(), outputs.text_hash.sign(), labels, torch.zeros(3, 8)).float()
    assert torch.equal(model.objective.code_map, codes)
    # A model that has them, as of a checkpoint, keeps them until the end of the epoch.
    kept = image_head.prototypes.weight.clone()
    labels.copy_(labels.roll(1, dims=1))
    model.objective.on_train_begin(state)
    assert torch.equal(image_head.prototypes.weight, kept)
    model.objective.on_epoch_end(state)
    assert not torch.equal(image_head.prototypes.weight, kept)


def filled(model, seed=2):
    random = torch.Generator().manual_seed(seed)
    for tower in (model.cmfah.image_model, model.cmfah.text_model):
        tower.hash_head.prototypes.weight.copy_(torch.randn(3, 12, generator=random))
    return with_code_map(model)


def test_codes_attend_to_prototypes_and_do_not_depend_on_the_batch(deep_model, assert_codes_ignore_the_batch):
    model, images = filled(deep_model("agah")).eval(), torch.randn(7, 1, 6)
    assert_codes_ignore_the_batch(model)
    tower = model.cmfah.image_model
    outputs = tower(region_features=images)
    attended = tower.hash_head.prototypes(outputs.features)
    torch.testing.assert_close(outputs.hash_logits, tower.hash_head.dense(attended))


def test_towers_are_saved_with_their_prototypes(deep_model, tmp_path):
    model = filled(deep_model("agah")).eval()
    model.save_pretrained(tmp_path)
    again, report = FeatureHashForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert again.config.num_prototypes == 3
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert again.objective.settings == model.objective.settings
    towers = FeatureHashModel.from_pretrained(tmp_path)
    images, texts = torch.randn(4, 1, 6), torch.randn(4, 1, 5)
    for one, other in ((model.cmfah, towers), (again.cmfah, towers)):
        assert torch.equal(one.get_image_hash(region_features=images), other.get_image_hash(region_features=images))
        assert torch.equal(one.get_text_hash(token_features=texts), other.get_text_hash(token_features=texts))


def test_settings_out_of_range_are_named(deep_model):
    with pytest.raises(ValueError, match="code_map_weight is -1; give"):
        AGAHObjectiveConfig(code_map_weight=-1)
    with pytest.raises(ValueError, match="num_prototypes is 0; give 1 or more, or None"):
        FeatureHashConfig(image_feature_dim=6, text_feature_dim=5, num_prototypes=0)
    with pytest.raises(ValueError, match="there are no classes; give labels"):
        deep_model("agah", classes=())
    assert deep_model("agah", adversarial_weight=0).objective.players()[0].is_active is False


def test_at_codes_of_one_class_each_the_loss_is_that_of_the_adversary(deep_model, deep_batch):
    objective = deep_model("agah", hash_bits=8, adversarial_weight=0).objective
    batch = deep_batch(6, dtype=torch.float32)
    labels = torch.eye(2)[torch.arange(6) % 2]
    codes = torch.tensor([[1.0] * 8, [-1.0] * 8])
    objective.code_map = codes
    batch.outputs.image_hash = batch.outputs.text_hash = codes[torch.arange(6) % 2]
    terms = objective({"labels": labels}, batch.outputs, TrainingState()).terms
    assert set(terms) == {"triplet", "cosine", "code_map", "quantization"}
    for name in ("triplet", "code_map", "quantization"):
        assert terms[name].item() == pytest.approx(0, abs=1e-5), name
    assert terms["cosine"].item() == pytest.approx(2 / (1 + math.e), rel=1e-5)  # its least value


def test_training_separates_the_classes(deep_model, deep_trainer):
    model = deep_model("agah", hidden_size=24)
    trainer = deep_trainer(model, num_train_epochs=25, discriminator_learning_rate=0.001)
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged[-1] < 0.6 * logged[0]
    assert trainer.evaluate()["eval_map"] > 0.8
    assert set(model.objective.code_map.unique().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("optim", ["adamw_torch", "adamax"])
def test_an_interrupted_training_resumes_bit_identically(resume, optim):
    resume("agah", step=4, optim=optim)  # within the second epoch
