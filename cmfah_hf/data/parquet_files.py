"""Untrusted Parquet files: opening, footers, and batches of validated values."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cmfah_hf.data.file_state import digest_of, file_states
from cmfah_hf.documents import file_of
from cmfah_hf.errors import DataError

_FOOTER_THREADS = 16


@contextmanager
def parquet_file(file: str, token: str | bool | None = None) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile` of a path or an address; errors while it is read are a `DataError`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if "://" not in file and file_of(file) is None:
        raise DataError(f"{file}: is not a regular file; check the path.")
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
    # Raised by pyarrow for names and values that are not UTF-8, and for numbers and dates that Python cannot represent.
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{file}: cannot be read as Parquet ({reason}); write or fetch it again.") from error


def checked_batches(
    parquet: Any, size: int, columns: Sequence[str] | None = None, row_groups: Sequence[int] | None = None
) -> Iterator[Any]:
    """The record batches of some columns and row groups, validated: offsets within values, texts in UTF-8."""
    groups = None if row_groups is None else list(row_groups)
    for batch in parquet.iter_batches(size, row_groups=groups, columns=columns, use_threads=False):
        batch.validate(full=True)
        yield batch


@dataclass(frozen=True)
class ParquetFooters:
    """The footers of a split's files."""

    schema: Any  # of the first file
    row_groups: list[list[int]]  # the rows of each row group of each file
    versions: list[str | None]  # states of local files; an address names its commit on the Hub

    @property
    def num_rows(self) -> int:
        return sum(map(sum, self.row_groups))


def read_footers(files: Sequence[str], token: str | bool | None = None) -> ParquetFooters:
    """The footers of Parquet files, read by several threads where the files are remote."""

    def read(file: str) -> tuple[Any, list[int], str | None]:
        with parquet_file(file, token) as parquet:
            metadata = parquet.metadata
            groups = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
            return parquet.schema_arrow, groups, None if "://" in file else digest_of(file_states([file]))

    if len(files) > 1 and "://" in files[0]:
        with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
            found = list(pool.map(read, files))
    else:
        found = [read(file) for file in files]
    return ParquetFooters(found[0][0], [groups for _, groups, _ in found], [version for *_, version in found])
