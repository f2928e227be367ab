"""ACMR's objective: against loops, the schedule, both players by hand, trained, resumed and loaded."""

import math
from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cmfah_hf.methods import TrainingState
from cmfah_hf.methods.deep.acmr import classification_loss, ranking_loss


def distance(one, other):
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5


def linear(layer, vector):
    return [sum(w * x for w, x in zip(row, vector, strict=True)) + b for row, b in zip(layer[0], layer[1], strict=True)]


def layer_of(model, name):
    weights = model.state_dict()
    return weights[f"objective.{name}.weight"], weights[f"objective.{name}.bias"]


def modality_logit(model, vector):
    for name in ("dense_in", "dense_hidden"):
        vector = linear(layer_of(model, f"modality_classifier.{name}"), vector)
        vector = [value if value > 0 else 0.2 * value for value in vector]
    return linear(layer_of(model, "modality_classifier.dense_out"), vector)[0]


def terms_by_loops(model, image_BK, text_BK, labels, margin):
    count = len(labels)
    labeled = [row for row in range(count) if labels[row].any()]
    label = ranking = modality = 0.0
    for codes in (image_BK, text_BK):
        for row in labeled:
            scores = linear(layer_of(model, "label_classifier"), codes[row])
            norm = sum(score.exp() for score in scores).log()
            present = [score - norm for score, given in zip(scores, labels[row], strict=True) if given]
            label = label - sum(present) / len(present) / len(labeled)
    apart = [(i, j) for i in labeled for j in labeled if not (labels[i] * labels[j]).any()]
    for i, j in apart:
        ranking = ranking + (margin - distance(image_BK[i], text_BK[j])).clamp(min=0) / len(apart)
    for row in range(count):
        modality = modality - modality_logit(model, image_BK[row]).sigmoid().log() / count
        modality = modality - (1 - modality_logit(model, text_BK[row]).sigmoid()).log() / count
    pair = sum(distance(image_BK[row], text_BK[row]) for row in range(count)) / count
    return {"label": label, "pair": pair, "ranking": ranking, "modality": modality}


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


def test_equals_loops(deep_model, deep_batch):
    weights = {"label_weight": 3.0, "pair_weight": 0.7, "ranking_weight": 0.4, "adversarial_weight": 0.6}
    model = deep_model("acmr", dtype=torch.float64, margin=3.0, num_epochs=8, **weights)
    made, state = deep_batch(7), TrainingState()
    made.labels[3] = 0  # unlabeled
    for _ in range(2):
        model.objective.on_epoch_end(state)
    found = model.objective({"labels": made.labels}, made.outputs, state)
    expected = terms_by_loops(model, made.outputs.image_hash, made.outputs.text_hash, made.labels, 3.0)
    assert expected["ranking"] > 0
    assert found.terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found.terms[name], value, rtol=1e-12, atol=0, msg=name)
    reversal = 2 / (1 + math.exp(-2.5)) - 1  # after 2 of 8 epochs
    total = 3 * expected["label"] + 0.7 * expected["pair"] + 0.4 * expected["ranking"]
    total = total - 0.6 * reversal * expected["modality"]
    assert_close(found.total, total)
    leaves = [made.leaves["image_logits"], made.leaves["text_logits"]]
    gradients = torch.autograd.grad(found.total, leaves, retain_graph=True)
    assert_close(gradients, torch.autograd.grad(total, leaves, retain_graph=True))

    player = model.objective.players()[0]
    assert player.name == "modality"
    assert player.module is model.objective.modality_classifier
    assert_close(player.loss({"labels": made.labels}, made.outputs, state), expected["modality"])


def test_towers_climb_what_the_modality_classifier_descends(deep_model, deep_batch):
    """Reversed gradients: those of the classifier's loss, times a weight that is 0 at first and almost 1 at last."""
    model, made = deep_model("acmr", dtype=torch.float64, num_epochs=4), deep_batch(6)
    objective, state = model.objective, TrainingState()
    leaves = [made.leaves["image_logits"], made.leaves["text_logits"]]
    climbed = torch.cat(torch.autograd.grad(objective.modality_loss(made.outputs), leaves, retain_graph=True))

    def gradient():
        total = objective({"labels": made.labels}, made.outputs, state).total
        return torch.cat(torch.autograd.grad(total, leaves, retain_graph=True))

    without, weights = gradient(), []
    for _ in range(6):
        weights.append(objective.reversal_weight)
        assert_close(gradient(), without - weights[-1] * climbed)
        objective.on_epoch_end(state)
    assert weights[:3] == pytest.approx([0, 2 / (1 + math.exp(-2.5)) - 1, 2 / (1 + math.exp(-5)) - 1])
    assert weights == sorted(weights)
    assert weights[4] == weights[5] == pytest.approx(0.9999, abs=1e-4)


