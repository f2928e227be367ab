"""Matrices of one data set, and the `datasets` objects made of them: columns, rows, research splits."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cmfah_hf.data.file_state import digest_of, file_states
from cmfah_hf.data.matrices.axes import shown
from cmfah_hf.data.matrices.images import encoder_of
from cmfah_hf.data.matrices.rows import DenseRows, SparseRows
from cmfah_hf.data.matrices.storage import Variable
from cmfah_hf.data.rows.columns import IMAGE_FEATURES
from cmfah_hf.errors import DataError

Names = Sequence[str] | str | os.PathLike
Ranges = list[tuple[int, int]]

# Maximum number of shards of a stream, and so of DataLoader workers that can share it.
_MAX_SHARDS = 16


class Matrices:
    """Images, features, tags and labels of one data set, with the same rows; see `open_matrices`.

    Attributes:
        images: Images, rows `(H, W, C)`, or None.
        features: Features of images, rows `(D,)`, or None.
        tags: Tags of each pair, or None.
        labels: Classes of each pair, or None.
        variables: The variable of each role, with its file.
        axes: Its axes by role, such as `NCWH`, in NumPy's order.
        tag_names: A name for each column of `tags`.
        label_names: A name for each column of `labels`, or for each class number if that is a single column.
    """

    def __init__(
        self,
        variables: Mapping[str, Variable],
        axes: Mapping[str, str],
        tag_names: Names | None = None,
        label_names: Names | None = None,
    ):
        self.variables, self.axes = dict(variables), dict(axes)
        self.images: DenseRows | None = self._rows("images", DenseRows)
        self.features: DenseRows | None = self._rows("features", DenseRows)
        self.tags: SparseRows | None = self._rows("tags", SparseRows)
        self.labels: SparseRows | None = self._rows("labels", SparseRows)
        self._given_label_names = _read_names(label_names)
        self.tag_names = self._tag_names(_read_names(tag_names))
        self._check_label_names()

    def _rows(self, role: str, kind: Any) -> Any:
        return kind(self.variables[role], self.axes[role]) if role in self.variables else None

    def __len__(self) -> int:
        return len(next(rows for rows in (self.images, self.features, self.tags, self.labels) if rows is not None))

    def __repr__(self) -> str:
        return f"<{len(self):,} pairs: {'; '.join(self.describe())}>"

    def describe(self) -> list[str]:
        """One line for each role: the variable, its axes as NumPy shows them, and its file."""
        return [
            f"{role}: {variable}, read as {shown(self.axes[role])}, of {variable.file.name}"
            for role, variable in self.variables.items()
        ]

    def _tag_names(self, given: list[str] | None) -> list[str]:
        count = self.tags.shape[1] if self.tags is not None else 0
        if given is not None and len(given) != count:
            raise DataError(f"there are {len(given)} names for {count} columns of tags; give one for each column.")
        return given if given is not None else _numbered("tag", range(count))

    def _check_label_names(self) -> None:
        count = self.labels.shape[1] if self.labels is not None else 0
        given = self._given_label_names
        if given is not None and count != 1 and len(given) != count:
            raise DataError(f"there are {len(given)} names for {count} columns of labels; give one for each column.")

    @property
    def label_names(self) -> list[str]:
        if self.labels is None:
            return []
        if not self.labels.are_class_numbers:
            return self._given_label_names or _numbered("class", range(self.labels.shape[1]))
        first, last = self.labels.class_numbers
        given = self._given_label_names
        if given is not None and len(given) < last - first + 1:
            raise DataError(f"there are {len(given)} names for the classes {first} to {last}; give one for each class.")
        return given or _numbered("class", range(first, last + 1))

    def to_dataset(
        self,
        streaming: bool = True,
        queries: Literal["first", "last"] | None = None,
        num_queries: int | None = None,
        num_train: int | None = None,
        images: bool = True,
    ) -> Any:
        """The pairs with this package's columns.

        Args:
            streaming: An `IterableDataset`, read while it is iterated; else a `Dataset` in the cache.
            queries: The position of the query rows in a research split, `"first"` (DCMH, AGAH) or `"last"` (DADH,
                UCCH). None: no split.
            num_queries: Number of queries.
            num_train: Number of training pairs among the other rows: those right after the queries, or the first.
            images: Whether to read images and features.

        Returns:
            One data set; with `queries` a dictionary of `train`, `query` and `database`, where the database is all rows
            but the queries, the training pairs first. The columns: `id` (the row number, as a string), `image`
            (lossless PNG) or else `image_features` (list of floats), `text` (the tags' names, joined), `tags`, and
            `labels` (if there are any).

        Raises:
            DataError: If there are no tags, the split does not fit, or an image's values are not between 0 and 255.
        """
        import datasets

        split = research_split(len(self), queries, num_queries, num_train)
        if "rest" in split:
            split = {"train": split["train"], "query": split["query"], "database": split["train"] + split["rest"]}
        parts = {name: dataset_of(self, ranges, name, streaming, images) for name, ranges in split.items()}
        if queries is None:
            return parts["train"]
        return (datasets.IterableDatasetDict if streaming else datasets.DatasetDict)(parts)


def research_split(
    count: int, queries: str | None, num_queries: int | None, num_train: int | None
) -> dict[str, Ranges]:
    """Ranges (start, stop) of `train`, `query` and `rest`; the database is `train` and `rest`.

    `queries` is `"first"` for the order queries, training pairs, rest, `"last"` for training pairs, rest, queries, or
    None for training pairs alone.
    """
    if queries is None:
        if num_queries is not None or num_train is not None:
            raise DataError(
                'sizes of a split are given without the position of the queries; add queries="first" or "last".'
            )
        return {"train": [(0, count)]}
    if queries not in ("first", "last"):
        raise DataError(f"queries={queries!r} is not known; give 'first' or 'last'.")
    if not num_queries or not num_train or num_queries < 1 or num_train < 1:
        raise DataError("a split needs the numbers of queries and training pairs; give num_queries and num_train.")
    if num_queries + num_train > count:
        raise DataError(
            f"{num_queries:,} queries and {num_train:,} training pairs are more than the {count:,} rows; take fewer."
        )
    if queries == "first":
        bounds = {"query": (0, num_queries), "train": (num_queries, num_queries + num_train)}
        bounds["rest"] = (num_queries + num_train, count)
    else:
        bounds = {"train": (0, num_train), "rest": (num_train, count - num_queries)}
        bounds["query"] = (count - num_queries, count)
    return {name: [bounds[name]] for name in ("train", "query", "rest")}


def dataset_of(matrices: Matrices, ranges: Ranges, split: str, streaming: bool, images: bool = True) -> Any:
    """The rows in these ranges as a data set."""
    import datasets

    if matrices.tags is None:
        raise DataError(
            f"{', '.join(matrices.describe())}: there are no tags, so the pairs have no text; give the file with YAll."
        )
    variables = {role: replace(found, file=found.file.absolute()) for role, found in matrices.variables.items()}
    files = sorted({variable.file for variable in variables.values()})
    gen_kwargs = {
        # Tuples, because lists among these arguments are divided among workers.
        "variables": tuple(variables.items()),
        "axes": tuple(matrices.axes.items()),
        "tag_names": tuple(matrices.tag_names),
        "label_names": tuple(matrices.label_names),
        "images": images,
        # These arguments are the key of the cache, so a changed file has to change them.
        "version": digest_of(file_states(files)),
        "ranges": _cut(ranges, _MAX_SHARDS) if streaming else ranges,
    }
    kind = datasets.IterableDataset if streaming else datasets.Dataset
    return kind.from_generator(
        generate_rows, features=features_of(matrices, images), gen_kwargs=gen_kwargs, split=datasets.NamedSplit(split)
    )


def features_of(matrices: Matrices, images: bool = True, class_labels: bool = False) -> Any:
    """The features of the rows; labels as names, or as `ClassLabel`."""
    import datasets

    features: dict[str, Any] = {"id": datasets.Value("string")}
    if images and matrices.images is not None:
        features["image"] = datasets.Image()
    elif images and matrices.features is not None:
        features[IMAGE_FEATURES] = datasets.List(datasets.Value("float32"))
    features |= {"text": datasets.Value("string"), "tags": datasets.List(datasets.Value("string"))}
    if matrices.labels is not None:
        label = datasets.ClassLabel(names=matrices.label_names) if class_labels else datasets.Value("string")
        features["labels"] = datasets.List(label)
    return datasets.Features(features)


def generate_rows(
    variables: tuple[tuple[str, Variable], ...],
    axes: tuple[tuple[str, str], ...],
    tag_names: tuple[str, ...],
    label_names: tuple[str, ...],
    images: bool,
    version: str,
    ranges: Ranges,
) -> Iterator[dict[str, Any]]:
    """The rows in `ranges` (start, stop). `version` identifies the state of the files."""
    matrices = _opened(os.getpid(), variables, axes, version)
    tags, labels = matrices.tags, matrices.labels
    assert tags is not None  # `dataset_of` requires them
    for start, stop in ranges:
        for row, example in enumerate(_image_columns(matrices, start, stop, images), start):
            names = [tag_names[number] for number in tags.columns_of(row)]
            example = {"id": str(row), **example, "text": " ".join(names), "tags": names}
            if labels is not None:
                example["labels"] = [label_names[number] for number in labels.classes_of(row)]
            yield example


def _image_columns(matrices: Matrices, start: int, stop: int, images: bool) -> Iterator[dict[str, Any]]:
    """The image or the features of each row, or empty dictionaries if there are none or none are wanted."""
    if images and matrices.images is not None:
        encode, row = encoder_of(matrices.images), start
        for block in matrices.images.blocks(start, stop):
            for values in block:
                yield {"image": encode(values, row)}
                row += 1
    elif images and matrices.features is not None:
        for block in matrices.features.blocks(start, stop):
            yield from ({IMAGE_FEATURES: values.astype(np.float32)} for values in block)
    else:
        yield from ({} for _ in range(start, stop))


@lru_cache(maxsize=2)
def _opened(process: int, variables: tuple, axes: tuple, version: str) -> Matrices:
    """The matrices, opened once per process, since opening inflates what is compressed."""
    return Matrices(dict(variables), dict(axes))


def _read_names(names: Names | None) -> list[str] | None:
    if names is None or not isinstance(names, str | os.PathLike):
        return None if names is None else _unique([str(name) for name in names], "the names")
    path = Path(names)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: cannot be read as a list of names ({error}); write one name per line, in UTF-8."
        ) from error
    found = []
    for line in filter(str.strip, lines):
        parts = line.split()
        counted = len(parts) > 1 and parts[-1].isdigit()  # a name and its count
        found.append(" ".join(parts[:-1] if counted else parts))
    return _unique(found, str(path))


def _unique(names: list[str], where: str) -> list[str]:
    lines: dict[str, int] = {}
    for line, name in enumerate(names, 1):
        if lines.setdefault(name, line) != line:
            raise DataError(f"{where}: {name!r} is the name of both {lines[name]} and {line}; give each its own.")
    return names


def _numbered(stem: str, numbers: range) -> list[str]:
    width = max(2, len(str(numbers[-1]))) if numbers else 2
    return [f"{stem}{number:0{width}d}" for number in numbers]


def _cut(ranges: Ranges, parts: int) -> Ranges:
    """The ranges divided into about `parts` pieces, in their order."""
    total = sum(stop - start for start, stop in ranges)
    size = max(1, -(-total // parts))
    pieces: Ranges = []
    for start, stop in ranges:
        number = -(-(stop - start) // size)
        bounds = [start + (stop - start) * part // max(1, number) for part in range(number + 1)]
        pieces += list(pairwise(bounds))
    return pieces
