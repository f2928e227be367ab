"""Shards of a stream of `datasets`: reading and counting rows, splitting, and adding a column."""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import datasets
import pyarrow as pa

from cmfah_hf.data.images import decoding_off
from cmfah_hf.data.internals import is_array, is_arrow
from cmfah_hf.data.splits import is_on_side

logger = logging.getLogger(__name__)

# Rows that are read at once.
PORTION = 64

Row = dict[str, Any]


def read_shard(dataset: datasets.IterableDataset, shard: int, start: int = 0, epoch: int = 0) -> Iterator[Row]:
    """The rows of one shard, beginning with the row `start`: arrays as NumPy, images undecoded."""
    part = decoding_off(dataset)
    if part.num_shards > 1:
        part = part.shard(part.num_shards, shard)
    part.set_epoch(epoch)  # with a single shard, this only affects a shuffled stream
    if start:
        part = part.skip(start)
    # With `iter`, which reads the whole stream in a worker; `__iter__` would divide it among workers again.
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
        """Skips up to `count` rows before the first is read; returns the number of skipped rows."""
        count = min(count, len(self))
        self.position += count
        return count

    def take(self, count: int) -> list[Row | None]:
        """Up to `count` rows; fewer only at the end. Missing rows that were counted are `None`."""
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
    """The rows of a table. Fixed-shape arrays are views of its memory."""
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
    """A stream with a further column of strings, `function(batch)[column]`. Tables stay tables, images undecoded."""
    raw = decoding_off(dataset)
    features = None
    if raw.features is not None:
        features = datasets.Features({**raw.features, column: datasets.Value("string")})
    if not is_arrow(raw) or features is None:
        return raw.map(function, batched=True, batch_size=PORTION, features=features)
    plain = [name for name, kind in features.items() if isinstance(kind, (datasets.Value, datasets.List))]
    stage = partial(_with_text_column, function=function, column=column, names=plain)
    tables = raw.with_format("arrow").map(stage, batched=True, batch_size=PORTION, features=features)
    return tables.with_format(None)


def _with_text_column(
    table: pa.Table, function: Callable[[dict[str, list]], dict[str, list]], column: str, names: list[str]
) -> pa.Table:
    batch = {name: table[name].to_pylist() for name in names if name in table.column_names}
    return table.append_column(column, pa.array(function(batch)[column], pa.string()))


def count_rows(dataset: datasets.IterableDataset, num_processes: int = 1, process_index: int = 0) -> list[int]:
    """The number of rows of each shard of a stream, in one pass that decodes no image.

    With several processes, each counts its own shards, and the counts of the others' are 0.
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
    """`hash_split` for streams of training: tables stay tables, and images stay undecoded."""
    raw = decoding_off(dataset)
    sides = []
    for validation in (False, True):
        side = partial(is_on_side, fraction=fraction, seed=seed, validation=validation)
        if is_arrow(raw):
            tables = raw.with_format("arrow").filter(partial(_rows_on_side, side), batched=True, batch_size=PORTION)
            sides.append(tables.with_format(None))
        else:
            sides.append(raw.filter(side, input_columns=["id"]))
    return sides[0], sides[1]


def _rows_on_side(side: Callable[[str], bool], table: pa.Table) -> pa.Array:
    return pa.array([side(name) for name in table["id"].to_pylist()], pa.bool_())
