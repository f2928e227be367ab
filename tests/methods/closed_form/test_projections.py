"""Projections from moments against scikit-learn on the whole matrices."""

import numpy as np
import pytest
from scipy.linalg import subspace_angles
from sklearn.cross_decomposition import CCA
from sklearn.decomposition import PCA

from cmfah_hf.errors import DataError
from cmfah_hf.methods.closed_form import (
    Moments,
    PairMoments,
    cca_projection,
    pca_projection,
    random_rotation,
    shared_projection,
    unit_vectors,
)


def correlated(rows=400, width=10, seed=0):
    """Unit vectors of images and texts around different means, with a few directions in common."""
    random = np.random.default_rng(seed)
    common = random.standard_normal((rows, 4)) * [2, 1.5, 1, 0.7]
    sides = [
        common @ random.standard_normal((4, width)) + 0.6 * random.standard_normal((rows, width)) + shift
        for shift in (1.5, -1.5)
    ]
    return [unit_vectors(side) for side in sides]


def moments_of(vectors_NE):
    moments = Moments(vectors_NE.shape[1])
    moments.add(vectors_NE)
    return moments


def pairs_of(images_NE, texts_NE):
    pairs = PairMoments(images_NE.shape[1])
    pairs.add(images_NE, texts_NE)
    return pairs


IMAGES, TEXTS = correlated()


def test_pca_is_scikit_learns():
    projection = pca_projection(moments_of(IMAGES), 5, TEXTS.mean(axis=0))
    expected = PCA(5).fit(IMAGES)
    np.testing.assert_allclose(np.abs(projection.images(IMAGES)), np.abs(expected.transform(IMAGES)), atol=1e-10)
    np.testing.assert_allclose(
        np.abs(projection.texts(TEXTS)), np.abs((TEXTS - TEXTS.mean(axis=0)) @ expected.components_.T), atol=1e-10
    )
    assert (projection.rank, projection.bits, projection.name) == (5, 5, "pca")


def test_shared_is_the_pca_of_both_clouds_moved_to_one_center():
    projection = shared_projection(moments_of(IMAGES), moments_of(TEXTS), 4)
    both = np.concatenate([IMAGES - IMAGES.mean(axis=0), TEXTS - TEXTS.mean(axis=0)])
    expected = PCA(4).fit(both).transform(both)
    found = np.concatenate([projection.images(IMAGES), projection.texts(TEXTS)])
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-10)


def test_cca_is_scikit_learns_times_the_correlations():
    projection = cca_projection(pairs_of(IMAGES, TEXTS), 4, regularization=0)
    expected = CCA(4, scale=False, max_iter=5000, tol=1e-12).fit(IMAGES, TEXTS)
    assert subspace_angles(projection.image_weight.T, expected.x_rotations_).max() < 1e-5
    assert subspace_angles(projection.text_weight.T, expected.y_rotations_).max() < 1e-5
    image_NK, text_NK = projection.images(IMAGES), projection.texts(TEXTS)
    correlations_K = [np.corrcoef(image_NK[:, k], text_NK[:, k])[0, 1] for k in range(4)]
    variates = zip(*map(np.transpose, expected.transform(IMAGES, TEXTS)), strict=True)
    expected_K = [np.corrcoef(*pair)[0, 1] for pair in variates]
    np.testing.assert_allclose(correlations_K, expected_K, rtol=1e-6)
    np.testing.assert_allclose(image_NK.std(axis=0), correlations_K, rtol=1e-9)
    np.testing.assert_allclose(text_NK.std(axis=0), correlations_K, rtol=1e-9)


