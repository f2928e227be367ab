"""DCHMT's objective: against explicit softmaxes over two units per bit, extremes, trained, resumed and loaded."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cmfah_hf.methods import TrainingState
from cmfah_hf.methods.deep.dchmt import choice_codes, distance_loss
from cmfah_hf.methods.outputs import CMFAHForPreTrainingOutput


def distance(one_K2, other_K2):
    """Euclidean, of the probabilities of all units of two items."""
    return sum((a - b) ** 2 for a, b in zip(one_K2.flatten(), other_K2.flatten(), strict=True)) ** 0.5


def by_loops(image_BK2, text_BK2, labels, margin, quantization_weight):
    """The objective from the probabilities of both units of each bit, item by item."""
    labeled = [row for row in range(len(labels)) if labels[row].any()]
    bits = image_BK2.shape[1]
    reach = math.sqrt(2 * margin * bits)

    def term(one, other):
        total = 0.0
        for i in labeled:
            for j in labeled:
                if one is other and i == j:
                    continue  # adds nothing, and the root has no gradient there
                d = distance(one[i], other[j])
                if (labels[i] * labels[j]).any():
                    total = total + d**2
                elif d < reach:
                    total = total + (reach - d) ** 2
        return total / len(labeled) ** 2

    def uncertainty(codes):
        certain = sum((2 * code - 1) ** 2 for code in codes[..., 0].flatten()) / codes[..., 0].numel()
        return 1 - certain

    inter, intra = term(image_BK2, text_BK2), term(image_BK2, image_BK2) + term(text_BK2, text_BK2)
    quantization = (uncertainty(image_BK2) + uncertainty(text_BK2)) / 2
    return inter + intra + quantization_weight * quantization, {
        "inter": inter,
        "intra": intra,
        "quantization": quantization,
    }


@pytest.mark.parametrize("margin", [0.75, 0.2])
def test_equals_a_softmax_over_two_units_of_each_bit(deep_model, deep_batch, margin):
    model = deep_model("dchmt", dtype=torch.float64, margin=margin, quantization_weight=0.4)
    made = deep_batch(7)
    made.labels[3] = 0  # unlabeled
    units = [torch.randn(7, 8, 2, dtype=torch.float64).mul(1.5).requires_grad_() for _ in range(2)]
    made.outputs.image_logits, made.outputs.text_logits = (each[..., 0] - each[..., 1] for each in units)
    found = model.objective({"labels": made.labels}, made.outputs, TrainingState())
    gradients = torch.autograd.grad(found.total, units)

    total, terms = by_loops(*(each.softmax(dim=-1) for each in units), made.labels, margin, 0.4)
    assert found.terms.keys() == terms.keys()
    for name, value in terms.items():
        torch.testing.assert_close(found.terms[name], value, rtol=1e-12, atol=0, msg=name)
    torch.testing.assert_close(found.total, total, rtol=1e-12, atol=0)
    expected = torch.autograd.grad(total, units)
    torch.testing.assert_close(gradients, expected, rtol=1e-10, atol=1e-14)


def test_codes_have_the_signs_of_the_towers(deep_batch):
    logits = deep_batch(5).outputs.image_logits
    codes = choice_codes(logits)
    torch.testing.assert_close(codes, 2 * torch.sigmoid(logits) - 1)
    assert torch.equal(codes.sign(), logits.tanh().sign())
    assert choice_codes(logits.half()).dtype == torch.float32


def test_equal_codes_have_a_value_and_finite_gradients(deep_model):
    model, logits = deep_model("dchmt"), [torch.zeros(3, 8, requires_grad=True) for _ in range(2)]
    outputs = CMFAHForPreTrainingOutput(image_logits=logits[0], text_logits=logits[1])
    labels = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    found = model.objective({"labels": labels}, outputs, TrainingState())
    # 4 of 9 are dissimilar, at the distance 0 instead of the square root of 1.5 * 8.
    assert found.terms["inter"].item() == pytest.approx(12 * 4 / 9)
    assert found.terms["intra"].item() == pytest.approx(2 * 12 * 4 / 9)
    assert found.terms["quantization"].item() == 1
    assert all(each.isfinite().all() for each in torch.autograd.grad(found.total, logits))


def test_certain_codes_that_differ_in_the_share_of_the_margin_add_nothing(deep_model):
    model = deep_model("dchmt", margin=0.75)
    one, other = torch.full((8,), 60.0), torch.full((8,), 60.0)
    other[:6] = -60
    logits = torch.stack([one, one, other])
    labels = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    found = model.objective(
        {"labels": labels}, CMFAHForPreTrainingOutput(image_logits=logits, text_logits=logits), TrainingState()
    )
    assert found.total.item() == pytest.approx(0, abs=1e-6)
    logits[2, 0] = 60  # 5 of 8 bits
    found = model.objective(
        {"labels": labels}, CMFAHForPreTrainingOutput(image_logits=logits, text_logits=logits), TrainingState()
    )
    assert found.terms["inter"].item() == pytest.approx(4 / 9 * (12**0.5 - 10**0.5) ** 2, rel=1e-5)


@given(st.integers(0, 2**31 - 1), st.integers(2, 5), st.floats(0, 1))
def test_modalities_are_exchangeable_and_similar_items_attract(seed, count, margin):
    random = torch.Generator().manual_seed(seed)
    one, other = (torch.rand(count, 8, generator=random, dtype=torch.float64) * 2 - 1 for _ in range(2))
    similar = torch.rand(count, count, generator=random) < 0.5
    all_pairs = torch.ones_like(similar)
    found = distance_loss(one, other, similar, all_pairs, margin)
    torch.testing.assert_close(found, distance_loss(other, one, similar.T, all_pairs, margin))
    assert 0 <= found <= 2 * 8
    # Without dissimilar items, codes of half the size are nearer.
    assert distance_loss(one / 2, other / 2, all_pairs, all_pairs, margin) < distance_loss(
        one, other, all_pairs, all_pairs, margin
    )
    assert distance_loss(one, other, similar, ~all_pairs, margin) == 0


def test_training_separates_the_classes(deep_model, deep_trainer):
    model = deep_model("dchmt", margin=0.5)
    trainer = deep_trainer(model, num_train_epochs=30, logging_strategy="epoch")
    before = trainer.evaluate()["eval_map"]
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses[-1] < 0.4 * losses[0]
    assert trainer.evaluate()["eval_map"] > max(0.9, before)


def test_codes_do_not_depend_on_the_batch(deep_model, assert_codes_ignore_the_batch):
    assert_codes_ignore_the_batch(deep_model("dchmt", normalize_features=True))


def test_resumed_training_ends_alike_and_the_model_loads(resume, reload):
    whole, _, _ = resume("dchmt", step=3)
    reload(whole.model)


@pytest.mark.parametrize("margin", [-0.1, 1.5])
def test_invalid_margin_is_named(deep_model, margin):
    with pytest.raises(ValueError, match=f"margin is {margin}; give a share"):
        deep_model("dchmt", margin=margin)
