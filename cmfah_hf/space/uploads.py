"""Uploaded images: storage with bounds, and safe decoding."""

import base64
import binascii
import contextlib
import io
import os
import re
import secrets
import stat
import threading
import time
import warnings
from functools import cache
from pathlib import Path

from PIL import Image, features

from cmfah_hf.errors import ImageError

MAX_BYTES = 8 * 2**20
# 75 MB decoded. Of larger images only the header is read.
MAX_PIXELS = 25_000_000
# Only these formats are opened, because parsers of rare formats are the main risk of malformed files.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
# Formats of phones, which are opened where their library is installed. Others that this package decodes stay out: a
# JPEG XL file may take many times the memory that its size says, raw images take seconds, and SVG is a program.
_OF_PHONES = ("HEIF", "AVIF")
# Limits of all uploads together; the oldest are deleted first.
MAX_TOTAL_BYTES = 128 * 2**20
MAX_FILES = 512
KEPT_SECONDS = 900.0
# Longer side of a decoded image, larger than any model's input.
_SIDE = 1024
_NAME = re.compile(r"[0-9a-f]{64}")
# A name that no upload has, for requests that name anything else.
_NOBODYS = "0" * 64
# The start of a `data:` URL, which programs put before base64.
_DATA_URL = re.compile(r"data:[\w.+-]{0,80}/?[\w.+-]{0,80}(;[\w.=-]{1,80}){0,4};base64,")
# No image file is shorter. Many short paths are base64 by chance.
_SHORTEST_FILE = 26
_NOT_HERE = "This is not an image that was uploaded here, or it has been deleted since; upload it as a file."


class Uploads:
    """The folder of uploads. Clients refer to files by random names, never by paths; other files are not touched."""

    def __init__(self, folder: Path, max_total_bytes: int = MAX_TOTAL_BYTES, max_files: int = MAX_FILES):
        self.folder, self.max_total_bytes, self.max_files = folder, max_total_bytes, max_files
        self._lock = threading.Lock()

    def keep(self, content: bytes) -> str:
        """Stores an upload under a new random name, which it returns, deleting the oldest ones if necessary."""
        path = self.folder / secrets.token_hex(32)
        with self._lock:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.trim(len(content), 1)
            try:
                with path.open("xb") as file:
                    file.write(content)
            except OSError:
                path.unlink(missing_ok=True)
                raise
        return path.name

    def path_of(self, name: object) -> Path:
        """The path of an upload, without accessing the disk; for invalid names, a path that never exists."""
        return self.folder / (name if isinstance(name, str) and _NAME.fullmatch(name) else _NOBODYS)

    def read(self, path: Path) -> bytes:
        """The content of an upload, at a path of `path_of`.

        A file that is missing, outside the folder, or not a regular one is an `ImageError`, with one message for all of
        these.
        """
        if path.parent != self.folder or not _NAME.fullmatch(path.name):
            raise ImageError(_NOT_HERE)
        try:
            folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                # Does not block on pipes or follow links; the checks below use the opened descriptor.
                file = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
            finally:
                os.close(folder)
            with open(file, "rb") as stream:  # noqa: PTH123 - a descriptor
                status = os.fstat(file)
                regular = stat.S_ISREG(status.st_mode)
                content = stream.read(min(status.st_size, MAX_BYTES) + 1) if regular else b""
        except OSError as error:
            raise ImageError(_NOT_HERE) from error
        if not regular:
            raise ImageError(_NOT_HERE)
        if len(content) > MAX_BYTES:
            raise ImageError(too_large(MAX_BYTES))
        return content

    def discard(self, path: Path) -> None:
        """Deletes an upload, if it exists."""
        if path.parent == self.folder and _NAME.fullmatch(path.name):
            with contextlib.suppress(OSError):  # already deleted, or replaced by a folder
                path.unlink()

    def trim(self, more_bytes: int = 0, more_files: int = 0) -> None:
        """Deletes uploads older than `KEPT_SECONDS`, and the oldest until `size` more bytes fit."""
        found = sorted(self._files())
        size, count = more_bytes + sum(size for _, size, _ in found), more_files + len(found)
        for changed, bytes_here, path in found:
            if time.time() - changed < KEPT_SECONDS and size <= self.max_total_bytes and count <= self.max_files:
                break
            self.discard(path)
            size, count = size - bytes_here, count - 1

    def _files(self) -> list[tuple[float, int, Path]]:
        """Modification time, size and path of each upload."""
        found = []
        try:
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    if _NAME.fullmatch(entry.name):
                        with contextlib.suppress(FileNotFoundError):  # deleted by another request
                            status = entry.stat(follow_symlinks=False)
                            found.append((status.st_mtime, status.st_size, Path(entry.path)))
        except FileNotFoundError:  # no uploads yet
            return []
        return found


