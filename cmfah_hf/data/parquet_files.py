"""Parquet files that nobody vouches for: opened, and read in batches whose every value has been checked."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cmfah_hf.documents import file_of
from cmfah_hf.errors import DataError


@contextmanager
def parquet_file(file: str, token: str | bool | None = None) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile`, and one line for whatever is wrong with it while it is read.

    Args:
        file: A path or an address.
        token: For the Hub.

    Raises:
        DataError: If it is no regular file, or damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if "://" not in file and file_of(file) is None:
        raise DataError(f"{file}: is no regular file; check the path.")
    try:
        if "://" not in file:
            with pq.ParquetFile(file) as parquet:
                yield parquet
            return
        import fsspec

        options = {"token": token} if file.startswith("hf://") and token is not None else {}
        with fsspec.open(file, "rb", **options) as opened, pq.ParquetFile(opened) as parquet:
            yield parquet
    except DataError:
        raise
    # Of pyarrow: names and values that are not UTF-8, numbers and dates that Python does not know.
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{file}: cannot be read as Parquet ({reason}); write or fetch it again.") from error


def checked_batches(
    parquet: Any, size: int, columns: Sequence[str] | None = None, row_groups: Sequence[int] | None = None
) -> Iterator[Any]:
    """The record batches of a file, each validated: offsets within their values, texts in UTF-8.

    Args:
        parquet: What `parquet_file` gives.
        size: Rows of a batch.
        columns: Only these.
        row_groups: Only these.
    """
    kwargs = {} if row_groups is None else {"row_groups": list(row_groups)}
    for batch in parquet.iter_batches(size, columns=columns, use_threads=False, **kwargs):
        batch.validate(full=True)
        yield batch
