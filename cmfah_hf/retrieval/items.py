"""What is to be indexed, in one form: batches of pictures or texts with their ids and their columns.

A data set, a stream, or any iterable of values; nothing is read before its batch is due.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from transformers.utils import logging as transformers_logging

from cmfah_hf.data import load_image_text, resolve_data_path
from cmfah_hf.data.image_files import describe_skipped, find_image_files
from cmfah_hf.data.images import decoding_off, is_picture
from cmfah_hf.data.loading import is_data_set
from cmfah_hf.errors import DataError, HashIndexError, QueryError
from cmfah_hf.retrieval.storage.metadata import as_table

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Batch:
    """Some items.

    Attributes:
        values: Pictures (encoded or not) or texts.
        ids: One a value. None where they are to be numbers in the order of all items.
        metadata: One row a value, or None.
    """

    values: list[Any]
    ids: list[int] | list[str] | None
    metadata: pa.Table | None


class Items:
    """Pictures or texts with their ids and columns.

    Args:
        source: A data set or a stream with `column`, or an iterable of values.
        column: Of a data set: the pictures or the texts (a list of words is one text).
        ids: One a value. None: the data set's column `id` if it has one, else numbers.
        metadata: Of a data set: the names of columns to keep. Otherwise as for `HashIndex.add`.
        what: How the values are called in an error.

    Raises:
        DataError: If a column is not there.
        HashIndexError: If there are not as many ids or rows of metadata as values.
    """

    def __init__(
        self,
        source: Any,
        column: str,
        ids: Sequence[int] | Sequence[str] | None,
        metadata: Sequence[str] | Mapping[str, Sequence[Any]] | pa.Table | None,
        what: str,
    ):
        self._column, self._ids, self._kept, self._table = column, ids, [], None
        self.is_data_set = hasattr(source, "column_names")
        if self.is_data_set:
            self._source = decoding_off(source)
            self._names = self._source.column_names
            self._kept = list(metadata or ())
            for name in [column, *self._kept]:
                if self._names is not None and name not in self._names:
                    raise DataError(f"The data set has no column {name!r}; it has {', '.join(self._names)}.")
            self._own_ids = ids is None and "id" in (self._names or ())
        else:
            self._source, self._own_ids = list(source), False
            self._table = None if metadata is None else as_table(metadata, len(self._source))
        self.total = len(self._source) if hasattr(self._source, "__len__") else None
        if self._ids is not None and self.total not in (None, len(self._ids)):
            raise HashIndexError(f"{self.total} {what} came with {len(self._ids)} ids; give one id a {what[:-1]}.")

    def batches(self, batch_size: int, progress: bool = False, title: str = "Items") -> Iterator[Batch]:
        """The items in batches, under a progress bar if wanted."""
        start = 0
        for rows in batches_of(self._source, batch_size, title, progress, self.total):
            end = start + len(rows)
            ids = None if self._ids is None else list(self._ids[start:end])
            table = None if self._table is None else self._table.slice(start, len(rows))
            if self.is_data_set:
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
        # The types of the whole data set: in one batch, a column may be all null.
        schema = pa.schema([features.arrow_schema.field(name) for name in self._kept])
        return pa.table(columns, schema=schema)


def batches_of(
    values: Iterable[Any], batch_size: int, title: str, progress: bool, total: int | None = None
) -> Iterator[list[Any]]:
    """Lists of up to `batch_size` values, under a progress bar if wanted."""
    if batch_size < 1:
        raise QueryError(f"batch_size is {batch_size}; give 1 or more.")
    total = len(values) if total is None and hasattr(values, "__len__") else total
    iterator = iter(values)
    with transformers_logging.tqdm(total=total, desc=title, disable=not progress) as bar:
        while batch := list(islice(iterator, batch_size)):
            yield batch
            bar.update(len(batch))


def taken(batch: Batch, positions: list[int], first: int) -> tuple[list[Any], list[Any], pa.Table | None]:
    """Values, ids and metadata of some of a batch; numbers go on from `first`."""
    ids = [first + position if batch.ids is None else batch.ids[position] for position in positions]
    table = None if batch.metadata is None else batch.metadata.take(np.array(positions, np.int64))
    return [batch.values[position] for position in positions], ids, table


def values_of_source(
    source: str | Path,
    split: str | None,
    what: str,
    metadata: Sequence[str],
    prefix: str,
    hidden: bool,
    skipped: MutableMapping[str, int] | None,
) -> Iterator[tuple[Any, list[str]]]:
    """The pictures or texts of a source with their ids, a split after the other; the arguments are `add_source`'s.

    Raises:
        DataError: If the source cannot be used, or is mere pictures and columns are to be kept.
    """
    path = resolve_data_path(source)
    pictures = None
    if what == "images" and is_picture(path):
        pictures = [path]
    elif what == "images" and os.path.isdir(path) and not is_data_set(path):  # noqa: PTH112 - a name of any length
        found = find_image_files(path, hidden)
        pictures = found.files
        if found.skipped:
            logger.warning("Skipped in %s: %s.", source, describe_skipped(found.skipped))
        if skipped is not None:
            for reason, count in found.skipped.items():
                skipped[reason] = skipped.get(reason, 0) + count
    if pictures is not None:
        if metadata:
            raise DataError(f"{source}: pictures without a data set have no column {metadata[0]!r} to keep.")
        yield pictures, [prefix + (path.name if own == path else own.relative_to(path).as_posix()) for own in pictures]
        return
    loaded = load_image_text(source, split=split)
    parts = {"": loaded} if split is not None else dict(loaded)
    for name, part in parts.items():
        below = f"{prefix}{name}/" if len(parts) > 1 else prefix
        yield part, [f"{below}{item_id}" for item_id in part["id"]]
