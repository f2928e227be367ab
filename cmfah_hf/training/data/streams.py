"""A stream of pairs for training: shared among processes and workers, shuffled, and taken up again where it was left.

`datasets` reads a stream shard by shard. What it gives no answer to is what a training run asks: as many batches for
every process, whatever the shards' sizes; every pair once in an epoch; and the same batches again after a break, the
shuffle buffer's too. All three follow once it is known how many rows each shard has: then the order of an epoch is a
function of these counts, the seed and the epoch, and can be computed without reading a row.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from datasets.fingerprint import Hasher
from datasets.iterable_dataset import _BaseExamplesIterable
from torch.utils.data import get_worker_info

from cmfah_hf.data.images import decode_image, decoding_off
from cmfah_hf.data.splits import _Side
from cmfah_hf.errors import DataError, ImageError

logger = logging.getLogger(__name__)

# Shards that are read from in turn, so that what stands together in one file does not stand together in a batch.
_OPEN_SHARDS = 8
# Rows that are read at once.
_PORTION = 64
# Rows of a block where nothing is shuffled; a block is what is read again after a break.
_UNSHUFFLED_BLOCK = 256

Row = dict[str, Any]


class PairStream(torch.utils.data.IterableDataset):
    """Pairs that are read row by row, with what is needed to train on them in epochs.

    With the rows of its shards counted, a stream has a length, and each process and each worker of a data loader reads
    a part of its own: a run of rows over the shards, which stand in a new order in every epoch. Only a shard in which
    one part ends and the next begins is read by both. Without counts there are no epochs: each part begins anew when
    it has come to its end, so a number of steps has to be given.

    Args:
        dataset: An `IterableDataset`, or several that follow one another. Pictures are best left undecoded
            (`decoding_off`): they are decoded after the shuffling, and those that cannot be read are left out.
        counts: The rows of every shard, as `count_rows` gives them. None: not known.
        shuffle_buffer: Rows that are shuffled together, from up to 8 shards in turn; the shards' order is shuffled
            too. 0: the stream's own order.
        seed: Of both orders. The same seed gives the same order in the same epoch.
    """

    def __init__(
        self,
        dataset: datasets.IterableDataset | Sequence[datasets.IterableDataset],
        counts: Sequence[int] | None = None,
        shuffle_buffer: int = 1000,
        seed: int = 0,
    ):
        self.sources = [dataset] if isinstance(dataset, datasets.IterableDataset) else list(dataset)
        self.shards = [(source, shard) for source in self.sources for shard in range(source.num_shards)]
        self.counts = None if counts is None else [int(count) for count in counts]
        if self.counts is not None and len(self.counts) != len(self.shards):
            raise DataError(f"The stream has {len(self.shards)} shards, and {len(self.counts)} counts were given.")
        self.shuffle_buffer = shuffle_buffer
        self.seed = seed

    def __len__(self) -> int:
        if self.counts is None:
            raise TypeError("The rows of this stream have not been counted.")
        return sum(self.counts)

    def __iter__(self) -> Iterator[Row]:
        """All rows once, in the stream's own order, without those whose picture cannot be read."""
        return iter(self.part(training=False))

    @property
    def column_names(self) -> list[str] | None:
        return self.sources[0].column_names

    @property
    def features(self) -> datasets.Features | None:
        return self.sources[0].features

    def followed_by(self, other: "PairStream") -> "PairStream":
        """The rows of both; counted if both are."""
        counts = None if self.counts is None or other.counts is None else self.counts + other.counts
        return PairStream(self.sources + other.sources, counts, self.shuffle_buffer, self.seed)

    def map(self, expander: Callable[[dict[str, list]], dict[str, list]], **kwargs: Any) -> "PairStream":
        """The stream with the column of strings that a `GraphExpander` adds, named by its `output_column`.

        Args:
            expander: The expander; it is given batches.
            kwargs: As `datasets` takes them, without effect here.
        """
        sources = [add_text_column(source, expander, expander.output_column) for source in self.sources]
        return PairStream(sources, self.counts, self.shuffle_buffer, self.seed)

    def part(
        self,
        batch_size: int = 1,
        num_processes: int = 1,
        process_index: int = 0,
        drop_last: bool = False,
        training: bool = True,
    ) -> "StreamPart":
        """What one process reads, to be given to a `DataLoader` with this batch size.

        Args:
            batch_size: Rows of a batch.
            num_processes, process_index: How many read the stream, and which of them this is.
            drop_last: Whether the last batch is left out where it is not full.
            training: Shuffled, epoch after epoch, in as many batches for every process; else every row once, in order.
        """
        return StreamPart(self, batch_size, num_processes, process_index, drop_last, training)


