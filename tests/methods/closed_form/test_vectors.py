"""Unit vectors, and the sample of a stream."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from cmfah_hf.errors import DataError
from cmfah_hf.methods.closed_form import Reservoir, unit_vectors


@pytest.mark.parametrize("scale", [1, 1e-200, 1e200])
def test_unit_vectors_have_length_one_at_any_scale(scale):
    units_NE = unit_vectors(np.array([[3, 4], [0, 0], [-5, 12]]) * scale)
    np.testing.assert_allclose(units_NE, [[0.6, 0.8], [0, 0], [-5 / 13, 12 / 13]], rtol=1e-15)


@pytest.mark.parametrize("wrong", [np.zeros(3), np.array([["a"]]), [[1.0, np.nan]], [[np.inf, 0.0]]])
def test_vectors_that_are_no_finite_matrix_are_refused(wrong):
    with pytest.raises(DataError, match="photos"):
        unit_vectors(wrong, "photos")


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 50),
    size=st.integers(1, 20),
    cuts=st.lists(st.integers(0, 50), max_size=8),
    seed=st.integers(0, 99),
)
def test_a_sample_does_not_depend_on_blocks_and_loses_no_row(rows, size, cuts, seed):
    stream_NE = np.arange(rows, dtype=np.float32)[:, None]
    whole, parts = Reservoir(size, 1, seed), Reservoir(size, 1, seed)
    others = [whole.add(stream_NE)]
    assert sorted([*whole.rows[:, 0], *others[0][:, 0]]) == list(range(rows))
    assert len(whole.rows) == min(rows, size)
    left = [parts.add(block) for block in np.split(stream_NE, np.sort(np.minimum(cuts, rows)))]
    np.testing.assert_array_equal(parts.rows, whole.rows)
    assert sorted(np.concatenate(left)[:, 0]) == sorted(others[0][:, 0])
    assert parts.count == rows


def test_every_row_is_equally_likely():
    hits = np.zeros(20)
    for seed in range(2000):
        sample = Reservoir(5, 1, seed)
        for block in np.split(np.arange(20.0)[:, None], 4):
            sample.add(block)
        hits[sample.rows[:, 0].astype(int)] += 1
    assert chisquare(hits).pvalue > 0.001


def test_a_sample_of_nothing_or_of_another_width_is_refused():
    with pytest.raises(DataError, match="1 or more"):
        Reservoir(0, 2)
    with pytest.raises(DataError, match="width 2"):
        Reservoir(3, 2).add(np.zeros((1, 3)))
