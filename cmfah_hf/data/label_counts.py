"""Co-occurrence counts of labels, in one pass."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cmfah_hf.errors import DataError


class LabelCounts:
    """Number of rows with each label and with each pair of labels, `[label-graph]`.

    The labels need not be known in advance, so one pass over a stream suffices. The state grows with the number of
    pairs of labels that occur, not with the number of rows.

    Example:
        >>> counts = LabelCounts()
        >>> for labels in (["sea", "sun"], ["sea"], None):
        ...     counts.add(labels)
        >>> counts.matrix(["sea", "sun", "tree"]).tolist()
        [[2, 1, 0], [1, 1, 0], [0, 0, 0]]
    """

    def __init__(self, together: Mapping[str, Mapping[str, int]] | None = None):
        self._together = {name: dict(row) for name, row in (together or {}).items()}

    @classmethod
    def of(cls, dataset: Any, labels_column: str = "labels") -> "LabelCounts":
        """The counts of a `Dataset` or an `IterableDataset`, which is read to its end without decoding images.

        Raises:
            DataError: If the column is missing, or a row's labels are a string.
        """
        if dataset.column_names is not None and labels_column not in dataset.column_names:
            raise DataError(
                f"there is no column {labels_column!r}, which the label graph needs; present are: "
                f"{', '.join(dataset.column_names)}. Add labels to the data, or set use_label_graph to false."
            )
        counts = cls()
        for row in dataset.select_columns([labels_column]):
            counts.add(row[labels_column])
        return counts

    def add(self, labels: Iterable[str] | None) -> None:
        """Counts one row; repeated labels count once.

        Raises:
            DataError: If the labels are a string instead of a list.
        """
        if isinstance(labels, str):
            raise DataError(f"the labels of a row are the string {labels!r}; give a list of names.")
        names = list(dict.fromkeys(str(name) for name in labels or ()))
        for name in names:
            row = self._together.setdefault(name, {})
            for other in names:
                row[other] = row.get(other, 0) + 1

    @property
    def classes(self) -> list[str]:
        """The sorted names of all labels."""
        return sorted(self._together)

    def to_dict(self) -> dict[str, dict[str, int]]:
        """Counts by label and label, for the constructor."""
        return {name: dict(row) for name, row in self._together.items()}

    def matrix(self, classes: Sequence[str]) -> np.ndarray:
        """`(C, C)` int64: rows with both labels, on the diagonal with the label; 0 for labels that do not occur."""
        column_of = {name: column for column, name in enumerate(classes)}
        counts_CC = np.zeros((len(classes), len(classes)), dtype=np.int64)
        for name, row in self._together.items():
            for other, count in row.items():
                if name in column_of and other in column_of:
                    counts_CC[column_of[name], column_of[other]] = count
        return counts_CC
