"""Lookup of ids by row and rows by id, against lists and dictionaries."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmfah_hf.retrieval.storage import id_lookup
from cmfah_hf.retrieval.storage.id_lookup import IdLookup
from cmfah_hf.retrieval.storage.ids import GrowingArray, id_array, ids_of


def empty(strings):
    return ids_of(np.empty(0, object if strings else np.int64))


words = st.lists(st.text(max_size=4) | st.sampled_from(["\udcff", "é\x00", "🌊"]), max_size=8)


@given(st.lists(words, max_size=6))
def test_string_ids_round_trip(blocks):
    column, everything = empty(strings=True), []
    for block in blocks:
        before = column
        held = list(everything)
        if block:
            column = column.extended(id_array(block))
            everything += block
        assert before.take(np.arange(len(before))).tolist() == held  # an earlier column does not change
    assert len(column) == len(everything)
    assert column.array().tolist() == everything
    rows = np.arange(len(everything))[::-1].reshape(-1, 1)
    assert column.take(rows).tolist() == [[item_id] for item_id in everything[::-1]]


def test_growth_changes_neither_earlier_views_nor_the_given_array():
    given_rows = np.arange(6).reshape(3, 2)
    array = GrowingArray.of(given_rows[:2])
    first = array.view()
    array = array.extended(np.array([[9, 9]]))
    assert given_rows[2].tolist() == [4, 5]
    for number in range(100):
        array = array.extended(np.full((1, 2), number))
    assert first.tolist() == [[0, 1], [2, 3]]
    assert array.view()[:3].tolist() == [[0, 1], [2, 3], [9, 9]]
    assert array.view()[3:, 0].tolist() == list(range(100))
    with pytest.raises(ValueError, match="read-only"):
        array.view()[0] = 1


changes = st.lists(st.tuples(st.booleans(), st.integers(0, 40)), max_size=60)


@given(changes, st.booleans(), st.booleans())
@settings(max_examples=150)
def test_rows_are_found_by_id_after_any_changes(history, strings, collide):
    """With a small buffer of new rows, so that the sorted rows are rebuilt often; also if all strings have one hash."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(IdLookup, "_FEW", 3)
        if collide and strings:
            patch.setattr(id_lookup, "keys_of", lambda ids: np.zeros(len(ids), np.int64))
        column, lookup, live, rows_by_id = empty(strings), IdLookup(), [], {}
        name = (lambda number: f"n{number}") if strings else int
        wanted = id_array([name(number) for number in range(41)])
        for step, (adding, number) in enumerate(history):
            if adding and number not in rows_by_id:
                rows_by_id[number] = len(live)
                column = column.extended(id_array([name(number)]))
                live.append(True)
            elif not adding and number in rows_by_id:
                live[rows_by_id.pop(number)] = False
            if step % 3 == 0 and live:
                found = lookup.rows_of(wanted, column, np.array(live))
                assert found.tolist() == [rows_by_id.get(number, -1) for number in range(41)]


def test_many_ids_at_once():
    rng = np.random.default_rng(0)
    numbers = rng.permutation(100_000)
    column, lookup = empty(strings=False), IdLookup()
    column = column.extended(numbers[:60_000])
    np.testing.assert_array_equal(lookup.rows_of(numbers[:60_000], column, None), np.arange(60_000))
    column = column.extended(numbers[60_000:])
    np.testing.assert_array_equal(lookup.rows_of(numbers, column, None), np.arange(100_000))
    assert lookup.rows_of(np.array([-1, 100_000]), column, None).tolist() == [-1, -1]
