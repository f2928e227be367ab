"""The further columns of a table: those that are neither the image, its text nor its labels."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cmfah_hf.data.rows.columns import ID_NAMES, UNIFORM_COLUMNS
from cmfah_hf.data.sources.metadata_rows import shown_name
from cmfah_hf.errors import DataError

# Columns of the metadata that have a meaning of their own.
_TAKEN = frozenset({"file_name", *UNIFORM_COLUMNS, *ID_NAMES})
# Numbers as tables write them. With a zero in front, as in `007`, or with more digits than fit, they are names.
_WHOLE = re.compile(r"[+-]?(0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"[+-]?((0|[1-9][0-9]{0,14})(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
OTHER_VALUES, LISTS = "table rows with other values for an image", "table columns of lists or objects"


@dataclass
class FurtherColumns:
    """Columns to keep next to text and labels.

    Attributes:
        names: Their names in the metadata by their names in the table.
        by_image: The values of each image with a row; each has all columns, `None` without a value.
        problems: The numbers of problems by kind: of rows whose value differs from that of an earlier row of the image,
            and of columns that metadata does not hold.
    """

    names: dict[str, str] = field(default_factory=dict)
    by_image: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: Counter[str] = field(default_factory=Counter)


def further_columns(
    path: Path, present: Sequence[str], used: Iterable[str | None], rows: Iterable[tuple[str, Mapping[str, Any]]]
) -> FurtherColumns:
    """The columns of a table that have no other use. Of several rows of an image, the first value counts.

    A column is of whole numbers, or of numbers, if all its values are; else of truth values, or of texts.

    Args:
        path: The table, for errors.
        present: The names of its columns.
        used: Those of the image, the text and the labels.
        rows: The names of images, and their rows.
    """
    others = [name for name in present if name not in set(used)]
    found = FurtherColumns(_kept_names(path, others))
    given: dict[str, dict[str, Any]] = {name: {} for name in others}
    images: dict[str, None] = {}
    for image, row in rows:
        images[image] = None
        differs = False
        for name in others:
            value = _value(row.get(name))
            if value is not None:
                differs |= given[name].setdefault(image, value) != value
        found.problems[OTHER_VALUES] += differs
    for name, values in given.items():
        if any(isinstance(value, list | dict) for value in values.values()):
            del found.names[name]
            found.problems[LISTS] += 1
            continue
        read = dict(zip(values, of_one_kind(list(values.values())), strict=True))
        for image in images:
            found.by_image.setdefault(image, {})[found.names[name]] = read.get(image)
    return found


def _kept_names(path: Path, names: Sequence[str]) -> dict[str, str]:
    """The names of columns in the metadata: `original_id` for `id` and the like, `column_3` for one without a name."""
    kept: dict[str, str] = {}
    for number, name in enumerate(names, 1):
        new = f"original_{name}" if name.lower() in _TAKEN else name or f"column_{number}"
        if new in kept.values() or (new != name and new in names):
            raise DataError(f"{path}: the columns {shown_name(name)!r} and {shown_name(new)!r} collide; rename one.")
        kept[name] = new
    return kept


def _value(value: Any) -> Any:
    if isinstance(value, str):
        return value.strip() or None
    return None if isinstance(value, float) and not math.isfinite(value) else value


def of_one_kind(values: Sequence[str | int | float | bool]) -> list[Any]:
    """Values as numbers if all are, also written ones; as truth values if all are; else as texts.

    >>> of_one_kind(["1999", "2004"]), of_one_kind(["1", "2.5"]), of_one_kind(["007", "1"]), of_one_kind([True, 3])
    ([1999, 2004], [1.0, 2.5], ['007', '1'], ['True', '3'])
    """
    if all(isinstance(value, bool) for value in values):
        return list(values)
    texts = [str(value) for value in values]
    if not any(isinstance(value, bool) for value in values):
        if all(_WHOLE.fullmatch(text) for text in texts):
            return [int(text) for text in texts]
        if all(_NUMBER.fullmatch(text) and math.isfinite(float(text)) for text in texts):
            return [float(text) for text in texts]
    return texts
