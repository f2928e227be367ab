"""DJSRH: the loss against loops over pairs, its invariants, its count of epochs, and training without labels."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from cmfah_hf.data.similarity import PairSimilarity
from cmfah_hf.methods import TrainingState
from cmfah_hf.methods.deep.djsrh import DJSRHObjectiveConfig, joint_affinity

UNLABELED = {"classes": (), "hash_bits": 8}


def cosine(x, y):
    product, squares = 0.0, [0.0, 0.0]
    for a, b in zip(x, y, strict=True):
        product, squares = product + a * b, [squares[0] + a * a, squares[1] + b * b]
    return product / (squares[0] ** 0.5 * squares[1] ** 0.5)


def loss_by_loops(image, text, image_vectors, text_vectors, epoch, beta=0.9, eta=0.4, mu=1.5, weight=0.1):
    """The loss of `[djsrh]`, one pair of items after the other."""
    count = len(image)
    affinity = [
        [
            beta * (2 * cosine(image_vectors[i], image_vectors[j]) - 1)
            + (1 - beta) * (2 * cosine(text_vectors[i], text_vectors[j]) - 1)
            for j in range(count)
        ]
        for i in range(count)
    ]
    image, text = ([[(math.sqrt(epoch + 1) * z).tanh() for z in row] for row in side] for side in (image, text))
    total = 0.0
    for i in range(count):
        for j in range(count):
            common = sum(affinity[i][k] * affinity[j][k] for k in range(count)) / count
            target = mu * ((1 - eta) * affinity[i][j] + eta * common)
            total = total + (cosine(image[i], text[j]) - target) ** 2
            total = total + weight * (cosine(image[i], image[j]) - target) ** 2
            total = total + weight * (cosine(text[i], text[j]) - target) ** 2
    return total / count**2


def losses(model, batch, outputs=None):
    return model.objective({"labels": torch.arange(4)}, outputs or batch.outputs, TrainingState())


@pytest.mark.parametrize(("epoch", "chosen"), [(0, {}), (3, {"image_share": 0.3, "neighbor_share": 0.7})])
def test_value_and_gradient_are_those_of_loops(deep_model, deep_batch, epoch, chosen):
    model, batch = deep_model("djsrh", **UNLABELED, **chosen, intra_weight=0.3), deep_batch(4)
    model.objective.epochs.finished.fill_(epoch)
    found = losses(model, batch)
    image, text = batch.leaves["image_logits"], batch.leaves["text_logits"]
    vectors = batch.outputs.image_vectors, batch.outputs.text_vectors
    beta, eta = chosen.get("image_share", 0.9), chosen.get("neighbor_share", 0.4)
    by_loops = loss_by_loops(image, text, *vectors, epoch, beta, eta, weight=0.3)
    assert list(found.terms) == ["inter", "intra"]
    assert found.total.item() == pytest.approx(by_loops.item(), rel=1e-12)
    gradients = [torch.autograd.grad(loss, (image, text)) for loss in (found.total, by_loops)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 99),
    image_share=st.floats(0, 1),
    neighbor_share=st.floats(0, 1),
    scale=st.floats(1e-3, 1e3),
)
def test_affinity_ignores_the_lengths_of_features_and_is_largest_on_the_diagonal(
    seed, image_share, neighbor_share, scale
):
    rng = np.random.default_rng(seed)
    image, text = torch.tensor(rng.normal(size=(5, 3))), torch.tensor(rng.normal(size=(5, 7)))
    affinity = joint_affinity(image, text, image_share, neighbor_share)
    lengths = torch.tensor(scale * rng.uniform(0.5, 2, size=(5, 1)))
    torch.testing.assert_close(joint_affinity(image * lengths, text / lengths, image_share, neighbor_share), affinity)
    torch.testing.assert_close(affinity, affinity.T)
    first = joint_affinity(image, text, image_share, 0.0)
    torch.testing.assert_close(first.diagonal(), torch.ones(5, dtype=first.dtype))
    # No pair has more in common with another than with itself.
    own = affinity.diagonal()
    assert (affinity <= (own[:, None] + own[None, :]) / 2 + 1e-9).all()


def test_the_loss_ignores_the_lengths_of_features(deep_model, deep_batch):
    model, batch = deep_model("djsrh", **UNLABELED), deep_batch(4)
    longer = replace(
        batch.outputs, image_vectors=7 * batch.outputs.image_vectors, text_vectors=batch.outputs.text_vectors / 3
    )
    assert losses(model, batch, longer).total.item() == pytest.approx(losses(model, batch).total.item(), rel=1e-12)


def test_a_step_aligns_the_codes_of_pairs(deep_model, deep_batch):
    model, batch = deep_model("djsrh", **UNLABELED), deep_batch(4)
    image, text = (batch.leaves[f"{side}_logits"] for side in ("image", "text"))

    def aligned():
        return torch.cosine_similarity(image.detach().tanh(), text.detach().tanh()).mean().item()

    before = aligned()
    losses(model, batch).total.backward()
    with torch.no_grad():
        for leaf in (image, text):
            leaf -= 0.1 * leaf.grad
    assert aligned() > before


def test_the_codes_become_steeper_and_keep_their_signs(deep_model, deep_batch):
    model, batch = deep_model("djsrh", **UNLABELED).eval(), deep_batch(4)
    image, text = torch.randn(5, 1, 6), torch.randn(5, 1, 5)
    before = model.cmfah.get_image_hash(region_features=image), model.cmfah.get_text_hash(token_features=text)
    first = losses(model, batch).total
    for _ in range(8):
        model.objective.on_epoch_end(TrainingState())
    assert int(model.objective.epochs) == 8
    tripled = replace(batch.outputs, image_logits=3 * batch.leaves["image_logits"])
    tripled.text_logits = 3 * batch.leaves["text_logits"]
    ninth = losses(model, batch).total
    model.objective.epochs.finished.zero_()
    torch.testing.assert_close(losses(model, batch, tripled).total, ninth)  # sqrt(8 + 1)
    assert not torch.isclose(first, ninth)
    after = model.cmfah.get_image_hash(region_features=image), model.cmfah.get_text_hash(token_features=text)
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one >= 0, (3 * one.atanh()).tanh() >= 0)


def test_codes_do_not_depend_on_the_batch(deep_model, assert_codes_ignore_the_batch):
    assert_codes_ignore_the_batch(deep_model("djsrh", **UNLABELED))


@pytest.mark.parametrize(
    ("name", "value"), [("image_share", -0.1), ("neighbor_share", 1.5), ("target_scale", 0), ("intra_weight", -1)]
)
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}; give"):
        DJSRHObjectiveConfig(**{name: value})


def test_training_separates_clusters_that_it_is_not_told(deep_model, deep_trainer, share_of_equal_classes):
    model = deep_model("djsrh", classes=(), hash_bits=16)
    trainer = deep_trainer(model, similarity=PairSimilarity(), num_train_epochs=15, logging_steps=3)
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged[-1] < 0.6 * logged[0]
    assert int(model.objective.epochs) == 15
    assert share_of_equal_classes(trainer) >= 0.9


def test_an_interrupted_training_resumes_with_the_same_steepness(resume):
    _, resumed, checkpoint = resume("djsrh", step=4, similarity=PairSimilarity(), **UNLABELED)  # in the second epoch
    assert load_file(checkpoint / "model.safetensors")["objective.epochs.finished"].item() == 1
    assert int(resumed.model.objective.epochs) == 3


def test_the_count_of_epochs_is_saved(deep_model, reload):
    model = deep_model("djsrh", **UNLABELED)
    model.objective.epochs.finished.fill_(5)
    assert int(reload(model).objective.epochs) == 5
