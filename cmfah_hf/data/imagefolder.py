"""A folder of pictures beside a metadata file: checked line by line, read, and written.

The convention is that of `datasets`' own `imagefolder`. Its builder is not used here, because it loses what people
have: it knows only splits named train, validation and test, refuses splits whose columns differ, and guesses types, so
that the id `007` becomes 7, the tags `2019` a number or a date, and the tag `null` nothing at all. The rows read here
become a `Dataset` through `from_generator`, so they are cached on disk, memory-mapped, and stream the same way.
"""

import json
import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from cmfah_hf.atomic import atomic_folder
from cmfah_hf.data.columns import ColumnNames, find_columns, labels_of, text_of
from cmfah_hf.data.data_root import DataRoot, LocalFiles, refuse_links_outside
from cmfah_hf.data.dataset_card import SPLIT_NAME
from cmfah_hf.data.file_state import digest_of, file_states
from cmfah_hf.data.metadata_rows import read_rows, shown_name
from cmfah_hf.errors import DataError

METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
SPLIT_FOLDERS = ("train", "query", "database", "validation", "test")

_WHAT_TO_WRITE = (
    'write a metadata.jsonl beside the pictures, one line a picture, such as {"file_name": "im1.jpg", '
    '"text": "dog beach", "labels": ["dog"]}.'
)
# Type inference works in pieces of this many rows, so that a long metadata file is never held whole.
_PIECE = 10_000
# Characters of a file name without its ending; a name has at most 255 bytes.
_LONGEST_STEM = 60
# A stream is cut into this many ranges at most, which is how many workers of a DataLoader can share it.
MAX_SHARDS = 16


@dataclass(frozen=True)
class CheckedMetadata:
    """The result of checking one metadata file: all that reading it needs.

    Args:
        path: The metadata file.
        columns: Which of its columns is what.
        features: Of the rows.
        num_rows: How many there are.
        version: Names the state of this file and of all images.
        spellings: File names whose form in Unicode is another on the disk, with that form.
    """

    path: Path
    columns: ColumnNames
    features: Any
    num_rows: int
    version: str
    spellings: tuple[tuple[str, str], ...] = ()


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
    path: Path,
    text: str | None = None,
    labels: str | None = None,
    id: str | bool | None = None,
    root: DataRoot | None = None,
) -> CheckedMetadata:
    """Check every row of a metadata file by names alone, before any picture is opened.

    Args:
        path: The `metadata.jsonl`, `.csv` or `.parquet`.
        text: The column of texts; found by its usual names if not given.
        labels: The column of labels, likewise.
        id: The column of ids, likewise; `False` ignores a column `id`.
        root: Where images may lie, links followed; the folder of the metadata file if not given.

    Raises:
        DataError: For the first row that cannot be read, names no image, names one outside the root or one that is
            not there, or has the id of an earlier row. The message holds the file and the line.
    """
    import datasets

    root = root or DataRoot.of_folder(path.parent)
    refuse_links_outside(Path(root.folders[0]), [path])
    present, num_rows, images, spellings = _check_files(path, root)
    version = digest_of(file_states([path, *images]))
    columns = find_columns(present, str(path), image="file_name", text=text, labels=labels, id=id)
    others = [name for name in present if name not in columns.chosen]
    types = _check_rows(path, columns, others)
    features = {"id": datasets.Value("string"), "image": datasets.Image(), "text": datasets.Value("string")}
    if columns.labels is not None:
        features["labels"] = datasets.List(datasets.Value("string"))
    if others:
        features |= datasets.Features.from_arrow_schema(types)
    return CheckedMetadata(path, columns, datasets.Features(features), num_rows, version, tuple(spellings.items()))


