"""The choice among all candidates, and the agreement that it is based on."""

import subprocess
import sys
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmfah_hf.errors import DataError
from cmfah_hf.methods.closed_form import CodeFitter, unit_vectors
from cmfah_hf.methods.closed_form.choice import TANH_RMS, discounted_rank, expected_overlap


def clustered(rows, seed=0, width=24):
    """Vectors of images and texts: clusters in common, noise of their own, and clouds apart."""
    random = np.random.default_rng(seed)
    centers = np.random.default_rng(99).standard_normal((40, width))
    common = centers[random.integers(40, size=rows)] + 0.5 * random.standard_normal((rows, width))
    return [common + 0.5 * random.standard_normal((rows, width)) + shift for shift in (1.0, -1.0)]


def fitted(bits=16, **options):
    fitter = CodeFitter(24, **options)
    fitter.add_pairs(*clustered(600))
    return fitter.fit(bits, rounds=10)


@settings(max_examples=60, deadline=None)
@given(scores=st.lists(st.integers(0, 2), min_size=2, max_size=6), k=st.integers(1, 3), seed=st.integers(0, 99))
def test_overlap_is_the_mean_over_all_orders_of_ties(scores, k, seed):
    k = min(k, len(scores))
    relevant = np.zeros(len(scores), bool)
    relevant[np.random.default_rng(seed).permutation(len(scores))[:k]] = True
    orders = [order for order in permutations(range(len(scores))) if all(np.diff([scores[i] for i in order]) <= 0)]
    expected = np.mean([relevant[list(order[:k])].mean() for order in orders])
    assert expected_overlap(np.array([scores]), relevant[None], k) == pytest.approx(expected)


def test_the_discounted_rank_is_that_of_the_mean_place_in_a_tie():
    scores_QN = np.array([[3, 1, 2, 2], [5, 5, 5, 0], [1, 2, 3, 4]])
    expected = np.mean([1 / np.log2(1 + rank) for rank in (2.5, 2, 4)])
    assert discounted_rank(scores_QN, np.array([2, 0, 0])) == pytest.approx(expected)


def test_all_candidates_are_compared_and_the_best_is_returned():
    choice = fitted()
    rotations = ("itq", "random rotation", "frames of 8")
    assert {one.name for one in choice.candidates} == {
        f"{projection}, {rotation}" for projection in ("pca", "shared", "cca") for rotation in rotations
    }
    scores = [one.score for one in choice.candidates]
    assert scores == sorted(scores, reverse=True)
    assert choice.projection.name == choice.candidates[0].name
    assert choice.held_out == 120
    assert choice.by_partner
    assert all(0 <= figure <= 1 for one in choice.candidates for figure in (one.aqd, one.hamming))
    assert choice.candidates[0].aqd > 2 * np.mean(1 / np.log2(1 + np.arange(1, 121)))  # far from a random order


def test_held_out_pairs_decide_by_their_own_partners():
    """Images and texts agree in few directions of little variance, which only pairs show."""
    random = np.random.default_rng(0)
    common = random.standard_normal((2000, 8))
    images_NE, texts_NE = (
        np.concatenate([common, 3 * random.standard_normal((2000, 16)), np.full((2000, 1), 2.0)], axis=1)
        for _ in range(2)
    )
    fitter = CodeFitter(25)
    fitter.add_pairs(images_NE, texts_NE)
    choice = fitter.fit(16, rounds=10)
    assert choice.projection.name.startswith("cca")
    best = {one.name.split(",")[0]: one.score for one in reversed(choice.candidates)}
    assert best["cca"] > 1.5 * max(best["pca"], best["shared"])


