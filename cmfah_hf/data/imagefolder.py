"""A folder of pictures beside a metadata file: checked line by line, read, and written.

The convention is that of `datasets`' own `imagefolder`. Its builder is not used here, because it loses what people
have: it knows only splits named train, validation and test, refuses splits whose columns differ, and guesses types, so
that the id `007` becomes 7, the tags `2019` a number or a date, and the tag `null` nothing at all. The rows read here
become a `Dataset` through `from_generator`, so they are cached on disk, memory-mapped, and stream the same way.
"""

import csv
import json
import os
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from cmfah_hf.data.columns import ColumnNames, find_columns, labels_of, text_of
from cmfah_hf.errors import DataError

METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
SPLIT_FOLDERS = ("train", "query", "database", "validation", "test")
SPLIT_NAME = re.compile(r"\w+(\.\w+)*")

_WHAT_TO_WRITE = (
    'write a metadata.jsonl beside the pictures, one line a picture, such as {"file_name": "im1.jpg", '
    '"text": "dog beach", "labels": ["dog"]}.'
)
# Type inference works in pieces of this many rows, so that a long metadata file is never held whole.
_PIECE = 10_000
# A stream is cut into this many ranges at most, which is how many workers of a DataLoader can share it.
MAX_SHARDS = 16


@dataclass(frozen=True)
class CheckedMetadata:
    """What the check of one metadata file found out, all that reading it needs."""

    path: Path
    columns: ColumnNames
    features: Any
    num_rows: int


def find_metadata(folder: Path) -> Path | None:
    """The metadata file of `folder`, if it has one.

    Raises:
        DataError: If there are two, which might disagree.
    """
    found = [folder / name for name in METADATA_NAMES if (folder / name).is_file()]
    if len(found) > 1:
        raise DataError(f"{folder}: holds both {found[0].name} and {found[1].name}; keep one.")
    return found[0] if found else None


def find_splits(folder: Path) -> dict[str, Path]:
    """The metadata file of each split: every subfolder that has one, or the folder itself as `train`.

    Returns:
        Split names with metadata files, the usual splits first; empty if there is no metadata anywhere.

    Raises:
        DataError: If some splits would be lost: metadata both here and in a subfolder, a split folder without any,
            or a name that cannot be a split's.
    """
    subfolders = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    splits = {entry.name: path for entry in subfolders if (path := find_metadata(entry)) is not None}
    own = find_metadata(folder)
    if own is not None:
        if splits:
            raise DataError(f"{folder}: has metadata of its own and in {next(iter(splits))}/; keep one of the two.")
        return {"train": own}
    for name in splits:
        if SPLIT_NAME.fullmatch(name) is None:
            raise DataError(f"{folder / name}: a split's name has only letters, digits and '_'; rename the folder.")
    bare = [entry for entry in subfolders if entry.name in SPLIT_FOLDERS and entry.name not in splits]
    if splits and bare:
        raise DataError(f"{bare[0]}: this split has no metadata; {_WHAT_TO_WRITE}")
    return {name: splits[name] for name in sorted(splits, key=usual_order)}


def missing_metadata(folder: Path) -> DataError:
    """The error for a folder that has nothing this package can read."""
    return DataError(f"{folder}: holds neither a metadata file nor Parquet files; {_WHAT_TO_WRITE}")


def check_metadata(
    path: Path, text: str | None = None, labels: str | None = None, id: str | bool | None = None
) -> CheckedMetadata:
    """Check every row of a metadata file by names alone, before any picture is opened.

    Args:
        path: The `metadata.jsonl`, `.csv` or `.parquet`.
        text: The column of texts; found by its usual names if not given.
        labels: The column of labels, likewise.
        id: The column of ids, likewise; `False` ignores a column `id`.

    Raises:
        DataError: For the first row that cannot be read, names no picture, names one outside the folder or one that
            is not there, or has the id of an earlier row. The message holds the file and the line.
    """
    import datasets

    present, num_rows = _check_files(path)
    columns = find_columns(present, str(path), image="file_name", text=text, labels=labels, id=id)
    others = [name for name in present if name not in columns.chosen]
    types = _check_rows(path, columns, others)
    features = {"id": datasets.Value("string"), "image": datasets.Image(), "text": datasets.Value("string")}
    if columns.labels is not None:
        features["labels"] = datasets.List(datasets.Value("string"))
    if others:
        features |= datasets.Features.from_arrow_schema(types)
    return CheckedMetadata(path, columns, datasets.Features(features), num_rows)


