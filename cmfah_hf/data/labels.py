"""Class names and multi-hot labels."""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import DTypeLike

from cmfah_hf.errors import DataError

logger = logging.getLogger(__name__)


def collect_classes(dataset, labels_column: str = "labels") -> list[str]:
    """The names of all labels in a data set, sorted.

    Args:
        dataset: A `Dataset` or `IterableDataset` (which is read to its end; no picture is decoded).
        labels_column: The column of label lists.

    Raises:
        DataError: If there is no such column, or no row has a label.
    """
    if dataset.column_names is not None and labels_column not in dataset.column_names:
        raise DataError(
            f"there is no column {labels_column!r}; present are: {', '.join(dataset.column_names)}. Give the data "
            "labels, or choose what works without them."
        )
    classes: set[str] = set()
    for example in dataset.select_columns([labels_column]):
        classes.update(example[labels_column] or ())
    if not classes:
        raise DataError(
            f"no row has a label in the column {labels_column!r}; add labels to the data, or train "
            "with --similarity tags or --similarity pairs."
        )
    return sorted(classes)


def encode_labels(
    label_lists: Sequence[Sequence[str]],
    classes: Sequence[str],
    unknown: Literal["warn", "error"] = "warn",
    dtype: DTypeLike = np.float32,
) -> np.ndarray:
    """Label lists as a multi-hot matrix.

    Args:
        label_lists: `N` lists of class names; empty lists and `None` give rows of zeros.
        classes: The `C` class names, in the order of the columns.
        unknown: What to do with a label that is not a class: `"warn"` leaves them out and names them all in one
            warning, `"error"` refuses.
        dtype: The matrix's type.

    Returns:
        `(N, C)`, ones and zeros.

    Raises:
        DataError: If a class is named twice, a row is a string instead of a list, or an unknown label is refused.
    """
    column_of = {name: column for column, name in enumerate(classes)}
    if len(column_of) != len(classes):
        twice = [name for name, count in Counter(classes).items() if count > 1]
        raise DataError(f"classes named twice: {', '.join(map(repr, twice))}; name each once.")
    encoded = np.zeros((len(label_lists), len(classes)), dtype=dtype)
    strangers: Counter[str] = Counter()
    for row, labels in enumerate(label_lists):
        if isinstance(labels, str):
            raise DataError(f"row {row}: the labels are the string {labels!r}; give a list of names.")
        for label in labels or ():
            if label in column_of:
                encoded[row, column_of[label]] = 1
                continue
            if unknown == "error":
                raise DataError(
                    f"row {row}: the label {label!r} is none of the {len(classes)} classes; check the names."
                )
            strangers[label] += 1
    if strangers:
        shown = ", ".join(f"{name!r} ({count})" for name, count in strangers.most_common(10))
        logger.warning(
            "Left out %d labels that are none of the %d classes: %s%s.",
            strangers.total(),
            len(classes),
            shown,
            ", ..." if len(strangers) > 10 else "",
        )
    return encoded
