"""Streams of pairs for training: shared among processes and workers, shuffled, resumable.

`datasets` reads a stream shard by shard. A training run also needs the same number of batches in every process for any
sizes of shards, every pair once per epoch, and the same batches when it resumes, even within the shuffle buffer. All
three follow from the number of rows of each shard: the order of an epoch is a function of these counts, the seed and
the epoch, and is computed without reading a row.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import get_worker_info

from cmfah_hf.data.images import decode_image
from cmfah_hf.errors import DataError, ImageError
from cmfah_hf.expansion import GraphExpander
from cmfah_hf.training.data.shards import PORTION, Row, Segment, add_text_column

logger = logging.getLogger(__name__)

# Shards that are read in turn, so that neighbors in a file are rarely neighbors in a batch.
_OPEN_SHARDS = 8
# Rows of a block without shuffling; a resumed run may read one block again.
_UNSHUFFLED_BLOCK = 256


class PairStream(torch.utils.data.IterableDataset):
    """Pairs that are read row by row, in epochs if the rows of the shards have been counted.

    A counted stream has a length. Each process and each worker of a data loader reads its own contiguous range of rows
    over the shards, whose order changes with every epoch. A shard is read by two of them only if the boundary of their
    ranges is in it. Without counts there are no epochs: each range restarts at its end, and the number of steps must be
    given.

    Args:
        dataset: An `IterableDataset`, or several that follow one another. Leave images undecoded (`decoding_off`): they
            are decoded after shuffling, and unreadable ones are left out.
        counts: The rows of every shard, as `count_rows` returns them. None: unknown.
        shuffle_buffer: Rows that are shuffled together, from up to 8 shards in turn. The order of the shards is
            shuffled too. 0: the stream's own order.
        seed: Seed of both orders. The order depends only on seed and epoch.
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
        """All rows once, in the stream's own order, without unreadable images."""
        return (row for row in self.part(training=False) if row is not None)

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

    def map(self, expander: GraphExpander, **kwargs: Any) -> "PairStream":
        """The stream with the column of expanded texts, `expander.output_column`; further arguments are ignored."""
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
        """The share of one process, for a `DataLoader` with this batch size.

        Args:
            batch_size: Rows of a batch.
            num_processes, process_index: The number of processes that read the stream, and the index of this one.
            drop_last: Whether to leave out an incomplete last batch.
            training: Whether to shuffle, with the same number of batches in every process; else every row comes once,
                in order.
        """
        return StreamPart(self, batch_size, num_processes, process_index, drop_last, training)


class StreamPart(torch.utils.data.IterableDataset):
    """One process's share of a `PairStream`, made by its `part`.

    In training it yields `None` for batches that a resumed run skips and for unreadable images, so that every batch
    keeps its position. A collator of `without_gaps` leaves these out. Its length is the number of rows in an epoch.
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
        # The epoch, and the epoch and batch to resume at. In shared memory, because persistent workers hold copies of
        # everything else.
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
        """Sets the epoch whose order the next iteration follows."""
        self._place[0] = epoch

    def start_at(self, epoch: int, batch: int) -> None:
        """Resumes within an epoch, in which the first `batch` batches of this process are then empty.

        The skipped rows of a counted stream are not read again, except for the rest of one block in each worker. Those
        of a stream without counts are read but not decoded.
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
        # Workers deliver batches in turn; this is the worker's share of the skipped ones.
        skipped = max(0, -(-(start_batch - worker) // workers)) if epoch == start_epoch else 0
        if self.stream.counts is not None:
            yield from self._epoch(epoch, worker, workers, skipped)
        else:
            yield from self._endless(worker, workers, skipped)

    def _epoch(self, epoch: int, worker: int, workers: int, skipped: int) -> Iterator[Row | None]:
        """This worker's rows of an epoch, in whole batches: their number does not depend on the workers."""
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

    def _uncounted_blocks(self, worker: int, workers: int, passed: int) -> Iterator[list[Row | None]]:
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
                raise DataError("One reader of the stream has no rows; take more data or fewer workers.")
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
            while rows := segment.take(PORTION):
                yield from (row for row in rows if row is not None)

    def _shard_order(self, epoch: int) -> Sequence[int]:
        if not self.stream.shuffle_buffer:
            return range(len(self.stream.shards))
        return np.random.default_rng((self.stream.seed, epoch)).permutation(len(self.stream.shards)).tolist()

    def _segments(self, order: Iterable[int], first: int, stop: int, epoch: int) -> list[Segment]:
        """The rows from `first` to `stop` of the concatenation of all shards in this order."""
        segments, begin = [], 0
        counts = self.stream.counts or []
        for number in order:
            end = begin + counts[number]
            if max(first, begin) < min(stop, end):
                rows = slice(max(first, begin) - begin, min(stop, end) - begin)
                segments.append(Segment(*self.stream.shards[number], epoch, rows.start, rows.stop))
            begin = end
        return segments

    def _uncounted_segments(self, order: Iterable[int], part: int, parts: int, epoch: int) -> list[Segment]:
        """Every `parts`-th shard; with fewer shards than parts, every `parts`-th row of all shards."""
        shards = [self.stream.shards[number] for number in order]
        if len(shards) >= parts:
            return [Segment(*shard, epoch) for shard in shards[part::parts]]
        return [Segment(*shard, epoch, part, step=parts) for shard in shards]

    def _blocks(self, segments: Iterable[Segment], passed: int, key: tuple[int, ...]) -> Iterator[list[Row | None]]:
        """Blocks of shuffled rows, from several segments in turn, without the first `passed` rows.

        Blocks that are skipped completely are not read, for which the lengths of the segments must be known.
        """
        size, width = self.stream.shuffle_buffer, _OPEN_SHARDS
        if not size:
            size, width = _UNSHUFFLED_BLOCK, 1
        portion = max(1, size // width)
        waiting: deque[Segment] = deque(segments)
        opened: deque[Segment] = deque()
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
        """The rows of the blocks with decoded images, or `None` for unreadable ones.

        A batch without readable images gets an earlier pair, so that no process waits for another.
        """
        rows = (row for block in blocks for row in block)
        substitute = None
        while batch := list(islice(rows, self.batch_size)):
            batch = [row if row is not None and _decoded(row) else None for row in batch]
            readable = next((row for row in batch if row is not None), None)
            if readable is None:
                readable = substitute or next((row for row in rows if row is not None and _decoded(row)), None)
                if readable is None:
                    raise DataError("No image of a batch can be read, nor any after it; see the warnings above.")
                batch[0] = dict(readable)
            substitute = readable
            yield from batch


def without_gaps(collator: Callable[[list[Row]], dict[str, Any]]) -> Callable[[list[Row | None]], dict[str, Any]]:
    """A collator that leaves out rows that are `None`; a batch without other rows is empty."""
    return partial(_collate_present, collator)


def _collate_present(collator: Callable[[list[Row]], dict[str, Any]], rows: list[Row | None]) -> dict[str, Any]:
    present = [row for row in rows if row is not None]
    return collator(present) if present else {}


def _decoded(row: Row) -> bool:
    """Decodes the row's image in place, unless it has regions instead; False, with a warning, if it is unreadable."""
    if row.get("image") is None or "region_features" in row:
        return True
    try:
        row["image"] = decode_image(row["image"], name=str(row["id"]) if "id" in row else None)
    except ImageError as error:
        logger.warning("Left out: %s", error)
        return False
    return True
