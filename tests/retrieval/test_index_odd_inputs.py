"""Common mistakes in calls of an index: a one-line error with a remedy, or the right answer."""

import datetime
import decimal
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from cmfah_hf.errors import HashIndexError, QueryError
from cmfah_hf.retrieval.exporters import milvus_query, pgvector_query, vespa_query
from cmfah_hf.retrieval.index import HashIndex

BITS = np.random.default_rng(0).integers(0, 2, (5, 16))


def filled(**options):
    index = HashIndex(16)
    index.add(2 * BITS - 1, **options)
    return index


def refused(error, message, act):
    with pytest.raises(error, match=message) as caught:
        act()
    assert "\n" not in str(caught.value)
    assert str(caught.value).encode("utf-8")


def queries_of_databases(given):
    for make in (pgvector_query, milvus_query, vespa_query, partial(vespa_query, metric="aqd")):
        yield partial(make, given)


@pytest.mark.parametrize("dtype", ["int64", "int8", "float32", "bool", "uint8", "uint16"])
def test_zero_one_codes_are_refused_everywhere(dtype):
    index, codes = filled(), BITS.astype(dtype)
    for given in (codes, torch.from_numpy(codes), codes.tolist()):
        for act in (
            lambda given=given: index.add(given),
            lambda given=given: index.upsert(given, range(5)),
            lambda given=given: index.update(range(5), given),
            lambda given=given: index.search(given),
            lambda given=given: index.search(given[0]),
            lambda given=given: index.search(given, exact=False),
            lambda given=given: index.measure_recall(given),
            *(() if dtype == "uint8" else queries_of_databases(given)),  # interpreted as packed codes
        ):
            refused(HashIndexError, r"only 0 and 1.*`2 \* codes - 1`.*packbits", act)
    if dtype != "uint8":
        refused(HashIndexError, "only 0 and 1", lambda: index.search(codes, metric="aqd"))
    assert len(index) == 5


def test_short_packed_codes_and_signs_are_accepted():
    index = HashIndex(8)
    index.add(np.array([[0], [1]], np.uint8))
    index.add(np.ones((1, 8), int))
    assert index.codes.tolist() == [[0], [1], [255]]
    assert index.search(np.zeros(8), metric="aqd", k=3).scores.tolist() == [[0, 0, 0]]
    assert index.search(np.array([1], np.uint8), k=1).ids.tolist() == [[1]]


@pytest.mark.parametrize("where", [None, {"x": 1}, {"x": 9}])
def test_an_empty_batch_of_queries_gives_no_results(where):
    index = filled(ids=list("abcde"), metadata={"x": [1] * 5})
    for queries in (np.empty((0, 16)), torch.empty(0, 16), np.empty((0, 2), np.uint8)):
        for options in ({}, {"exact": False}):
            found = index.search(queries, k=3, where=where, **options)
            assert found.ids.shape == found.scores.shape == (0, 0 if where == {"x": 9} else 3)
            assert found.metadata.num_rows == 0
    refused(QueryError, "at least one query", lambda: index.measure_recall(np.empty((0, 16))))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.ones(2, 16, device="meta"), "meta"),
        (lambda: torch.ones(2, 16).to_sparse(), "sparse"),
        (lambda: torch.quantize_per_tensor(torch.ones(2, 16), 0.1, 0, torch.qint8), "quantized"),
        (lambda: torch.nested.nested_tensor([torch.ones(16), torch.ones(3)]), "nested"),
        (lambda: [[1.0] * 16, [1.0] * 3], "inhomogeneous"),
        (lambda: np.full((1, 16), np.nan), "NaN"),
        (lambda: np.full((1, 16), -np.inf), "infinity"),
        (lambda: [["a"] * 16], "<U1"),
        (lambda: [[None] * 16], "object"),
        (lambda: "text", "shape"),
        (lambda: np.ones((1, 16), complex), "complex"),
        (lambda: np.full((1, 16), 1e300), "sum to"),
    ],
)
def test_values_that_are_no_matrix_of_codes(make, message):
    index = filled()
    refused(HashIndexError, message, lambda: index.search(make(), metric="aqd"))
    if "sum" not in message:
        refused(HashIndexError, message, lambda: index.search(make()))
        refused(HashIndexError, message, lambda: index.add(make()))
    assert len(index) == 5


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (5, "not as 5 alone"),
        (None, "not as None alone"),
        (np.array("abc"), "alone"),
        (torch.tensor(3), "alone"),
        (torch.zeros(2, device="meta"), "meta"),
        ([2**63], "64 bits"),
        ([-(2**63) - 1], "64 bits"),
        ([10**5000], "64 bits"),
        ([float("nan")], "not nan"),
        ([b"x"], "not b'x'"),
        ([[1, 2]], r"not \[1, 2\]"),
        ([np.zeros((40, 40))], "not array"),
        (["no\nline"], r"no id 'no\\nline'"),
        (["\ud800"], r"no id '\\ud800'"),
        (["x" * 10**6], "no id"),
    ],
)
def test_invalid_ids(ids, message):
    index = filled(ids=list("abcde"))
    refused(HashIndexError, message, lambda: index.remove(ids))


