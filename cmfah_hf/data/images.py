"""Reading one picture, and leaving out those that cannot be read."""

import dataclasses
import io
import logging
import os
import stat
import struct
import zlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

from PIL import ExifTags, Image, ImageOps

from cmfah_hf.documents import file_of
from cmfah_hf.errors import ImageError

logger = logging.getLogger(__name__)

# Bytes of one image file; the largest that Pillow decodes, uncompressed, has about as many.
MOST_BYTES = 2**30
# What Pillow's parsers raise on damaged files: its own errors are of `OSError`, `SyntaxError` and `ValueError`, all
# others come of numbers and tables in the file that are taken at their word.
_DAMAGED = (
    OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, AttributeError, EOFError, OverflowError,
    ArithmeticError, AssertionError, MemoryError, RuntimeError, struct.error, zlib.error,
)  # fmt: skip
# Formats that Pillow reads by starting a program, Ghostscript.
_BY_PROGRAM = frozenset({"EPS"})
# Where files that rows name may lie, if not on this machine. Nothing here fetches what a row names by http.
_STORES = frozenset({"hf", "s3", "gs", "gcs", "az", "abfs"})
_ARCHIVES = frozenset({"zip", "gzip", "bz2", "xz", "zstd", "lz4"})
# Formats whose endings Pillow knows and whose files it cannot decode, at least not by itself.
_UNDECODABLE = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PALM", "PDF", "WMF"})

ImageSource = dict[str, Any] | str | os.PathLike | bytes | BinaryIO | Image.Image


def decode_image(value: ImageSource, name: str | None = None) -> Image.Image:
    """A picture, read to its last byte and turned upright.

    Args:
        value: What a `datasets.Image(decode=False)` column holds (`{"path": ..., "bytes": ...}`), a path or fsspec
            address, the bytes of a picture file, a file opened in binary mode (it need not be seekable, so standard
            input's buffer will do), or a Pillow picture.
        name: What to call the picture in an error; its path if not given.

    Returns:
        A Pillow picture in the mode of its file (`to_rgb` makes it RGB), with the EXIF orientation applied. Of an
        animated picture, the first frame. It holds no open file.

    Raises:
        ImageError: If the picture is missing, empty, cut short, damaged, not a picture, or larger than Pillow takes
            for safe (twice `PIL.Image.MAX_IMAGE_PIXELS`).
    """
    name = name or _name_of(value)
    source = value if isinstance(value, Image.Image) else io.BytesIO(read_image_bytes(value, name))
    _register_heif()
    try:
        image = source if isinstance(source, Image.Image) else Image.open(source, formats=_formats())
        if getattr(image, "n_frames", 1) > 1:
            image.seek(0)
        image.load()
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"{name}: not a picture in a format that Pillow knows; replace or remove it.") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: too large to be read safely ({error}); make the picture smaller.") from error
    except _DAMAGED as error:
        raise ImageError(f"{name}: damaged or cut short ({_first_line(error)}); replace or remove it.") from error
    return _upright(image)


def _formats() -> list[str]:
    Image.init()
    return [name for name in Image.ID if name not in _BY_PROGRAM]


@cache
def image_endings() -> frozenset[str]:
    """The endings, in lower case, of the formats that can be decoded; of HEIC where pillow-heif is installed."""
    _register_heif()
    return frozenset(end for end, kind in Image.registered_extensions().items() if kind not in _UNDECODABLE)


def is_picture(path: Path) -> bool:
    """Whether a path is a file with the ending of an image that can be decoded."""
    return path.suffix.lower() in image_endings() and file_of(path) is not None


@cache
def _register_heif() -> None:
    if find_spec("pillow_heif"):
        import pillow_heif

        pillow_heif.register_heif_opener()


def decoding_off(dataset):
    """`dataset` with every column of images (or audio, video) left as `{"path", "bytes"}`, without a tensor format.

    Mapping or filtering hands each row to a function; with decoding off, no picture is decoded for that.
    """
    import datasets

    if isinstance(dataset, datasets.IterableDataset):
        # Also takes away the threads by which a stream from the Hub decodes ahead.
        return dataset.decode(False) if dataset.features else dataset
    dataset = dataset.with_format(None)
    for column, feature in dataset.features.items():
        if getattr(feature, "decode", False):
            dataset = dataset.cast_column(column, dataclasses.replace(feature, decode=False))
    return dataset


def decoding_on(stream, features):
    """A stream that was mapped or filtered with decoding off, with its `features` (and their decoding) again.

    `datasets` does not apply a cast to a stream whose last stage declares features, as a filter's does. A mapping that
    declares none lets the cast be the one to encode and decode.
    """
    return stream if features is None else stream.map(_as_is).cast(features)


def _as_is(example: dict[str, Any]) -> dict[str, Any]:
    return example


