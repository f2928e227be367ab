"""Matrices as data sets with the package's columns: the rows, the research split, pictures as PNG."""

import io
import logging
import os
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cmfah_hf.data.matrices import Matrices, open_matrices
from cmfah_hf.data.matrix_axes import shown
from cmfah_hf.errors import DataError

logger = logging.getLogger(__name__)

Ranges = list[tuple[int, int]]

# A stream is cut into this many ranges at most, which is how many workers of a DataLoader can share it.
_MAX_SHARDS = 16
# Pictures looked at to tell which way is up, and cells of their mean along each axis.
_LOOKED_AT, _CELLS = 128, 8


def research_split(
    count: int, queries: str | None, num_queries: int | None, num_train: int | None
) -> dict[str, Ranges]:
    """The rows of each split: queries first or last, the training pairs next to them or at the start.

    Args:
        count: The number of rows.
        queries: `"first"`, as DCMH and AGAH have it: queries, training pairs, the rest. `"last"`, as DADH and UCCH:
            training pairs, the rest, queries. None: all rows are `train`.
        num_queries, num_train: How many.

    Returns:
        Ranges (start, stop) of `train`, `query` and `rest`; the database is `train` and `rest`.

    Raises:
        DataError: If a number is missing, or they are more than there are rows.
    """
    if queries is None:
        if num_queries is not None or num_train is not None:
            raise DataError(
                'sizes of a split are given without saying where the queries stand; add queries="first" or "last".'
            )
        return {"train": [(0, count)]}
    if queries not in ("first", "last"):
        raise DataError(f"the queries stand 'first' or 'last', not {queries!r}; choose one.")
    if not num_queries or not num_train or num_queries < 1 or num_train < 1:
        raise DataError("a split needs how many queries and training pairs there are; give num_queries and num_train.")
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


def matrices_to_dataset(
    matrices: Matrices,
    streaming: bool,
    queries: str | None,
    num_queries: int | None,
    num_train: int | None,
    pictures: bool,
) -> Any:
    """See `Matrices.to_dataset`."""
    import datasets

    split = research_split(len(matrices), queries, num_queries, num_train)
    if "rest" in split:
        split = {"train": split["train"], "query": split["query"], "database": split["train"] + split["rest"]}
    parts = {name: dataset_of(matrices, ranges, name, streaming, pictures) for name, ranges in split.items()}
    if queries is None:
        return parts["train"]
    return (datasets.IterableDatasetDict if streaming else datasets.DatasetDict)(parts)


def dataset_of(matrices: Matrices, ranges: Ranges, split: str, streaming: bool, pictures: bool = True) -> Any:
    """The rows in these ranges as a data set."""
    import datasets

    if matrices.tags is None:
        raise DataError(
            f"{', '.join(matrices.describe())}: there are no tags, so the pairs have no text; give the file with YAll."
        )
    files = sorted({str(variable.file.absolute()) for variable in matrices.variables.values()})
    gen_kwargs = {
        # Tuples, because the lists among these arguments are what is shared out among workers.
        "files": tuple(files),
        "names": {role: variable.name for role, variable in matrices.variables.items()},
        "axes": matrices.axes,
        "tag_names": tuple(matrices.tag_names),
        "label_names": tuple(matrices.label_names),
        "pictures": pictures,
        # The cache knows a data set by these arguments, so a changed file has to change them.
        "version": tuple((state.st_mtime_ns, state.st_size) for state in (Path(file).stat() for file in files)),
        "ranges": _cut(ranges, _MAX_SHARDS) if streaming else ranges,
    }
    kind = datasets.IterableDataset if streaming else datasets.Dataset
    return kind.from_generator(
        generate_rows, features=features_of(matrices, pictures), gen_kwargs=gen_kwargs, split=datasets.NamedSplit(split)
    )


def features_of(matrices: Matrices, pictures: bool = True, class_labels: bool = False) -> Any:
    """The features of the rows; labels as names, or as `ClassLabel`."""
    import datasets

    features: dict[str, Any] = {"id": datasets.Value("string")}
    if pictures and matrices.images is not None:
        features["image"] = datasets.Image()
    elif pictures and matrices.features is not None:
        features["image_features"] = datasets.List(datasets.Value("float32"))
    features |= {"text": datasets.Value("string"), "tags": datasets.List(datasets.Value("string"))}
    if matrices.labels is not None:
        label = datasets.ClassLabel(names=matrices.label_names) if class_labels else datasets.Value("string")
        features["labels"] = datasets.List(label)
    return datasets.Features(features)


