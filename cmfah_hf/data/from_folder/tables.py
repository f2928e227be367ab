"""Tables that describe the images of a folder: CSV, TSV, JSON and JSON Lines, with columns of any names."""

import csv
import io
import json
import os
import posixpath
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cmfah_hf.data.from_folder.description import Description, cleaned
from cmfah_hf.data.from_folder.sidecars import decoded
from cmfah_hf.data.from_folder.table_columns import FurtherColumns, further_columns
from cmfah_hf.data.rows.columns import LABELS_NAMES, TEXT_NAMES, captions_of, labels_of
from cmfah_hf.data.sources.metadata_rows import shown_name
from cmfah_hf.documents import parse_json, read_bytes
from cmfah_hf.errors import DataError

_IMAGE_NAMES = (
    "file_name", "filename", "file", "image", "image_name", "image_path", "image_file", "path", "img", "photo", "name",
    "id",
)  # fmt: skip
_MOST_BYTES = 2**30
_DELIMITERS = ",;\t|"


@dataclass(frozen=True)
class TableRequest:
    """A table, and the names of its columns; `None`: usual names."""

    path: Path
    image: str | None = None
    text: str | None = None
    labels: str | None = None


@dataclass
class TableRows:
    """The descriptions of a table by image.

    Attributes:
        by_image: Descriptions by the image's name below the folder.
        without_image: Rows whose image is not in the folder.
        ambiguous: Rows whose name fits several images.
        named: The first of those rows.
        further: The columns besides image, text and labels.
    """

    by_image: dict[str, Description] = field(default_factory=dict)
    without_image: int = 0
    ambiguous: int = 0
    named: list[str] = field(default_factory=list)
    further: FurtherColumns = field(default_factory=FurtherColumns)


def read_table(request: TableRequest, images: Sequence[str]) -> TableRows:
    """The descriptions of a table for the images of a folder.

    An image is named by its path, or the end of it, with or without its ending. Several rows of an image are several
    captions. All further columns are kept.

    Args:
        request: The table.
        images: The names of the images below their folder, with forward slashes.

    Raises:
        DataError: If the table cannot be read or lacks a column; it names those that are there.
    """
    path = request.path
    rows = _read_rows(path)
    present = list(dict.fromkeys(name for row in rows for name in row))
    image = _column(path, present, "image", request.image, _IMAGE_NAMES)
    text = _column(path, present, "text", request.text, TEXT_NAMES, is_needed=False)
    labels = _column(path, present, "label", request.labels, LABELS_NAMES, is_needed=False)
    if text is None and labels is None:
        raise _missing(path, present, "text", TEXT_NAMES)
    names = _Names(images)
    found = TableRows()
    captions: dict[str, list[str]] = {}
    classes: dict[str, list[str]] = {}
    placed: list[tuple[str, dict[str, Any]]] = []
    for number, row in enumerate(rows, 1):
        try:
            own_captions = captions_of(row.get(text)) if text else []
            own_labels = labels_of(row.get(labels)) if labels else []
        except DataError as error:
            raise DataError(f"{path}, row {number}: {error}") from error
        places = names.find(str(row.get(str(image)) or ""))
        if len(places) == 1:
            captions.setdefault(places[0], []).extend(own_captions)
            classes.setdefault(places[0], []).extend(own_labels)
            placed.append((places[0], row))
            continue
        found.ambiguous += len(places) > 1
        found.without_image += not places
        if len(found.named) < 20:
            problem = f"fits {len(places)} images" if places else "is no image of the folder"
            found.named.append(f"{path}, row {number}: the image {shown_name(str(row.get(str(image))))!r} {problem}.")
    for name, texts in captions.items():
        found.by_image[name] = Description(cleaned(texts), labels=tuple(dict.fromkeys(classes[name])))
    found.further = further_columns(path, present, (image, text, labels), placed)
    return found


def _column(
    path: Path, present: list[str], role: str, given: str | None, usual: Iterable[str], is_needed: bool = True
) -> str | None:
    if given is not None:
        if given not in present:
            raise DataError(f"{path}: there is no column {given!r} for the {role}; present are: {_shown(present)}.")
        return given
    by_lower_case = {name.lower(): name for name in reversed(present)}
    found = next((by_lower_case[name] for name in usual if name in by_lower_case), None)
    if found is None and is_needed:
        raise _missing(path, present, role, list(usual))
    return found