def load_checked(metadata: CheckedMetadata, split: str, streaming: bool = False, **kwargs: Any):
    """The rows of a checked metadata file as a `Dataset` or `IterableDataset`, with `kwargs` for `from_generator`."""
    import datasets

    num_ranges = min(MAX_SHARDS, metadata.num_rows) if streaming else 1
    bounds = [metadata.num_rows * i // num_ranges for i in range(num_ranges + 1)]
    gen_kwargs = {
        "path": str(metadata.path.absolute()),
        "columns": metadata.columns,
        # The cache knows a data set, and what is computed of it, by these arguments: a changed file, metadata or an
        # image, has to change them.
        "version": metadata.version,
        "spellings": metadata.spellings,
        "ranges": list(pairwise(bounds)),
    }
    kind = datasets.IterableDataset if streaming else datasets.Dataset
    extra = {} if streaming else kwargs
    return kind.from_generator(
        generate_rows, features=metadata.features, gen_kwargs=gen_kwargs, split=datasets.NamedSplit(split), **extra
    )


def generate_rows(
    path: str,
    columns: ColumnNames,
    version: str,
    spellings: tuple[tuple[str, str], ...],
    ranges: list[tuple[int, int]],
) -> Iterator[dict[str, Any]]:
    """The uniform rows in `ranges` (start, stop) of a metadata file. `version` only tells one state from another."""
    folder, spelled = str(Path(path).parent), dict(spellings)
    for start, stop in ranges:
        for _, row in islice(read_rows(Path(path)), start, stop):
            yield _uniform_row(folder, row, columns, spelled)


def write_imagefolder(dataset, folder: str | os.PathLike) -> Path:
    """Write a data set with the uniform columns as an imagefolder: PNG files and a `metadata.jsonl`.

    Pictures that are PNG files already are copied byte for byte, all others are decoded and saved as PNG, without loss
    for every mode that PNG knows and as RGB for the others. All further columns go into the metadata.

    Args:
        dataset: A `Dataset` or `IterableDataset` (written flat), or a dictionary of them (a subfolder a split).
        folder: Where to write; created if needed. It appears whole or not at all.

    Returns:
        The folder.

    Raises:
        DataError: If the folder holds anything already, it cannot be written, or a value cannot be written as JSON.
        ImageError: If a picture cannot be read.
    """
    folder = Path(folder)
    if folder.is_dir() and (present := next(folder.iterdir(), None)) is not None:
        raise DataError(f"{present}: exists already; choose another folder or remove it.")
    parts = dataset if isinstance(dataset, dict) else {"": dataset}
    for name in filter(None, parts):
        if SPLIT_NAME.fullmatch(name) is None:
            raise DataError(f"{name!r} cannot be a split's name (letters, digits and '_'); rename it.")
    with atomic_folder(folder, DataError) as whole:
        for name, part in parts.items():
            _write_split(part, whole / name)
    return folder


def _write_split(dataset, folder: Path) -> None:
    from cmfah_hf.data.images import decoding_off

    folder.mkdir(exist_ok=True)
    taken: set[str] = set()
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as lines:
        for row, example in enumerate(decoding_off(dataset)):
            where = f"row {row} ({example['id']})"
            content = _png_bytes(example.pop("image"), name=where)
            stem = re.sub(r"[^\w-]+", "_", example["id"])[:_LONGEST_STEM] or "image"
            name = f"{stem}.png" if stem.lower() not in taken else f"{stem}-{row:06d}.png"
            taken.add(name[: -len(".png")].lower())
            (folder / name).write_bytes(content)
            try:
                lines.write(json.dumps({"file_name": name, **example}, ensure_ascii=False) + "\n")
            except (TypeError, UnicodeEncodeError) as error:  # dates, bytes; half of a surrogate pair
                raise DataError(f"{where}: a value cannot be written as JSON ({error}); leave it out.") from error


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


def _check_files(path: Path, root: DataRoot) -> tuple[list[str], int, list[str], dict[str, str]]:
    """The names of all columns in their order, the number of rows, every row's image, and spellings on the disk."""
    # Strings, because a `Path` a row would take most of the time of a long file.
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
        raise DataError(f"{path}: holds no rows; {_WHAT_TO_WRITE}")
    return list(present), num_rows, images, spellings


def _file_name(path: Path, number: int, row: dict[str, Any]) -> str:
    """The row's file name as a clean relative path with forward slashes."""
    given = row.get("file_name")
    if not isinstance(given, str) or not given.strip():
        problem = "there is no 'file_name'" if given is None else f"'file_name' is {given!r}"
        raise DataError(f"{path}, line {number}: {problem}; write the name of the picture's file.")
    if "\0" in given:
        raise DataError(f"{path}, line {number}: 'file_name' {shown_name(given)!r} names no file; correct it.")
    name = _normal_name(given)
    if posixpath.isabs(name) or name.split("/")[0] == ".." or "://" in given or re.match(r"[A-Za-z]:", given):
        raise DataError(
            f"{path}, line {number}: 'file_name' {shown_name(given)!r} leads outside the folder; put the image inside."
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
                uniform = _uniform_row(folder, row, columns, {}, only_own=True)
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


def _uniform_row(
    folder: str, row: dict[str, Any], columns: ColumnNames, spelled: Mapping[str, str], only_own: bool = False
) -> dict[str, Any]:
    """A metadata row with the uniform columns, and the further ones under their kept names unless `only_own`."""
    name = _normal_name(row["file_name"])
    given = row.get(columns.id) if columns.id else None
    uniform = {
        "id": name if given is None or given == "" else str(given),
        "image": posixpath.join(folder, spelled.get(name, name)),
        "text": text_of(row.get(columns.text)),
    }
    if columns.labels is not None:
        uniform["labels"] = labels_of(row.get(columns.labels))
    if not only_own:
        uniform |= {columns.kept_as(key): value for key, value in row.items() if key not in columns.chosen}
    return uniform
