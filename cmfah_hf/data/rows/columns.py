"""Column detection and value normalization for the uniform columns `id`, `image`, `text`, `captions` and `labels`."""

import ast
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from cmfah_hf.errors import DataError

# In order of preference; compared without regard to case.
IMAGE_NAMES = ("image", "img", "picture", "photo", "photograph", "jpg", "jpeg", "png", "webp", "image_path", "url")
TEXT_NAMES = ("text", "caption", "captions", "tags", "description", "sentence", "sentences", "keywords", "title", "txt")
LABELS_NAMES = ("labels", "label", "category", "categories", "classes", "class", "concepts")
ID_NAMES = ("id", "__key__")

# Features of images and of texts, a list of numbers a row; those of images take the place of the images.
FEATURES = IMAGE_FEATURES, TEXT_FEATURES = "image_features", "text_features"

UNIFORM_COLUMNS = ("id", "image", "text", "captions", "labels")
# Of a text column of lists: whether they are several captions of an image, or one text.
CAPTIONS = ("auto", "several", "joined")
# Usual names of columns whose lists are tags, even if tags have several words.
_TAG_NAMES = ("tags", "keywords")
# Rows of a source that decide what its lists are.
_SAMPLED_ROWS = 20
_WORDS_OF_SENTENCE = 3

_LABEL_SEPARATORS = re.compile(r"[|;,]")


@dataclass(frozen=True)
class ColumnNames:
    """The source's own names of the uniform columns; `None` where it has no such column."""

    image: str | None
    text: str
    labels: str | None
    id: str | None
    captions: str | None = None

    def kept_as(self, column: str) -> str:
        """The name under which a further column is kept: its own, or `original_...` if a uniform column has it."""
        return f"original_{column}" if column in UNIFORM_COLUMNS else column

    @property
    def chosen(self) -> tuple[str, ...]:
        names = (self.id, self.image, self.text, self.captions, self.labels)
        return tuple(dict.fromkeys(name for name in names if name is not None))


@dataclass(frozen=True)
class RequestedColumns:
    """The names that a caller gave for the uniform columns; `None`: usual names; `id=False`: no column is the id.

    `captions` is one of `CAPTIONS`.
    """

    image: str | None = None
    text: str | None = None
    labels: str | None = None
    id: str | bool | None = None
    captions: str = "auto"

    def __post_init__(self) -> None:
        if self.captions not in CAPTIONS:
            raise DataError(f"captions cannot be {self.captions!r}; give one of {', '.join(CAPTIONS)}.")


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


def with_captions(
    columns: ColumnNames,
    present: Iterable[str],
    requested: RequestedColumns,
    sample: Callable[[list[str]], Iterable[Mapping[str, Any]]],
) -> ColumnNames:
    """The columns with that of the captions, if images have several.

    It is the text column if its lists hold sentences (`are_captions`), or a column `captions` next to a text that joins
    it, as data sets of this package have it.

    Args:
        columns: The columns found.
        present: All columns of the source.
        requested: `captions="several"` takes the text column in any case, `"joined"` takes no column.
        sample: A function from names of columns to rows with them, of which the first 20 are read.
    """
    if requested.captions == "joined":
        return columns
    if requested.captions == "several":
        return replace(columns, captions=columns.text)
    beside = [name for name in present if name == "captions" != columns.text]
    rows = list(islice(sample([columns.text, *beside]), _SAMPLED_ROWS))
    if columns.text.lower() not in _TAG_NAMES and are_captions(row.get(columns.text) for row in rows):
        return replace(columns, captions=columns.text)
    if beside and all(_joins(row.get(columns.text), row.get("captions")) for row in rows):
        return replace(columns, captions="captions")
    return columns


def _joins(text: Any, captions: Any) -> bool:
    return isinstance(captions, list | tuple) and text == text_of(captions)


def are_captions(values: Iterable[Any]) -> bool:
    """Whether lists are several captions each, and not tags: most of their elements have at least three words.

    >>> are_captions([["a dog runs", "the brown dog"]]), are_captions([["golden gate", "bridge"]])
    (True, False)
    """
    lists = [value for value in values if isinstance(value, list | tuple)]
    lengths = [len(text_of(element).split()) for value in lists for element in value]
    sentences = sum(length >= _WORDS_OF_SENTENCE for length in lengths)
    return any(len(value) > 1 for value in lists) and 2 * sentences > len(lengths)


def captions_of(value: Any) -> list[str]:
    """The captions of an image as a list: without empty ones, and a single text as one caption.

    >>> captions_of(["a dog", None, "the beach"]), captions_of("a dog"), captions_of(None)
    (['a dog', 'the beach'], ['a dog'], [])
    """
    return [text for text in map(text_of, value if isinstance(value, list | tuple) else [value]) if text]


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
