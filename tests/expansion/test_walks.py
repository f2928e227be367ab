"""Expected visits against powers of dense matrices, and sampled walks against expected visits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from cmfah_hf.errors import CMFAHError
from cmfah_hf.expansion import walks
from cmfah_hf.expansion.walks import RandomWalk


def _stochastic(generator, rows, columns):
    values = generator.random((rows, columns)) * (generator.random((rows, columns)) < 0.4)
    values[np.arange(rows), np.arange(rows) % columns] += 0.1
    return values / values.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("kept_words", [0, 8_192])
@given(seed=st.integers(0, 2**32), walk_length=st.sampled_from([1, 3, 5, 7]), num_words=st.integers(1, 12))
def test_expected_visits_are_the_sum_of_powers(kept_words, seed, walk_length, num_words):
    generator = np.random.default_rng(seed)
    m, start = _stochastic(generator, num_words, num_words), _stochastic(generator, 7, num_words)
    start[3] = 0.0
    expected = sum(start @ np.linalg.matrix_power(m, hop) for hop in range((walk_length + 1) // 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(walks, "_KEPT_WORDS", kept_words)
        patch.setattr(walks, "_BLOCK_ELEMENTS", 2 * num_words)  # Several blocks on the sparse path.
        walk = RandomWalk(sparse.csr_array(m), walk_length)
        visits = walk.expected_visits(sparse.csr_array(start))
        single = [walk.expected_visits(sparse.csr_array(start[row : row + 1]))[0] for row in range(7)]
    np.testing.assert_allclose(visits, expected, atol=1e-12)
    np.testing.assert_array_equal(visits, single)
    np.testing.assert_allclose(visits.sum(axis=1), [0 if row == 3 else (walk_length + 1) / 2 for row in range(7)])


def test_visit_frequencies_converge_to_the_expected_visits():
    generator = np.random.default_rng(0)
    m, start = sparse.csr_array(_stochastic(generator, 9, 9)), sparse.csr_array(_stochastic(generator, 3, 9))
    walk = RandomWalk(m, 5)
    expected = walk.expected_visits(start)
    errors = []
    for num_walks in (100, 40_000):
        drawn = walk.sample(start, num_walks, [np.random.default_rng(row) for row in range(3)])
        visits = np.stack([np.bincount(row.ravel(), minlength=9) / num_walks for row in drawn])
        errors.append(np.abs(visits - expected).max())
    # The number of visits on one walk has a variance below 1.5^2, so 5 sigma of the mean are below this.
    assert errors[1] < 5 * 1.5 / np.sqrt(40_000)
    assert errors[1] < errors[0] / 4


def test_each_step_is_drawn_from_its_row():
    m = sparse.csr_array(np.array([[0.0, 0.25, 0.75], [1.0, 0.0, 0.0], [0.5, 0.0, 0.5]]))
    drawn = RandomWalk(m, 3).sample(sparse.csr_array([[1.0, 0.0, 0.0]]), 20_000, [np.random.default_rng(0)])[0]
    assert set(drawn[:, 0]) == {0}
    np.testing.assert_allclose(np.bincount(drawn[:, 1], minlength=3) / 20_000, [0.0, 0.25, 0.75], atol=0.02)


def test_a_draw_at_the_upper_end_stays_in_its_row():
    class UpperEnd:
        def random(self, shape):
            return np.full(shape, np.nextafter(1.0, 0.0))

    size = 5_000
    m = sparse.csr_array(sparse.diags_array(np.ones(size)))
    start = sparse.csr_array((np.ones(1), ([0], [size - 2])), shape=(1, size))
    assert (RandomWalk(m, 5).sample(start, 4, [UpperEnd()]) == size - 2).all()


def test_a_walk_does_not_depend_on_the_other_rows():
    generator = np.random.default_rng(0)
    m, start = sparse.csr_array(_stochastic(generator, 6, 6)), _stochastic(generator, 4, 6)
    start[1] = 0.0
    walk = RandomWalk(m, 5)
    together = walk.sample(sparse.csr_array(start), 50, [np.random.default_rng(row) for row in range(4)])
    assert (together[1] == -1).all()
    for row in (0, 2, 3):
        single = walk.sample(sparse.csr_array(start[row : row + 1]), 50, [np.random.default_rng(row)])
        np.testing.assert_array_equal(together[row], single[0])
    empty = walk.sample(sparse.csr_array((2, 6)), 3, [np.random.default_rng(0)] * 2)
    assert empty.shape == (2, 3, 3)
    assert (empty == -1).all()


@pytest.mark.parametrize("walk_length", [0, 2, -1])
def test_even_walk_lengths_are_refused(walk_length):
    with pytest.raises(CMFAHError, match="is not odd"):
        RandomWalk(sparse.csr_array(np.eye(2)), walk_length)
