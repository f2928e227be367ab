"""Every loss term against its formula in float64 loops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from settings import pretraining_model
from sklearn.metrics import log_loss
from sklearn.metrics.pairwise import cosine_similarity

from cmfah_hf.methods import Losses
from cmfah_hf.methods.losses import (
    cosine_matrix,
    label_guidance_loss,
    label_similarity_loss,
    pair_losses,
    pairwise_similarity,
    quantization_loss,
    triplet_hinge,
    triplet_masks,
    views_losses,
)
from cmfah_hf.methods.outputs import View
from cmfah_hf.models.codes import sign

few = settings(max_examples=60)
# Multiples of 1/8: their sums and differences are exact, so ties are exact and a zero hinge is zero.
eighths = st.integers(-8, 8).map(lambda value: value / 8)


def cubic_hinge(similarity, positive, negative, margin):
    """Value and gradient of the mean hinge over all triplets, by the formula."""
    value, count, gradient = 0.0, 0, np.zeros(np.shape(similarity))
    for a in range(len(similarity)):
        for p in np.flatnonzero(positive[a]):
            for n in np.flatnonzero(negative[a]):
                count += 1
                hinge = margin + similarity[a][n] - similarity[a][p]
                if hinge > 0:
                    value += hinge
                    gradient[a, n] += 1
                    gradient[a, p] -= 1
    return value / max(count, 1), gradient / max(count, 1)


def masks(labels, within):
    """Masks of pairs with and without a shared class, from sets."""
    classes = [set(np.flatnonzero(row)) for row in labels]
    size = len(classes)
    positive, negative = np.zeros((size, size), bool), np.zeros((size, size), bool)
    for i in range(size):
        for j in range(size):
            if classes[i] and classes[j] and not (within and i == j):
                positive[i, j] = bool(classes[i] & classes[j])
                negative[i, j] = not positive[i, j]
    return positive, negative


@st.composite
def hinges(draw):
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 6)))
    role = draw(arrays(np.int8, shape, elements=st.integers(0, 2)))
    return draw(arrays(np.float64, shape, elements=eighths)), role == 1, role == 2


@few
@given(hinges(), st.sampled_from([0.0, 0.125, 0.5, 2.0]))
def test_hinge_matches_the_cubic_form_in_value_and_gradient_with_ties(drawn, margin):
    similarity, positive, negative = drawn
    tensor = torch.tensor(similarity, requires_grad=True)
    value = triplet_hinge(tensor, torch.tensor(positive), torch.tensor(negative), margin)
    value.backward()
    expected, gradient = cubic_hinge(similarity, positive, negative, margin)
    assert value.item() == pytest.approx(expected, abs=1e-12)
    np.testing.assert_allclose(tensor.grad.numpy(), gradient, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_hinge_of_a_training_batch_keeps_its_precision(dtype):
    rng = np.random.default_rng(0)
    similarity = torch.tensor(rng.uniform(-1, 1, (128, 128)), dtype=dtype)
    role = rng.integers(0, 3, (128, 128))
    exact = similarity.double().numpy()
    hinge = np.maximum(0.0, 0.5 + exact[:, None, :] - exact[:, :, None])
    triplets = (role == 1)[:, :, None] & (role == 2)[:, None, :]
    value = triplet_hinge(similarity, torch.tensor(role == 1), torch.tensor(role == 2), 0.5)
    assert value.dtype == (dtype if dtype == torch.float64 else torch.float32)
    assert value.item() == pytest.approx(hinge[triplets].mean(), rel=1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("kept", ["positive", "negative", "neither"])
def test_a_batch_without_triplets_has_zero_loss_and_gradient(kept):
    similarity = torch.rand(4, 4, requires_grad=True)
    masks_AN = [torch.full((4, 4), kept == name) for name in ("positive", "negative")]
    value = triplet_hinge(similarity, *masks_AN, 0.5)
    value.backward()
    assert value.item() == 0
    assert similarity.grad.abs().sum() == 0


@few
@given(arrays(np.int64, st.tuples(st.integers(1, 6), st.integers(1, 4)), elements=st.integers(0, 1)), st.booleans())
def test_masks_match_the_label_sets(labels, within):
    found = triplet_masks(torch.tensor(labels), within)
    for mask, expected in zip(found, masks(labels, within), strict=True):
        np.testing.assert_array_equal(mask.numpy(), expected)


def test_masks_of_partners_and_of_unlabeled_rows():
    labels = torch.tensor([[1, 0], [0, 1], [0, 0]])
    positive, negative = triplet_masks(labels, within=False)
    assert positive.tolist() == [[True, False, False], [False, True, False], [False, False, False]]
    assert negative.tolist() == [[False, True, False], [True, False, False], [False, False, False]]
    positive, _ = triplet_masks(labels, within=True)
    assert not positive.any()  # no item is its own positive


@few
@given(
    arrays(np.float64, (3, 4), elements=st.floats(-2, 2).map(lambda x: round(x, 3))),
    arrays(np.float64, (5, 4), elements=st.floats(-2, 2).map(lambda x: round(x, 3))),
)
def test_cosines_match_scikit_learn_and_zero_rows_give_zero(x, y):
    found = cosine_matrix(torch.tensor(x), torch.tensor(y)).numpy()
    np.testing.assert_allclose(found, cosine_similarity(x, y), atol=1e-12)
    assert not found[~x.any(axis=1)].any()


@few
@given(
    arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 4)), elements=st.integers(0, 4).map(float)),
    st.sampled_from([0.0, 0.25, 0.6]),
    st.booleans(),
)
def test_masks_and_target_of_weighted_tags_match_scikit_learn(tags, overlap, within):
    cosines, known = cosine_similarity(tags), tags.any(axis=1)
    target, found_known = pairwise_similarity(torch.tensor(tags), torch.float64)
    np.testing.assert_allclose(target.numpy(), cosines, atol=1e-12)
    np.testing.assert_array_equal(found_known.numpy(), known)
    positive, negative = (mask.numpy() for mask in triplet_masks(torch.tensor(tags), within, overlap))
    clear = np.abs(cosines - overlap) > 1e-6  # the rest depends on float32 rounding
    others = ~np.eye(len(tags), dtype=bool) if within else np.ones_like(clear)
    both = known[:, None] & known[None, :]
    np.testing.assert_array_equal(positive[clear], (others & both & (cosines > overlap))[clear])
    np.testing.assert_array_equal(negative[clear], (others & both & (cosines <= overlap))[clear])


def test_only_equal_ids_are_positives():
    """As for pairs without labels: ids are unique, and large ones are compared exactly."""
    numbers = torch.tensor([2**62 + 1, 7, 2**62])
    positive, negative = triplet_masks(numbers, within=False)
    assert positive.tolist() == torch.eye(3, dtype=torch.bool).tolist()
    assert negative.tolist() == (~torch.eye(3, dtype=torch.bool)).tolist()
    positive, negative = triplet_masks(numbers, within=True)
    assert not positive.any()
    assert negative.sum() == 6
    assert torch.equal(pairwise_similarity(numbers)[0], torch.eye(3))


def test_the_loss_of_pairs_matches_a_manual_computation():
    rng = np.random.default_rng(3)
    image, text = (np.tanh(rng.normal(size=(4, 8))) for _ in range(2))
    cosines = cosine_similarity(image, text)
    eye = np.eye(4, dtype=bool)
    towers = [View(hash_values=torch.tensor(x), features=torch.tensor(x)) for x in (image, text)]
    found = pair_losses(*towers, torch.arange(4), torch.ones(4, 8), 0.5)
    expected = cubic_hinge(cosines, eye, ~eye, 0.5)[0] + cubic_hinge(cosines.T, eye, ~eye, 0.5)[0]
    assert found["inter_hash"].item() == pytest.approx(expected, rel=1e-9)
    assert found["intra_hash"].item() == 0
    within = [((cosine_similarity(x)[~eye]) ** 2).mean() for x in (image, text)]
    target = ((cosines - np.eye(4)) ** 2).mean() + sum(within) / 2
    assert found["similarity"].item() == pytest.approx(target, rel=1e-9)


def test_sign_of_zero_is_plus_one():
    values = torch.tensor([-2.0, -1e-30, -0.0, 0.0, 1e-30, 0.5])
    assert sign(values).tolist() == [-1, -1, 1, 1, 1, 1]
    assert sign(values.half()).dtype == torch.float16


def test_quantization_is_the_mean_square():
    rng = np.random.default_rng(1)
    values, codes = np.tanh(rng.normal(size=(5, 8))), rng.choice([-1, 1], (5, 8))
    found = quantization_loss(torch.tensor(values), torch.tensor(codes))
    assert found.item() == pytest.approx(((codes - values) ** 2).mean(), rel=1e-12)


@few
@given(
    arrays(np.float64, (4, 3), elements=st.floats(-6, 6)),
    arrays(np.int64, (4, 3), elements=st.integers(0, 1)),
    st.sampled_from([0.5, 1.0, 8.0]),
)
def test_label_guidance_is_the_weighted_log_loss_of_labeled_rows(logits, labels, positive_weight):
    tensor = torch.tensor(logits, requires_grad=True)
    found = label_guidance_loss(tensor, torch.tensor(labels), positive_weight)
    found.backward()
    labeled = labels.any(axis=1)
    truth, chance = labels[labeled].ravel(), 1 / (1 + np.exp(-logits[labeled].ravel()))
    if not labeled.any():
        assert found.item() == 0
    else:
        weights = np.where(truth == 1, positive_weight, 1.0)
        mean = log_loss(truth, chance, sample_weight=weights, labels=[0, 1]) * weights.sum() / len(truth)
        assert found.item() == pytest.approx(mean, rel=1e-9)
    assert not tensor.grad[~torch.tensor(labeled)].any()
    assert tensor.grad[torch.tensor(labeled)].abs().all()


def loop_similarity(image, text, labels):
    """`[label-similarity]` pair by pair."""
    target = cosine_similarity(labels)
    known = [i for i in range(len(labels)) if labels[i].any()]

    def mean(x, y, pairs):
        cosines = cosine_similarity(x, y)
        return sum((cosines[i, j] - target[i, j]) ** 2 for i, j in pairs) / max(len(pairs), 1)

    every = [(i, j) for i in known for j in known]
    others = [(i, j) for i, j in every if i != j]
    return mean(image, text, every) + (mean(image, image, others) + mean(text, text, others)) / 2


@few
@given(arrays(np.int64, (4, 3), elements=st.integers(0, 1)), st.integers(0, 99))
def test_label_similarity_pair_by_pair(labels, seed):
    image, text = np.tanh(np.random.default_rng(seed).normal(size=(2, 4, 8)))
    found = label_similarity_loss(torch.tensor(image), torch.tensor(text), torch.tensor(labels))
    assert found.item() == pytest.approx(loop_similarity(image, text, labels), rel=1e-9, abs=1e-12)


def test_label_similarity_vanishes_if_cosines_match_the_labels():
    labels = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 0, 1]])
    values = torch.cat([labels, torch.zeros(3, 5)], dim=1) * 0.5
    assert label_similarity_loss(values, values, labels).item() == pytest.approx(0, abs=1e-12)
    assert label_similarity_loss(values, -values, labels).item() > 0.5


def tower(rng, size=5, requires_grad=False):
    return View(
        hash_values=torch.tensor(np.tanh(rng.normal(size=(size, 8))), requires_grad=requires_grad),
        features=torch.tensor(rng.normal(size=(size, 6)), requires_grad=requires_grad),
    )


def terms_of(image, text, labels, codes, margin):
    """All of `[intra]`, `[inter]` and `[label-similarity]`, in NumPy."""

    def hinge(x, y, within):
        return cubic_hinge(cosine_similarity(x, y), *masks(labels, within), margin)[0]

    features = image.features.detach().numpy(), text.features.detach().numpy()
    values = image.hash_values.detach().numpy(), text.hash_values.detach().numpy()
    return {
        "intra_feature": sum(hinge(x, x, True) for x in features),
        "intra_hash": sum(hinge(x, x, True) for x in values),
        "quantization": sum(((x - codes) ** 2).mean() for x in values),
        "inter_feature": hinge(*features, False) + hinge(*features[::-1], False),
        "inter_hash": hinge(*values, False) + hinge(*values[::-1], False),
        "similarity": loop_similarity(*values, labels),
    }


LABELS = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 0, 0], [0, 1, 0]])


def test_terms_of_a_view_match_numpy():
    rng = np.random.default_rng(2)
    image, text = tower(rng), tower(rng)
    codes = rng.choice([-1.0, 1.0], (5, 8))
    found = pair_losses(image, text, torch.tensor(LABELS), torch.tensor(codes), 0.3)
    expected = terms_of(image, text, LABELS, codes, 0.3)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert value > 0.01, name
        assert found[name].item() == pytest.approx(value, rel=1e-9), name


@pytest.mark.parametrize(("attention", "paired_weight"), [("both", 0.25), ("image", 1.0), ("both", 0.0), ("none", 3.0)])
def test_views_are_summed_with_the_weight_of_the_pair(attention, paired_weight):
    rng = np.random.default_rng(3)
    unimodal, cross_modal = (tower(rng), tower(rng)), (tower(rng), tower(rng))
    cross_modal[0].hash_values[0] = -cross_modal[1].hash_values[0]  # the sums stay zero: bits of +1

    def terms(image, text, codes):
        own = pair_losses(image, text, torch.tensor(LABELS), codes, 0.4)
        return {**own, "label": image.features.sum(), "adversarial": text.features.sum()}

    # Without attention both views are equal.
    found = views_losses(unimodal, cross_modal if attention != "none" else None, None, paired_weight, terms)
    total = sum(tower.hash_values for tower in (cross_modal if attention != "none" else unimodal))
    codes = np.where(total.numpy() >= 0, 1.0, -1.0)
    assert attention == "none" or (codes[0] == 1).all()
    weight = 0 if attention == "none" else paired_weight
    first, second = (terms_of(*view, LABELS, codes, 0.4) for view in (unimodal, cross_modal))
    for name in first:
        assert found[name].item() == pytest.approx(first[name] + weight * second[name], rel=1e-9), name
    for name, side in (("label", 0), ("adversarial", 1)):
        sums = [view[side].features.sum().item() for view in (unimodal, cross_modal)]
        assert found[name].item() == pytest.approx(sums[0] + weight * sums[1], rel=1e-9)


def test_codes_are_the_given_target_or_computed_without_gradient():
    rng = np.random.default_rng(4)
    unimodal = tower(rng, requires_grad=True), tower(rng, requires_grad=True)
    cross_modal = tower(rng, requires_grad=True), tower(rng, requires_grad=True)
    codes = torch.tensor(rng.choice([-1, 1], (5, 8)))

    def terms(image, text, codes):
        return pair_losses(image, text, torch.tensor(LABELS), codes, 0.5)

    found = views_losses(unimodal, cross_modal, codes, 1.0, terms)
    expected = sum(((t.hash_values - codes) ** 2).mean() for t in (*unimodal, *cross_modal))
    assert found["quantization"].item() == pytest.approx(expected.item(), rel=1e-9)

    views_losses(unimodal, cross_modal, None, 1.0, terms)["quantization"].backward()
    drawn = sign(cross_modal[0].hash_values + cross_modal[1].hash_values).detach()
    for output in (*unimodal, *cross_modal):
        gradient = 2 * (output.hash_values.detach() - drawn) / drawn.numel()
        torch.testing.assert_close(output.hash_values.grad, gradient)


def test_total_weights_every_term_and_the_towers_maximize_the_adversarial_one():
    model = pretraining_model(
        intra_feature_weight=2,
        intra_hash_weight=3,
        quantization_weight=5,
        inter_feature_weight=7,
        inter_hash_weight=11,
        similarity_weight=13,
        label_weight=17,
        concept_weight=23,
        adversarial_weight=19,
        pair_contrast_weight=29,
        orthogonality_weight=31,
        code_buffer_weight=37,
        proxy_weight=41,
        hidden_size=8,
        text_filters=8,
        word_dim=8,
    )
    total = model.objective.weights
    order = [
        "intra_feature",
        "intra_hash",
        "quantization",
        "inter_feature",
        "inter_hash",
        "similarity",
        "label",
        "concept",
        "pair_contrast",
        "distillation",
        "orthogonality",
        "code_buffer",
        "proxy",
        "adversarial",
    ]
    weights = [2, 3, 5, 7, 11, 13, 17, 23, 29, 0, 31, 37, 41, -19]
    assert list(total) == order
    for name, weight in zip(order, weights, strict=True):
        assert Losses.weighted({name: torch.tensor(0.5)}, total).total.item() == weight / 2
    terms_by_name = {name: torch.tensor(float(10**-i)) for i, name in enumerate(order)}
    expected = sum(weight * 10.0**-i for i, weight in enumerate(weights))
    assert Losses.weighted(terms_by_name, total).total.item() == pytest.approx(expected, rel=1e-6)


def test_hinges_of_several_matrices_match_single_ones():
    rng = np.random.default_rng(5)
    similarity, role = rng.uniform(-1, 1, (2, 3, 6, 6)), rng.integers(0, 3, (2, 3, 6, 6))
    tensor = torch.tensor(similarity, requires_grad=True)
    found = triplet_hinge(tensor, torch.tensor(role == 1), torch.tensor(role == 2), 0.3)
    weights = rng.uniform(size=(2, 3))
    (found * torch.tensor(weights)).sum().backward()
    for i, j in np.ndindex(2, 3):
        expected, gradient = cubic_hinge(similarity[i, j], role[i, j] == 1, role[i, j] == 2, 0.3)
        assert found[i, j].item() == pytest.approx(expected, rel=1e-12)
        np.testing.assert_allclose(tensor.grad[i, j].numpy(), weights[i, j] * gradient, atol=1e-12)
