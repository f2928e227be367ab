"""Metadata of an index: results, conditions, changes and files."""

import datetime

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmfah_hf.errors import HashIndexError, QueryError
from cmfah_hf.retrieval.index import HashIndex


def filled(items=200, bits=16):
    rng = np.random.default_rng(0)
    index = HashIndex(bits)
    columns = {
        "year": [None if i % 10 == 0 else 2000 + i % 7 for i in range(items)],
        "tags": [["sea", "é🌊"][: i % 3] for i in range(items)],
        "place": [f"p{i % 4}" for i in range(items)],
    }
    codes = rng.integers(0, 256, (items, bits // 8), dtype=np.uint8)
    index.add(codes, ids=[f"n{i:03}" for i in range(items)], metadata=columns)
    return index, codes, columns


def distances(codes, query):
    return np.unpackbits(codes ^ query, axis=1).sum(axis=1)


@pytest.mark.parametrize(
    ("where", "keep"),
    [
        ({"place": "p1"}, lambda year, tags, place: place == "p1"),
        ({"place": ["p1", "p3"], "year": 2003}, lambda year, tags, place: place in ("p1", "p3") and year == 2003),
        ({}, lambda year, tags, place: True),
        (pc.field("year") >= 2004, lambda year, tags, place: year is not None and year >= 2004),
        (pc.field("year").is_null(), lambda year, tags, place: year is None),
        (pc.list_value_length(pc.field("tags")) == 2, lambda year, tags, place: len(tags) == 2),
    ],
)
def test_conditions_match_python(where, keep):
    index, codes, columns = filled()
    wanted = [i for i, row in enumerate(zip(*columns.values(), strict=True)) if keep(*row)]
    query = codes[17]
    order = sorted(wanted, key=lambda i: (distances(codes, query)[i], i))
    for k in (1, 5, 200):
        found = index.search(query[None], k=k, where=where)
        assert found.ids[0].tolist() == [f"n{i:03}" for i in order[:k]]
        assert found.metadata.to_pylist() == [{name: columns[name][i] for name in columns} for i in order[:k]]


def test_results_carry_their_columns_per_query():
    index, codes, columns = filled()
    found = index.search(codes[[4, 90]], k=3)
    for query in (0, 1):
        hits = found.hits(query)
        assert [hit["id"] for hit in hits] == found.ids[query].tolist()
        assert [hit["score"] for hit in hits] == found.scores[query].tolist()
        for hit in hits:
            row = int(hit["id"][1:])
            assert hit["metadata"] == {name: columns[name][row] for name in columns}
    bare = HashIndex(16)
    bare.add(codes)
    assert bare.metadata is None
    assert bare.search(codes[:1], k=1).metadata is None
    assert bare.search(codes[:1], k=1).hits() == [{"id": 0, "score": 0, "metadata": {}}]


def test_a_condition_without_matches_gives_no_results():
    index, codes, _ = filled()
    found = index.search(codes[:3], k=5, where={"place": "nowhere"})
    assert found.ids.shape == found.scores.shape == (3, 0)
    assert found.hits(2) == []


def test_conditions_of_every_selectivity_on_many_items():
    """Few matching items are scored directly; many come from deeper searches."""
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 256, (30_000, 8), dtype=np.uint8)
    share = rng.random(30_000)
    index = HashIndex(64)
    index.add(codes, metadata={"share": share})
    query = rng.normal(size=(2, 64)).astype(np.float32)
    signs = np.unpackbits(codes, axis=1, bitorder="little").astype(np.float64) * 2 - 1
    scores = np.round(query.astype(np.float64) * 2**14) / 2**14 @ signs.T
    for below in (0.0001, 0.01, 0.2, 0.6, 1.0):
        rows = np.flatnonzero(share < below)
        found = index.search(query, k=20, metric="aqd", where=pc.field("share") < below)
        for own, names in zip(scores, found.ids, strict=True):
            assert names.tolist() == rows[np.lexsort((rows, -own[rows]))][:20].tolist()


history = st.lists(
    st.tuples(
        st.sampled_from(["add", "remove", "update codes", "update columns", "upsert", "reload"]),
        st.lists(st.integers(0, 30), min_size=1, max_size=6, unique=True),
        st.integers(0, 2**32 - 1),
    ),
    max_size=15,
)


@given(history, st.booleans(), st.booleans())
@settings(max_examples=80)
def test_any_sequence_of_changes_with_columns(tmp_path_factory, history, strings, mmap):
    path = tmp_path_factory.mktemp("index") / "index"
    index, model = HashIndex(24), {}
    for verb, numbers, seed in history:
        rng = np.random.default_rng(seed)
        ids = [f"n{i}" for i in numbers] if strings else numbers
        codes = rng.integers(0, 256, (len(ids), 3), dtype=np.uint8)
        colors = [None if i % 5 == 0 else f"c{i % 4}" for i in rng.integers(0, 100, len(ids)).tolist()]
        columns = {"color": colors} if seed % 3 else {"color": colors, "size": rng.normal(size=len(ids)).tolist()}
        rows = [{name: columns[name][at] for name in columns} for at in range(len(ids))]
        held = [i in model for i in ids]
        if verb == "reload":
            index.save(path)
            index = HashIndex.load(path, mmap=mmap)
        elif (verb == "add" and any(held)) or (verb in ("remove", "update codes", "update columns") and not all(held)):
            call, *given = {"add": (index.add, codes, ids), "remove": (index.remove, ids)}.get(
                verb, (index.update, ids)
            )
            with pytest.raises(HashIndexError, match=r"already|holds no id"):
                call(*given)
        elif verb == "remove":
            index.remove(ids)
            for i in ids:
                del model[i]
        elif verb == "update codes":
            index.update(ids, codes)
            model |= {i: (code, model.pop(i)[1]) for i, code in zip(ids, codes, strict=True)}
        elif verb == "update columns":
            index.update(ids, metadata=columns)
            for i, row in zip(ids, rows, strict=True):
                code, old = model.pop(i)
                model[i] = code, {**old, **row}
        else:
            (index.add if verb == "add" else index.upsert)(codes, ids=ids, metadata=columns)
            for i, code, row in zip(ids, codes, rows, strict=True):
                model.pop(i, None)
                model[i] = code, row
        assert len(index) == len(model)
        assert index.ids.tolist() == list(model)
        assert all((name in index) == (name in model) for name in (["n3", "n7"] if strings else [3, 7]))
    if model:
        np.testing.assert_array_equal(index.codes, np.stack([code for code, _ in model.values()]))
        names = index.metadata.column_names if index.metadata is not None else []
        full = [{name: row.get(name) for name in names} for _, row in model.values()]
        assert (index.metadata.to_pylist() if names else full) == full
        found = index.search(np.ones((1, 24)), k=len(model))
        by_hand = sorted(model, key=lambda i: (24 - int(np.unpackbits(model[i][0]).sum()), i))
        assert found.ids[0].tolist() == by_hand


def test_every_form_of_columns_gives_the_same_table():
    codes = np.zeros((3, 2), np.uint8)
    columns = {"n": [1, 2, 3], "t": ["a", None, "c"], "when": [datetime.date(2020, 1, day) for day in (1, 2, 3)]}
    forms = [
        columns,
        pa.table(columns),
        datasets.Dataset.from_dict(columns),
        datasets.Dataset.from_dict({name: values[::-1] for name, values in columns.items()}).select([2, 1, 0]),
        {**columns, "n": np.array([1, 2, 3])},
    ]
    for form in forms:
        index = HashIndex(16)
        index.add(codes, metadata=form)
        assert index.metadata.to_pylist() == [
            dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
        ]


def test_many_small_additions_leave_few_chunks():
    index = HashIndex(8)
    for i in range(300):
        index.add(np.ones((2, 8)), metadata={"i": [i, i]})
    assert index.metadata["i"].num_chunks <= 8
    assert index.metadata["i"].to_pylist() == [i for i in range(300) for _ in "ab"]


@pytest.mark.parametrize("mmap", [True, False])
def test_columns_are_saved_with_the_codes(tmp_path, mmap):
    index, codes, _ = filled()
    index.remove(["n003"])
    index.save(tmp_path / "index")
    loaded = HashIndex.load(tmp_path / "index", mmap=mmap)
    assert loaded.metadata.equals(index.metadata)
    found = loaded.search(codes[:2], k=4, where={"place": ["p0", "p1"]})
    assert found.metadata.equals(index.search(codes[:2], k=4, where={"place": ["p0", "p1"]}).metadata)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"a": [1, 2]}, "'a' has 2 values for 3 items"),
        ({"a": [1, "x", 2]}, "'a' cannot be stored"),
        ({"a": [object()] * 3}, "'a' cannot be stored"),
        (pa.table({"a": [1, 2]}), "2 rows for 3 items"),
        ([1, 2, 3], "not list"),
        ({"year": ["x", "y", "z"]}, "does not fit what the index holds"),
    ],
)
def test_refused_columns_change_nothing(metadata, message):
    index, _, _ = filled()
    before = index.metadata
    with pytest.raises(HashIndexError, match=message):
        index.add(np.zeros((3, 2), np.uint8), ids=["a", "b", "c"], metadata=metadata)
    assert len(index) == 200
    assert "a" not in index
    assert index.metadata.equals(before)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"color": 1}, "no metadata column 'color'; it has year, tags, place"),
        (pc.field("color") == 1, "no meaning for the columns year, tags, place"),
        (pc.field("place") > 3, "no meaning"),
        ("color > 3", "no metadata column 'color'; it has year, tags, place"),
        (3.5, "not 3.5"),
        ({"year": "x"}, "no meaning"),
        ({"year": [2020, "x"]}, "no meaning"),
        ({"year": len}, "no meaning for the columns year, tags, place"),
    ],
)
def test_invalid_conditions_are_refused(where, message):
    index, codes, _ = filled()
    with pytest.raises(QueryError, match=message):
        index.search(codes[:1], where=where)
    bare = HashIndex(16)
    bare.add(codes)
    with pytest.raises(QueryError, match=r"no metadata column|holds no metadata|mapping from columns"):
        bare.search(codes[:1], where=where)