def test_ids_at_the_integer_bounds(tmp_path):
    index = filled()
    index.add(2 * BITS[:1] - 1, ids=[2**63 - 2])
    index.add(2 * BITS[:1] - 1)
    assert index.next_id == 2**63
    for act in (lambda: index.add(2 * BITS[:1] - 1), lambda: index.add(2 * BITS - 1)):
        refused(HashIndexError, "give `ids`", act)
    assert index.ids.tolist() == [0, 1, 2, 3, 4, 2**63 - 2, 2**63 - 1]
    index.save(tmp_path / "index")
    loaded = HashIndex.load(tmp_path / "index")
    loaded.add(2 * BITS[:1] - 1, ids=[-(2**63)])
    found = loaded.search(2 * BITS[0] - 1, k=4)
    assert found.ids.tolist()[0] == [-(2**63), 0, 2**63 - 2, 2**63 - 1]


COLUMNS = {
    "int": pa.array([1, None, 3, -1, 0]),
    "u64": pa.array([2**64 - 1, 1, None, 0, 3], pa.uint64()),
    "float": pa.array([0.0, -0.0, None, 0.1, float("nan")]),
    "single": pa.array([0.5, 0.1, None, 0.0, 2.0], pa.float32()),
    "s": pa.array(["", "a", None, "é", "x\ny"]),
    "on": pa.array([True, False, None, True, False]),
    "day": pa.array([datetime.date(2020, 1, 1 + i) for i in range(4)] + [None]),
    "price": pa.array([decimal.Decimal("1.20")] * 4 + [None]),
    "kind": pa.array(["a", "b", "a", None, ""]).dictionary_encode(),
    "view": pa.array(["a", "b", None, "", "a"], pa.string_view()),
    "runs": pc.run_end_encode(pa.array([7, 7, 8, 8, 8])),
    "tags": pa.array([["a"], [], None, ["b"], ["a"]], pa.list_(pa.string_view())),
    "nothing": pa.nulls(5),
}
CONDITIONS = [
    ("int", 10**40, []),
    ("int", [10**40, 3], [2]),
    ("int", 10**5000, []),
    ("int", None, []),
    ("int", [None, 1], [0]),
    ("int", [], []),
    ("int", 1.0, [0]),
    ("int", 1.5, []),
    ("int", float("inf"), []),
    ("int", float("nan"), []),
    ("int", np.int64(3), [2]),
    ("int", np.array([3, 1]), [0, 2]),
    ("int", True, [0]),
    ("u64", 2**64 - 1, [0]),
    ("u64", 2**64, []),
    ("u64", -1, []),
    ("float", 0.0, [0, 1]),
    ("float", -0.0, [0, 1]),
    ("float", 0, [0, 1]),
    ("float", 10**400, []),
    ("float", 0.1, [3]),
    ("float", None, []),
    ("single", 0.5, [0]),
    ("single", 2, [4]),
    ("s", "\ud800", []),
    ("s", ["\ud800", "a"], [1]),
    ("s", [], []),
    ("s", set(), []),
    ("s", "", [0]),
    ("s", "x\ny", [4]),
    ("s", "x" * 10**6, []),
    ("s", None, []),
    ("on", True, [0, 3]),
    ("on", None, []),
    ("day", datetime.date(2020, 1, 2), [1]),
    ("day", None, []),
    ("price", decimal.Decimal("1.20"), [0, 1, 2, 3]),
    ("kind", "a", [0, 2]),
    ("kind", [], []),
    ("kind", None, []),
    ("view", "a", [0, 4]),
    ("runs", 8, [2, 3, 4]),
    ("nothing", None, []),
    ("nothing", [], []),
]


@pytest.fixture(scope="module")
def described():
    return filled(metadata=pa.table(COLUMNS))


