"""Conversion of labels, names or multi-hot, to boolean matrices over the same classes, and of pair keys to integers.

Shapes: `Q` queries, `N` database items, `C` classes.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from cmfah_hf.data.labels import encode_labels as multi_hot
from cmfah_hf.errors import HashIndexError, QueryError
from cmfah_hf.retrieval.codes import as_array


def encode_labels(labels_q: Any, labels_db: Any) -> tuple[np.ndarray, np.ndarray]:
    """The labels of queries and database as `(Q, C)` and `(N, C)` bool over the same classes.

    Both are either multi-hot matrices of 0 and 1 (NumPy, PyTorch, lists), or lists of label names for each row, whose
    sorted names are then the classes. Rows may be empty.

    Raises:
        QueryError: If the two differ in type or classes, have no rows, or are neither. It names the argument.
    """
    given_q, given_db = _rows_or_array("labels_q", labels_q), _rows_or_array("labels_db", labels_db)
    for name, labels in (("labels_q", given_q), ("labels_db", given_db)):
        if not len(labels):
            raise QueryError(f"{name} has no rows; there is nothing to evaluate.")
    if isinstance(given_q, list) and isinstance(given_db, list):
        return _encode_names(given_q, given_db)
    if isinstance(given_q, list) or isinstance(given_db, list):
        names, matrix = ("labels_q", "labels_db") if isinstance(given_q, list) else ("labels_db", "labels_q")
        raise QueryError(f"{names} holds names and {matrix} a matrix; give both as names or both as multi-hot.")
    multi_hot_q, multi_hot_db = _checked_multi_hot("labels_q", given_q), _checked_multi_hot("labels_db", given_db)
    if multi_hot_q.shape[1] != multi_hot_db.shape[1]:
        raise QueryError(f"labels_q has the shape {multi_hot_q.shape}, labels_db {multi_hot_db.shape}: classes differ.")
    return multi_hot_q, multi_hot_db


def encode_keys(image_pairs: Any, text_pairs: Any) -> tuple[np.ndarray, np.ndarray]:
    """The keys of images and texts as integers, `(images,)` and `(texts,)`, equal where the keys are equal.

    Raises:
        QueryError: If either is not a list of integers or of strings, or one has integers and the other strings. It
            names the argument.
    """
    given = {"image_pairs": image_pairs, "text_pairs": text_pairs}
    for name, keys in given.items():
        try:
            given[name] = as_array(keys)
        except HashIndexError as error:
            raise QueryError(f"{name}: {error}") from error
        if given[name].ndim != 1 or given[name].dtype.kind not in "iuU":
            raise QueryError(
                f"{name} is {given[name].dtype} of the shape {given[name].shape}; give one integer or string a row."
            )
    if len({keys.dtype.kind == "U" for keys in given.values()}) == 2:
        raise QueryError("One of image_pairs and text_pairs has integers, the other strings; give the same keys.")
    _, codes = np.unique(np.concatenate(list(given.values())), return_inverse=True)
    return codes[: len(given["image_pairs"])], codes[len(given["image_pairs"]) :]


def _rows_or_array(name: str, labels: Any) -> list | np.ndarray:
    """A list of rows if they contain names or are all empty, otherwise an array."""
    try:
        if (isinstance(labels, np.ndarray) and labels.dtype != object) or hasattr(labels, "detach"):
            return np.atleast_1d(as_array(labels))
        rows = list(labels) if isinstance(labels, Iterable) else [labels]
        entries = (entry for row in rows if isinstance(row, Iterable) for entry in row)
        if isinstance(next(entries, ""), str):
            return rows
        return as_array(rows)
    except HashIndexError as error:
        raise QueryError(f"{name}: {error} Give names, or a matrix of rows of one length.") from error


def _encode_names(rows_q: list, rows_db: list) -> tuple[np.ndarray, np.ndarray]:
    for name, rows in (("labels_q", rows_q), ("labels_db", rows_db)):
        for number, row in enumerate(rows):
            if (
                isinstance(row, str)
                or not isinstance(row, Iterable)
                or not all(isinstance(entry, str) for entry in row)
            ):
                raise QueryError(f"Row {number} of {name} is {row!r}; give a list of label names for every row.")
    # At least one class, so that rows without labels keep their shape.
    classes = sorted({entry for rows in (rows_q, rows_db) for row in rows for entry in row}) or [""]
    return multi_hot(rows_q, classes, dtype=bool), multi_hot(rows_db, classes, dtype=bool)


def _checked_multi_hot(name: str, labels: np.ndarray) -> np.ndarray:
    if labels.ndim != 2 or not labels.shape[1]:
        raise QueryError(f"{name} has the shape {labels.shape}; give a multi-hot matrix of one row an item, or names.")
    wrong = np.argwhere((labels != 0) & (labels != 1))
    if len(wrong):
        row, column = wrong[0]
        raise QueryError(f"Row {row} of {name} holds {labels[row, column]}; a multi-hot matrix has 0 and 1 only.")
    return labels.astype(bool)
