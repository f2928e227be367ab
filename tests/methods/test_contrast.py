"""SCAHN's loss terms against float64 loops, their gradients, and the queue."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics.pairwise import cosine_similarity

from cmfah_hf.methods.contrast import ContrastQueue, EarlierPairs, contrast_losses, contrastive_loss, graph_logits

few = settings(max_examples=25)


def by_loops(anchors, candidates, labels, candidate_labels, temperature, within, threshold=0.0):
    """-sum_j w_ij log softmax_j per anchor; if `within`, the candidate of the same index is the anchor itself."""
    losses = []
    cosines, similarity = cosine_similarity(anchors, candidates), cosine_similarity(labels, candidate_labels)
    for i in range(len(anchors)):
        if not labels[i].any():
            continue
        others = [j for j in range(len(candidates)) if candidate_labels[j].any() and not (within and j == i)]
        overlap = {j: similarity[i, j] if similarity[i, j] > threshold else 0.0 for j in others}
        total = sum(overlap.values())
        if total == 0:
            continue
        scores = {j: cosines[i, j] / temperature for j in others}
        highest = max(scores.values())
        normalizer = highest + np.log(sum(np.exp(score - highest) for score in scores.values()))
        losses.append(-sum(overlap[j] / total * (scores[j] - normalizer) for j in others))
    return float(np.mean(losses)) if losses else 0.0


def all_by_loops(images, texts, labels, temperature, earlier=None, threshold=0.0):
    more_images, more_texts, more_labels = images, texts, labels
    if earlier is not None:
        more_images, more_texts = np.concatenate([images, earlier[0]]), np.concatenate([texts, earlier[1]])
        more_labels = np.concatenate([labels, earlier[2]])

    def one(anchors, candidates, within):
        return by_loops(anchors, candidates, labels, more_labels, temperature, within, threshold)

    return {
        "cross_contrast": one(images, more_texts, False) + one(texts, more_images, False),
        "intra_contrast": one(images, more_images, True) + one(texts, more_texts, True),
    }


@st.composite
def batches(draw):
    size, classes = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    labels = draw(arrays(np.int64, (size, classes), elements=st.integers(0, 1)))
    seed = draw(st.integers(0, 99))
    values = np.tanh(np.random.default_rng(seed).normal(size=(2, size, 6)))
    return values[0], values[1], labels


def found(images, texts, labels, temperature=0.3, **options):
    terms = contrast_losses(torch.tensor(images), torch.tensor(texts), torch.tensor(labels), temperature, **options)
    return {name: float(value) for name, value in terms.items()}


@few
@given(batches(), st.sampled_from([0.07, 0.5]), st.sampled_from([0.0, 0.6]))
def test_contrasts_match_loops_over_anchors(batch, temperature, threshold):
    expected = all_by_loops(*batch, temperature, threshold=threshold)
    assert found(*batch, temperature, positive_overlap=threshold) == pytest.approx(expected, abs=1e-9)


def test_switches_disable_a_term():
    rng = np.random.default_rng(0)
    batch = rng.normal(size=(3, 4)), rng.normal(size=(3, 4)), np.array([[1, 0], [1, 1], [0, 1]])
    both = found(*batch)
    assert found(*batch, cross=False) == {"intra_contrast": both["intra_contrast"]}
    assert found(*batch, intra=False) == {"cross_contrast": both["cross_contrast"]}
    assert found(*batch, intra=False, cross=False) == {}


@few
@given(batches(), st.randoms(use_true_random=False))
def test_order_of_pairs_and_labels_and_an_empty_class_change_nothing(batch, random):
    images, texts, labels = batch
    expected = pytest.approx(found(images, texts, labels), abs=1e-9)
    rows, columns = list(range(len(images))), list(range(labels.shape[1]))
    random.shuffle(rows)
    random.shuffle(columns)
    assert found(images[rows], texts[rows], labels[rows]) == expected
    assert found(images, texts, labels[:, columns]) == expected
    assert found(images, texts, np.pad(labels, ((0, 0), (0, 2)))) == expected
    # Pairs without a label are ignored.
    more = [np.concatenate([values, values[:1] * 0.5]) for values in (images, texts)]
    assert found(*more, np.concatenate([labels, 0 * labels[:1]])) == expected


def test_swapping_both_sides_changes_nothing():
    rng = np.random.default_rng(0)
    images, texts, labels = rng.normal(size=(4, 6)), rng.normal(size=(4, 6)), rng.integers(0, 2, (4, 3))
    assert found(texts, images, labels) == pytest.approx(found(images, texts, labels), abs=1e-12)


@pytest.mark.parametrize("labels", [[[1, 0], [1, 1], [0, 1], [0, 0]], [[1], [1], [1], [1]], [[1, 0]] + 3 * [[0, 1]]])
def test_gradients(labels):
    rng = np.random.default_rng(1)
    values = [torch.tensor(rng.normal(size=(4, 3)), requires_grad=True) for _ in range(2)]
    earlier = EarlierPairs(*(torch.tensor(rng.normal(size=(2, 3))) for _ in range(2)), torch.tensor(labels[1:3]))

    def terms(queue, *values):
        return tuple(contrast_losses(*values, torch.tensor(labels), 0.4, earlier=queue).values())

    for queue in (None, earlier):
        assert torch.autograd.gradcheck(partial(terms, queue), values)


@pytest.mark.parametrize("labels", [[[0, 0], [0, 0]], [[1, 0], [0, 1]]], ids=["no labels", "no co-occurrence"])
def test_without_positives_loss_and_gradient_are_zero(labels):
    values = [torch.rand(2, 4, requires_grad=True) for _ in range(2)]
    terms = contrast_losses(*values, torch.tensor(labels), 0.2)
    within = terms["intra_contrast"]
    (within + (terms["cross_contrast"] if not np.any(labels) else 0)).backward()
    assert within.item() == 0
    if not np.any(labels):
        assert terms["cross_contrast"].item() == 0
    assert all(not value.grad.any() for value in values)
    # In the cross-modal term the partner of a labeled item is its positive.
    assert (terms["cross_contrast"].item() > 0) == bool(np.any(labels))


def test_a_single_pair_is_finite():
    for labels in ([[1]], [[0]]):
        assert found(np.ones((1, 3)), np.ones((1, 3)), np.array(labels)) == {"cross_contrast": 0, "intra_contrast": 0}


def test_pairs_by_id_are_similar_only_to_their_partners():
    rng = np.random.default_rng(2)
    images, texts = rng.normal(size=(2, 4, 6))
    terms = found(images, texts, np.array([7, 3, 9, 1]))
    assert terms == pytest.approx(all_by_loops(images, texts, np.eye(4, dtype=int), 0.3), abs=1e-9)
    assert terms["intra_contrast"] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    rng = np.random.default_rng(3)
    labels = torch.tensor(rng.integers(0, 2, (32, 3)))
    cosines = torch.tensor(rng.uniform(-1, 1, (32, 32)), dtype=dtype)
    overlap = torch.tensor(cosine_similarity(labels.numpy()), dtype=torch.float32)
    comparable = torch.ones(32, 32, dtype=torch.bool)
    exact = contrastive_loss(cosines.double(), overlap.double(), comparable, 0.05)
    half = contrastive_loss(cosines, overlap, comparable, 0.05)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(exact.item(), rel=1e-5)


def test_graph_logits_are_cosines_over_the_temperature():
    rng = np.random.default_rng(4)
    features, labels = rng.normal(size=(3, 5)), rng.normal(size=(2, 5))
    logits = graph_logits(torch.tensor(features), torch.tensor(labels), 0.1)
    np.testing.assert_allclose(logits.numpy(), cosine_similarity(features, labels) / 0.1, rtol=1e-12)
    assert torch.autograd.gradcheck(
        lambda f, g: graph_logits(f, g, 0.1),
        [torch.tensor(x, requires_grad=True) for x in (features, labels)],
    )


# Queue


def random_batch(rng, size, classes=3):
    return *rng.normal(size=(2, size, 6)), rng.integers(0, 2, (size, classes))


@few
@given(st.integers(1, 9), st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(0, 99))
def test_the_queue_holds_the_last_pairs(size, sizes, seed):
    rng = np.random.default_rng(seed)
    queue, kept = ContrastQueue(size, 6, 3).double(), []
    for batch_size in sizes:
        batch = random_batch(rng, batch_size)
        queue.push(*(torch.tensor(part) for part in batch))
        kept = (kept + list(zip(*batch, strict=True)))[-size:]
    held = list(zip(*(part.numpy() for part in queue.pairs), strict=True))

    def rows(pairs):
        return sorted(np.concatenate(pair).tolist() for pair in pairs)

    empty = [(np.zeros(6), np.zeros(6), np.zeros(3))] * (size - len(kept))
    assert rows(held) == rows(kept + empty)


@few
@given(st.integers(0, 99), st.integers(1, 5), st.integers(1, 5))
def test_contrast_with_the_queue_matches_concatenation(seed, size, earlier_size):
    rng = np.random.default_rng(seed)
    batch, earlier = random_batch(rng, size), random_batch(rng, earlier_size)
    queue = ContrastQueue(earlier_size + 3, 6, 3).double()  # three slots stay empty and are ignored
    queue.push(*(torch.tensor(part) for part in earlier))
    assert found(*batch, earlier=queue.pairs) == pytest.approx(all_by_loops(*batch, 0.3, earlier), abs=1e-9)


def test_tensors_taken_from_the_queue_do_not_change():
    queue = ContrastQueue(2, 3, 2)
    queue.push(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 2))
    values = torch.rand(2, 3, requires_grad=True)
    terms = contrast_losses(values, values, torch.ones(2, 2), 0.2, earlier=queue.pairs)
    queue.push(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 2))
    sum(terms.values()).backward()  # autograd would raise if the saved tensors had been overwritten
    assert values.grad.isfinite().all()
    assert not queue.image_hash.requires_grad
