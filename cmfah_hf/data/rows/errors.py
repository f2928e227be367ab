"""Errors of `datasets` about a source, on opening and on reading, as a `DataError` in one line."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NoReturn, TypeVar

import datasets
import pyarrow as pa
from huggingface_hub.errors import HTTPError

from cmfah_hf.data.internals import with_guarded_reading
from cmfah_hf.errors import DataError, HubConnectionError
from cmfah_hf.hub_access import folder_instead, hub_failure
from cmfah_hf.hub_requests import READING, limited

_Result = TypeVar("_Result")
_ABOUT_DATA = (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError, pa.ArrowException, HTTPError)


def guarded(load: Callable[[], _Result], source: str, is_hub: bool = False) -> _Result:
    """The result of `load()`; any error that `datasets` raises about the data becomes a `DataError` of one line.

    With `is_hub`, the source is an id on the Hub, and the duration of requests is limited.
    """
    watch: Any = None
    limits: AbstractContextManager[Any] = limited(READING) if is_hub else nullcontext()
    try:
        with limits as watch:
            return load()
    except DataError:
        raise
    except ImportError as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{source}: a library is missing to read it ({reason}); install it with pip.") from error
    except _ABOUT_DATA as error:
        _raise(error, source, is_hub, watch.given_up if watch is not None else None)


def _raise(error: BaseException, source: str, is_hub: bool, given_up: HTTPError | None) -> NoReturn:
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    if isinstance(root, DataError):
        raise root from error
    if given_up is not None and isinstance(root, (HTTPError, ConnectionError, FileNotFoundError)):
        # `datasets` drops the cause, and says that there is no such file.
        failure = hub_failure(given_up)
        advice = f" {folder_instead(source, 'dataset')}" if isinstance(failure, HubConnectionError) else ""
        raise DataError(f"{source}: no such folder or file here, and {failure}{advice}") from error
    reason = " ".join((str(root).strip() or type(root).__name__).split())[:300]
    if is_hub:
        advice = f" {folder_instead(source, 'dataset')}" if isinstance(root, ConnectionError) else ""
        raise DataError(
            f"{source}: no such folder or file here, and as a data set on the Hub it cannot be loaded ({reason}); "
            f"check the name, the revision and the connection, and for a private one the token.{advice}"
        ) from error
    raise DataError(f"{source}: cannot be loaded ({reason}); check the file.") from error


def guarded_stream(dataset: datasets.IterableDataset, source: str) -> datasets.IterableDataset:
    """The same stream; errors of its source while it is read are a `DataError` in one line."""
    return with_guarded_reading(dataset, partial(guarded, source=source))


def in_row(row: int, convert: Callable[..., Any], *values: Any) -> Any:
    """`convert(*values)`; a `DataError` names the row."""
    try:
        return convert(*values)
    except DataError as error:
        raise DataError(f"row {row}: {error}") from error