class StreamPart(torch.utils.data.IterableDataset):
    """One process's share of a `PairStream`; made by its `part`.

    In training it yields `None` where a batch is passed over after a break and where a picture cannot be read, so that
    every batch stays in its place; `without_gaps` makes a collator that takes these out. Its length is the number of
    rows that it yields in an epoch.
    """

    def __init__(
        self,
        stream: PairStream,
        batch_size: int,
        num_processes: int,
        process_index: int,
        drop_last: bool,
        training: bool,
    ):
        self.stream = stream
        self.batch_size = batch_size
        self.num_processes = num_processes
        self.process_index = process_index
        self.training = training
        # The epoch, and where to go on: this batch of this epoch. Shared, because workers that outlive an epoch hold
        # copies of everything else.
        self._place = torch.tensor([0, -1, 0]).share_memory_()
        if stream.counts is not None:
            total = len(stream)
            self._first = process_index * total // num_processes
            self._stop = (process_index + 1) * total // num_processes
            if training:
                fewest = total // num_processes
                self.num_batches = fewest // batch_size if drop_last else -(-fewest // batch_size)
                if not self.num_batches:
                    raise DataError(
                        f"{total} pairs are too few for {num_processes} processes and batches of {batch_size}; take "
                        "more data or a smaller batch."
                    )
                self._stop = min(self._stop, self._first + self.num_batches * batch_size)

    def __len__(self) -> int:
        if self.stream.counts is None:
            raise TypeError("The rows of this stream have not been counted.")
        return self._stop - self._first

    def set_epoch(self, epoch: int) -> None:
        """Which epoch's order the next iteration follows."""
        self._place[0] = epoch

    def start_at(self, epoch: int, batch: int) -> None:
        """Go on in the middle: in this epoch, the first `batch` batches of this process come without content.

        Of a counted stream what was passed over is not read again, but for the rest of one block a worker; without
        counts it is read and not decoded.
        """
        self._place[1], self._place[2] = epoch, batch

    def __iter__(self) -> Iterator[Row | None]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        if info is not None:
            import fsspec

            fsspec.asyn.reset_lock()  # a lock of the parent process would never be released here
        if not self.training:
            for row in self._rows_in_order(worker, workers):
                row.pop("region_features_mirrored", None)
                if _decoded(row):
                    yield row
            return
        epoch, start_epoch, start_batch = self._place.tolist()
        # Workers deliver in turn, so of the batches passed over these are this worker's.
        skipped = max(0, -(-(start_batch - worker) // workers)) if epoch == start_epoch else 0
        if self.stream.counts is not None:
            yield from self._epoch(epoch, worker, workers, skipped)
        else:
            yield from self._endless(worker, workers, skipped)

    def _epoch(self, epoch: int, worker: int, workers: int, skipped: int) -> Iterator[Row | None]:
        """This worker's rows of an epoch: whole batches, so that their number does not depend on the workers'."""
        share, rest = divmod(self.num_batches, workers)
        first_batch = worker * share + min(worker, rest)
        stop_batch = first_batch + share + (worker < rest)
        first = self._first + first_batch * self.batch_size
        stop = min(self._stop, self._first + stop_batch * self.batch_size)
        passed = min(skipped * self.batch_size, max(0, stop - first))
        yield from (None for _ in range(passed))
        segments = self._segments(self._shard_order(epoch), first, stop, epoch)
        yield from self._batches(self._blocks(segments, passed, (epoch, self.process_index, worker)))

    def _endless(self, worker: int, workers: int, skipped: int) -> Iterator[Row | None]:
        passed = skipped * self.batch_size
        yield from (None for _ in range(passed))
        yield from self._batches(self._uncounted_blocks(worker, workers, passed))

    def _uncounted_blocks(self, worker: int, workers: int, passed: int) -> Iterator[list[Row]]:
        parts, part = self.num_processes * workers, self.process_index * workers + worker
        turn = 0
        while True:
            found = False
            segments = self._uncounted_segments(self._shard_order(turn), part, parts, turn)
            for block in self._blocks(segments, 0, (turn, self.process_index, worker)):
                found = True
                passed_here = min(passed, len(block))
                passed -= passed_here
                if passed_here < len(block):
                    yield block[passed_here:]
            if not found:
                raise DataError("The stream gave no row to one of its readers; take more data or fewer workers.")
            turn += 1

    def _rows_in_order(self, worker: int, workers: int) -> Iterator[Row]:
        order = range(len(self.stream.shards))
        if self.stream.counts is not None:
            length = self._stop - self._first
            first, stop = (self._first + number * length // workers for number in (worker, worker + 1))
            segments = self._segments(order, first, stop, 0)
        else:
            parts, part = self.num_processes * workers, self.process_index * workers + worker
            segments = self._uncounted_segments(order, part, parts, 0)
        for segment in segments:
            while rows := segment.take(_PORTION):
                yield from (row for row in rows if row is not None)

    def _shard_order(self, epoch: int) -> Sequence[int]:
        if not self.stream.shuffle_buffer:
            return range(len(self.stream.shards))
        return np.random.default_rng((self.stream.seed, epoch)).permutation(len(self.stream.shards)).tolist()

    def _segments(self, order: Iterable[int], first: int, stop: int, epoch: int) -> list["_Segment"]:
        """The rows from `first` to `stop` of all shards in this order, one shard after the other."""
        segments, begin = [], 0
        for number in order:
            end = begin + self.stream.counts[number]
            if max(first, begin) < min(stop, end):
                rows = slice(max(first, begin) - begin, min(stop, end) - begin)
                segments.append(_Segment(*self.stream.shards[number], epoch, rows.start, rows.stop))
            begin = end
        return segments

    def _uncounted_segments(self, order: Iterable[int], part: int, parts: int, epoch: int) -> list["_Segment"]:
        """Whole shards in turn; with fewer shards than parts, each reads all of them and takes its turn's rows."""
        shards = [self.stream.shards[number] for number in order]
        if len(shards) >= parts:
            return [_Segment(*shard, epoch) for shard in shards[part::parts]]
        return [_Segment(*shard, epoch, part, step=parts) for shard in shards]

    def _blocks(self, segments: Iterable["_Segment"], passed: int, key: tuple[int, ...]) -> Iterator[list[Row | None]]:
        """Blocks of shuffled rows, from several segments in turn, without the first `passed` rows.

        Blocks that are passed over whole are counted and not read, which needs the segments' lengths.
        """
        size, width = self.stream.shuffle_buffer, _OPEN_SHARDS
        if not size:
            size, width = _UNSHUFFLED_BLOCK, 1
        portion = max(1, size // width)
        waiting, opened = deque(segments), deque()
        left = sum(len(segment) for segment in waiting) if passed else 0
        number = 0
        while waiting or opened:
            is_passed = 0 < min(size, left) <= passed
            block: list[Row | None] = []
            taken = 0
            while taken < size and (waiting or opened):
                while waiting and len(opened) < width:
                    opened.append(waiting.popleft())
                segment = opened.popleft()
                wanted = min(portion, size - taken)
                if is_passed:
                    got = segment.skip(wanted)
                else:
                    rows = segment.take(wanted)
                    got = len(rows)
                    block += rows
                taken += got
                if got == wanted:
                    opened.append(segment)
            left -= taken
            if is_passed:
                passed -= taken
            elif block:
                yield self._shuffled(block, (*key, number))[passed:]
                passed = 0
            number += 1

    def _shuffled(self, block: list[Row | None], key: tuple[int, ...]) -> list[Row | None]:
        if not self.stream.shuffle_buffer:
            return block
        order = np.random.default_rng((self.stream.seed, *key)).permutation(len(block))
        return [block[index] for index in order]

    def _batches(self, blocks: Iterable[list[Row | None]]) -> Iterator[Row | None]:
        """The rows of the blocks with their pictures decoded, `None` for those that cannot be read.

        Of a batch none of whose pictures can be read, a pair that was read before stands in, so that no process waits
        for another one's batch.
        """
        rows = (row for block in blocks for row in block)
        stand_in = None
        while batch := list(islice(rows, self.batch_size)):
            batch = [row if row is not None and _decoded(row) else None for row in batch]
            readable = next((row for row in batch if row is not None), None)
            if readable is None:
                readable = stand_in or next((row for row in rows if row is not None and _decoded(row)), None)
                if readable is None:
                    raise DataError("Not one picture of a batch can be read, nor any after it; see the warnings above.")
                batch[0] = dict(readable)
            stand_in = readable
            yield from batch


class _Segment:
    """Some rows of one shard, read from where they begin when the first of them is asked for."""

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
        return self.stop - self.position

    def skip(self, count: int) -> int:
        """Passes over up to `count` rows before the first is read; how many there were."""
        count = min(count, len(self))
        self.position += count
        return count

    def take(self, count: int) -> list[Row | None]:
        """Up to `count` rows; fewer only at the end. A row that was counted and is gone is `None`."""
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
            self._rows = None  # lets go of the file and of the rows that were read ahead
        return rows


def read_shard(dataset: datasets.IterableDataset, shard: int, start: int = 0, epoch: int = 0) -> Iterator[Row]:
    """The rows of one shard from the row `start` on; arrays as NumPy, pictures undecoded where the stream has not."""
    part = decoding_off(dataset)
    if part.num_shards > 1:
        part = part.shard(part.num_shards, shard)
    part.set_epoch(epoch)  # of one shard it changes nothing but what the stream itself shuffles
    if start:
        part = part.skip(start)
    # By `iter`, which leaves the stream whole in a worker; iterated itself, it would be shared among workers again.
    if is_arrow(part):
        for table in part.with_format("arrow").iter(_PORTION):
            yield from rows_of_table(table)
    else:
        for batch in part.iter(_PORTION):
            names = list(batch)
            for values in zip(*batch.values(), strict=True):
                yield dict(zip(names, values, strict=True))


def is_arrow(dataset: datasets.IterableDataset) -> bool:
    """Whether a stream comes as tables, so that reading them as tables costs no conversion."""
    return dataset._ex_iterable.iter_arrow is not None


def rows_of_table(table: pa.Table) -> list[Row]:
    """The rows of a table; those of fixed-shape arrays are views of its memory."""
    columns = [_values(column) for column in table.columns]
    return [dict(zip(table.column_names, values, strict=True)) for values in zip(*columns, strict=True)]


def _values(column: pa.ChunkedArray) -> Sequence[Any]:
    if not isinstance(column.type, datasets.features.features._ArrayXDExtensionType):
        return column.to_pylist()
    arrays = [chunk.to_numpy(zero_copy_only=False) for chunk in column.chunks if len(chunk)]
    return arrays[0] if len(arrays) == 1 else [row for array in arrays for row in array]


def add_text_column(
    dataset: datasets.IterableDataset, function: Callable[[dict[str, list]], dict[str, list]], column: str
) -> datasets.IterableDataset:
    """A stream with a further column of strings, left as tables where it comes as tables, and its pictures undecoded.

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
        return raw.map(function, batched=True, batch_size=_PORTION, features=features)
    stage = _TableStage(function, column, [name for name, kind in features.items() if _is_plain(kind)])
    tables = raw.with_format("arrow").map(stage, batched=True, batch_size=_PORTION, features=features)
    return tables.with_format(None)


def _is_plain(feature: Any) -> bool:
    return isinstance(feature, (datasets.Value, datasets.List))


class _TableStage:
    """A function of columns as a function of tables; it sees the columns of plain values."""

    def __init__(self, function: Callable[[dict[str, list]], dict[str, list]], column: str, names: list[str]):
        self.function, self.column, self.names = function, column, names

    def __call__(self, table: pa.Table) -> pa.Table:
        batch = {name: table[name].to_pylist() for name in self.names if name in table.column_names}
        return table.append_column(self.column, pa.array(self.function(batch)[self.column], pa.string()))


def count_rows(dataset: datasets.IterableDataset, num_processes: int = 1, process_index: int = 0) -> list[int]:
    """The rows of each shard of a stream, in one pass that decodes no picture; 0 for other processes' shards.

    Args:
        dataset: The stream; of tables only one column is converted.
        num_processes, process_index: How many count together, and which of them this is; their counts are to be added.
    """
    raw = decoding_off(dataset)
    if is_arrow(raw) and raw.column_names:
        raw = raw.select_columns(raw.column_names[:1])
    counts = [0] * raw.num_shards
    for shard in range(process_index, raw.num_shards, num_processes):
        counts[shard] = sum(1 for _ in read_shard(raw, shard))
    return counts


def without_gaps(collator: Callable[[list[Row]], dict[str, Any]]) -> Callable[[list[Row | None]], dict[str, Any]]:
    """The collator, for rows among which some are `None`; of these alone the batch is empty."""
    return _WithoutGaps(collator)


class _WithoutGaps:
    def __init__(self, collator: Callable[[list[Row]], dict[str, Any]]):
        self.collator = collator

    def __call__(self, rows: list[Row | None]) -> dict[str, Any]:
        present = [row for row in rows if row is not None]
        return self.collator(present) if present else {}


def _decoded(row: Row) -> bool:
    """Decodes the row's picture in place, unless it has regions instead; false, and a warning, if it cannot be read."""
    if row.get("image") is None or "region_features" in row:
        return True
    try:
        row["image"] = decode_image(row["image"], name=str(row["id"]) if "id" in row else None)
    except ImageError as error:
        logger.warning("Left out: %s", error)
        return False
    return True


def split_stream(
    dataset: datasets.IterableDataset, fraction: float, seed: int
) -> tuple[datasets.IterableDataset, datasets.IterableDataset]:
    """As `hash_split`, for a stream that is trained on: left as tables where it comes so, its pictures undecoded."""
    raw = decoding_off(dataset)
    sides = []
    for keep in (False, True):
        side = _Side(fraction, seed, keep)
        if is_arrow(raw):
            tables = raw.with_format("arrow").filter(_TableSide(side), batched=True, batch_size=_PORTION)
            sides.append(tables.with_format(None))
        else:
            sides.append(raw.filter(side, input_columns=["id"]))
    return sides[0], sides[1]


class _TableSide:
    def __init__(self, side: _Side):
        self.side = side

    def __call__(self, table: pa.Table) -> pa.Array:
        return pa.array([self.side(name) for name in table["id"].to_pylist()], pa.bool_())


def stream_fingerprint(dataset: datasets.IterableDataset) -> str:
    """A name for what a stream holds, the same in every process: its files and stages, not how far it was read."""
    return Hasher.hash([_described(dataset._ex_iterable), dataset.split])


def _described(stage: Any) -> Any:
    if isinstance(stage, (list, tuple)):
        return [_described(part) for part in stage]
    owner = getattr(stage, "__self__", None)
    if isinstance(owner, datasets.DatasetBuilder):  # which also holds where its cache is
        return [type(owner).__name__, stage.__name__, getattr(owner.config, "generator", None)]
    if not isinstance(stage, _BaseExamplesIterable):
        return stage
    # What has an underscore is state, and a pool of threads is no part of what the stream holds.
    values = {k: v for k, v in vars(stage).items() if not k.startswith("_") and k != "decoding_pool"}
    return [type(stage).__name__, {name: _described(value) for name, value in values.items()}]