def is_upload_name(text: str) -> bool:
    """Whether a text has the form of an upload's name, which no image in base64 has."""
    return _NAME.fullmatch(text) is not None


def decode_base64(text: str, max_bytes: int = MAX_BYTES) -> bytes:
    """The file that a program sends as base64, also as a `data:` URL. Paths and addresses are refused, and not read.

    Raises:
        ImageError: If it is anything else, or larger than `max_bytes`.
    """
    start = _DATA_URL.match(text)
    encoded = text[start.end() :] if start else text
    if len(encoded) // 4 * 3 > 1.1 * max_bytes + 2**10:  # with line breaks
        raise ImageError(too_large(max_bytes))
    try:
        content = base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError):
        content = b""
    if len(content) < _SHORTEST_FILE:
        raise ImageError("The image is no file in base64; send its bytes so. Paths and addresses are not read here.")
    if len(content) > max_bytes:
        raise ImageError(too_large(max_bytes))
    return content


def too_large(max_bytes: int) -> str:
    """The error of an image file of more bytes."""
    return f"The image is larger than {max_bytes / 2**20:g} MB; send a smaller one."


def read_upload(content: bytes) -> Image.Image:
    """An uploaded file as an upright RGB image, at most 1024 pixels long."""
    from cmfah_hf.models.image_modes import to_rgb

    header = open_upload(content)
    # Decodes large JPEGs at a reduced size, with an eighth of the memory.
    header.draft("RGB", (_SIDE, _SIDE))
    image = to_rgb(decode_upload(header))
    image.thumbnail((_SIDE, _SIDE))
    return image


@cache
def upload_formats() -> tuple[str, ...]:
    """The formats that are opened: `FORMATS`, and with their libraries HEIF and AVIF."""
    from cmfah_hf.data.images.formats import register_formats

    register_formats()
    installed = {"HEIF": "HEIF" in Image.OPEN, "AVIF": features.check("avif")}
    return (*FORMATS, *(name for name in _OF_PHONES if installed[name]))


def open_upload(content: bytes, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] | None = None) -> Image.Image:
    """The header of an uploaded image, which is not decoded yet: its format and size are within the limits.

    Args:
        content: The file.
        max_pixels: The most pixels of an image.
        formats: The formats to open. None: `upload_formats`.

    Raises:
        ImageError: If it has another format, or more pixels.
    """
    from cmfah_hf.data.images.decoding import DAMAGED

    formats = formats or upload_formats()
    try:
        with warnings.catch_warnings():
            # Replaces Pillow's own configurable limit, which is checked below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            header = Image.open(io.BytesIO(content), formats=formats)
            width, height = header.size
    except Image.DecompressionBombError as error:
        raise ImageError(_too_many_pixels(max_pixels)) from error
    except DAMAGED as error:
        kinds = ", ".join(formats[:-1])
        raise ImageError(f"This file is not a readable image; send {kinds} or {formats[-1]}.") from error
    if width * height > max_pixels:
        raise ImageError(_too_many_pixels(max_pixels, width, height))
    return header


def decode_upload(header: Image.Image) -> Image.Image:
    """The image of a header of `open_upload`, decoded and upright.

    Raises:
        ImageError: If it is damaged.
    """
    from cmfah_hf.data.images.decoding import decode_image

    try:
        return decode_image(header, "The image")
    except ImageError as error:
        raise ImageError("The image is damaged or cut short; send another.") from error


def _too_many_pixels(max_pixels: int, width: int = 0, height: int = 0) -> str:
    size = f"{width:,} x {height:,} pixels" if width else "too many pixels"
    return f"The image has {size}; send one of at most {max_pixels / 10**6:g} megapixels."
