"""Sidecars: files next to an image with its name that describe it (`.txt`, `.json`, `.xmp`)."""

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from cmfah_hf.data.from_folder.description import Description, cleaned, of_document
from cmfah_hf.data.from_folder.xmp import parse_xmp
from cmfah_hf.documents import parse_json, read_bytes
from cmfah_hf.errors import DataError

_TEXT_ENDINGS = (".txt", ".caption")
ENDINGS = (*_TEXT_ENDINGS, ".json", ".xmp")
_MOST_BYTES = 2**20
# Google Takeout: `a.jpg.json`, `a.jpg.supplemental-metadata.json` (also cut short), and of `a(1).jpg` either
# `a.jpg(1).json` or `a.jpg.supplemental-metadata(1).json`.
_TAKEOUT = re.compile(r"(?P<stem>.+)(?P<ending>\.\w{2,5}?)(?:\.(?P<word>s[a-z-]*))?(?P<number>\(\d+\))?\.json")
_TAKEOUT_WORD = "supplemental-metadata"
_EDITED = "-edited"
# Encodings of text files by their first bytes.
_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}


class Sidecar(NamedTuple):
    """A sidecar of an image and its kind: `txt`, `json` or `xmp`."""

    path: Path
    kind: str


class Sidecars:
    """Finds the sidecars of images, without regard to case.

    Attributes:
        used: The numbers of different sidecars that belong to an image, by ending.
    """

    def __init__(self) -> None:
        self.used: Counter[str] = Counter()
        self._seen: set[Path] = set()
        self._folders: dict[Path, dict[str, str]] = {}

    def of(self, image: Path) -> list[Sidecar]:
        """The sidecars of an image, in the order in which they count."""
        listing = self._listing(image.parent)
        names = [image.name.lower(), image.stem.lower()]
        if image.stem.lower().endswith(_EDITED):
            original = image.stem.lower().removesuffix(_EDITED)
            names += [original + image.suffix.lower(), original]
        found = []
        for ending in ENDINGS:
            name = next((listing[name + ending] for name in names if name + ending in listing), None)
            if name is not None:
                path = image.parent / name
                found.append(Sidecar(path, "txt" if ending in _TEXT_ENDINGS else ending[1:]))
                if path not in self._seen:
                    self._seen.add(path)
                    self.used[path.suffix.lower()] += 1
        return found

    def _listing(self, folder: Path) -> dict[str, str]:
        """The names of sidecars in a folder by the lower-case names under which they are searched."""
        if folder not in self._folders:
            try:
                names = sorted(path.name for path in folder.iterdir() if path.name.lower().endswith(ENDINGS))
            except OSError:  # reported as a folder that cannot be read
                names = []
            listing: dict[str, str] = {}
            for name in names:
                match = _TAKEOUT.fullmatch(name.lower())
                if match and _TAKEOUT_WORD.startswith(match["word"] or _TAKEOUT_WORD):
                    listing.setdefault(f"{match['stem']}{match['number'] or ''}{match['ending']}.json", name)
            self._folders[folder] = listing | {name.lower(): name for name in names}
        return self._folders[folder]


def read_sidecar(sidecar: Sidecar, image: Path) -> Description:
    """The description in a sidecar. Raises a `DataError` if it cannot be read."""
    content = read_bytes(sidecar.path, DataError, _MOST_BYTES)
    if sidecar.kind == "xmp":
        return parse_xmp(content, str(sidecar.path), image.name)
    if sidecar.kind == "txt":
        return Description(_captions(content, sidecar.path))
    document = parse_json(content, str(sidecar.path), DataError)
    if isinstance(document, str | list):
        document = {"text": document}
    if not isinstance(document, dict):
        raise DataError(f"{sidecar.path}: is a {type(document).__name__}; write an object with 'text' and 'labels'.")
    try:
        return of_document(document, image.name)
    except DataError as error:
        raise DataError(f"{sidecar.path}: {error}") from error


def _captions(content: bytes, path: Path) -> tuple[str, ...]:
    """The lines of a text file, each a caption of the image."""
    text = decoded(content)
    lines = cleaned(text.splitlines())
    if "\0" in text:
        raise DataError(f"{path}: is not text; check what it is.")
    if lines and not any(character.isalpha() for line in lines for character in line):
        raise DataError(f"{path}: has numbers only, such as boxes of objects, and no caption; it is not used.")
    return lines


def decoded(content: bytes) -> str:
    """The text of a file: UTF-8, or UTF-16 by its mark, else Windows-1252."""
    encoding = _MARKS.get(content[:3]) or _MARKS.get(content[:2]) or "utf-8"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        return content.decode("cp1252", "replace")
