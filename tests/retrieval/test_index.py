import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmfah_hf.errors import HashIndexError, QueryError
from cmfah_hf.retrieval.codes import pack, sign
from cmfah_hf.retrieval.index import HashIndex


def reference(hash_db, hash_q, metric, keys):
    """Every item for every query, in the canonical order, from plain float64 algebra: positions and scores."""
    bits = hash_db.shape[1]
    signs_db = np.where(hash_db >= 0, 1.0, -1.0)
    if metric == "hamming":
        scores = (bits - np.where(hash_q >= 0, 1.0, -1.0) @ signs_db.T) / 2
        ascending = scores
    else:
        scores = np.round(hash_q.astype(np.float64) * 2**14) / 2**14 @ signs_db.T
        ascending = -scores
    order = np.stack([sorted(range(len(keys)), key=lambda i: (row[i], keys[i])) for row in ascending])
    return order, np.take_along_axis(scores, order, 1)


def tied_values(rng, rows, bits):
    """Few patterns, many times over, and query values on a coarse grid: ties everywhere."""
    patterns = rng.normal(size=(max(2, rows // 4), bits))
    values = patterns[rng.integers(len(patterns), size=rows)]
    return np.clip(np.round(values * 2) / 4, -1, 1)


@pytest.mark.parametrize("metric", ["hamming", "aqd"])
@pytest.mark.parametrize("bits", [16, 32, 64, 128])
@pytest.mark.parametrize("kind", ["default", "shuffled", "strings"])
@pytest.mark.parametrize("tied", [True, False])
def test_ranks_equal_the_numpy_reference(metric, bits, kind, tied):
    rng = np.random.default_rng(bits)
    make = tied_values if tied else lambda rng, rows, bits: np.tanh(rng.normal(size=(rows, bits)))
    hash_db, hash_q = make(rng, 300, bits), make(rng, 12, bits)
    ids = {
        "default": None,
        "shuffled": rng.permutation(1000)[:300] - 500,
        "strings": [f"item-{i}" for i in rng.permutation(300)],
    }[kind]
    index = HashIndex(bits)
    index.add(hash_db[:100], ids=None if ids is None else ids[:100])
    index.add(hash_db[100:], ids=None if ids is None else ids[100:])
    names = np.arange(300) if ids is None else np.array(ids, dtype=object if kind == "strings" else np.int64)
    order, scores = reference(hash_db, hash_q, metric, names.tolist())
    for k in (1, 2, 7, 60, 299, 300):
        results = index.search(hash_q, k=k, metric=metric)
        assert results.scores.shape == results.ids.shape == (12, k)
        np.testing.assert_array_equal(results.ids, names[order[:, :k]])
        np.testing.assert_array_equal(results.scores, scores[:, :k])
        assert results.scores.dtype == (np.int32 if metric == "hamming" else np.float32)


def test_one_tie_over_the_whole_index_is_cut_in_the_order_of_ids():
    index = HashIndex(16)
    index.add(np.ones((50, 16)), ids=np.arange(50)[::-1] * 3)
    for metric in ("hamming", "aqd"):
        assert index.search(np.ones(16), k=4, metric=metric).ids.tolist() == [[0, 3, 6, 9]]


def test_packed_and_torch_inputs_are_the_same_search():
    rng = np.random.default_rng(0)
    hash_db, hash_q = rng.normal(size=(80, 32)) / 8, rng.normal(size=(5, 32)) / 8
    plain, packed, tensors = HashIndex(32), HashIndex(32), HashIndex(32)
    plain.add(hash_db)
    packed.add(pack(hash_db))
    tensors.add(torch.tensor(hash_db), ids=torch.arange(80))
    expected = plain.search(hash_q, k=20)
    for found in (packed.search(pack(hash_q), k=20), tensors.search(torch.tensor(hash_q), k=20)):
        np.testing.assert_array_equal(found.ids, expected.ids)
        np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(
        plain.search(sign(hash_q), k=20, metric="aqd").scores, 32 - 2 * expected.scores.astype(np.float32)
    )
    one = plain.search(hash_q[3], k=20)
    np.testing.assert_array_equal(one.ids, expected.ids[3:4])


def test_what_was_given_can_be_changed_afterwards():
    codes = pack(np.ones((1, 16)))
    index = HashIndex(16)
    index.add(codes)
    codes[:] = 0
    assert index.search(np.ones(16), k=1).scores.tolist() == [[0]]


def test_k_beyond_the_index_gives_all_and_warns(caplog):
    index = HashIndex(8)
    index.add(sign([[1.0] * 8, [-1.0] * 8]))
    with caplog.at_level(logging.WARNING):
        assert index.search(np.ones(8), k=10).ids.tolist() == [[0, 1]]
    assert "k = 10" in caplog.text
    assert "2 items" in caplog.text


operations = st.lists(
    st.tuples(st.sampled_from(["add", "remove", "reload"]), st.lists(st.integers(-8, 8), min_size=1, max_size=5)),
    max_size=12,
)


@given(operations, st.booleans(), st.booleans())
@settings(max_examples=60)
def test_any_history_leaves_what_a_dict_would_hold(tmp_path_factory, history, strings, mmap):
    path = tmp_path_factory.mktemp("index") / "index.safetensors"
    name = str if strings else int
    index, model = HashIndex(8), {}
    code = {i: np.where((i + 8) >> np.arange(8) & 1, 1.0, -1.0) for i in range(-8, 9)}
    for verb, numbers in history:
        ids = [name(i) for i in numbers]
        if verb == "add":
            wrong = len(set(ids)) < len(ids) or any(i in model for i in ids)
            if wrong:
                with pytest.raises(HashIndexError, match=r"already|twice"):
                    index.add([code[i] for i in numbers], ids=ids)
            else:
                index.add([code[i] for i in numbers], ids=ids)
                model.update(zip(ids, numbers, strict=True))
        elif verb == "remove":
            if all(i in model for i in ids) and len(set(ids)) == len(ids):
                index.remove(ids)
                for i in ids:
                    del model[i]
            else:
                with pytest.raises(HashIndexError, match=r"holds no id|comes twice"):
                    index.remove(ids)
        else:
            index.save(path)
            index = HashIndex.load(path, mmap=mmap)
        assert len(index) == len(model)
        assert index.ids.tolist() == list(model)
        assert all((name(i) in index) == (name(i) in model) for i in range(-8, 9))
        assert index.holds([name(i) for i in range(-8, 9)]).tolist() == [name(i) in model for i in range(-8, 9)]
    if model:
        hash_db = np.stack([code[i] for i in model.values()])
        query = np.array([[0.5, -0.1, 0.3, 0.0, -0.9, 0.2, 0.1, -0.4]])
        order, _ = reference(hash_db, query, "aqd", list(model))
        found = index.search(query, k=len(model), metric="aqd").ids[0].tolist()
        assert found == [list(model)[i] for i in order[0]]


def test_made_up_ids_never_come_back():
    index = HashIndex(8)
    index.add(np.ones((3, 8)))
    index.remove([1, 2])
    index.add(np.ones((1, 8)))
    index.add(np.ones((1, 8)), ids=[40])
    index.add(np.ones((1, 8)))
    assert index.ids.tolist() == [0, 3, 40, 41]


def test_an_emptied_index_takes_the_other_kind_of_id():
    index = HashIndex(8)
    index.add(np.ones((1, 8)), ids=["a"])
    index.remove(["a"])
    index.add(np.ones((1, 8)), ids=[7])
    assert index.ids.tolist() == [7]
    assert "a" not in index


def filled(**kwargs):
    index = HashIndex(16)
    index.add(np.ones((3, 16)), **kwargs)
    return index


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: HashIndex(12), "12 bits"),
        (lambda: HashIndex(0), "0 bits"),
        (lambda: filled().add(np.ones((1, 32))), "32 bits, the index has 16"),
        (lambda: filled().add(np.ones((1, 4), np.uint8)), "32 bits, the index has 16 .*eight bits a byte"),
        (lambda: filled().search(np.ones((1, 24))), "24 bits, the index has 16"),
        (lambda: filled().search(np.ones((1, 24)), metric="aqd"), "24 bits, the index has 16"),
        (lambda: filled().search(np.ones((1, 2), np.uint8), metric="aqd"), "AQD ranks by the query.s continuous codes"),
        (lambda: filled().search(np.full((1, 16), np.nan)), "Row 0 .*NaN"),
        (lambda: filled().search(np.full((1, 16), np.inf), metric="aqd"), "Row 0"),
        (lambda: filled().search(np.ones((1, 1, 16))), "shape"),
        (lambda: filled().search(3.0, metric="aqd"), "shape"),
        (lambda: HashIndex(16).search(np.ones((1, 16))), "empty"),
        (lambda: HashIndex(16).search(np.ones((1, 16)), exact=False), "empty"),
        (lambda: filled().add(np.ones((2, 16)), ids=[7, 7]), "Id 7 comes twice"),
        (lambda: filled().add(np.ones((2, 16)), ids=[7, 2]), "id 2 already"),
        (lambda: filled(ids=["a", "b", "c"]).add(np.ones((2, 16)), ids=["d", "a"]), "id 'a' already"),
        (lambda: filled(ids=["a", "b", "c"]).add(np.ones((1, 16)), ids=[1]), "strings, id 1 is not"),
        (lambda: filled(ids=["a", "b", "c"]).add(np.ones((1, 16))), "give `ids`"),
        (lambda: filled().add(np.ones((1, 16)), ids=["x"]), "integers, id 'x' is not"),
        (lambda: filled(ids=[1, "a", 2]), "one kind"),
        (lambda: filled(ids=[1, 2.5, 3]), "not 2.5"),
        (lambda: filled(ids=[1, True, 3]), "not True"),
        (lambda: filled(ids=[1, 2**70, 3]), "64 bits"),
        (lambda: filled(ids=[1, 2]), "3 codes came with 2 ids"),
        (lambda: filled(ids="abc"), "'abc'"),
        (lambda: filled().remove([0, 99]), "no id 99"),
        (lambda: filled().remove(["0"]), "no id '0'"),
        (lambda: filled().remove([1, 2, 1]), "Id 1 comes twice"),
        (lambda: filled().update([1, 9], np.ones((2, 16))), "no id 9, so it cannot be updated"),
        (lambda: filled().update([1, 1], np.ones((2, 16))), "Id 1 comes twice"),
        (lambda: filled().update([1], np.ones((2, 16))), "2 codes came with 1 ids"),
        (lambda: filled().upsert(np.ones((2, 16)), [7, 7]), "Id 7 comes twice"),
        (lambda: filled().upsert(np.ones((1, 16)), ["a"]), "integers, id 'a' is not"),
        (lambda: filled().add(np.full((1, 16), -np.inf)), "Row 0 .*infinity"),
        (lambda: filled().search(np.full((1, 16), np.inf)), "Row 0 .*infinity"),
    ],
)
def test_errors_name_what_was_wrong(act, message):
    with pytest.raises(HashIndexError, match=message):
        act()


@pytest.mark.parametrize(
    "arguments", [{"k": 0}, {"k": -3}, {"k": 2.0}, {"k": True}, {"metric": "cosine"}, {"probes": 0}]
)
def test_senseless_questions_are_refused(arguments):
    with pytest.raises(QueryError, match=str(next(iter(arguments.values())))):
        filled().search(np.ones((1, 16)), **arguments)


def test_a_refused_addition_or_removal_changes_nothing():
    index = filled()
    for act in (lambda: index.add(np.ones((2, 16)), ids=[9, 0]), lambda: index.remove([0, 9])):
        with pytest.raises(HashIndexError):
            act()
        assert index.ids.tolist() == [0, 1, 2]
        assert len(index.codes) == 3
        assert 9 not in index


def test_views_cannot_be_written():
    index = filled()
    with pytest.raises(ValueError, match="read-only"):
        index.ids[0] = 5
    with pytest.raises(ValueError, match="read-only"):
        index.codes[0] = 5
