"""Normalization of texts and labels, and detection of columns."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmfah_hf.data.rows.columns import RequestedColumns, find_columns, labels_of, text_of
from cmfah_hf.errors import DataError

names = st.text(st.characters(whitelist_categories=["L", "N"]), min_size=1, max_size=6)


@given(st.lists(names, max_size=5))
def test_list_notations_give_the_same_names(labels):
    expected = list(dict.fromkeys(labels))
    assert labels_of(labels) == expected
    assert labels_of(tuple(labels)) == expected
    for separator in ("|", "; ", ","):
        assert labels_of(separator.join(labels)) == expected
    assert labels_of(json.dumps(labels)) == expected
    assert labels_of(str(labels)) == expected


@pytest.mark.parametrize(
    ("value", "class_names", "expected"),
    [
        (None, None, []),
        ("", None, []),
        ("[]", None, []),
        ("plant life", None, ["plant life"]),
        (["a, b"], None, ["a, b"]),
        ([" a ", "", None, "a"], None, ["a"]),
        ([3, 1], None, ["3", "1"]),
        (7, None, ["7"]),
        (1, ["x", "y"], ["y"]),
        ([0, -1], ["x", "y"], ["x"]),
        (-1, ["x", "y"], []),
        (float("nan"), None, []),
        ("[unfinished", None, ["[unfinished"]),
    ],
)
def test_labels(value, class_names, expected):
    assert labels_of(value, class_names) == expected


def test_labels_out_of_range_or_nested():
    with pytest.raises(DataError, match="label 2 is out of range: there are 2 class names"):
        labels_of([2], ["x", "y"])
    with pytest.raises(DataError, match="not a list"):
        labels_of([["x"]])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a b", "a b"),
        (None, ""),
        (float("nan"), ""),
        (["a", "b c"], "a b c"),
        ([], ""),
        (["a", None, ""], "a"),
        (2019, "2019"),
    ],
)
def test_texts(value, expected):
    assert text_of(value) == expected


def test_common_column_names_in_order_of_preference():
    found = find_columns(["Label", "tags", "ID", "Caption", "img"], "here")
    assert (found.image, found.text, found.labels, found.id) == ("img", "Caption", "Label", "ID")
    found = find_columns(["pic", "text"], "here", image_columns=["pic"])
    assert (found.image, found.labels, found.id) == ("pic", None, None)
    with pytest.raises(DataError, match="no column looks like the image"):
        find_columns(["one", "two", "text"], "here", image_columns=["one", "two"])
    assert find_columns(["id", "image", "text"], "here", RequestedColumns(id=False)).id is None


def test_import_is_light():
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import cmfah_hf.data as data\n"
        "assert 'load_image_text' in dir(data)\n"
        "assert 'datasets' not in sys.modules, 'datasets was imported'\n"
        "from cmfah_hf.data import encode_labels\n"
        "print(encode_labels([['x']], ['x']).tolist())\n"
        "import cmfah_hf.data.loading, cmfah_hf.data.scenes\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    root = str(Path(__file__).parents[2])
    result = subprocess.run([sys.executable, "-c", program, root], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[[1.0]]"