@given(st.integers(0, 2**31 - 1), st.integers(1, 5), st.floats(0.1, 8))
def test_hinge_ends_at_the_margin(seed, count, margin):
    random = torch.Generator().manual_seed(seed)
    image, text = (torch.rand(count, 8, generator=random, dtype=torch.float64) * 2 - 1 for _ in range(2))
    labels = torch.nn.functional.one_hot(torch.arange(count) % 3, 3)
    found = ranking_loss(image, text, labels, margin)
    assert 0 <= found <= margin
    assert ranking_loss(image * 0, text * 0, labels, margin) == pytest.approx(margin if count > 1 else 0)
    assert ranking_loss(image, text, torch.ones(count, 3), margin) == 0  # all are similar
    assert ranking_loss(image, text, labels, 0) == 0


def test_sums_of_values_are_no_distances():
    """Vectors with equal sums are as far apart as any."""
    one, other = torch.tensor([[1.0, -1, 1, -1]]), torch.tensor([[-1.0, 1, -1, 1]])
    labels = torch.tensor([[1.0, 0], [0, 1]])
    both = torch.cat([one, other])
    assert ranking_loss(both, both.flip(0), labels, 4.5).item() == pytest.approx(4.5)
    assert ranking_loss(both, both, labels, 4.5).item() == pytest.approx(0.5)


def test_items_without_labels_and_equal_items_have_finite_gradients():
    equal = torch.ones(3, 8, requires_grad=True)
    labels = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 0]])
    total = ranking_loss(equal, equal, labels, 1.0) + classification_loss(equal[:, :3], 0 * labels)
    total = total + torch.linalg.vector_norm(equal - equal.detach(), dim=1).mean()
    assert total.item() == 1
    assert torch.autograd.grad(total, equal)[0].isfinite().all()


def test_one_update_of_both_by_hand(deep_model, deep_trainer, deep_pairs):
    model = deep_model("acmr", dtype=torch.float64, num_epochs=4, label_weight=2.0)
    model.objective.epochs.advance()
    expected, pairs = deepcopy(model), deep_pairs(8)
    trainer = deep_trainer(model, train=pairs, optim="sgd", max_grad_norm=0.0, max_steps=1)
    trainer.train()

    batch = trainer.data_collator(pairs)
    labels = batch.pop("labels")
    inputs = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
    outputs = expected.train()(**inputs)
    player = expected.objective.players()[0]
    step(player.loss({"labels": labels}, outputs, TrainingState()), player.module.parameters())
    loss = expected.objective({"labels": labels}, outputs, TrainingState()).total
    step(loss, [each for name, each in expected.named_parameters() if "modality" not in name])
    moved = dict(model.named_parameters())
    for name, value in expected.named_parameters():
        torch.testing.assert_close(moved[name], value, rtol=0, atol=1e-7, msg=name)  # inputs are in single precision


def step(loss, parameters):
    parameters = list(parameters)
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, found, strict=True):
            if gradient is not None:
                parameter -= 0.01 * gradient


def test_without_adversary_the_classifier_rests(deep_model, deep_trainer):
    model = deep_model("acmr", adversarial_weight=0)
    before = deepcopy(model.objective.modality_classifier.state_dict())
    trainer = deep_trainer(model, logging_strategy="epoch")
    trainer.train()
    for name, value in model.objective.modality_classifier.state_dict().items():
        assert torch.equal(value, before[name])
    assert "loss_modality" not in trainer.state.log_history[0]


def test_training_separates_the_classes(deep_model, deep_trainer):
    model = deep_model("acmr", num_epochs=20)
    trainer = deep_trainer(model, num_train_epochs=20, logging_strategy="epoch")
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss_label" in log]
    assert logs[-1]["loss_label"] < 0.2 * logs[0]["loss_label"]
    assert logs[-1]["loss_pair"] < logs[0]["loss_pair"]
    assert int(model.objective.epochs) == 20
    image, text = (torch.tensor(each) for each in trainer.predict(trainer.eval_dataset).predictions)
    nearest = torch.cdist(image, text).argmin(dim=1)
    kinds = [row["labels"] for row in trainer.eval_dataset.rows]
    assert sum(kinds[i] == kinds[j] for i, j in enumerate(nearest.tolist())) >= 11


def test_vectors_do_not_depend_on_the_batch(deep_model, assert_codes_ignore_the_batch):
    assert_codes_ignore_the_batch(deep_model("acmr", normalize_features=True, activation="tanh"))


@pytest.mark.parametrize("step", [3, 5])
def test_resumed_training_ends_alike_and_the_model_loads(resume, reload, step):
    whole, _, _ = resume("acmr", step, num_epochs=3)
    assert int(reload(whole.model).objective.epochs) == 3


def test_invalid_settings_are_named(deep_model):
    with pytest.raises(ValueError, match="num_epochs is 0; give 1 or more"):
        deep_model("acmr", num_epochs=0)
    with pytest.raises(ValueError, match="there are no classes; give pairs with labels"):
        deep_model("acmr", classes=())
    with pytest.raises(ValueError, match="pair_weight is -1; give 0"):
        deep_model("acmr", pair_weight=-1)
