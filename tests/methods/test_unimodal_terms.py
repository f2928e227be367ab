"""The terms of unimodal codes that the paper does not have, each against its formula in float64 loops."""

import numpy as np
import pytest
import torch
from settings import pretraining_model
from sklearn.metrics.pairwise import cosine_similarity

from cmfah_hf.methods.base import EncodedBatch, TrainingState
from cmfah_hf.methods.cmfah import ALL_LABELS, CODES
from cmfah_hf.methods.contrast import pair_contrast_loss
from cmfah_hf.methods.distillation import distillation_loss, vector_similarity
from cmfah_hf.methods.losses import code_buffer_loss, orthogonality_loss
from cmfah_hf.methods.outputs import CMFAHForPreTrainingOutput
from cmfah_hf.methods.proxies import proxy_loss

SMALL = {"image_feature_dim": 4, "vocab_size": 9, "word_dim": 4, "hidden_size": 8, "hash_bits": 16, "num_labels": 3}

# Without the terms of learned layers.
UNLEARNED = {**SMALL, "label_weight": 0, "adversarial_weight": 0, "concept_weight": 0}


@pytest.fixture
def codes():
    """Continuous codes of 5 images and 5 texts, `(2, 5, 8)`."""
    return torch.rand(2, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1


def numbers(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_pair_contrast_is_the_surprise_of_the_partner_in_both_directions(codes):
    images, texts = codes
    expected = 0.0
    for anchors, candidates in ((images, texts), (texts, images)):
        scores = cosine_similarity(anchors, candidates) / 0.1
        expected -= np.mean([row[i] - np.log(np.exp(row).sum()) for i, row in enumerate(scores)])
    assert pair_contrast_loss(images, texts, 0.1).item() == pytest.approx(expected)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_distillation_compares_the_cosines_of_codes_and_centered_vectors(codes, share):
    images, texts = numbers(1, 5, 6), numbers(2, 5, 6) + 3
    vectors = np.concatenate([each - each.mean(axis=0) for each in (images.numpy(), texts.numpy())])
    target = cosine_similarity(vectors)
    target = (1 - share) * target + share * cosine_similarity(target)
    similarity = vector_similarity(images, texts, share)
    np.testing.assert_allclose(similarity.numpy(), target, atol=1e-9)
    found = cosine_similarity(codes.flatten(0, 1))
    errors = [(found[i, j] - target[i, j]) ** 2 for i in range(10) for j in range(10) if i % 5 != j % 5]
    assert distillation_loss(*codes, similarity).item() == pytest.approx(np.mean(errors))


def test_distillation_is_least_for_codes_with_the_cosines_of_the_vectors():
    images, texts = numbers(1, 5, 8), numbers(2, 5, 8)
    images, texts = images - images.mean(dim=0), texts - texts.mean(dim=0)
    similarity = vector_similarity(images + 7, texts - 2)
    assert distillation_loss(images, texts, similarity).item() == pytest.approx(0, abs=1e-12)
    assert distillation_loss(images, texts.flip(0), similarity).item() > 0.1


def test_distillation_has_no_gradient_for_the_vectors(codes):
    images = numbers(1, 5, 6).requires_grad_()
    hashes = codes.clone().requires_grad_()
    distillation_loss(*hashes, vector_similarity(images, numbers(2, 5, 6))).backward()
    assert images.grad is None
    assert hashes.grad.abs().sum() > 0


def test_orthogonality_is_that_of_the_unrelated_pairs(codes):
    cosines = torch.from_numpy(cosine_similarity(codes[0], codes[1]))
    unrelated = torch.ones(5, 5, dtype=torch.bool) ^ torch.eye(5, dtype=torch.bool)
    values = [cosines[i, j].item() for i in range(5) for j in range(5) if i != j]
    expected = np.mean(values) ** 2 + max(0, np.mean(np.square(values)) - 1 / 8)
    assert orthogonality_loss(cosines, unrelated, 8).item() == pytest.approx(expected)
    assert orthogonality_loss(cosines, torch.zeros_like(unrelated), 8).item() == 0


def test_code_buffer_is_the_likelihood_of_the_similarity_to_all_pairs(codes):
    buffer = torch.sign(numbers(3, 7, 8))
    similar, known = numbers(4, 5, 7) > 0, numbers(5, 5, 7) > -1
    expected = []
    for i, j in np.ndindex(5, 7):
        theta = (codes[0, i] @ buffer[j]).item() / 2
        if known[i, j]:
            expected.append(np.log(1 + np.exp(theta)) - similar[i, j].item() * theta)
    assert code_buffer_loss(codes[0], buffer, similar, known).item() == pytest.approx(np.mean(expected))


def test_codes_approach_the_proxies_of_their_classes_and_leave_the_others():
    cosines = torch.tensor([[0.5, 0.3, -0.2], [0.1, 0.9, 0.4], [0.9, 0.9, 0.9]])
    labels = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 0]])
    near = np.mean([1 - 0.5, 1 - 0.9, 1 - 0.4])
    far = np.mean([0.3 - 0.2, 0, 0])
    assert proxy_loss(cosines, labels, 0.2).item() == pytest.approx(near + far)


