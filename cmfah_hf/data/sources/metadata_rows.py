"""Rows of a metadata file (JSON lines, CSV or Parquet) with their line numbers."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from cmfah_hf.data.parquet_files import checked_batches, parquet_file
from cmfah_hf.documents import file_of, parse_json
from cmfah_hf.errors import DataError

_PARQUET_ROWS = 1_000
# Characters of a row of metadata, with its boxes.
_LONGEST_LINE = 2**24


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The line number (from 1; for Parquet the row number) and the content of every row of a metadata file."""
    try:
        if path.suffix == ".jsonl":
            yield from _read_json_lines(path)
        elif path.suffix == ".csv":
            yield from _read_csv(path)
        else:
            yield from _read_parquet(path)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8."
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}); check the file.") from error


def _read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with _opened(path) as file:
        for number, line in enumerate(_lines(path, file), start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            row = parse_json(line, where, DataError)
            if not isinstance(row, dict):
                raise DataError(f"{where} is a {type(row).__name__}; write one JSON object per line.")
            yield number, row


def _opened(path: Path, newline: str | None = None) -> TextIO:
    if file_of(path) is None:
        raise DataError(f"{path}: is not a regular file; check what it is.")
    return path.open(encoding="utf-8-sig", newline=newline)


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    """The lines of a file; a line longer than any row is refused before it is read completely."""
    number = 1
    while line := file.readline(_LONGEST_LINE + 1):
        if len(line) > _LONGEST_LINE:
            raise DataError(
                f"{path}, line {number}: has more than {_LONGEST_LINE:,} characters; put one row on a line."
            )
        yield line
        number += 1


def _read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    # A long text may exceed the module's default of 128 kB a cell.
    csv.field_size_limit(_LONGEST_LINE)
    with _opened(path, newline="") as file:
        reader = csv.DictReader(_lines(path, file), strict=True)
        try:
            header = reader.fieldnames or []
            if "file_name" not in header:
                raise DataError(
                    f"{path}: there is no column 'file_name' (present are: {shown_name(', '.join(header) or 'none')}); "
                    "add it, with the name of each image's file."
                )
            if len(set(header)) < len(header):
                twice = next(name for name in header if header.count(name) > 1)
                raise DataError(f"{path}, line 1: two columns are named {shown_name(twice)!r}; rename one.")
            for row in reader:
                if None in row:
                    raise DataError(
                        f"{path}, line {reader.line_num}: more cells than the {len(header)} columns; put a text "
                        "with commas in quotes."
                    )
                # CSV does not distinguish an empty cell from a missing one.
                yield reader.line_num, {name: value or None for name, value in row.items()}
        except csv.Error as error:
            # After an open quote, the reader's own count is at the end of the file.
            raise DataError(
                f"{path}, line {reader.line_num + 1}: not valid CSV ({error}); check its quotes."
            ) from error


def _read_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    with parquet_file(str(path)) as file:
        for batch in checked_batches(file, _PARQUET_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield number, row


def shown_name(name: str) -> str:
    """A name from a file, short and in one line, for messages."""
    name = name if len(name) <= 300 else f"{name[:297]}..."
    return name if name.isprintable() else ascii(name)
