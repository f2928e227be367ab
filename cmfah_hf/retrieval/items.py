"""Images or texts to be indexed, in batches with their ids and metadata.

The source is a data set, a stream, or any iterable of values, read batch by batch.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence, Sized
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cmfah_hf.data import resolve_data_path
from cmfah_hf.data.images import describe_skipped, find_image_files, is_image_file
from cmfah_hf.errors import DataError, HashIndexError, QueryError
from cmfah_hf.retrieval.storage.metadata import as_table

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch of items: images (encoded or not) or texts, an id for each, and a row of metadata for each, or None.

    A slice of it is a list of values with their names in errors, where the value itself is none.
    """

    values: list[Any]
    ids: list[Any]
    metadata: pa.Table | None

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, part: slice) -> list[tuple[Any, str | None]]:
        named = zip(self.values[part], self.ids[part], strict=True)
        return [(value, None if isinstance(value, (str, Path)) else str(item_id)) for value, item_id in named]

    def at(self, positions: list[int]) -> tuple[list[Any], pa.Table | None]:
        """Ids and metadata of some of the values."""
        table = None if self.metadata is None else self.metadata.take(np.array(positions, np.int64))
        return [self.ids[position] for position in positions], table


class Items:
    """Images or texts with their ids and metadata; `what` names them in errors and on the progress bar.

    The source is a data set or a stream with `column`, of which `metadata` names columns to keep, or an iterable of
    values. Without `ids`, the data set's column `id` is used if it has one, else numbers.
    """

    def __init__(
        self,
        source: Any,
        column: str,
        ids: Sequence[int] | Sequence[str] | None,
        metadata: Sequence[str] | Mapping[str, Sequence[Any]] | pa.Table | None,
        what: str,
    ):
        self._column, self._ids, self._what = column, ids, what
        self._kept: list[str] = []
        self._table: pa.Table | None = None
        self._is_data_set, self._own_ids = hasattr(source, "column_names"), False
        if self._is_data_set:
            from cmfah_hf.data.images import decoding_off  # `datasets` takes long to import

            self._source = decoding_off(source)
            names = self._source.column_names
            self._kept = list(metadata or ())
            for name in [column, *self._kept]:
                if names is not None and name not in names:
                    raise DataError(f"The data set has no column {name!r}; it has {', '.join(names)}.")
            self._own_ids = ids is None and "id" in (names or ())
        else:
            self._source = list(source)
            self._table = None if metadata is None else as_table(metadata, len(self._source))
        self.total = len(self._source) if hasattr(self._source, "__len__") else None
        if ids is not None and self.total not in (None, len(ids)):
            raise HashIndexError(f"{self.total} {what} came with {len(ids)} ids; give one id for each {what[:-1]}.")

    def batches(self, batch_size: int, progress: bool, first: int) -> Iterator[Batch]:
        """The items in batches, with an optional progress bar. Items without ids are numbered from `first`."""
        return self._batches(batches_of(self._source, batch_size, self._what.capitalize(), progress), first)

    def _batches(self, batches: Iterable[list[Any]], first: int) -> Iterator[Batch]:
        start = 0
        for rows in batches:
            end = start + len(rows)
            ids = list(range(first + start, first + end) if self._ids is None else self._ids[start:end])
            table = None if self._table is None else self._table.slice(start, len(rows))
            if self._is_data_set:
                if self._own_ids:
                    ids = [row["id"] for row in rows]
                if self._kept:
                    table = self._columns_of(rows)
                rows = [row[self._column] for row in rows]
            yield Batch(rows, ids, table)
            start = end

    def _columns_of(self, rows: list[dict[str, Any]]) -> pa.Table:
        columns = {name: [row[name] for row in rows] for name in self._kept}
        features = self._source.features
        if features is None:
            return as_table(columns, len(rows))
        # The types of the whole data set: in one batch, a column may be null everywhere.
        schema = pa.schema([features.arrow_schema.field(name) for name in self._kept])
        return pa.table(columns, schema=schema)


def batches_of(values: Iterable[Any], batch_size: int, title: str, progress: bool) -> Iterator[list[Any]]:
    """Lists of up to `batch_size` values, with an optional progress bar. A `QueryError` if that is below 1, at once."""
    if batch_size < 1:
        raise QueryError(f"batch_size is {batch_size}; give 1 or more.")
    return _lists_of(values, batch_size, title, progress)


def _lists_of(values: Iterable[Any], batch_size: int, title: str, progress: bool) -> Iterator[list[Any]]:
    iterator = iter(values)
    with progress_bar(len(values) if isinstance(values, Sized) else None, title, progress) as bar:
        while batch := list(islice(iterator, batch_size)):
            yield batch
            bar.update(len(batch))


def progress_bar(total: int | None, title: str, shown: bool) -> Any:
    """A progress bar of tqdm, with rate and time left; `total` is None if it is not known."""
    if not shown:
        return _NoBar()
    from huggingface_hub.utils import tqdm  # which its users can switch off; it takes time to import

    return tqdm(total=total, desc=title, unit="")


class _NoBar(nullcontext):
    """In place of a progress bar that is not shown."""

    def __enter__(self) -> "_NoBar":
        return self

    def update(self, count: int) -> None:
        pass


def values_of_source(
    source: str | Path,
    split: str | None,
    what: str,
    metadata: Sequence[str],
    prefix: str,
    hidden: bool,
    skipped: MutableMapping[str, int] | None,
) -> Iterator[tuple[Any, list[str]]]:
    """The images or texts of a source with their ids, split by split; the arguments are those of `add_source`."""
    from cmfah_hf.data import load_image_text
    from cmfah_hf.data.loading import is_data_set

    path = resolve_data_path(source)
    images = None
    if what == "images" and is_image_file(path):
        images = [path]
    elif what == "images" and os.path.isdir(path) and not is_data_set(path):  # noqa: PTH112 - a name of any length
        found = find_image_files(path, hidden)
        images = found.files
        if found.skipped:
            logger.warning("Skipped in %s: %s.", source, describe_skipped(found.skipped))
        if skipped is not None:
            for reason, count in found.skipped.items():
                skipped[reason] = skipped.get(reason, 0) + count
    if images is not None:
        if metadata:
            raise DataError(f"{source}: images without a data set have no column {metadata[0]!r} to keep.")
        yield images, [prefix + (path.name if own == path else own.relative_to(path).as_posix()) for own in images]
        return
    loaded = load_image_text(source, split=split)
    parts = {"": loaded} if split is not None else dict(loaded)
    for name, part in parts.items():
        below = f"{prefix}{name}/" if len(parts) > 1 else prefix
        yield part, [f"{below}{item_id}" for item_id in part["id"]]
