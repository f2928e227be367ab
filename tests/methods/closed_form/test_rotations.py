"""ITQ against SciPy's Procrustes solution, and random rotations."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm, orthogonal_procrustes

from cmfah_hf.methods.closed_form import itq_rotation, random_frames, random_rotation


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 80), bits=st.integers(1, 12), rank=st.integers(1, 12), seed=st.integers(0, 999))
def test_the_loss_never_increases_and_the_rotation_is_orthogonal(rows, bits, rank, seed):
    random = np.random.default_rng(seed)
    vectors_NK = random.standard_normal((rows, min(rank, bits))) @ random.standard_normal((min(rank, bits), bits))
    rotation_KK, losses = itq_rotation(vectors_NK, rounds=15, seed=seed)
    assert losses.shape == (15,)
    assert (np.diff(losses) <= 1e-12).all()
    np.testing.assert_allclose(rotation_KK.T @ rotation_KK, np.eye(bits), atol=1e-10)


def test_a_round_is_signs_and_scipys_procrustes_solution():
    vectors_NK = np.random.default_rng(2).standard_normal((200, 6)) * [5, 3, 2, 1, 0.5, 0.2]
    rotation_KK, losses = itq_rotation(vectors_NK, rounds=3, seed=4)
    scaled_NK = vectors_NK / np.sqrt(np.mean(vectors_NK**2))
    expected_KK = random_rotation(6, 4)
    for turn in range(3):
        expected_KK, _ = orthogonal_procrustes(scaled_NK, np.where(scaled_NK @ expected_KK >= 0, 1, -1))
        rotated_NK = scaled_NK @ expected_KK
        assert losses[turn] == pytest.approx(np.mean((np.where(rotated_NK >= 0, 1, -1) - rotated_NK) ** 2))
    np.testing.assert_allclose(rotation_KK, expected_KK, atol=1e-10)


def test_itq_finds_the_rotation_of_rotated_codes():
    """Vectors are codes times almost the inverse of the first rotation: the rest of it is found."""
    random = np.random.default_rng(5)
    codes_NK = np.where(random.random((500, 8)) < 0.5, 1.0, -1.0)
    skew_KK = 0.1 * random.standard_normal((8, 8))
    vectors_NK = codes_NK @ expm(skew_KK - skew_KK.T) @ random_rotation(8, 0).T
    rotation_KK, losses = itq_rotation(vectors_NK, rounds=50, seed=0)
    assert losses[0] > 0.001
    assert losses[-1] < 1e-12
    np.testing.assert_allclose(vectors_NK @ rotation_KK, codes_NK, atol=1e-6)


def test_zeros_count_as_plus_one():
    rotation_KK, losses = itq_rotation(np.zeros((4, 3)), rounds=2)
    assert np.isfinite(rotation_KK).all()
    np.testing.assert_allclose(losses, 1)


def test_random_rotations_are_uniform_and_reproducible():
    np.testing.assert_array_equal(random_rotation(16, 3), random_rotation(16, 3))
    assert not np.allclose(random_rotation(16, 3), random_rotation(16, 4))
    drawn = np.stack([random_rotation(3, seed) for seed in range(3000)])
    np.testing.assert_allclose(drawn @ drawn.transpose(0, 2, 1), np.broadcast_to(np.eye(3), drawn.shape), atol=1e-12)
    # Under Haar measure, entries have mean 0 and variance 1 / K, and the trace has mean 0 and variance 1.
    np.testing.assert_allclose(drawn.mean(axis=0), 0, atol=0.05)
    np.testing.assert_allclose((drawn**2).mean(axis=0), 1 / 3, atol=0.03)
    traces = np.trace(drawn, axis1=1, axis2=2)
    assert abs(traces.mean()) < 0.08
    assert traces.var() == pytest.approx(1, abs=0.1)


def test_frames_are_different_rotations_of_the_first_values():
    frames_KK = random_frames(20, 8, seed=3)
    np.testing.assert_array_equal(frames_KK[8:], 0)
    blocks = np.split(frames_KK[:8], [8, 16], axis=1)
    for number, block in enumerate(blocks):
        np.testing.assert_array_equal(block, random_rotation(8, 3 + number)[:, : block.shape[1]])
    np.testing.assert_array_equal(random_frames(6, 6, 3), random_rotation(6, 3))
