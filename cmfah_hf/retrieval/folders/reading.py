"""Reading of image files that others may be writing: content, digest, decoded image and state belong together."""

import hashlib
import time
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from cmfah_hf.atomic import sha256_of
from cmfah_hf.data.images import decode_image, read_image_bytes
from cmfah_hf.errors import ImageError
from cmfah_hf.retrieval.folders.scan import FoundFile, state_of_file

# Attempts at a file that is being written, and the pause between them in seconds.
_ATTEMPTS, _PAUSE_S = 3, 0.1
_NO_CONTENT = b"\0" * 32


class Reading(NamedTuple):
    """An image file as it was read.

    Attributes:
        file: Its state at that time.
        image: The decoded image, or None.
        sha256: The digest of its content. None: it could not be read now, and may be readable at the next attempt.
        problem: Why there is no image, or None.
    """

    file: FoundFile
    image: Image.Image | None
    sha256: bytes | None
    problem: str | None = None


def read_image_file(found: FoundFile, least: tuple[int, int] | None = None) -> Reading:
    """Reads and decodes an image file. Its state is the same before and after the reading.

    Args:
        found: The file.
        least: As for `decode_image`.
    """
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE_S)
        try:
            before = _state(found)
            content = read_image_bytes(found.path, found.path)
            if before[:4] == _state(found)[:4]:
                return _decoded(before, content, least)
        except OSError as error:
            return Reading(found, None, None, f"cannot be read ({error.strerror or error}).")
        except ImageError as error:
            is_passing = isinstance(error.__cause__, OSError)
            return Reading(before, None, None if is_passing else _NO_CONTENT, _reason(error, found.path))
    return Reading(found, None, None, "changes while it is read; it is tried again at the next update.")


def read_path(path: Path, least: tuple[int, int] | None = None) -> Reading:
    """As `read_image_file`, of a path whose state is not known."""
    return read_image_file(FoundFile(str(path), 0, 0, 0, False), least)


def sha256_of_file(found: FoundFile) -> bytes:
    """The digest of an image file's content. Raises `OSError`."""
    return bytes.fromhex(sha256_of(Path(found.path)))


def _state(found: FoundFile) -> FoundFile:
    now = state_of_file(found.path, time.time_ns())
    return now._replace(row=found.row, row_number=found.row_number, place=found.place)


def _decoded(file: FoundFile, content: bytes, least: tuple[int, int] | None) -> Reading:
    digest = hashlib.sha256(content).digest()
    try:
        return Reading(file, decode_image(content, file.path, least), digest)
    except ImageError as error:
        return Reading(file, None, digest, _reason(error, file.path))


def _reason(error: ImageError, path: str) -> str:
    return str(error).removeprefix(f"{path}: ")
