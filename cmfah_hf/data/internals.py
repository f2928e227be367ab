"""Private names of `datasets` that loading needs, all in one place."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from typing import Any

import datasets
from datasets.iterable_dataset import ArrowExamplesIterable, _BaseExamplesIterable


def fingerprint_of(dataset: datasets.Dataset) -> str:
    """The name under which `datasets` caches what is computed from a data set."""
    return dataset._fingerprint


def resolved_features(dataset: datasets.IterableDataset) -> datasets.IterableDataset:
    """The stream with its features; where none are declared, they are inferred from the first rows."""
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
