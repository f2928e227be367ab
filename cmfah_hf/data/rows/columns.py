"""Column detection and value normalization for the uniform columns `id`, `image`, `text` and `labels`."""

import ast
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cmfah_hf.errors import DataError

# In order of preference; compared without regard to case.
IMAGE_NAMES = ("image", "img", "picture", "photo", "photograph", "jpg", "jpeg", "png", "webp", "image_path", "url")
TEXT_NAMES = ("text", "caption", "captions", "tags", "description", "sentence", "sentences", "keywords", "title", "txt")
LABELS_NAMES = ("labels", "label", "category", "categories", "classes", "class", "concepts")
ID_NAMES = ("id", "__key__")

UNIFORM_COLUMNS = ("id", "image", "text", "labels")

_LABEL_SEPARATORS = re.compile(r"[|;,]")


@dataclass(frozen=True)
class ColumnNames:
    """The source's own names of the uniform columns; `None` where it has no such column."""

    image: str | None
    text: str
    labels: str | None
    id: str | None

    def kept_as(self, column: str) -> str:
        """The name under which a further column is kept: its own, or `original_...` if a uniform column has it."""
        return f"original_{column}" if column in UNIFORM_COLUMNS else column

    @property
    def chosen(self) -> tuple[str, ...]:
        return tuple(name for name in (self.id, self.image, self.text, self.labels) if name is not None)


@dataclass(frozen=True)
class RequestedColumns:
    """The names that a caller gave for the uniform columns; `None`: usual names; `id=False`: no column is the id."""

    image: str | None = None
    text: str | None = None
    labels: str | None = None
    id: str | bool | None = None


USUAL_NAMES = RequestedColumns()


def find_columns(
    present: Iterable[str],
    source: str,
    requested: RequestedColumns = USUAL_NAMES,
    image_columns: Sequence[str] = (),
    image_needed: bool = True,
) -> ColumnNames:
    """Finds the uniform columns among those present, by the names requested or by the usual ones.

    If no usual name fits and there is just one of `image_columns`, it is the image. `source` names the data in errors.
    """
    present = list(present)
    listing = ", ".join(present) or "none"

    def find(role: str, given: str | bool | None, usual: Sequence[str]) -> str | None:
        if given is not None:
            if not isinstance(given, str) or given not in present:
                raise DataError(f"{source}: there is no column {given!r} for the {role}; present are: {listing}.")
            return given
        by_lower_case = {name.lower(): name for name in reversed(present)}
        return next((by_lower_case[name] for name in usual if name in by_lower_case), None)

    def missing(role: str, usual: Sequence[str]) -> DataError:
        return DataError(
            f"{source}: no column looks like the {role} (such as {', '.join(map(repr, usual[:4]))}); present are: "
            f"{listing}. Name it with {role}_column=."
        )

    image = find("image", requested.image, IMAGE_NAMES)
    if image is None and len(image_columns) == 1:
        image = image_columns[0]
    text = find("text", requested.text, TEXT_NAMES)
    if image is None and image_needed:
        raise missing("image", IMAGE_NAMES)
    if text is None:
        raise missing("text", TEXT_NAMES)
    return ColumnNames(
        image=image,
        text=text,
        labels=find("labels", requested.labels, LABELS_NAMES),
        id=None if requested.id is False else find("id", requested.id, ID_NAMES),
    )


def text_of(value: Any) -> str:
    """A text as one string: a list of tags or sentences is joined with spaces, a missing text is the empty string.

    >>> text_of(["beach", "sunset"]), text_of(None)
    ('beach sunset', '')
    """
    if _is_missing(value):
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return " ".join(part for part in map(text_of, value) if part)
    if isinstance(value, int | float):
        return str(value)
    raise DataError(f"a text must be a string or a list of strings, not a {type(value).__name__}.")


def labels_of(value: Any, class_names: Sequence[str] | None = None) -> list[str]:
    """Labels as a list of names without repetition, in their order.

    A string may hold several names, separated by `|`, `;` or `,`, or a list as text (`["car", "tree"]`), because CSV
    has no lists. The strings of a list are taken as names unchanged. A number is looked up in `class_names` (a negative
    one means "none"); without class names it is its own name.

    >>> labels_of("car|tree"), labels_of([1], ["cat", "dog"]), labels_of(None)
    (['car', 'tree'], ['dog'], [])
    """
    if isinstance(value, str):
        value = _written_list(value) or _LABEL_SEPARATORS.split(value)
    elif not isinstance(value, list | tuple):
        value = [value]
    names = []
    for item in value:
        if isinstance(item, list | tuple | dict):
            raise DataError(f"labels must be names, not a {type(item).__name__}; write a flat list of names.")
        if _is_missing(item):
            continue
        if class_names is not None and isinstance(item, int):
            if item >= len(class_names):
                raise DataError(f"label {item} is out of range: there are {len(class_names)} class names.")
            item = class_names[item] if item >= 0 else ""
        names.append(str(item).strip())
    return [name for name in dict.fromkeys(names) if name]


def _written_list(text: str) -> list[Any] | None:
    """The list in a string such as `["car", "tree"]` (JSON) or `['car', 'tree']` (Python); `None` if it is none."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            # `[None]` is truthy and adds no name, so an empty list still counts as a list.
            return list(parse(text)) or [None]
        except (ValueError, SyntaxError):
            continue
    return None


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)
