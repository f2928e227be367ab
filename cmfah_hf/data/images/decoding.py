"""Reading of one image: from a file, bytes, an address or a row, decoded completely and turned upright."""

import io
import logging
import os
import stat
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from PIL import ExifTags, Image, ImageOps

from cmfah_hf.data.data_root import ARCHIVES
from cmfah_hf.data.images.extras import Extra, extra_of
from cmfah_hf.data.images.formats import extra_of_content, register_formats
from cmfah_hf.documents import file_of
from cmfah_hf.errors import ImageError

logger = logging.getLogger(__name__)

# Bytes of one image file; about the size, uncompressed, of the largest image that Pillow decodes.
MOST_BYTES = 2**30
# Errors of Pillow's parsers on damaged files: its own are `OSError`, `SyntaxError` and `ValueError`, the others come
# from unchecked numbers and tables in the file.
DAMAGED = (
    OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, AttributeError, EOFError, OverflowError,
    ArithmeticError, AssertionError, MemoryError, RuntimeError, struct.error, zlib.error,
)  # fmt: skip
# First bytes of a file that tell its format.
_PREFIX = 4096
# Decoded pixels of a batch, as many as 32 images of 640 x 480 have.
_PIXELS_AT_ONCE = 10**7
# A reduced image is still this many times as large as needed: the resizing that follows then hides the reduction.
_REDUCING_GAP = 3
_REDUCIBLE = frozenset({"JPEG", "MPO"})
# EXIF orientations that exchange width and height.
_SIDEWAYS = frozenset({5, 6, 7, 8})
# Formats that Pillow reads by starting a program, Ghostscript.
_BY_PROGRAM = frozenset({"EPS"})
# Stores in which rows may name files. An http address in a row is never fetched here.
_STORES = frozenset({"hf", "s3", "gs", "gcs", "az", "abfs"})
# Formats whose endings Pillow knows and that it cannot decode by itself.
_UNDECODABLE = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PALM", "PDF", "WMF"})

ImageSource = dict[str, Any] | str | os.PathLike | bytes | BinaryIO | Image.Image


def decode_image(value: ImageSource, name: str | None = None, least: tuple[int, int] | None = None) -> Image.Image:
    """An image, decoded completely and turned upright.

    Args:
        value: A value of a `datasets.Image(decode=False)` column (`{"path": ..., "bytes": ...}`), a path or fsspec
            address, the bytes of an image file, a file opened in binary mode (which need not be seekable, such as
            standard input's buffer), or a Pillow image.
        name: The image's name in errors; its path if not given.
        least: Width and height that the image, once upright, is needed in. A JPEG of at least six times that size is
            decoded at a half, a quarter or an eighth of its size, which takes less time, but not below three times
            `least`. None: in full.

    Returns:
        A Pillow image in the mode of its file (`to_rgb` makes it RGB), with the EXIF orientation applied. Of an
        animation, the first frame. It holds no open file.

    Raises:
        ImageError: If the image is missing, empty, cut short, damaged, not an image, or larger than Pillow considers
            safe (twice `PIL.Image.MAX_IMAGE_PIXELS`).
    """
    name = name or _name_of(value)
    with opened_image(value, name) as image:
        if getattr(image, "n_frames", 1) > 1:
            image.seek(0)
        if least is not None and image is not value and image.format in _REDUCIBLE:
            _reduce(image, least)
        image.load()
    return _upright(image)


def few_at_a_time(images: Iterable[Image.Image]) -> Iterator[list[Image.Image]]:
    """Batches of images, each complete at ten million pixels or more.

    With images that are decoded on demand, this bounds the memory for all but the largest images: 32 phone photos of 12
    megapixels take 1.5 GB. The caller should drop each batch before it takes the next one, as `map` does.
    """
    batch: list[Image.Image] = []
    pixels = 0
    for image in images:
        batch.append(image)
        pixels += image.width * image.height
        if pixels >= _PIXELS_AT_ONCE:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch


