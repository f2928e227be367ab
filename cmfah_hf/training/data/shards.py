"""Shards of a stream of `datasets`: reading and counting their rows, dividing them, adding a column"""

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import datasets
import pyarrow as pa

from cmfah_hf.data.images import decoding_off
from cmfah_hf.data.splits import in_validation
from cmfah_hf.training.data.datasets_internals import is_array, is_arrow

logger = logging.getLogger(__name__)

# Rows that are read at once.
PORTION = 64

Row = dict[str, Any]


def read_shard(dataset: datasets.IterableDataset, shard: int, start: int = 0, epoch: int = 0) -> Iterator[Row]:
    """The rows of one shard from the row `start` on: arrays as NumPy, images undecoded."""
    part = decoding_off(dataset)
    if part.num_shards > 1:
        part = part.shard(part.num_shards, shard)
    part.set_epoch(epoch)  # of a single shard, this changes only a shuffling by the stream itself
    if start:
        part = part.skip(start)
    # By `iter`, which reads the whole stream in a worker; `__iter__` would divide it among workers again.
    if is_arrow(part):
        for table in part.with_format("arrow").iter(PORTION):
            yield from rows_of_table(table)
    else:
        for batch in part.iter(PORTION):
            names = list(batch)
            for values in zip(*batch.values(), strict=True):
                yield dict(zip(names, values, strict=True))


class Segment:
    """A range of rows of one shard, opened when its first row is read."""

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        shard: int,
        epoch: int,
        start: int = 0,
        stop: int | None = None,
        step: int = 1,
    ):
        self.dataset, self.shard, self.epoch = dataset, shard, epoch
        self.position, self.stop, self.step = start, stop, step
        self._rows: Iterator[Row] | None = None

    def __len__(self) -> int:
        if self.stop is None:
            raise TypeError("The rows of this shard have not been counted.")
        return self.stop - self.position

    def skip(self, count: int) -> int:
        """Skips up to `count` rows before the first is read; returns how many there were."""
        count = min(count, len(self))
        self.position += count
        return count

    def take(self, count: int) -> list[Row | None]:
        """Up to `count` rows; fewer only at the end. A row that was counted and is missing is `None`."""
        if self.stop is not None:
            count = min(count, len(self))
        if self._rows is None:
            self._rows = islice(read_shard(self.dataset, self.shard, self.position, self.epoch), 0, None, self.step)
        rows: list[Row | None] = list(islice(self._rows, count))
        self.position += count
        if self.stop is not None and len(rows) < count:
            logger.warning("A shard of the stream has %d rows fewer than were counted.", count - len(rows))
            rows += [None] * (count - len(rows))
        if self.stop is not None and self.position == self.stop:
            self._rows = None  # releases the file and the rows that were read ahead
        return rows


def rows_of_table(table: pa.Table) -> list[Row]:
    """The rows of a table; those of fixed-shape arrays are views of its memory."""
    columns = [_values(column) for column in table.columns]
    return [dict(zip(table.column_names, values, strict=True)) for values in zip(*columns, strict=True)]


def _values(column: pa.ChunkedArray) -> Sequence[Any]:
    if not is_array(column.type):
        return column.to_pylist()
    arrays = [chunk.to_numpy(zero_copy_only=False) for chunk in column.chunks if len(chunk)]
    return arrays[0] if len(arrays) == 1 else [row for array in arrays for row in array]


def add_text_column(
    dataset: datasets.IterableDataset, function: Callable[[dict[str, list]], dict[str, list]], column: str
) -> datasets.IterableDataset:
    """A stream with another column of strings: a stream of tables stays one, and images stay undecoded.

    Args:
        dataset: The stream.
        function: From a batch, a mapping of columns, to `{column: strings}`.
        column: The column's name.
    """
    raw = decoding_off(dataset)
    features = None
    if raw.features is not None:
        features = datasets.Features({**raw.features, column: datasets.Value("string")})
    if not is_arrow(raw) or features is None:
        return raw.map(function, batched=True, batch_size=PORTION, features=features)
    stage = _TableStage(function, column, [name for name, kind in features.items() if _is_plain(kind)])
    tables = raw.with_format("arrow").map(stage, batched=True, batch_size=PORTION, features=features)
    return tables.with_format(None)


def _is_plain(feature: Any) -> bool:
    return isinstance(feature, (datasets.Value, datasets.List))


class _TableStage:
    """A function of columns as a function of tables; it gets the columns of plain values."""

    def __init__(self, function: Callable[[dict[str, list]], dict[str, list]], column: str, names: list[str]):
        self.function, self.column, self.names = function, column, names

    def __call__(self, table: pa.Table) -> pa.Table:
        batch = {name: table[name].to_pylist() for name in self.names if name in table.column_names}
        return table.append_column(self.column, pa.array(self.function(batch)[self.column], pa.string()))


def count_rows(dataset: datasets.IterableDataset, num_processes: int = 1, process_index: int = 0) -> list[int]:
    """The number of rows of each shard of a stream, in one pass that decodes no image; 0 for other processes' shards.

    Args:
        dataset: The stream; of tables only one column is converted.
        num_processes, process_index: The number of processes that count, and the index of this one; add their counts.
    """
    raw = decoding_off(dataset)
    if is_arrow(raw) and raw.column_names:
        raw = raw.select_columns(raw.column_names[:1])
    counts = [0] * raw.num_shards
    for shard in range(process_index, raw.num_shards, num_processes):
        counts[shard] = sum(1 for _ in read_shard(raw, shard))
    return counts


def split_stream(
    dataset: datasets.IterableDataset, fraction: float, seed: int
) -> tuple[datasets.IterableDataset, datasets.IterableDataset]:
    """`hash_split` for a stream to train on: tables stay tables, and images stay undecoded."""
    raw = decoding_off(dataset)
    sides = []
    for validation in (False, True):
        side = _Side(fraction, seed, validation)
        if is_arrow(raw):
            tables = raw.with_format("arrow").filter(_TableSide(side), batched=True, batch_size=PORTION)
            sides.append(tables.with_format(None))
        else:
            sides.append(raw.filter(side, input_columns=["id"]))
    return sides[0], sides[1]


class _Side:
    """A filter that keeps the ids of one side of the split."""

    def __init__(self, fraction: float, seed: int, validation: bool):
        self.fraction, self.seed, self.validation = fraction, seed, validation

    def __call__(self, name: str) -> bool:
        return in_validation(name, self.fraction, self.seed) == self.validation


class _TableSide:
    """The same filter for tables."""

    def __init__(self, side: _Side):
        self.side = side

    def __call__(self, table: pa.Table) -> pa.Array:
        return pa.array([self.side(name) for name in table["id"].to_pylist()], pa.bool_())