@pytest.mark.parametrize(("column", "value", "rows"), CONDITIONS, ids=lambda value: str(type(value)))
@pytest.mark.parametrize("snapshot", [False, True])
def test_conditions_compare_like_python(described, tmp_path, column, value, rows, snapshot):
    index = described
    if snapshot:  # in a file, next to a deleted row
        described.save(tmp_path / "index")
        index = HashIndex.load(tmp_path / "index", mmap=True)
        index.remove([0])
        rows = [row for row in rows if row]
    found = index.search(np.ones(16), k=5, where={column: value})
    assert sorted(found.ids[0].tolist()) == rows
    found.hits()


@pytest.mark.parametrize(
    "where",
    [
        {"int": "1"},
        {"int": [1, "x"]},
        {"int": {"a": 1}},
        {"int": [[1]]},
        {"int": b"x"},
        {"s": 1},
        {"s": b"a"},
        {"s": 10**40},
        {"float": "x"},
        {"on": "x"},
        {"day": "\ud800"},
        {"day": 10**40},
        {"tags": 3},
        {"kind": 3},
        {"int": object()},
        {"no\nne": 1},
        {"\ud800": 1},
        {3: 1},
        {None: 1},
        [("int", 1)],
        10**5000,
        "s",
        "s ~ a",
        pc.field("int") + 1,
        pc.field("s"),
        pc.field("none") == 1,
        pc.field("s") == 3,
        pc.scalar(None),
    ],
    ids=lambda where: type(where).__name__,
)
def test_invalid_conditions_are_reported_in_one_line(described, where):
    refused(QueryError, ".", lambda: described.search(np.ones(16), where=where))


def _nested(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


def _recursive():
    value = []
    value.append(value)
    return [value] * 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: {3: [1] * 5}, "named by text, not by 3"),
        (lambda: {"\ud800": [1] * 5}, "named by text"),
        (lambda: {"a": ["\ud800"] * 5}, "'a' cannot be stored"),
        (lambda: {"a": [10**40] * 5}, "'a' cannot be stored"),
        (lambda: {"a": [-1, 2**64 - 1, 0, 0, 0]}, "'a' cannot be stored"),
        (lambda: {"a": 5}, "'a' cannot be stored"),
        (lambda: {"a": [_nested(100_000)] * 5}, "'a' cannot be stored .*nested"),
        (lambda: {"a": _recursive()}, "'a' cannot be stored .*nested"),
        (lambda: {"a\nb": [object()] * 5}, r"'a\\nb' cannot be stored"),
        (lambda: {"a": torch.ones(5, device="meta")}, "meta"),
        (lambda: {"a": torch.ones(5).to_sparse()}, "sparse"),
        (lambda: pa.table([[1] * 5, [2] * 5], ["a", "a"]), "one name"),
        (lambda: {"a": [datetime.datetime.max] * 4 + ["x"]}, "'a' cannot be stored"),
    ],
)
def test_unsupported_columns_are_reported_in_one_line(make, message):
    index = HashIndex(16)
    refused(HashIndexError, message, lambda: index.add(2 * BITS - 1, metadata=make()))
    assert len(index) == 0
    assert index.metadata is None


def test_large_unsigned_integers_are_stored():
    index = filled(metadata={"big": [2**64 - 1, 0, None, 5, 2**63]})
    assert index.metadata["big"].to_pylist() == [2**64 - 1, 0, None, 5, 2**63]


def test_values_without_a_python_type_are_named():
    index = filled(metadata=pa.table({"day": pa.array([10**6 * 365] * 5, pa.int32()).cast(pa.date32())}))
    found = index.search(np.ones(16), k=1)
    assert found.metadata.num_rows == 1
    refused(HashIndexError, "a value that Python does not have", found.hits)


@pytest.mark.parametrize("name", ["x" * 5000, "a/" * 3000, "no\0thing", "new\nline", "\udcff"])
def test_invalid_paths(tmp_path, name):
    path = f"{tmp_path}/{name}"
    refused(HashIndexError, ".", lambda: HashIndex.load(path))
    if len(name) > 1000 or "\0" in name:
        refused(HashIndexError, ".", lambda: filled().save(path))
    else:
        filled().save(path)
        assert len(HashIndex.load(path)) == 5


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero", "/proc/x.index", "/dev/stdin"])
def test_device_files_are_not_overwritten(path):
    refused(HashIndexError, path, lambda: filled().save(path))
    refused(HashIndexError, path, lambda: HashIndex.load(path))