def generate_rows(
    files: tuple[str, ...],
    names: dict[str, str],
    axes: dict[str, str],
    tag_names: tuple[str, ...],
    label_names: tuple[str, ...],
    pictures: bool,
    version: tuple[tuple[int, int], ...],
    ranges: Ranges,
) -> Iterator[dict[str, Any]]:
    """The rows in `ranges` (start, stop). `version` only tells one state of the files from another."""
    matrices = _opened(os.getpid(), files, tuple(names.items()), tuple(axes.items()), version)
    source, column, convert = None, "", _as_floats
    if pictures and matrices.images is not None:
        source, column, convert = matrices.images, "image", _pictures_of(matrices)
    elif pictures and matrices.features is not None:
        source, column = matrices.features, "image_features"
    for start, stop in ranges:
        row = start
        blocks = source.blocks(start, stop) if source is not None else ([None] * (stop - start),)
        for block in blocks:
            for values in block:
                example: dict[str, Any] = {"id": str(row)}
                if source is not None:
                    example[column] = convert(values, row)
                tags = [tag_names[number] for number in matrices.tags.columns_of(row)]
                example |= {"text": " ".join(tags), "tags": tags}
                if matrices.labels is not None:
                    example["labels"] = [label_names[number] for number in matrices.labels_of(row)]
                yield example
                row += 1


@lru_cache(maxsize=2)
def _opened(process: int, files: tuple[str, ...], names: tuple, axes: tuple, version: tuple) -> Matrices:
    """The matrices, opened once a process, since what is compressed is unpacked at opening."""
    return open_matrices(files, axes=dict(axes), variables=dict(names))


def _as_floats(values: np.ndarray, row: int) -> np.ndarray:
    return values.astype(np.float32)


@lru_cache(maxsize=2)
def _pictures_of(matrices: Matrices) -> "_Pictures":
    return _Pictures(matrices)


class _Pictures:
    """Values of a picture as a PNG file. Floats within 0 to 1 in the first pictures are taken times 255."""

    def __init__(self, matrices: Matrices):
        self.variable = matrices.images.variable
        blocks = matrices.images.blocks(0, _LOOKED_AT)
        first = next(blocks)
        self.scale = 255 if first.dtype.kind == "b" or (first.dtype.kind == "f" and first.max() <= 1) else 1
        total = sum((block.sum(axis=(0, 3), dtype=np.float64) for block in blocks), first.sum(axis=(0, 3), dtype=float))
        if len(matrices) >= _LOOKED_AT and lies_on_its_side(total):
            axes = matrices.axes["images"]
            turned = axes.translate(str.maketrans("HW", "WH"))
            logger.warning(
                "%s: read as %s, the pictures of %s seem to lie on their side; if they do, say "
                'axes={"images": "%s"} (on the command line --axes images=%s).',
                self.variable.file, shown(axes), self.variable.name, turned, turned,
            )  # fmt: skip

    def __call__(self, values: np.ndarray, row: int) -> dict[str, Any]:
        if values.dtype != np.uint8:
            scaled = np.asarray(values, np.float64) * self.scale
            if not (np.isfinite(scaled).all() and scaled.min() >= 0 and scaled.max() <= 255):
                raise DataError(
                    f"{self.variable.file}, {self.variable.name}, row {row}: values from {values.min():g} to "
                    f"{values.max():g} are no picture's, which lie within 0 to 255 (or 0 to 1); take the file without "
                    "the mean subtracted."
                )
            values = np.rint(scaled).astype(np.uint8)
        image = Image.fromarray(np.ascontiguousarray(values[:, :, 0] if values.shape[2] == 1 else values))
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", compress_level=1)
        return {"path": None, "bytes": buffer.getvalue()}


def lies_on_its_side(mean: np.ndarray) -> bool:
    """Whether the mean `(H, W)` of many photographs, or their sum, is turned by a quarter.

    The mean of photographs is lighter above than below, and the same on the left and on the right. Of 200 portions of
    128 out of 1,170 photographs, all had a mean that differs twice as much, or more, from its mirror image top to
    bottom than from that left to right. What is no photograph tells nothing.
    """
    if min(mean.shape) < _CELLS or not np.isfinite(mean).all():
        return False
    cells = np.array(
        [[part.mean() for part in np.array_split(band, _CELLS, axis=1)] for band in np.array_split(mean, _CELLS)]
    )
    up_and_down, left_and_right = np.abs(cells - cells[::-1]).mean(), np.abs(cells - cells[:, ::-1]).mean()
    # The second condition leaves out what differs by nothing but chance or rounding.
    return bool(left_and_right > 2 * up_and_down and left_and_right > 0.01 * np.abs(cells).max())


def _cut(ranges: Ranges, parts: int) -> Ranges:
    """The ranges in about this many pieces, in their order."""
    total = sum(stop - start for start, stop in ranges)
    size = max(1, -(-total // parts))
    pieces: Ranges = []
    for start, stop in ranges:
        number = -(-(stop - start) // size)
        bounds = [start + (stop - start) * part // max(1, number) for part in range(number + 1)]
        pieces += list(pairwise(bounds))
    return pieces