def test_regularized_cca_solves_its_equations():
    """The generalized eigenvectors of `Cxy Cyy^-1 Cyx w = rho^2 Cxx w`, with the regularized covariances."""
    projection = cca_projection(pairs_of(IMAGES, TEXTS), 3, regularization=0.1)
    cxx, cyy = (
        np.cov(side, rowvar=False, bias=True) + 0.1 * np.var(side, axis=0).mean() * np.eye(10)
        for side in (IMAGES, TEXTS)
    )
    cxy = (IMAGES - IMAGES.mean(axis=0)).T @ (TEXTS - TEXTS.mean(axis=0)) / len(IMAGES)
    for weight_E in projection.image_weight:
        left_E, right_E = cxy @ np.linalg.solve(cyy, cxy.T @ weight_E), cxx @ weight_E
        square = left_E @ right_E / (right_E @ right_E)
        np.testing.assert_allclose(left_E, square * right_E, atol=1e-10)
        assert weight_E @ right_E == pytest.approx(square)  # unit length in Cxx, times rho


@pytest.mark.parametrize("bits", [16, 24, 40])
def test_more_bits_than_rank_are_a_tight_frame_after_a_rotation(bits):
    projection = pca_projection(moments_of(IMAGES), bits, TEXTS.mean(axis=0))
    assert (projection.rank, projection.bits) == (10, bits)
    rotated = projection.rotated(random_rotation(bits, 1), "random rotation")
    assert rotated.name == "pca, random rotation"
    assert np.abs(rotated.image_weight).max(axis=1).min() > 1e-3  # no bit is constant
    centered_NE = IMAGES - IMAGES.mean(axis=0)
    np.testing.assert_allclose(
        rotated.images(IMAGES) @ rotated.images(IMAGES).T, centered_NE @ centered_NE.T, atol=1e-10
    )


def test_rank_counts_dimensions_of_the_data():
    flat_NE = unit_vectors(np.random.default_rng(3).standard_normal((50, 3)) @ np.eye(3, 12))
    assert pca_projection(moments_of(flat_NE), 8).rank == 3
    assert pca_projection(moments_of(flat_NE.astype(np.float16).astype(float)), 8).rank == 3
    few_NE = unit_vectors(np.random.default_rng(3).standard_normal((5, 12)))
    assert pca_projection(moments_of(few_NE), 8).rank == 4
    assert cca_projection(pairs_of(few_NE, few_NE[::-1] ** 2), 8).rank == 4


def test_rotation_and_scale_act_on_values():
    projection = shared_projection(moments_of(IMAGES), moments_of(TEXTS), 4)
    rotation_KK = random_rotation(4)
    changed = projection.rotated(rotation_KK).scaled(2.0, 0.5)
    np.testing.assert_allclose(changed.images(IMAGES), 2 * projection.images(IMAGES) @ rotation_KK)
    np.testing.assert_allclose(changed.texts(TEXTS), 0.5 * projection.texts(TEXTS) @ rotation_KK)
    # Lengths of the given vectors have no influence.
    np.testing.assert_allclose(changed.images(7 * IMAGES), changed.images(IMAGES))


def test_unusable_vectors_are_refused_in_one_line():
    equal = moments_of(np.tile(unit_vectors([[1.0, 2, 3]]), (9, 1)))
    with pytest.raises(DataError, match="All 9 image vectors are equal"):
        pca_projection(equal, 8)
    with pytest.raises(DataError, match="2 or more image vectors, not 1"):
        pca_projection(moments_of(IMAGES[:1]), 8)
    with pytest.raises(DataError, match="All 9 text vectors are equal"):
        shared_projection(moments_of(IMAGES[:, :3]), equal, 8)
    with pytest.raises(DataError, match="width 10, text vectors 3"):
        shared_projection(moments_of(IMAGES), moments_of(TEXTS[:, :3]), 8)
    with pytest.raises(DataError, match="width 10, text vectors 4"):
        pca_projection(moments_of(IMAGES), 8, np.zeros(4))
    with pytest.raises(DataError, match="width 3; the projection needs 10"):
        pca_projection(moments_of(IMAGES), 8).images(np.ones((2, 3)))