def test_codes_of_pairs_find_each_other():
    projection = fitted(bits=32).projection
    images_NE, texts_NE = clustered(100, seed=7)
    agree_NN = np.where(projection.images(images_NE) >= 0, 1, -1) @ np.where(projection.texts(texts_NE) >= 0, 1, -1).T
    ranks = (agree_NN > np.diag(agree_NN)[:, None]).sum(axis=1)
    assert np.median(ranks) < 5
    shares = (projection.images(clustered(600)[0]) >= 0).mean(axis=0)
    assert ((shares > 0.1) & (shares < 0.9)).all()  # centered: no bit is equal for all images


def test_blocks_and_order_of_calls_do_not_matter_and_the_seed_does():
    images_NE, texts_NE = clustered(600)
    fitter = CodeFitter(24, sample=100, held_out=50)
    for rows in np.split(np.arange(600), [7, 160, 161, 500]):
        fitter.add_pairs(images_NE[rows], texts_NE[rows])
    whole = CodeFitter(24, sample=100, held_out=50)
    whole.add_pairs(images_NE, texts_NE)
    one, other = fitter.fit(16, rounds=5), whole.fit(16, rounds=5)
    assert {c.name: c.score for c in one.candidates} == pytest.approx(
        {c.name: c.score for c in other.candidates}, abs=1e-3
    )
    assert one.held_out == other.held_out == 50
    again = whole.fit(16, rounds=5)
    assert again.candidates == other.candidates
    np.testing.assert_array_equal(again.projection.image_weight, other.projection.image_weight)
    assert fitted(seed=1).candidates != fitted(seed=2).candidates


def nearest_kept(projection, center_E, texts_NE, images_NE):
    """The share of the ten nearest images of each text by cosine that are among the ten nearest by AQD."""
    queries_QK = (texts_NE - center_E) @ projection.text_weight.T
    signs_NK = np.where(projection.images(images_NE) >= 0, 1, -1)
    by_cosine, by_code = (
        np.argsort(-scores, axis=1)[:, :10] for scores in (texts_NE @ images_NE.T, queries_QK @ signs_NK.T)
    )
    return np.mean([len(set(one) & set(other)) / 10 for one, other in zip(by_cosine, by_code, strict=True)])


@pytest.mark.parametrize("texts", ["apart", "among the images", "around zero"])
def test_images_alone_are_enough_and_phrases_choose_the_center_of_texts(texts):
    images_NE, texts_NE = (unit_vectors(vectors) for vectors in clustered(600))
    if texts == "among the images":
        texts_NE = unit_vectors(clustered(600, seed=5)[0])
    elif texts == "around zero":
        texts_NE = unit_vectors(texts_NE - texts_NE.mean(axis=0))
    phrases_NE, others_NE = texts_NE[:300], texts_NE[300:]
    fitter = CodeFitter(24)
    fitter.add_images(images_NE)
    choice = fitter.fit(16, phrases=phrases_NE, rounds=10)
    assert {one.name.split(",")[0] for one in choice.candidates} == {"pca"}
    assert list(choice.centers) == sorted(choice.centers, key=lambda one: -one.score)
    means = {"images": images_NE.mean(axis=0), "phrases": phrases_NE.mean(axis=0)}
    centers = {"zero": 0 * means["images"], "1/2 of both means": sum(means.values()) / 2}
    for quarters, part in ((4, ""), (3, "3/4 of the "), (2, "1/2 of the "), (1, "1/4 of the ")):
        centers |= {f"{part}mean of {name}": quarters / 4 * mean for name, mean in means.items()}
    assert {one.name for one in choice.centers} == centers.keys()
    chosen = choice.centers[0].name
    weight_KE, bias_K = choice.projection.text_weight, choice.projection.text_bias
    np.testing.assert_allclose(bias_K, -weight_KE @ centers[chosen], atol=1e-9)
    # Texts that did not choose agree.
    kept = {name: nearest_kept(choice.projection, centers[name], others_NE, images_NE) for name in centers}
    assert kept[chosen] > max(kept.values()) - 0.02
    assert kept[chosen] > min(kept.values()) + 0.02
    expected = {"apart": ("phrases",), "among the images": ("images", "both means"), "around zero": ("zero", "1/4")}
    assert any(part in chosen for part in expected[texts])