def load_checked(metadata: CheckedMetadata, split: str, streaming: bool = False, **kwargs: Any):
    """The rows of a checked metadata file as a `Dataset` or `IterableDataset`, with `kwargs` for `from_generator`."""
    import datasets

    num_ranges = min(MAX_SHARDS, metadata.num_rows) if streaming else 1
    bounds = [metadata.num_rows * i // num_ranges for i in range(num_ranges + 1)]
    state = metadata.path.stat()
    gen_kwargs = {
        "path": str(metadata.path.absolute()),
        "columns": metadata.columns,
        # The cache knows a data set by these arguments, so a changed file has to change them.
        "version": (state.st_mtime_ns, state.st_size),
        "ranges": list(pairwise(bounds)),
    }
    kind = datasets.IterableDataset if streaming else datasets.Dataset
    extra = {} if streaming else kwargs
    return kind.from_generator(
        generate_rows, features=metadata.features, gen_kwargs=gen_kwargs, split=datasets.NamedSplit(split), **extra
    )


def generate_rows(
    path: str, columns: ColumnNames, version: tuple[int, int], ranges: list[tuple[int, int]]
) -> Iterator[dict[str, Any]]:
    """The uniform rows in `ranges` (start, stop) of a metadata file. `version` only tells one state from another."""
    folder = str(Path(path).parent)
    for start, stop in ranges:
        for _, row in islice(read_rows(Path(path)), start, stop):
            yield _uniform_row(folder, row, columns)


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The line number (from 1; of Parquet the row number) and the content of every row of a metadata file.

    Raises:
        DataError: Naming file and line, if a line is not what the format asks for.
    """
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


def write_imagefolder(dataset, folder: str | os.PathLike) -> Path:
    """Write a data set with the uniform columns as an imagefolder: PNG files and a `metadata.jsonl`.

    Pictures that are PNG files already are copied byte for byte, all others are decoded and saved as PNG, without loss
    for every mode that PNG knows and as RGB for the others. All further columns go into the metadata.

    Args:
        dataset: A `Dataset` or `IterableDataset` (written flat), or a dictionary of them (a subfolder a split).
        folder: Where to write; created if needed.

    Returns:
        The folder.

    Raises:
        DataError: If metadata stands there already.
        ImageError: If a picture cannot be read.
    """
    folder = Path(folder)
    if isinstance(dataset, dict):
        for name, part in dataset.items():
            write_imagefolder(part, folder / name)
        return folder
    from cmfah_hf.data.images import decoding_off

    folder.mkdir(parents=True, exist_ok=True)
    if (existing := find_metadata(folder)) is not None:
        raise DataError(f"{existing}: exists already; choose another folder or remove it.")
    taken: set[str] = set()
    # The metadata gets its name last: a folder that has it is complete.
    unfinished = folder / "metadata.jsonl.unfinished"
    with unfinished.open("w", encoding="utf-8") as lines:
        for row, example in enumerate(decoding_off(dataset)):
            content = _png_bytes(example.pop("image"), name=f"row {row} ({example['id']})")
            stem = re.sub(r"[^\w-]+", "_", example["id"]) or "picture"
            name = f"{stem}.png" if stem.lower() not in taken else f"{stem}-{row:06d}.png"
            taken.add(name[: -len(".png")].lower())
            (folder / name).write_bytes(content)
            lines.write(json.dumps({"file_name": name, **example}, ensure_ascii=False) + "\n")
    unfinished.rename(folder / "metadata.jsonl")
    return folder


def _png_bytes(value: dict[str, Any], name: str) -> bytes:
    import io

    from cmfah_hf.data.images import decode_image
    from cmfah_hf.models.image_modes import to_rgb

    image = decode_image(value, name=name)
    content = value.get("bytes")
    if content is not None and content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        image = to_rgb(image)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def usual_order(name: str) -> tuple[int, str]:
    return (SPLIT_FOLDERS.index(name) if name in SPLIT_FOLDERS else len(SPLIT_FOLDERS), name)


def _read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{path}, line {number}: not valid JSON ({error.msg} at character {error.colno}); "
                    "write one JSON object a line."
                ) from error
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: a {type(row).__name__}; write one JSON object a line.")
            yield number, row


def _read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    # A long text may exceed the module's default of 128 kB a cell.
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            header = reader.fieldnames or []
            if "file_name" not in header:
                raise DataError(
                    f"{path}: there is no column 'file_name' (present are: {', '.join(header) or 'none'}); "
                    "add it, with the name of each picture's file."
                )
            for row in reader:
                if None in row:
                    raise DataError(
                        f"{path}, line {reader.line_num}: more cells than the {len(header)} columns; put a text "
                        "that holds commas in quotes."
                    )
                # A CSV file does not tell an empty cell from no cell.
                yield reader.line_num, {name: value or None for name, value in row.items()}
        except csv.Error as error:
            # The reader's own count is at the end of the file by now if a quote was left open.
            raise DataError(
                f"{path}, line {reader.line_num + 1}: not valid CSV ({error}); check its quotes."
            ) from error


def _read_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pa.ArrowException as error:
        raise DataError(f"{path}: not a readable Parquet file ({error}); write it again.") from error


def _check_files(path: Path) -> tuple[list[str], int]:
    """The names of all columns in their order, and the number of rows; every row's picture is there."""
    # Strings, because a `Path` a row would take most of the time of a long file.
    listings: dict[str, set[str]] = {}
    present: dict[str, None] = {}
    missing: list[tuple[int, str]] = []
    num_rows = 0
    for number, row in read_rows(path):
        num_rows += 1
        present |= dict.fromkeys(row)
        name = _file_name(path, number, row)
        folder, base = posixpath.split(name)
        if folder not in listings:
            # One listing a folder is far cheaper than asking for each file.
            below = path.parent / folder
            listings[folder] = {entry.name for entry in below.iterdir()} if below.is_dir() else set()
        if base not in listings[folder]:
            missing.append((number, name))
    if missing:
        number, name = missing[0]
        more = f" ({len(missing) - 1} more lines name missing files)" if len(missing) > 1 else ""
        raise DataError(
            f"{path}, line {number}: the picture {path.parent / name} does not exist; add it or delete the line{more}."
        )
    if num_rows == 0:
        raise DataError(f"{path}: holds no rows; {_WHAT_TO_WRITE}")
    return list(present), num_rows


def _file_name(path: Path, number: int, row: dict[str, Any]) -> str:
    """The row's file name as a clean relative path with forward slashes."""
    given = row.get("file_name")
    if not isinstance(given, str) or not given.strip():
        problem = "there is no 'file_name'" if given is None else f"'file_name' is {given!r}"
        raise DataError(f"{path}, line {number}: {problem}; write the name of the picture's file.")
    name = _normal_name(given)
    if posixpath.isabs(name) or name.split("/")[0] == ".." or "://" in given or re.match(r"[A-Za-z]:", given):
        raise DataError(
            f"{path}, line {number}: 'file_name' {given!r} leads outside the folder; put the picture inside."
        )
    return name


def _normal_name(given: str) -> str:
    return posixpath.normpath(given.replace("\\", "/"))


def _check_rows(path: Path, columns: ColumnNames, others: list[str]):
    """The Arrow schema of the further columns; ids are unique, texts and labels are of a kind that can be read."""
    import pyarrow as pa

    folder = str(path.parent)
    lines: dict[str, int] = {}
    schemas = []
    rows = read_rows(path)
    while piece := list(islice(rows, _PIECE)):
        for number, row in piece:
            try:
                uniform = _uniform_row(folder, row, columns, only_own=True)
            except DataError as error:
                raise DataError(f"{path}, line {number}: {error}") from error
            first = lines.setdefault(uniform["id"], number)
            if first != number:
                what = f"the column {columns.id!r}" if columns.id else "'file_name' (or add a column 'id')"
                raise DataError(
                    f"{path}: lines {first} and {number} have the same id {uniform['id']!r}; make {what} unique."
                )
        fields = []
        for name in others:
            try:
                kind = pa.array([row.get(name) for _, row in piece]).type
            except (pa.ArrowException, OverflowError) as error:
                raise DataError(_mixed(path, name, piece[0][0], piece[-1][0], error)) from error
            fields.append(pa.field(columns.kept_as(name), kind))
        try:
            schemas = [pa.unify_schemas([*schemas, pa.schema(fields)], promote_options="permissive")]
        except pa.ArrowException as error:
            raise DataError(_mixed(path, ", ".join(others), 1, piece[-1][0], error)) from error
    return schemas[0]


def _mixed(path: Path, name: str, first: int, last: int, error: Exception) -> str:
    reason = str(error).splitlines()[0]
    return f"{path}, lines {first} to {last}: the column {name!r} mixes kinds of values ({reason}); write one kind."


def _uniform_row(folder: str, row: dict[str, Any], columns: ColumnNames, only_own: bool = False) -> dict[str, Any]:
    """A metadata row with the uniform columns, and the further ones under their kept names unless `only_own`."""
    name = _normal_name(row["file_name"])
    given = row.get(columns.id) if columns.id else None
    uniform = {
        "id": name if given is None or given == "" else str(given),
        "image": posixpath.join(folder, name),
        "text": text_of(row.get(columns.text)),
    }
    if columns.labels is not None:
        uniform["labels"] = labels_of(row.get(columns.labels))
    if not only_own:
        uniform |= {columns.kept_as(key): value for key, value in row.items() if key not in columns.chosen}
    return uniform
