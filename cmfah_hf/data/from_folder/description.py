"""The description of an image from one source: captions, keywords, labels, a date."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from cmfah_hf.data.rows.columns import LABELS_NAMES, captions_of, labels_of
from cmfah_hf.errors import DataError

_DATE = re.compile(r"(\d{4})[:-](\d\d)[:-](\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d))?)?")
# Descriptions that cameras and telephones write into every image.
_OF_CAMERAS = re.compile(
    r"(?:olympus|minolta|konica minolta|kodak|samsung|nikon|sanyo)? ?(?:digital (?:still )?camera|camera pictures)"
    r"|sony dsc|dsc|dcim\\.*|default|untitled|hdr|hdrpl|cof|edf|ptr|btf|rptnb|rhdr",
    re.IGNORECASE,
)
_CAPTIONS = ("text", "caption", "captions", "description", "prompt", "alt", "sentences", "title")
_KEYWORDS = ("keywords", "tags")
_DATES = ("date", "datetime", "date_taken", "taken_at")
# The document that Google Takeout writes next to each photo.
_TAKEOUT_TIME = "photoTakenTime"


@dataclass(frozen=True)
class Description:
    """The description of an image from one source; parts that it lacks are empty.

    Attributes:
        captions: Texts, each of which describes the whole image.
        keywords: Tags.
        labels: Class names.
        date: When it was taken, such as `2023-05-01T12:30:00` or `2023-05-01`.
    """

    captions: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    date: str | None = None


def cleaned(texts: Iterable[str | None]) -> tuple[str, ...]:
    """Texts on one line each, without empty and repeated ones."""
    return tuple(
        dict.fromkeys(text for given in texts if given and (text := " ".join(given.replace("\0", " ").split())))
    )


def is_of_camera(text: str, file_name: str) -> bool:
    """Whether a description is none: the standard text of a camera, or the name of the file."""
    stem = file_name.rpartition(".")[0] or file_name
    return text.strip().casefold() in (file_name.casefold(), stem.casefold()) or bool(
        _OF_CAMERAS.fullmatch(text.strip())
    )


def as_date(value: Any) -> str | None:
    """The date and time, as ISO 8601 without a time zone, at the start of a text; `None` if there is no valid one.

    >>> as_date("2023:05:01 12:30:00"), as_date("2023-05-01"), as_date("0000:00:00 00:00:00")
    ('2023-05-01T12:30:00', '2023-05-01', None)
    """
    match = _DATE.match(str(value).strip()) if value else None
    if match is None:
        return None
    try:
        year, month, day, hour, minute, second = (int(part or 0) for part in match.groups())
        found = datetime(year, month, day, hour, minute, second)
    except ValueError:
        return None
    return found.isoformat() if match[4] else found.date().isoformat()


def of_document(document: Mapping[str, Any], file_name: str) -> Description:
    """The description in a JSON document: of Google Takeout, or with the usual names of captions and labels."""
    by_name = {name.lower(): value for name, value in reversed(list(document.items()))}
    captions = next((texts for name in _CAPTIONS if (texts := _texts(by_name.get(name)))), ())
    captions = tuple(text for text in captions if not is_of_camera(text, file_name))
    keywords = [part for name in _KEYWORDS for part in _list(by_name.get(name))]
    labels = next((classes for name in LABELS_NAMES if (classes := labels_of(by_name.get(name)))), [])
    date = next((found for name in _DATES if (found := as_date(by_name.get(name)))), None)
    if _TAKEOUT_TIME in document:
        date = _takeout_date(document[_TAKEOUT_TIME])
    return Description(captions, cleaned(keywords), tuple(labels), date)


def _texts(value: Any) -> tuple[str, ...]:
    return cleaned(captions_of(value))


def _list(value: Any) -> list[str]:
    """Keywords from a list, or from a text with commas or semicolons."""
    if isinstance(value, str):
        return re.split(r"[,;]", value)
    if isinstance(value, list):
        return [str(part) for part in value if isinstance(part, str | int | float)]
    if value is None:
        return []
    raise DataError(f"keywords must be a list or a text, not a {type(value).__name__}.")


def _takeout_date(value: Any) -> str | None:
    """The time of the document of Google Takeout, in UTC."""
    try:
        seconds = int(value["timestamp"])
        return datetime.fromtimestamp(seconds, timezone.utc).replace(tzinfo=None).isoformat()
    except (TypeError, KeyError, ValueError, OverflowError, OSError):
        return None