@contextmanager
def opened_image(value: ImageSource, name: str) -> Iterator[Image.Image]:
    """An image that is opened but not decoded; errors of Pillow in the block are raised as `ImageError`."""
    source = value if isinstance(value, Image.Image) else _NamedBytes(read_image_bytes(value, name), name)
    register_formats()
    try:
        yield source if isinstance(source, Image.Image) else Image.open(source, formats=_formats())
    except Image.UnidentifiedImageError as error:
        raise ImageError(
            f"{name}: not an image in a format that Pillow knows; {_remedy(source) or 'replace or remove it.'}"
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: too large to be read safely ({error}); make the image smaller.") from error
    except DAMAGED as error:
        problem = f"damaged or cut short ({_first_line(error)})"
        if remedy := _remedy(source):
            raise ImageError(f"{name}: not an image that Pillow reads by itself ({problem}?); {remedy}") from error
        raise ImageError(f"{name}: {problem}; replace or remove it.") from error


class _NamedBytes(io.BytesIO):
    """Bytes with the name of their file, by whose ending some raw images are recognized."""

    def __init__(self, content: bytes, name: str):
        super().__init__(content)
        self.name = name


def _remedy(source: Image.Image | _NamedBytes) -> str | None:
    """The command that installs the extra for an image, by its content or the ending of its name; else `None`."""
    if not isinstance(source, _NamedBytes) or source.closed:
        return None
    extra = extra_of_content(bytes(source.getbuffer()[:_PREFIX])) or missing_extra(PurePath(source.name).suffix)
    return f"to read it, run {extra.command}." if extra is not None and _is_missing(extra) else None


def missing_extra(ending: str) -> Extra | None:
    """The extra that reads files with this ending, such as `.HEIC`, if it is not installed, or cannot be imported."""
    extra = extra_of(ending.lower().rstrip(")'"))  # a name may be that of a row with its file in parentheses
    return extra if extra is not None and _is_missing(extra) else None


def _is_missing(extra: Extra) -> bool:
    return image_endings().isdisjoint(extra.endings)


def _reduce(image: Image.Image, least: tuple[int, int]) -> None:
    """Lets libjpeg decode an opened JPEG at a fraction of its size, which leaves out the finest frequencies."""
    width, height = (_REDUCING_GAP * side for side in least)
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) in _SIDEWAYS:
            width, height = height, width
    except DAMAGED:  # then it is not turned
        pass
    image.draft(None, (width, height))


def _formats() -> list[str]:
    return [name for name in Image.ID if name not in _BY_PROGRAM]


@cache
def image_endings() -> frozenset[str]:
    """The endings, in lower case, of the formats that can be decoded, with those of the installed extras."""
    register_formats()
    return frozenset(end for end, kind in Image.registered_extensions().items() if kind not in _UNDECODABLE)


def is_image_file(path: Path) -> bool:
    """Whether a path is a file with the ending of an image that can be decoded."""
    return path.suffix.lower() in image_endings() and file_of(path) is not None


def _name_of(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("path") or "an image given as bytes")
    if isinstance(value, str | os.PathLike):
        return str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return "an image given as bytes"
    return str(getattr(value, "name", None) or getattr(value, "filename", None) or "an image without a name")


def read_image_bytes(value: Any, name: str) -> bytes:
    """The bytes of an image file, from any `ImageSource` but a Pillow image. Of rows, few addresses are fetched."""
    if isinstance(value, dict):
        content = value.get("bytes")
        value = _path_of_row(value.get("path"), name) if content is None else content
    if value is None:
        raise ImageError(f"{name}: there is neither a path nor bytes to read; add the image or remove the row.")
    with _reading_errors(name):
        content = _content_of(value, name)
    if not isinstance(content, bytes):
        raise ImageError(f"{name}: opened as text; open the image in binary mode ('rb').")
    if not content:
        raise ImageError(f"{name}: the file is empty (0 bytes); replace or remove it.")
    if len(content) > MOST_BYTES:
        raise ImageError(f"{name}: has more than {MOST_BYTES:,} bytes; make the image smaller.")
    return content


def _content_of(value: Any, name: str) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str | os.PathLike):
        return _read_address(str(value)) if "://" in str(value) else _read_file(value, name)
    if hasattr(value, "read"):
        return value.read(MOST_BYTES + 1)
    raise ImageError(f"{name}: a {type(value).__name__} is not an image; give a path, bytes or an open file.")


@contextmanager
def _reading_errors(name: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ImageError(f"{name}: there is no such file; check the path.") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name}: this is a folder; give one image.") from error
    except ImportError as error:
        reason = _first_line(error)
        raise ImageError(
            f"{name}: is an address, and a library is missing to read it ({reason}); install it."
        ) from error
    except ImageError:
        raise
    except (OSError, ValueError) as error:
        raise ImageError(f"{name}: cannot be read ({_first_line(error)}); check the file.") from error


def _path_of_row(path: Any, name: str) -> str | None:
    """The path in a row; an address only of a store, because nothing else that a row names is fetched."""
    if path is None or "://" not in str(path):
        return path
    *archives, last = str(path).split("::")
    store = last.partition("://")[0] if "://" in last else "hf"
    if store not in _STORES or any(archive.partition("://")[0] not in ARCHIVES for archive in archives):
        raise ImageError(f"{name}: its row names the address {path}, and those are not fetched; download the image.")
    return str(path)


def _read_address(address: str) -> bytes:
    import fsspec

    with fsspec.open(address, "rb") as file:
        return file.read(MOST_BYTES + 1)


def _read_file(path: str | os.PathLike, name: str) -> bytes:
    # Does not wait for a pipe without a writer, and does not read a device forever.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ImageError(f"{name}: is not a regular file; give an image file.")
        return file.read(MOST_BYTES + 1)


def _upright(image: Image.Image) -> Image.Image:
    """The image turned by its EXIF orientation, without that entry, so that nothing turns it twice."""
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
            return image.copy() if getattr(image, "n_frames", 1) > 1 else image
        return ImageOps.exif_transpose(image)
    except DAMAGED as error:  # a damaged EXIF block is no reason to refuse a sound image
        logger.debug("The EXIF data of an image cannot be read, so it is not turned: %s", error)
        image = image.copy()
        image.info.pop("exif", None)
        return image


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
