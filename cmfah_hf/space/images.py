"""The images of a Space: thumbnails for its lists, and larger views of single images.

A browser never reads a file of the server: it names an image of the Space and gets its pixels, encoded anew.
"""

import base64
import io
import logging
import os
import tempfile
from functools import lru_cache
from pathlib import Path

from PIL import Image

from cmfah_hf.data.images import decode_image
from cmfah_hf.errors import ImageError
from cmfah_hf.models.image_modes import to_rgb

logger = logging.getLogger(__name__)

# Longer side of a thumbnail in pixels (about 15 kB per photograph), and of the view of one image.
_SIDE, _VIEW_SIDE = 256, 1280
# Longer side of a query's image next to its answer.
_SMALL_SIDE = 96
_QUALITY = 88
# Thumbnails and views of files that are kept after they were read.
_KEPT_THUMBNAILS, _KEPT_VIEWS = 2000, 16


class Images:
    """Names, texts, places and pixels of images, in the order of their rows.

    A place is the path below the folder of images, as the page shows it, or None if it is not known.

    Thumbnails are JPEG files in memory. Views are read from the image's own file when asked for; those of images
    without a file of their own are JPEG files in one temporary file, which vanishes with the process.
    """

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.places: list[str | None] = []
        self._thumbnails: list[bytes | None] = []
        self._origins: list[Path | tuple[int, int] | None] = []  # a file, or a place in the temporary file
        self._spool = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the images are
        self._thumbnail_of_file = lru_cache(_KEPT_THUMBNAILS)(self._read_thumbnail)
        self._view_of_file = lru_cache(_KEPT_VIEWS)(self._read_view)

    def __len__(self) -> int:
        return len(self.ids)

    def add(
        self, item_id: str, image: Image.Image, text: str, file: Path | None = None, place: str | None = None
    ) -> None:
        """Stores a thumbnail of a decoded image, and its view unless a file has it."""
        origin: Path | tuple[int, int] | None = file
        if file is None and max(image.size) > _SIDE:
            content = _jpeg(image, _VIEW_SIDE)
            origin = self._spool.seek(0, os.SEEK_END), len(content)
            self._spool.write(content)
            self._spool.flush()
        self._append(item_id, text, place, _jpeg(image, _SIDE), origin)

    def add_file(self, item_id: str, file: Path, text: str, place: str | None = None) -> None:
        """Adds an image whose file is read when it is first shown."""
        self._append(item_id, text, place, None, file)

    def _append(
        self,
        item_id: str,
        text: str,
        place: str | None,
        thumbnail: bytes | None,
        origin: Path | tuple[int, int] | None,
    ) -> None:
        self.ids.append(item_id)
        self.texts.append(text)
        self.places.append(place)
        self._thumbnails.append(thumbnail)
        self._origins.append(origin)

    def thumbnail(self, row: int) -> bytes:
        """The thumbnail as a JPEG file; a gray square if the image's file is gone or damaged."""
        kept = self._thumbnails[row]
        return self._thumbnail_of_file(row) if kept is None else kept

    def image(self, row: int) -> Image.Image:
        """The decoded thumbnail."""
        return Image.open(io.BytesIO(self.thumbnail(row)))

    def address(self, row: int, side: int | None = None) -> str:
        """The thumbnail as a `data:` URL, at most `side` pixels long if given."""
        content = self.thumbnail(row)
        if side is not None:
            image = self.image(row)
            image.draft("RGB", (side, side))
            content = _jpeg(image, side, quality=80)
        return _address(content)

    def view(self, row: int) -> str:
        """The image as a `data:` URL, at most 1,280 pixels long.

        Raises:
            ImageError: If its file is gone or damaged.
        """
        origin = self._origins[row]
        if origin is None:
            return _address(self.thumbnail(row))
        if isinstance(origin, Path):
            return self._view_of_file(row)
        start, size = origin
        return _address(os.pread(self._spool.fileno(), size, start))

    def _decoded(self, row: int) -> Image.Image:
        file = self._origins[row]
        assert isinstance(file, Path)
        return decode_image(file, self.ids[row])

    def _read_thumbnail(self, row: int) -> bytes:
        try:
            return _jpeg(self._decoded(row), _SIDE)
        except ImageError as error:
            logger.warning("Shown as a gray square: %s", error)
            return _jpeg(Image.new("RGB", (_SIDE, _SIDE), "gray"), _SIDE)

    def _read_view(self, row: int) -> str:
        return _address(_jpeg(self._decoded(row), _VIEW_SIDE))


def small_jpeg(file: str | Path, name: str) -> str:
    """A thumbnail of an image file as a JPEG file in base64.

    Raises:
        ImageError: If the file is gone or damaged; the error names it by `name`.
    """
    return base64.b64encode(_jpeg(decode_image(file, name), _SIDE)).decode("ascii")


def small_address(image: Image.Image) -> str:
    """A small copy of an image as a `data:` URL."""
    return _address(_jpeg(image, _SMALL_SIDE))


def _jpeg(image: Image.Image, side: int, quality: int = _QUALITY) -> bytes:
    """The image as a JPEG file, at most `side` pixels long."""
    small = to_rgb(image)
    small = small.copy() if small is image else small
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _address(content: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(content).decode("ascii")
