"""Class names and multi-hot labels, against a matrix filled in a loop."""

import logging

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.preprocessing import MultiLabelBinarizer

from cmfah_hf.data import collect_classes, encode_labels, make_scenes
from cmfah_hf.errors import DataError

CLASSES = ["a", "b", "c", "d"]


@given(st.lists(st.lists(st.sampled_from(CLASSES), max_size=6), min_size=1, max_size=8))
def test_encoding_matches_scikit_learn(rows):
    encoded = encode_labels(rows, CLASSES)
    assert encoded.dtype == np.float32
    assert (encoded == MultiLabelBinarizer(classes=CLASSES).fit_transform(rows)).all()


def test_order_of_classes_and_type():
    encoded = encode_labels([["b"], None, []], ["c", "b"], dtype=np.uint8)
    assert encoded.dtype == np.uint8
    assert encoded.tolist() == [[0, 1], [0, 0], [0, 0]]
    assert encode_labels([], CLASSES).shape == (0, 4)


def test_unknown_labels_are_named_in_one_warning(caplog):
    with caplog.at_level(logging.WARNING):
        encoded = encode_labels([["a", "x"], ["y", "x"], ["b"]], CLASSES)
    assert encoded.tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    (record,) = caplog.records
    assert record.getMessage() == "Ignored 3 labels that are not among the 4 classes: 'x' (2), 'y' (1)."
    with pytest.raises(DataError, match="row 1: the label 'y' is not one of the 4 classes"):
        encode_labels([["a"], ["y"]], CLASSES, unknown="error")


def test_invalid_arguments():
    with pytest.raises(DataError, match="classes occur twice: 'a'"):
        encode_labels([["a"]], ["a", "b", "a"])
    with pytest.raises(DataError, match="row 0: the labels are the string 'ab'"):
        encode_labels(["ab"], CLASSES)


@pytest.mark.parametrize("streaming", [False, True])
def test_collect_classes(streaming):
    data = datasets.Dataset.from_dict({"id": ["1", "2", "3"], "labels": [["z", "b"], [], ["b", "ä"]]})
    scenes = make_scenes(20, image_size=32)
    expected = sorted({name for row in scenes["labels"] for name in row})
    if streaming:
        data, scenes = data.to_iterable_dataset(), scenes.to_iterable_dataset()
    assert collect_classes(data) == ["b", "z", "ä"]
    assert collect_classes(scenes) == expected
    with pytest.raises(DataError, match="no column 'labels'; present are: id"):
        collect_classes(data.remove_columns("labels"))


def test_rows_without_labels():
    with pytest.raises(DataError, match="no row has a label"):
        collect_classes(datasets.Dataset.from_dict({"labels": [[], []]}))
