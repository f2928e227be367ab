"""In-memory thumbnails of a Space's images; files of the server are never sent to a browser."""

import base64
import io
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from PIL import Image

from cmfah_hf.errors import DataError, ImageError
from cmfah_hf.space.settings import SCENES, SpaceSettings

logger = logging.getLogger(__name__)

# Longer side of a thumbnail in pixels; about 15 kB per photograph.
_SIDE = 256
_QUALITY = 88


@dataclass
class Images:
    """Names, texts and thumbnails (JPEG files in memory) of pairs, in the order of their rows."""

    ids: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    thumbnails: list[bytes] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, item_id: str, image: Image.Image, text: str) -> None:
        """Stores a thumbnail of an image."""
        small = image.convert("RGB") if image.mode != "RGB" else image.copy()
        small.thumbnail((_SIDE, _SIDE))
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=_QUALITY)
        self.ids.append(item_id)
        self.texts.append(text)
        self.thumbnails.append(buffer.getvalue())

    def image(self, row: int) -> Image.Image:
        """The decoded thumbnail."""
        return Image.open(io.BytesIO(self.thumbnails[row]))

    def address(self, row: int, side: int | None = None) -> str:
        """The image as a `data:` URL, at most `side` pixels long if given."""
        content = self.thumbnails[row]
        if side is not None:
            image, buffer = self.image(row), io.BytesIO()
            image.draft("RGB", (side, side))
            image.thumbnail((side, side))
            image.save(buffer, "JPEG", quality=80)
            content = buffer.getvalue()
        return "data:image/jpeg;base64," + base64.b64encode(content).decode("ascii")


def read_pairs(settings: SpaceSettings) -> Iterator[tuple[str, Image.Image, str]]:
    """Yields id, decoded RGB image and text of each pair; skips unreadable images with a warning.

    The images of a folder without metadata have empty texts.
    """
    if settings.data == SCENES:
        yield from _scenes(settings.limit)
        return
    from cmfah_hf.data import resolve_data_path
    from cmfah_hf.data.images import decode_image, find_image_files
    from cmfah_hf.data.loading import is_data_set
    from cmfah_hf.models.image_modes import to_rgb

    rows: Iterable[dict[str, Any]]
    folder = resolve_data_path(settings.data)
    if folder.is_dir() and not is_data_set(folder):
        rows = ({"id": file.relative_to(folder).as_posix(), "image": file} for file in find_image_files(folder).files)
    else:
        rows = _rows_of(settings)
    for row in islice(rows, settings.limit):
        try:
            yield row["id"], to_rgb(decode_image(row["image"], row["id"])), _text_of(row.get("text"))
        except ImageError as error:
            logger.warning("Left out: %s", error)


def _rows_of(settings: SpaceSettings) -> Iterable[dict[str, Any]]:
    """The rows of a data set, with undecoded images."""
    from cmfah_hf.data import load_image_text
    from cmfah_hf.data.images import decoding_off

    streams = load_image_text(settings.data, streaming=True)
    name = settings.split or next((name for name in ("database", "train") if name in streams), next(iter(streams)))
    if name not in streams:
        raise DataError(f"{settings.data}: has no split {name!r}; its splits are {', '.join(streams)}.")
    return decoding_off(streams[name])


def _scenes(count: int) -> Iterator[tuple[str, Image.Image, str]]:
    """Synthetic scenes that are not among the training scenes."""
    from cmfah_hf.data.scenes import FIRST_QUERY, draw_scene

    for index in range(FIRST_QUERY, FIRST_QUERY + count):
        scene = draw_scene(index)
        yield f"scene-{index:06d}", scene.image, scene.text


def _text_of(value: Any) -> str:
    return value if isinstance(value, str) else " ".join(value or ())
