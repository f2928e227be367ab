"""Parquet files as a stream of pairs, read as tables.

`datasets` streams Parquet too, but a stage behind it sees neither which file a row comes from nor where in it the row
stands, so rows without ids of their own cannot be told apart; and it reads a file whole, also where only its texts are
asked for. Here the footers are read first: they number the rows, and cut large files into shards by their row groups.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import datasets
import pyarrow as pa
from datasets.iterable_dataset import ArrowExamplesIterable
from datasets.table import array_cast

from cmfah_hf.data.columns import ColumnNames, labels_of, text_of
from cmfah_hf.data.data_root import DataRoot
from cmfah_hf.data.file_state import FileState, digest_of, file_states
from cmfah_hf.data.parquet_files import checked_batches, parquet_file
from cmfah_hf.data.row_files import holds_files, is_file, placed_array
from cmfah_hf.errors import DataError

# Fewer files than this are cut by row groups, so that processes and workers can share them.
_FEW_FILES = 64
_PORTION = 64
_FOOTER_THREADS = 16


@dataclass(frozen=True)
class ParquetFooters:
    """What the footers of a split's files say."""

    schema: pa.Schema
    row_groups: list[list[int]]  # rows of each group of each file
    versions: list[Any]  # of local files, their states

    @property
    def num_rows(self) -> int:
        return sum(map(sum, self.row_groups))


def read_footers(files: Sequence[str], token: str | bool | None = None) -> ParquetFooters:
    """The footers of Parquet files, several at a time where they are remote."""

    def read(file: str) -> tuple[pa.Schema, list[int], Any]:
        with parquet_file(file, token) as parquet:
            metadata = parquet.metadata
            groups = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
            return parquet.schema_arrow, groups, _version(file)

    if len(files) > 1 and "://" in files[0]:
        with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
            found = list(pool.map(read, files))
    else:
        found = [read(file) for file in files]
    schemas, groups, versions = zip(*found, strict=True)
    return ParquetFooters(schemas[0], list(groups), list(versions))


def stream_parquet(
    files: Sequence[str],
    footers: ParquetFooters,
    columns: ColumnNames,
    features: datasets.Features,
    uniform_features: datasets.Features,
    class_names: Sequence[str] | None,
    name_of_path: Callable[[str], str],
    root: DataRoot,
    pictures: bool = True,
    split: str | None = None,
    token: str | bool | None = None,
) -> datasets.IterableDataset:
    """A stream with the uniform columns over Parquet files, which stays in tables.

    Args:
        files: Paths or addresses.
        footers: Of these files.
        columns: What the files call the uniform columns.
        features: The files' own.
        uniform_features: Those of the stream, in their order.
        class_names: What numbers in the labels stand for.
        name_of_path: From the path of a picture that stands beside the table to its id.
        root: Where files that rows name may lie.
        pictures: Whether the pictures are read; without them the stream has no column `image`.
        split: The split's name.
        token: For the Hub.
    """
    is_beside = columns.image is not None and _is_beside(files[0], columns.image, token)
    by_path = is_beside and columns.id is None
    if not pictures:
        uniform_features = datasets.Features({k: v for k, v in uniform_features.items() if k != "image"})
    wanted = [name for name in features if pictures or by_path or name != columns.image]
    versions = footers.versions
    if pictures and is_beside:
        versions = [
            _with_images(file, version, columns.image, root) for file, version in zip(files, versions, strict=True)
        ]
    shards = _shards(files, footers, versions)
    kwargs = {
        **{name: [shard[name] for shard in shards] for name in ("file", "groups", "first_row", "version")},
        "reader": _Reader(
            columns,
            uniform_features,
            features,
            class_names,
            name_of_path if by_path else None,
            tuple(wanted),
            root,
            token,
        ),
    }
    return datasets.IterableDataset(
        ArrowExamplesIterable(_generate_tables, kwargs),
        info=datasets.DatasetInfo(features=uniform_features),
        split=datasets.NamedSplit(split) if split else None,
    )


def _with_images(file: str, version: Any, image: str, root: DataRoot) -> Any:
    """The version of a local file, with the states of the images that its rows name."""
    if "://" in file:
        return version
    places: list[str] = []
    row = 0
    with parquet_file(file) as parquet:
        for batch in checked_batches(parquet, _PORTION, [image]):
            for value in datasets.Image().cast_storage(batch.column(0)).to_pylist():
                if value is not None and value["bytes"] is None and value["path"] is not None:
                    places.append(_named(root.place, row, value["path"]))
                row += 1
    return digest_of([FileState(version, 0), *file_states(places)])


