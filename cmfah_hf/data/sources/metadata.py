"""Checks of a metadata file, row by row, before any image is opened."""

import os
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from cmfah_hf.data.data_root import DataRoot, LocalFiles, refuse_links_outside
from cmfah_hf.data.file_state import digest_of, file_states
from cmfah_hf.data.rows.columns import ColumnNames, RequestedColumns, find_columns, with_captions
from cmfah_hf.data.rows.uniform import own_features, own_values
from cmfah_hf.data.sources.metadata_rows import read_rows, shown_name
from cmfah_hf.errors import DataError

EXAMPLE = (
    'write a metadata.jsonl next to the images, one line per image, such as {"file_name": "im1.jpg", '
    '"text": "dog beach", "labels": ["dog"]}.'
)
# Types are inferred in pieces of this many rows, so that a long metadata file is never in memory as a whole.
_PIECE = 10_000


@dataclass(frozen=True)
class CheckedMetadata:
    """A metadata file that was checked, with everything that reading it needs."""

    path: Path
    columns: ColumnNames
    features: datasets.Features
    num_rows: int
    version: str  # identifies the state of this file and of all images
    spellings: tuple[tuple[str, str], ...] = ()  # file names that the disk spells in another form of Unicode


def check_metadata(path: Path, requested: RequestedColumns, root: DataRoot) -> CheckedMetadata:
    """Checks every row of a metadata file without opening an image; the error names the file and the line."""
    refuse_links_outside(Path(root.folders[0]), [path])
    present, num_rows, images, spellings = _check_files(path, root)
    version = digest_of(file_states([path, *images]))
    requested = replace(requested, image="file_name")
    columns = find_columns(present, str(path), requested)
    columns = with_captions(columns, present, requested, lambda names: (row for _, row in read_rows(path)))
    others = [name for name in present if name not in columns.chosen]
    schema = _check_rows(path, columns, others)
    features = own_features(columns) | (datasets.Features.from_arrow_schema(schema) if others else {})
    return CheckedMetadata(path, columns, datasets.Features(features), num_rows, version, tuple(spellings.items()))


def _check_files(path: Path, root: DataRoot) -> tuple[list[str], int, list[str], dict[str, str]]:
    """The names of all columns in their order, the number of rows, every row's image, and spellings on the disk."""
    # Strings, because a `Path` per row would take most of the time of a long file.
    folder = os.path.realpath(path.parent)
    files = LocalFiles(root.folders)
    present: dict[str, None] = {}
    missing: list[tuple[int, str]] = []
    images: list[str] = []
    spellings: dict[str, str] = {}
    num_rows = 0
    for number, row in read_rows(path):
        num_rows += 1
        present |= dict.fromkeys(row)
        name = _file_name(path, number, row)
        expected = posixpath.join(folder, name)
        try:
            found = files.find(expected)
        except DataError as error:
            raise DataError(f"{path}, line {number}: {error}") from error
        if found is None:
            missing.append((number, name))
            continue
        images.append(found)
        if found != expected:
            spellings[name] = posixpath.relpath(found, folder)
    if missing:
        number, name = missing[0]
        more = f" ({len(missing) - 1} more lines name missing files)" if len(missing) > 1 else ""
        raise DataError(
            f"{path}, line {number}: the image {shown_name(str(path.parent / name))} does not exist; add it or delete "
            f"the line{more}."
        )
    if num_rows == 0:
        raise DataError(f"{path}: holds no rows; {EXAMPLE}")
    return list(present), num_rows, images, spellings


def _file_name(path: Path, number: int, row: dict[str, Any]) -> str:
    """The row's file name as a clean relative path with forward slashes."""
    given = row.get("file_name")
    if not isinstance(given, str) or not given.strip():
        problem = "there is no 'file_name'" if given is None else f"'file_name' is {given!r}"
        raise DataError(f"{path}, line {number}: {problem}; write the name of the image file.")
    if "\0" in given:
        raise DataError(f"{path}, line {number}: 'file_name' {shown_name(given)!r} names no file; correct it.")
    name = normal_name(given)
    if posixpath.isabs(name) or name.split("/")[0] == ".." or "://" in given or re.match(r"[A-Za-z]:", given):
        raise DataError(
            f"{path}, line {number}: 'file_name' {shown_name(given)!r} leads outside the folder; put the image inside."
        )
    return name


def normal_name(given: str) -> str:
    """A file name with forward slashes and without `.` and inner `..`."""
    return posixpath.normpath(given.replace("\\", "/"))


def _check_rows(path: Path, columns: ColumnNames, others: Sequence[str]) -> pa.Schema:
    """The Arrow schema of the further columns; checks that ids are unique and that texts and labels can be read."""
    lines: dict[str, int] = {}
    schema = pa.schema([])
    rows = read_rows(path)
    while piece := list(islice(rows, _PIECE)):
        for number, row in piece:
            name = _checked_id(path, number, row, columns)
            first = lines.setdefault(name, number)
            if first != number:
                what = f"the column {columns.id!r}" if columns.id else "'file_name' (or add a column 'id')"
                raise DataError(f"{path}: lines {first} and {number} have the same id {name!r}; make {what} unique.")
        fields = []
        for name in others:
            try:
                kind = pa.array([row.get(name) for _, row in piece]).type
            except (pa.ArrowException, OverflowError) as error:
                raise _mixed(path, name, piece[0][0], piece[-1][0], error) from error
            fields.append(pa.field(columns.kept_as(name), kind))
        try:
            schema = pa.unify_schemas([schema, pa.schema(fields)], promote_options="permissive")
        except pa.ArrowException as error:
            raise _mixed(path, ", ".join(others), 1, piece[-1][0], error) from error
    return schema


def _checked_id(path: Path, number: int, row: dict[str, Any], columns: ColumnNames) -> str:
    try:
        return own_values(row, columns, None, lambda: normal_name(row["file_name"]))["id"]
    except DataError as error:
        raise DataError(f"{path}, line {number}: {error}") from error


def _mixed(path: Path, name: str, first: int, last: int, error: Exception) -> DataError:
    reason = str(error).splitlines()[0]
    return DataError(
        f"{path}, lines {first} to {last}: the column {name!r} mixes kinds of values ({reason}); write one kind."
    )