def drop_unreadable(dataset, image_column: str = "image", num_threads: int = 1):
    """Leave out the rows whose picture `decode_image` cannot read; each is named in a warning with the reason.

    Args:
        dataset: A `Dataset`, an `IterableDataset`, or a dictionary of either.
        image_column: The column of pictures.
        num_threads: Threads that decode a map-style data set at the same time.

    Returns:
        The same kind of data set. A map-style one is checked now, and a last warning says how many rows were left
        out. A stream is checked as it is read, and every warning says how many have been left out so far, because a
        stream that is cut, shuffled or shared among workers has no one end at which to count. Let this be a stream's
        first stage: a mapping or filter before it would already decode, and fail.
    """
    import datasets

    if isinstance(dataset, dict):
        return type(dataset)({name: drop_unreadable(part, image_column, num_threads) for name, part in dataset.items()})
    raw = decoding_off(dataset)
    check = _ReadableCheck(image_column)
    if isinstance(dataset, datasets.IterableDataset):
        return decoding_on(raw.filter(check), dataset.features)

    columns = [column for column in (image_column, "id") if column in raw.column_names]
    narrow = raw.select_columns(columns)
    if num_threads > 1:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(num_threads) as pool:
            reasons = list(pool.map(lambda row: check.reason(narrow[row], row), range(len(narrow))))
    else:
        reasons = [check.reason(example, row) for row, example in enumerate(narrow)]
    unreadable = [reason for reason in reasons if reason is not None]
    for reason in unreadable:
        logger.warning("Left out: %s", reason)
    if not unreadable:
        return dataset
    logger.warning("Left out %d of %d pictures, because they cannot be read.", len(unreadable), len(reasons))
    return dataset.select([row for row, reason in enumerate(reasons) if reason is None])


class _ReadableCheck:
    """The filter of a stream: true where the picture can be read. Counts what it turns away."""

    def __init__(self, image_column: str):
        self.image_column = image_column
        self.dropped = 0

    def reason(self, example: dict[str, Any], row: int | None = None) -> str | None:
        """Why the picture of `example` cannot be read, or `None` if it can."""
        value = example[self.image_column]
        path = value.get("path") if isinstance(value, dict) else None
        label = f"row {example['id']!r}" if "id" in example else f"row {row}" if row is not None else "a row"
        try:
            decode_image(value, name=f"{label} ({path})" if path else label)
        except ImageError as error:
            return str(error)
        return None

    def __call__(self, example: dict[str, Any]) -> bool:
        reason = self.reason(example)
        if reason is not None:
            self.dropped += 1
            logger.warning("Left out: %s %d unreadable so far.", reason, self.dropped)
        return reason is None


def _name_of(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("path") or "a picture given as bytes")
    if isinstance(value, str | os.PathLike):
        return str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return "a picture given as bytes"
    return str(getattr(value, "name", None) or getattr(value, "filename", None) or "a picture without a name")


def read_image_bytes(value: Any, name: str) -> bytes:
    """The bytes of an image's file, whatever `decode_image` takes but a Pillow image.

    Raises:
        ImageError: If there is no such file, it is empty or no regular one, or it cannot be read; or if the value is a
            row's (a mapping) and names an address that is not fetched for rows.
    """
    if isinstance(value, dict):
        content = value.get("bytes")
        value = _path_of_row(value.get("path"), name) if content is None else content
    if value is None:
        raise ImageError(f"{name}: there is neither a path nor bytes to read; add the image or remove the row.")
    try:
        if isinstance(value, bytes | bytearray | memoryview):
            content = bytes(value)
        elif isinstance(value, str | os.PathLike):
            content = _read_address(str(value)) if "://" in str(value) else _read_file(value, name)
        elif hasattr(value, "read"):
            content = value.read(MOST_BYTES + 1)
        else:
            raise ImageError(f"{name}: a {type(value).__name__} is not an image; give a path, bytes or an open file.")
    except FileNotFoundError as error:
        raise ImageError(f"{name}: there is no such file; check the path.") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name}: this is a folder; give one image.") from error
    except ImportError as error:
        reason = _first_line(error)
        raise ImageError(
            f"{name}: is an address, and a library is missing to read it ({reason}); install it."
        ) from error
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{name}: cannot be read ({_first_line(error)}); check the file.") from error
    if not isinstance(content, bytes):
        raise ImageError(f"{name}: opened as text; open the image in binary mode ('rb').")
    if not content:
        raise ImageError(f"{name}: the file is empty (0 bytes); replace or remove it.")
    if len(content) > MOST_BYTES:
        raise ImageError(f"{name}: has more than {MOST_BYTES:,} bytes; make the image smaller.")
    return content


def _path_of_row(path: Any, name: str) -> str | None:
    if path is None or "://" not in str(path):
        return path
    *archives, last = str(path).split("::")
    store = last.partition("://")[0] if "://" in last else "hf"
    if store not in _STORES or any(archive.partition("://")[0] not in _ARCHIVES for archive in archives):
        raise ImageError(f"{name}: its row names the address {path}, and those are not fetched; download the image.")
    return str(path)


def _read_address(address: str) -> bytes:
    import fsspec

    with fsspec.open(address, "rb") as file:
        return file.read(MOST_BYTES + 1)


def _read_file(path: str | os.PathLike, name: str) -> bytes:
    # A pipe that nobody writes to is not waited for, and a device is not read for ever.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ImageError(f"{name}: is no regular file; give an image file.")
        return file.read(MOST_BYTES + 1)


def _upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation says, with that entry gone, so that nothing turns it twice."""
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
            return image.copy() if getattr(image, "n_frames", 1) > 1 else image
        return ImageOps.exif_transpose(image)
    except _DAMAGED as error:  # a damaged EXIF block is no reason to refuse a sound picture
        logger.debug("The EXIF data of a picture cannot be read, so it is not turned: %s", error)
        image = image.copy()
        image.info.pop("exif", None)
        return image


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