def _missing(path: Path, present: list[str], role: str, usual: Sequence[str]) -> DataError:
    examples = ", ".join(map(repr, usual[:4]))
    return DataError(
        f"{path}: no column looks like the {role} (such as {examples}); present are: {_shown(present)}. Name it with "
        f"--{role}-column."
    )


def _shown(present: list[str]) -> str:
    return shown_name(", ".join(present) or "none")


def _read_rows(path: Path) -> list[dict[str, Any]]:
    content = read_bytes(path, DataError, _MOST_BYTES)
    kind = path.suffix.lower()
    if kind not in (".csv", ".tsv", ".txt", ".json", ".jsonl"):
        raise DataError(f"{path}: is no table that is read; give .csv, .tsv, .json or .jsonl.")
    text = decoded(content)
    if kind == ".json":
        return _of_document(parse_json(text, str(path), DataError), path)
    if kind == ".jsonl":
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        return _objects([parse_json(line, f"{path}, line {number}", DataError) for number, line in lines], path)
    return _read_csv(text, path)


def _read_csv(text: str, path: Path) -> list[dict[str, Any]]:
    header = text.partition("\n")[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(_DELIMITERS, key=header.count)
    csv.field_size_limit(2**24)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
        names = reader.fieldnames or []
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{path}, line 1: two columns are named {shown_name(twice)!r}; rename one.")
        rows = []
        for row in reader:
            if None in row:
                raise DataError(
                    f"{path}, line {reader.line_num}: more cells than the {len(names)} columns; put a text with "
                    f"{delimiter!r} in quotes."
                )
            rows.append({name.strip(): value for name, value in row.items()})
    except csv.Error as error:
        raise DataError(f"{path}: not valid CSV ({error}); check its quotes.") from error
    return rows


def _of_document(document: Any, path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON document: a list of objects, captions or objects by image, or the form of COCO."""
    if isinstance(document, list):
        return _objects(document, path)
    if not isinstance(document, dict):
        raise DataError(f"{path}: is a {type(document).__name__}; write a list of objects, one for each image.")
    if isinstance(document.get("images"), list):
        return _of_coco(document, path)
    return [
        {"file_name": name, **value} if isinstance(value, dict) else {"file_name": name, "text": value}
        for name, value in document.items()
    ]


def _of_coco(document: Mapping[str, Any], path: Path) -> list[dict[str, Any]]:
    """Images, captions and categories that COCO's annotations join by their ids."""
    images = _objects(document["images"], path)
    annotations = document.get("annotations")
    if not isinstance(annotations, list):
        return images
    categories = {_key(own.get("id")): own.get("name") for own in _objects(document.get("categories") or [], path)}
    names = {_key(own.get("id")): own.get("file_name") for own in images}
    rows = []
    for own in _objects(annotations, path):
        row: dict[str, Any] = {"file_name": names.get(_key(own.get("image_id"))), "caption": own.get("caption")}
        if categories:
            row["labels"] = categories.get(_key(own.get("category_id")))
        rows.append(row)
    return rows


def _key(value: Any) -> str:
    return json.dumps(value)


def _objects(values: Any, path: Path) -> list[dict[str, Any]]:
    wrong = [own for own in values if not isinstance(own, dict)] if isinstance(values, list) else [values]
    if wrong:
        kind = type(wrong[0]).__name__
        raise DataError(f"{path}: holds a {kind} in the place of its rows; write a list of objects, one an image.")
    return values


class _Names:
    """Images by their names, as tables write them."""

    def __init__(self, images: Sequence[str]):
        self._paths = {_normal(name): name for name in images}
        self._by_base: dict[str, list[str]] = {}
        for name in images:
            base = _normal(posixpath.basename(name))
            for key in {base, posixpath.splitext(base)[0]}:
                self._by_base.setdefault(key, []).append(name)

    def find(self, given: str) -> list[str]:
        """The images that a table's name may mean: by its path or the end of it, else by its last part."""
        parts = _normal(given.strip()).split("/")
        for start in range(len(parts)):
            name = self._paths.get("/".join(parts[start:]))
            if name is not None:
                return [name]
        return self._by_base.get(parts[-1], []) if parts[-1] else []


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", os.fsencode(name).decode("utf-8", "replace")).replace("\\", "/")