def _shards(files: Sequence[str], footers: ParquetFooters, versions: Sequence[Any]) -> list[dict[str, Any]]:
    pieces = -(-_FEW_FILES // len(files)) if len(files) < _FEW_FILES else 1
    shards, first_row = [], 0
    for file, groups, version in zip(files, footers.row_groups, versions, strict=True):
        parts = max(1, min(pieces, len(groups)))
        bounds = [len(groups) * part // parts for part in range(parts + 1)]
        for start, stop in pairwise(bounds):
            shards.append({"file": file, "groups": (start, stop), "first_row": first_row, "version": version})
            first_row += sum(groups[start:stop])
    return shards


def _generate_tables(
    file: list[str], groups: list[tuple[int, int]], first_row: list[int], version: list[Any], reader: "_Reader"
) -> Iterator[tuple[str, pa.Table]]:
    """The tables of some shards. `version` only tells one state of a file from another."""
    for name, (start, stop), row in zip(file, groups, first_row, strict=True):
        for table in reader.tables(name, start, stop, row):
            yield name, table


@dataclass(frozen=True)
class _Reader:
    columns: ColumnNames
    uniform_features: datasets.Features
    features: datasets.Features
    class_names: Sequence[str] | None
    name_of_path: Callable[[str], str] | None
    wanted: tuple[str, ...]
    root: DataRoot
    token: str | bool | None

    def tables(self, file: str, start: int, stop: int, row: int) -> Iterator[pa.Table]:
        with parquet_file(file, self.token) as parquet:
            missing = [name for name in self.wanted if name not in parquet.schema_arrow.names]
            if missing:
                raise DataError(
                    f"{file}: has no column {missing[0]!r}, as the first file of its split has; all files of a split "
                    "need the same columns."
                )
            for batch in checked_batches(parquet, _PORTION, list(self.wanted), range(start, stop)):
                try:
                    table = self._uniform(pa.Table.from_batches([batch]), row)
                except DataError as error:
                    raise DataError(f"{file}, {error}") from error
                yield table
                row += len(batch)

    def _uniform(self, table: pa.Table, first_row: int) -> pa.Table:
        columns = self.columns
        own: dict[str, pa.Array] = {}
        image = None
        if columns.image in self.wanted:
            # Whatever a picture is in the files (a path, bytes, or both), it is both here.
            image = datasets.Image().cast_storage(table[columns.image].combine_chunks())
        paths = [None] * len(table)
        if self.name_of_path is not None:
            paths = [
                path if content is None else None
                for path, content in zip(image.field("path").to_pylist(), image.field("bytes").to_pylist(), strict=True)
            ]
        given = table[columns.id].to_pylist() if columns.id is not None else [None] * len(table)
        rows = range(first_row, first_row + len(table))
        own["id"] = pa.array([self._id(*values) for values in zip(given, paths, rows, strict=True)], pa.string())
        texts = zip(table[columns.text].to_pylist(), rows, strict=True)
        own["text"] = pa.array([_named(text_of, row, value) for value, row in texts], pa.string())
        if columns.labels is not None:
            labels = zip(table[columns.labels].to_pylist(), rows, strict=True)
            own["labels"] = pa.array(
                [_named(labels_of, row, value, self.class_names) for value, row in labels], pa.list_(pa.string())
            )
        if image is not None and "image" in self.uniform_features:
            own["image"] = placed_array(image, datasets.Image(), self.root, first_row)
        for name in table.column_names:
            if name not in columns.chosen:
                own[columns.kept_as(name)] = self._placed(table[name], self.features[name], first_row)
        schema = self.uniform_features.arrow_schema
        arrays = [
            own[name] if own[name].type == kind else _cast(own[name], kind)
            for name, kind in zip(schema.names, schema.types, strict=True)
        ]
        return pa.table(arrays, schema=schema)

    def _placed(self, column: pa.ChunkedArray, feature: Any, first_row: int) -> pa.ChunkedArray | pa.Array:
        if not holds_files(feature):
            return column
        array = column.combine_chunks()
        array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
        return placed_array(feature.cast_storage(array) if is_file(feature) else array, feature, self.root, first_row)

    def _id(self, given: Any, path: str | None, row: int) -> str:
        if given is not None and given != "":
            return str(given)
        return self.name_of_path(path) if path else str(row)


def _cast(values: pa.Array | pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return array_cast(values, kind)


def _named(convert: Callable[..., Any], row: int, *values: Any) -> Any:
    try:
        return convert(*values)
    except DataError as error:
        raise DataError(f"row {row}: {error}") from error


def _is_beside(file: str, image: str, token: str | bool | None) -> bool:
    """Whether the first picture stands beside the table, so that its path can name it."""
    with parquet_file(file, token) as parquet:
        for batch in checked_batches(parquet, 1, [image]):
            first = datasets.Image().cast_storage(batch.column(0))[0].as_py()
            return first is not None and first["bytes"] is None
    return False


def _version(file: str) -> Any:
    if "://" in file:  # the Hub's addresses hold their commit
        return None
    return digest_of(file_states([file]))
