"""`HashIndex` against float64 algebra and dictionaries; `conformance.py` holds the tests of all indexes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmfah_hf.errors import HashIndexError
from cmfah_hf.retrieval.codes import pack, sign
from cmfah_hf.retrieval.index import HashIndex


def reference(hash_db, hash_q, metric, keys):
    """Positions and scores of all items for each query, in the canonical order, by plain float64 algebra."""
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
    """Continuous codes of few sign patterns, on a coarse grid, so that scores tie everywhere."""
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


def test_packed_and_torch_inputs_give_the_same_results():
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


def test_the_index_copies_the_codes():
    codes = pack(np.ones((1, 16)))
    index = HashIndex(16)
    index.add(codes)
    codes[:] = 0
    assert index.search(np.ones(16), k=1).scores.tolist() == [[0]]


operations = st.lists(
    st.tuples(st.sampled_from(["add", "remove", "reload"]), st.lists(st.integers(-8, 8), min_size=1, max_size=5)),
    max_size=12,
)


@given(operations, st.booleans(), st.booleans())
@settings(max_examples=60)
def test_any_sequence_of_changes_matches_a_dict(tmp_path_factory, history, strings, mmap):
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
    with pytest.raises(HashIndexError, match=r"holds no id .* cannot be read"):
        index.codes_of([name(9)])
    if model:
        backwards = list(model)[::-1]
        assert (index.codes_of(backwards) == pack(np.stack([code[model[i]] for i in backwards]))).all()
        hash_db = np.stack([code[i] for i in model.values()])
        query = np.array([[0.5, -0.1, 0.3, 0.0, -0.9, 0.2, 0.1, -0.4]])
        order, _ = reference(hash_db, query, "aqd", list(model))
        found = index.search(query, k=len(model), metric="aqd").ids[0].tolist()
        assert found == [list(model)[i] for i in order[0]]


@pytest.mark.parametrize("bits", [0, 12])
def test_invalid_bits_are_named(bits):
    with pytest.raises(HashIndexError, match=f"{bits} bits"):
        HashIndex(bits)