def outputs_of(model, labels, state=None, seed=0):
    """The losses of the objective for random outputs."""
    bits, width = model.config.hash_bits, model.config.hidden_size
    outputs = CMFAHForPreTrainingOutput(
        image_hash=numbers(seed, len(labels), bits).float().tanh(),
        text_hash=numbers(seed + 1, len(labels), bits).float().tanh(),
        image_features=numbers(seed + 2, len(labels), width).float(),
        text_features=numbers(seed + 3, len(labels), width).float(),
    )
    return outputs, model.objective({"labels": labels}, outputs, state or TrainingState())


WEIGHTED = ("pair_contrast_weight", "orthogonality_weight", "code_buffer_weight", "proxy_weight")


def test_a_term_is_computed_only_with_a_weight():
    labels = torch.eye(3)[[0, 1, 2, 0]]
    _, plain = outputs_of(pretraining_model(**UNLEARNED), labels)
    for name in WEIGHTED:
        state = TrainingState(4, {CODES: torch.ones(4, 16, dtype=torch.int8), ALL_LABELS: labels})
        _, losses = outputs_of(pretraining_model(**UNLEARNED, **{name: 2.0}), labels, state)
        (term,) = set(losses.terms) - set(plain.terms)
        assert term == name.removesuffix("_weight")
        assert losses.total.item() == pytest.approx(plain.total.item() + 2 * losses.terms[term].item(), rel=1e-5)


def test_the_code_buffer_holds_the_codes_and_labels_of_all_pairs():
    model = pretraining_model(**SMALL, code_buffer_weight=1.0)
    labels = torch.eye(3)[[0, 1, 2, 0, 1]]
    images, texts = numbers(0, 5, 16), numbers(1, 5, 16)

    def encode():
        for rows in (torch.tensor([3, 0]), torch.tensor([1, 2, 4])):
            yield EncodedBatch(rows, images[rows], texts[rows], labels[rows], *[torch.zeros(len(rows), 0)] * 4)

    state = TrainingState(5, encode=encode)
    model.objective.on_epoch_end(state)
    assert torch.equal(state.tables[ALL_LABELS], labels)
    assert torch.equal(state.tables[CODES], torch.where(images + texts >= 0, 1, -1).to(torch.int8))
    outputs, losses = outputs_of(model, labels[:2], state)
    similar, known = labels[:2] @ labels.T > 0, torch.ones(2, 5, dtype=torch.bool)
    expected = sum(
        code_buffer_loss(each, state.tables[CODES], similar, known) for each in (outputs.image_hash, outputs.text_hash)
    )
    torch.testing.assert_close(losses.terms["code_buffer"], expected)


def test_the_code_buffer_is_copied_to_the_device_once_for_each_table(monkeypatch):
    labels = torch.eye(3)[[0, 1, 2, 0]]
    state = TrainingState(4, {CODES: torch.ones(4, 16, dtype=torch.int8), ALL_LABELS: labels})
    meta = torch.device("meta")  # a device other than the CPU that every machine has
    kept = [state.table_on(meta, name) for name in (CODES, ALL_LABELS)]
    assert {tensor.device for tensor in kept} == {meta}
    assert state.table_on(meta, CODES) is kept[0]
    state.tables[CODES] = torch.ones(4, 16, dtype=torch.int8)
    assert state.table_on(meta, CODES) is not kept[0]
    assert state.table_on(meta, ALL_LABELS) is kept[1]
    assert state.table_on(labels.device, ALL_LABELS) is labels

    read, table_on = [], TrainingState.table_on
    monkeypatch.setattr(
        TrainingState, "table_on", lambda state, device, name: read.append(name) or table_on(state, device, name)
    )
    outputs_of(pretraining_model(**UNLEARNED, code_buffer_weight=2.0), labels, state)
    assert read == [CODES, ALL_LABELS]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pair_contrast_temperature": 0}, "pair_contrast_temperature is 0"),
        ({"distillation_neighbors": 1.5}, "distillation_neighbors is 1.5"),
        ({"proxy_margin": 2}, "proxy_margin is 2"),
        ({"distillation_weight": 1}, "only a dual encoder has vectors"),
        ({"proxy_weight": 1, "num_labels": 0}, "there are no classes"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        pretraining_model(**{**SMALL, **settings})
