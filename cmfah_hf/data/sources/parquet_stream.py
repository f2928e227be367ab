"""Streams of image-text pairs from Parquet files, read as tables.

A stage after a Parquet stream of `datasets` sees neither the file of a row nor its number, so it cannot make ids for
rows without one; and `datasets` reads a file completely even if only its texts are needed. Here the footers are read
first: they number the rows, and large files are cut into shards by their row groups.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import datasets
import pyarrow as pa
from datasets.table import array_cast

from cmfah_hf.data.data_root import DataRoot
from cmfah_hf.data.file_state import FileState, digest_of, file_states
from cmfah_hf.data.internals import stream_of_tables
from cmfah_hf.data.parquet_files import ParquetFooters, checked_batches, parquet_file, read_footers
from cmfah_hf.data.rows.columns import ColumnNames, RequestedColumns
from cmfah_hf.data.rows.errors import in_row
from cmfah_hf.data.rows.files import holds_files, is_file, one_array, placed_array
from cmfah_hf.data.rows.uniform import find, in_order, name_below_split, own_features, own_values
from cmfah_hf.errors import DataError

# Fewer files than this are cut by row groups, so that processes and workers can share them.
_FEW_FILES = 64
_PORTION = 64


def stream_parquet(
    files: Sequence[str],
    source: str,
    split: str,
    requested: RequestedColumns,
    root: DataRoot,
    images: bool = True,
    token: str | bool | None = None,
) -> datasets.IterableDataset:
    """A stream with the uniform columns over Parquet files (paths or addresses), which stays in tables."""
    footers = read_footers(files, token)
    if not footers.num_rows:
        raise DataError(f"{source}: holds no rows.")
    features = datasets.Features.from_arrow_schema(footers.schema)
    sample = partial(_first_rows, files[0], token)
    columns, class_names = find(features, source, requested, image_needed=images, sample=sample)
    own = own_features(columns)
    if not images:
        own.pop("image", None)
    own |= {columns.kept_as(name): features[name] for name in features if name not in columns.chosen}
    uniform_features = datasets.Features({name: own[name] for name in in_order(own)})

    versions = footers.versions
    names_images = columns.image is not None and _names_images(files[0], columns.image, token)
    by_path = names_images and columns.id is None
    if images and names_images and columns.image is not None:
        versions = [_with_images(*file, columns.image, root) for file in zip(files, versions, strict=True)]
    reader = _Reader(
        columns=columns,
        uniform_features=uniform_features,
        features=features,
        class_names=class_names,
        wanted=tuple(name for name in features if images or by_path or name != columns.image),
        by_path=by_path,
        split=split,
        root=root,
        token=token,
    )
    shards = _shards(files, footers, versions)
    kwargs = {name: [shard[name] for shard in shards] for name in ("file", "groups", "first_row", "version")}
    return stream_of_tables(_generate_tables, {**kwargs, "reader": reader}, uniform_features, split)


def _first_rows(file: str, token: str | bool | None, names: list[str]) -> Iterator[dict[str, Any]]:
    with parquet_file(file, token) as parquet:
        for batch in checked_batches(parquet, _PORTION, names):
            yield from batch.to_pylist()


def _names_images(file: str, image: str, token: str | bool | None) -> bool:
    """Whether the first row names a file as its image, rather than holding its bytes."""
    with parquet_file(file, token) as parquet:
        for batch in checked_batches(parquet, 1, [image]):
            first = datasets.Image().cast_storage(batch.column(0))[0].as_py()
            return first is not None and first["bytes"] is None
    return False


def _with_images(file: str, version: str | None, image: str, root: DataRoot) -> str | None:
    """The version of a local file, with the states of the images that its rows name."""
    if version is None:
        return None
    places: list[str] = []
    row = 0
    with parquet_file(file) as parquet:
        for batch in checked_batches(parquet, _PORTION, [image]):
            for value in datasets.Image().cast_storage(batch.column(0)).to_pylist():
                if value is not None and value["bytes"] is None and value["path"] is not None:
                    places.append(in_row(row, root.place, value["path"]))
                row += 1
    return digest_of([FileState(version, 0), *file_states(places)])


def _shards(files: Sequence[str], footers: ParquetFooters, versions: Sequence[str | None]) -> list[dict[str, Any]]:
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
    file: list[str], groups: list[tuple[int, int]], first_row: list[int], version: list[str | None], reader: "_Reader"
) -> Iterator[tuple[str, pa.Table]]:
    """The tables of some shards; `version` only identifies the state of a file."""
    for name, (start, stop), row in zip(file, groups, first_row, strict=True):
        for table in reader.tables(name, start, stop, row):
            yield name, table


@dataclass(frozen=True)
class _Reader:
    """Reads row groups as tables with the uniform columns."""

    columns: ColumnNames  # the files' names of the uniform columns
    uniform_features: datasets.Features  # of the stream, in order
    features: datasets.Features  # the files' own
    class_names: Sequence[str] | None  # of class numbers in the labels
    wanted: tuple[str, ...]  # the columns to read
    by_path: bool  # whether the path of an image is its id
    split: str
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
        image = None
        if columns.image is not None and columns.image in self.wanted:
            # Values of images (a path, bytes, or both) in one form, a struct of both.
            image = datasets.Image().cast_storage(table[columns.image].combine_chunks())
        own = self._own_columns(table, image, first_row)
        if image is not None and "image" in self.uniform_features:
            own["image"] = placed_array(image, datasets.Image(), self.root, first_row)
        for name in table.column_names:
            if name not in columns.chosen:
                own[columns.kept_as(name)] = self._placed(table[name], self.features[name], first_row)
        schema = self.uniform_features.arrow_schema
        arrays = [
            own[name] if own[name].type == kind else array_cast(one_array(own[name]), kind)
            for name, kind in zip(schema.names, schema.types, strict=True)
        ]
        return pa.table(arrays, schema=schema)

    def _own_columns(self, table: pa.Table, image: pa.Array | None, first_row: int) -> dict[str, Any]:
        """The columns `id`, `text`, `captions` and `labels`."""
        columns = self.columns
        own = (columns.id, columns.text, columns.captions, columns.labels)
        names = dict.fromkeys(name for name in own if name is not None)
        rows = table.select(list(names)).to_pylist()
        files = image.to_pylist() if self.by_path and image is not None else [None] * len(rows)
        values = [
            in_row(row, own_values, example, columns, self.class_names, partial(self._other_id, file, row))
            for row, (example, file) in enumerate(zip(rows, files, strict=True), first_row)
        ]
        kinds = self.uniform_features.arrow_schema
        return {
            name: pa.array([value[name] for value in values], kinds.field(name).type)
            for name in ("id", "text", "captions", "labels")
            if name in kinds.names
        }

    def _other_id(self, file: dict[str, Any] | None, row: int) -> str:
        """The id of a row without one: the path of its image, or the number of the row."""
        named = file is not None and file["bytes"] is None and file["path"]
        return name_below_split(named, self.split) if named else str(row)

    def _placed(self, column: pa.ChunkedArray, feature: Any, first_row: int) -> pa.ChunkedArray | pa.Array:
        if not holds_files(feature):
            return column
        array = one_array(column)
        return placed_array(feature.cast_storage(array) if is_file(feature) else array, feature, self.root, first_row)
