"""Co-occurrence counts of labels, against scikit-learn and matrix products, for data sets and streams."""

import json

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import MultiLabelBinarizer

from cmfah_hf.data import LabelCounts
from cmfah_hf.errors import DataError

few = settings(max_examples=40)
names = st.sampled_from(["sea", "sun", "tree", "море", "a b"])
rows_of_labels = st.lists(st.one_of(st.none(), st.lists(names, max_size=4)), max_size=8)
FEATURES = datasets.Features({"labels": datasets.List(datasets.Value("string")), "n": datasets.Value("int64")})


def products(rows, classes):
    binary = MultiLabelBinarizer(classes=classes).fit_transform([set(row or ()) for row in rows]).astype(int)
    return binary.T @ binary


@few
@given(rows_of_labels)
def test_counts_are_the_gram_matrix_of_the_multi_hot_labels(rows):
    counts = LabelCounts()
    for row in rows:
        counts.add(row)
    assert counts.classes == sorted({name for row in rows for name in row or ()})
    classes = [*counts.classes, "never"]
    np.testing.assert_array_equal(counts.matrix(classes), products(rows, classes))
    assert counts.matrix(classes).dtype == np.int64
    again = LabelCounts(json.loads(json.dumps(counts.to_dict())))
    np.testing.assert_array_equal(again.matrix(classes), counts.matrix(classes))
    # The order of the classes only permutes rows and columns.
    order = np.random.default_rng(len(rows)).permutation(len(classes))
    permuted = counts.matrix([classes[i] for i in order])
    np.testing.assert_array_equal(permuted, counts.matrix(classes)[np.ix_(order, order)])


def test_a_stream_is_read_once_and_matches_the_data_set():
    rows = [["sea", "sun"], None, ["sun"], ["sea", "sun", "sun"], []]
    passes = []

    def generate():
        passes.append(True)
        yield from ({"labels": row, "n": n} for n, row in enumerate(rows))

    stream = datasets.IterableDataset.from_generator(generate, features=FEATURES)
    whole = datasets.Dataset.from_list([{"labels": row, "n": n} for n, row in enumerate(rows)], features=FEATURES)
    for data in (stream, whole):
        counts = LabelCounts.of(data)
        assert counts.matrix(["sea", "sun"]).tolist() == [[2, 2], [2, 3]]
    assert passes == [True]


def test_other_classes_are_ignored():
    counts = LabelCounts({"a": {"a": 2, "b": 1}, "b": {"a": 1, "b": 5}})
    assert counts.matrix(["b"]).tolist() == [[5]]
    assert LabelCounts().matrix([]).shape == (0, 0)


def test_invalid_labels():
    with pytest.raises(DataError, match="no column 'labels', which the label graph needs; present are: n"):
        LabelCounts.of(datasets.Dataset.from_dict({"n": [1]}))
    with pytest.raises(DataError, match="the string 'sea'; give a list"):
        LabelCounts().add("sea")
