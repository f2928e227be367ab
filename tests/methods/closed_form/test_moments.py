"""Streaming moments against NumPy on the whole matrix."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmfah_hf.errors import DataError
from cmfah_hf.methods.closed_form import Moments, PairMoments

few = settings(max_examples=50, deadline=None)


@few
@given(
    rows=st.integers(1, 60),
    cuts=st.lists(st.integers(0, 60), max_size=6),
    shift=st.sampled_from([0.0, 1.0, 1e6]),
    seed=st.integers(0, 999),
)
def test_blocks_merged_equal_the_whole_matrix(rows, cuts, shift, seed):
    whole_NE = np.random.default_rng(seed).standard_normal((rows, 4)) + shift
    moments, merged = Moments(4), Moments(4)
    for block_NE in np.split(whole_NE, np.sort(np.minimum(cuts, rows))):
        moments.add(block_NE)
        part = Moments(4)
        part.add(block_NE)
        merged.merge(part)
    for one in (moments, merged):
        assert one.count == rows
        np.testing.assert_allclose(one.mean, whole_NE.mean(axis=0), rtol=1e-13, atol=1e-13)
        expected_EE = np.cov(whole_NE, rowvar=False, bias=True) if rows > 1 else np.zeros((4, 4))
        # The rounding of the input itself, at the magnitude of the mean.
        np.testing.assert_allclose(one.covariance, expected_EE, rtol=1e-9, atol=1e-12 + 4e-16 * shift)


def test_a_large_mean_costs_no_precision():
    """The difference of the mean square and the squared mean would be off by 100 % and more here."""
    whole_NE = np.random.default_rng(0).standard_normal((5000, 3)) + 1e8
    moments = Moments(3)
    for block_NE in np.split(whole_NE, 50):
        moments.add(block_NE)
    np.testing.assert_allclose(moments.covariance, np.cov(whole_NE, rowvar=False, bias=True), rtol=1e-6, atol=1e-6)


def test_pairs_have_the_moments_of_both_sides_and_their_cross_covariance():
    random = np.random.default_rng(1)
    images_NE, texts_NE = random.standard_normal((40, 3)) + 2, random.standard_normal((40, 3)) - 1
    texts_NE += images_NE[:, ::-1]
    pairs, first = PairMoments(3), PairMoments(3)
    first.add(images_NE[:15], texts_NE[:15])
    pairs.add(images_NE[15:], texts_NE[15:])
    pairs.merge(first)
    joint_EE = np.cov(images_NE, texts_NE, rowvar=False, bias=True)
    np.testing.assert_allclose(pairs.cross_covariance, joint_EE[:3, 3:])
    for side, vectors_NE, block in ((pairs.images, images_NE, slice(3)), (pairs.texts, texts_NE, slice(3, 6))):
        np.testing.assert_allclose(side.mean, vectors_NE.mean(axis=0))
        np.testing.assert_allclose(side.covariance, joint_EE[block, block])


def test_wrong_blocks_are_refused_in_one_line():
    with pytest.raises(DataError, match="width 3, a block has the shape"):
        Moments(3).add(np.zeros((2, 4)))
    with pytest.raises(DataError, match="NaN or an infinity"):
        Moments(2).add(np.array([[0.0, np.inf]]))
    with pytest.raises(DataError, match="widths 2 and 3"):
        Moments(2).merge(Moments(3))
    with pytest.raises(DataError, match="no covariance"):
        _ = Moments(2).covariance
    with pytest.raises(DataError, match="one text per image"):
        PairMoments(2).add(np.zeros((2, 2)), np.zeros((3, 2)))
