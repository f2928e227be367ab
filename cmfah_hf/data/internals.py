"""Undocumented parts of `datasets`, in one place.

`pyproject.toml` bounds `datasets` by the versions that these parts were tested with.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets.arrow_writer import ArrowWriter as ArrowWriter
from datasets.features.features import _ArrayXDExtensionType
from datasets.fingerprint import Hasher
from datasets.iterable_dataset import ArrowExamplesIterable, _BaseExamplesIterable
from datasets.table import MemoryMappedTable


def is_arrow(dataset: datasets.IterableDataset) -> bool:
    """Whether a stream consists of tables, so that reading them as tables needs no conversion."""
    return dataset._ex_iterable.iter_arrow is not None


def is_array(kind: pa.DataType) -> bool:
    """Whether the type of a column is that of `Array2D` and its like."""
    return isinstance(kind, _ArrayXDExtensionType)


def fingerprint_of(dataset: datasets.Dataset) -> str:
    """The fingerprint of a map-style data set: its source and all operations on it."""
    return dataset._fingerprint


def stream_fingerprint(dataset: datasets.IterableDataset) -> str:
    """The fingerprint of a stream: its files and stages, not its position. It is the same in every process."""
    return Hasher.hash([_described(dataset._ex_iterable), dataset.split])


def _described(stage: Any) -> Any:
    if isinstance(stage, (list, tuple)):
        return [_described(part) for part in stage]
    owner = getattr(stage, "__self__", None)
    if isinstance(owner, datasets.DatasetBuilder):  # it also holds the path of its cache
        return [type(owner).__name__, stage.__name__, getattr(owner.config, "generator", None)]
    if not isinstance(stage, _BaseExamplesIterable):
        return stage
    # Names with an underscore are state, and the thread pool is not content.
    values = {k: v for k, v in vars(stage).items() if not k.startswith("_") and k != "decoding_pool"}
    return [type(stage).__name__, {name: _described(value) for name, value in values.items()}]


def open_arrow(file: Path, features: datasets.Features, name: str) -> datasets.Dataset:
    """An Arrow file as a memory-mapped data set, with `name` as its fingerprint."""
    table = MemoryMappedTable.from_file(str(file)).replace_schema_metadata(None)
    return datasets.Dataset(table, datasets.DatasetInfo(features=features), fingerprint=name)


def resolved_features(dataset: datasets.IterableDataset) -> datasets.IterableDataset:
    """The stream with its features, which are inferred from the first rows if none are declared."""
    return dataset if dataset.features is not None else dataset._resolve_features()


def stream_of_tables(
    generate: Callable[..., Iterator[Any]],
    kwargs: dict[str, Any],
    features: datasets.Features,
    split: str | None,
) -> datasets.IterableDataset:
    """A stream from a generator of `(key, pyarrow.Table)`; each list in `kwargs` holds a value for every shard."""
    return datasets.IterableDataset(
        ArrowExamplesIterable(generate, kwargs),
        info=datasets.DatasetInfo(features=features),
        split=datasets.NamedSplit(split) if split else None,
    )


def stream_arrow(files: list[str], features: datasets.Features, split: str | None = None) -> datasets.IterableDataset:
    """A stream over Arrow files, one shard per file."""
    return stream_of_tables(_read_arrow_files, {"file": files}, features, split)


def _read_arrow_files(file: list[str]) -> Iterator[tuple[str, pa.Table]]:
    for name in file:
        with pa.memory_map(name) as source, pa.ipc.open_stream(source) as reader:
            for number, batch in enumerate(reader):
                yield f"{name} {number}", pa.Table.from_batches([batch])


Guard = Callable[[Callable[[], Any]], Any]


def with_guarded_reading(dataset: datasets.IterableDataset, guard: Guard) -> datasets.IterableDataset:
    """The same stream, whose source is read by `guard(next_row)`, so that its errors can be converted.

    Errors of later stages, which the caller adds, pass unchanged.
    """
    return datasets.IterableDataset(
        ex_iterable=_GuardedExamples(dataset._ex_iterable, guard),
        info=deepcopy(dataset._info),
        split=dataset._split,
        formatting=dataset._formatting,
        distributed=dataset._distributed,
        token_per_repo_id=dataset._token_per_repo_id,
    )


class _GuardedExamples(_BaseExamplesIterable):
    def __init__(self, ex_iterable: _BaseExamplesIterable, guard: Guard):
        super().__init__()
        self.ex_iterable = ex_iterable
        self.guard = guard

    def __iter__(self) -> Iterator[Any]:
        return self._reading(iter(self.ex_iterable))

    @property
    def iter_arrow(self) -> Callable[[], Iterator[Any]] | None:
        inner = self.ex_iterable.iter_arrow
        return None if inner is None else partial(self._read_tables, inner)

    def _read_tables(self, inner: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        return self._reading(inner())

    def _reading(self, rows: Iterator[Any]) -> Iterator[Any]:
        end = object()
        while (row := self.guard(partial(next, rows, end))) is not end:
            yield row

    @property
    def is_typed(self) -> bool:
        return self.ex_iterable.is_typed

    @property
    def features(self) -> datasets.Features | None:
        return self.ex_iterable.features

    @property
    def num_shards(self) -> int:
        return self.ex_iterable.num_shards

    def shuffle_data_sources(self, generator: Any) -> "_GuardedExamples":
        return _GuardedExamples(self.ex_iterable.shuffle_data_sources(generator), self.guard)

    def shard_data_sources(self, num_shards: int, index: int, contiguous: bool = True) -> "_GuardedExamples":
        return _GuardedExamples(self.ex_iterable.shard_data_sources(num_shards, index, contiguous), self.guard)

    def reshard_data_sources(self) -> "_GuardedExamples":
        return _GuardedExamples(self.ex_iterable.reshard_data_sources(), self.guard)

    def _init_state_dict(self) -> dict[str, Any]:
        self._state_dict = self.ex_iterable._init_state_dict()
        return self._state_dict
