"""Errors of `datasets` about a source, when it is opened and while it is read, as one line."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from typing import Any, NoReturn, TypeVar

import datasets
import pyarrow as pa
from datasets.iterable_dataset import _BaseExamplesIterable

from cmfah_hf.errors import DataError

_Result = TypeVar("_Result")
_ABOUT_DATA = (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError, pa.ArrowException)


def guarded(load: Callable[[], _Result], source: str, is_hub: bool = False) -> _Result:
    """The result of `load()`.

    Raises:
        DataError: In one line, for whatever `datasets` raises about the data.
    """
    try:
        return load()
    except DataError:
        raise
    except ImportError as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{source}: a library is missing to read it ({reason}); install it with pip.") from error
    except _ABOUT_DATA as error:
        _raise(error, source, is_hub)


def _raise(error: BaseException, source: str, is_hub: bool) -> NoReturn:
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    if isinstance(root, DataError):
        raise root from error
    reason = " ".join((str(root).strip() or type(root).__name__).split())[:300]
    if is_hub:
        raise DataError(
            f"{source}: no such folder or file here, and as a data set on the Hub it cannot be loaded ({reason}); "
            "check the name, the revision and the connection, and for a private one the token."
        ) from error
    raise DataError(f"{source}: cannot be loaded ({reason}); check the file.") from error


def guarded_stream(dataset: datasets.IterableDataset, source: str) -> datasets.IterableDataset:
    """The same stream; what its builder raises about the data while it is read is a `DataError` in one line.

    Only the source is guarded: errors of later stages, which are the caller's, pass as they are.
    """
    return datasets.IterableDataset(
        ex_iterable=_GuardedExamples(dataset._ex_iterable, source),
        info=deepcopy(dataset._info),
        split=dataset._split,
        formatting=dataset._formatting,
        distributed=dataset._distributed,
        token_per_repo_id=dataset._token_per_repo_id,
    )


class _GuardedExamples(_BaseExamplesIterable):
    def __init__(self, ex_iterable: _BaseExamplesIterable, source: str):
        super().__init__()
        self.ex_iterable = ex_iterable
        self.source = source

    def __iter__(self) -> Iterator[Any]:
        return self._reading(iter(self.ex_iterable))

    @property
    def iter_arrow(self):
        inner = self.ex_iterable.iter_arrow
        return None if inner is None else partial(self._arrow, inner)

    def _arrow(self, inner: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        return self._reading(inner())

    def _reading(self, rows: Iterator[Any]) -> Iterator[Any]:
        end = object()
        while (row := guarded(partial(next, rows, end), self.source)) is not end:
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

    def shuffle_data_sources(self, generator):
        return _GuardedExamples(self.ex_iterable.shuffle_data_sources(generator), self.source)

    def shard_data_sources(self, num_shards: int, index: int, contiguous: bool = True):
        return _GuardedExamples(self.ex_iterable.shard_data_sources(num_shards, index, contiguous), self.source)

    def reshard_data_sources(self):
        return _GuardedExamples(self.ex_iterable.reshard_data_sources(), self.source)

    def _init_state_dict(self) -> dict:
        self._state_dict = self.ex_iterable._init_state_dict()
        return self._state_dict
