"""Class names and multi-hot labels."""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike

from cmfah_hf.errors import DataError

logger = logging.getLogger(__name__)


def collect_classes(dataset: Any, labels_column: str = "labels") -> list[str]:
    """The sorted names of all labels in a data set.

    Args:
        dataset: A `Dataset` or `IterableDataset`, which is read to its end without decoding images.
        labels_column: The column of label lists.

    Raises:
        DataError: If the column is missing, or no row has a label.
    """
    if dataset.column_names is not None and labels_column not in dataset.column_names:
        raise DataError(
            f"there is no column {labels_column!r}; present are: {', '.join(dataset.column_names)}. Add labels to "
            "the data, or choose a method without labels."
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
        unknown: How to treat labels that are not classes: `"warn"` ignores them with one warning, `"error"` raises.
        dtype: The type of the matrix.

    Returns:
        `(N, C)`, ones and zeros.

    Raises:
        DataError: If a class occurs twice, a row is a string instead of a list, or a label is unknown and
            `unknown="error"`.
    """
    column_of = {name: column for column, name in enumerate(classes)}
    if len(column_of) != len(classes):
        repeated = [name for name, count in Counter(classes).items() if count > 1]
        raise DataError(f"classes occur twice: {', '.join(map(repr, repeated))}; list each once.")
    encoded = np.zeros((len(label_lists), len(classes)), dtype=dtype)
    unknown_labels: Counter[str] = Counter()
    for row, labels in enumerate(label_lists):
        if isinstance(labels, str):
            raise DataError(f"row {row}: the labels are the string {labels!r}; give a list of names.")
        for label in labels or ():
            if label in column_of:
                encoded[row, column_of[label]] = 1
                continue
            if unknown == "error":
                raise DataError(
                    f"row {row}: the label {label!r} is not one of the {len(classes)} classes; check the names."
                )
            unknown_labels[label] += 1
    if unknown_labels:
        shown = ", ".join(f"{name!r} ({count})" for name, count in unknown_labels.most_common(10))
        logger.warning(
            "Ignored %d labels that are not among the %d classes: %s%s.",
            unknown_labels.total(),
            len(classes),
            shown,
            ", ..." if len(unknown_labels) > 10 else "",
        )
    return encoded