def test_texts_that_were_added_are_their_own_center():
    images_NE, texts_NE = clustered(300)
    fitter = CodeFitter(24)
    fitter.add_images(images_NE)
    fitter.add_texts(texts_NE)
    choice = fitter.fit(16, phrases=texts_NE[:50] + 1, rounds=3)
    assert choice.centers == ()
    np.testing.assert_allclose(choice.projection.texts(texts_NE).mean(axis=0), 0, atol=1e-9)


def test_texts_without_pairs_add_the_shared_covariance():
    images_NE, texts_NE = clustered(300)
    fitter = CodeFitter(24)
    fitter.add_images(images_NE)
    fitter.add_texts(texts_NE[:200])
    assert {one.name.split(",")[0] for one in fitter.fit(16, rounds=3).candidates} == {"pca", "shared"}


def test_tanh_changes_almost_no_ranking_by_aqd():
    """The ten best of each query, before `tanh` in float64 and after it on the grid of the index."""
    from cmfah_hf.retrieval.codes import round_for_aqd

    choice = fitted(bits=64)
    images_NE, texts_NE = clustered(500, seed=3)
    query_QK, item_NK = choice.projection.texts(texts_NE), choice.projection.images(images_NE)
    assert np.sqrt(np.mean(query_QK**2)) == pytest.approx(TANH_RMS, rel=0.1)
    signs_KN = np.where(item_NK >= 0, 1.0, -1.0).T
    before, after = query_QK @ signs_KN, round_for_aqd(np.tanh(query_QK)) @ signs_KN
    nearest = np.zeros(before.shape, bool)
    np.put_along_axis(nearest, np.argsort(-before, axis=1)[:, :10], True, axis=1)
    assert expected_overlap(after, nearest, 10) > 0.99


@pytest.mark.parametrize(("images", "bits"), [(2, 8), (5, 16), (30, 64)])
def test_few_images_work_and_their_rank_is_reported(images, bits):
    fitter = CodeFitter(24)
    fitter.add_images(clustered(images)[0])
    choice = fitter.fit(bits, rounds=5)
    assert choice.projection.rank == min(images - 1, 24)
    assert choice.projection.bits == bits
    assert choice.held_out == 0
    assert np.isfinite(choice.projection.images(clustered(9)[0])).all()


def test_unusable_vectors_are_refused_in_one_line():
    fitter = CodeFitter(3)
    with pytest.raises(DataError, match="2 or more image vectors, not 0"):
        fitter.fit(8)
    with pytest.raises(DataError, match="Row 1 of the image vectors"):
        fitter.add_images([[0, 0, 1], [0, np.nan, 1]])
    with pytest.raises(DataError, match="text vectors have the width 4, where 3"):
        fitter.add_texts(np.ones((2, 4)))
    with pytest.raises(DataError, match="2 images and 3 texts"):
        fitter.add_pairs(np.ones((2, 3)), np.ones((3, 3)))
    fitter.add_images(np.ones((40, 3)))
    with pytest.raises(DataError, match="All 40 image vectors are equal"):
        fitter.fit(8)


def test_memory_does_not_grow_with_the_images():
    code = """
import re
import numpy as np
from cmfah_hf.methods.closed_form import CodeFitter
def peak():  # in KiB, of this program; getrusage includes its parent
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
for batches in (4, 200):
    fitter = CodeFitter(64, sample=1_000, held_out=500)
    for seed in range(batches):
        vectors = np.random.default_rng(seed).standard_normal((1_000, 64))
        fitter.add_images(vectors)
        fitter.add_pairs(vectors, vectors[::-1])
    fitter.fit(16, rounds=2)
    print(peak())
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    few, many = map(int, output.stdout.split())
    assert many - few < 10_000, "KiB; the vectors alone have 150,000"
