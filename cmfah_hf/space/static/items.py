"""The items of the static page: codes, ids, texts and thumbnails, in the order that decides ties.

Shapes: N items, K bits.
"""

import io
import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cmfah_hf.data.images import decode_image
from cmfah_hf.errors import DataError, HashIndexError, ImageError
from cmfah_hf.retrieval import CrossMediaRetriever, HashIndex
from cmfah_hf.retrieval.items import progress_bar
from cmfah_hf.space.settings import SpaceSettings
from cmfah_hf.space.sources import index_of, read_pairs

logger = logging.getLogger(__name__)

# Longer side of a thumbnail in pixels, and its quality as WebP: 3 to 8 kB of a photograph.
_SIDE, _QUALITY = 256, 75
_BATCH = 32
# Thumbnails that threads make ahead.
_AHEAD = 256


@dataclass(frozen=True)
class PageItems:
    """The items of a page.

    Attributes:
        codes: `(N, K / 8)` uint8.
        ids: Their ids as texts.
        texts: Their texts; None if none has any.
        thumbnails: The content of an image file for each item in turn, empty where there is none; made while they are
            read. None without thumbnails.
    """

    codes: np.ndarray
    ids: list[str]
    texts: list[str] | None
    thumbnails: Iterable[bytes] | None

    def __len__(self) -> int:
        return len(self.ids)


def page_items(
    retriever: CrossMediaRetriever, settings: SpaceSettings, thumbnails: bool = True, progress: bool = False
) -> PageItems:
    """The items of an index, or of sources that are encoded here.

    Args:
        retriever: The model.
        settings: With the data, and the limit of images to encode.
        thumbnails: Whether to make thumbnails.
        progress: Show a progress bar.

    Raises:
        HashIndexError: If the index is empty, damaged, or of another model.
        DataError: If the data cannot be used.
    """
    path = index_of(settings)
    if path is None:
        return _encoded(retriever, settings, thumbnails)
    index = retriever.load_index(path, mmap=True)
    if not len(index):
        raise HashIndexError(f"{path} is empty, so there is nothing to search; fill it with `cmfah index`.")
    ids = index.ids.tolist()
    order = sorted(range(len(ids)), key=ids.__getitem__)
    texts = _texts(index)
    return PageItems(
        np.ascontiguousarray(index.codes[order]),
        [str(ids[row]) for row in order],
        None if texts is None else [texts[row] for row in order],
        _thumbnails(index, [ids[row] for row in order], path, progress) if thumbnails else None,
    )


def _encoded(retriever: CrossMediaRetriever, settings: SpaceSettings, thumbnails: bool) -> PageItems:
    ids: list[str] = []
    texts: list[str] = []
    small: list[bytes] = []

    def images() -> Iterator[Image.Image]:
        for pair in read_pairs(settings):
            ids.append(pair.item_id)
            texts.append(pair.text)
            if thumbnails:
                small.append(_thumbnail(pair.image))
            yield pair.image

    from cmfah_hf.retrieval.codes import pack

    values_NK = retriever.encode_images(images(), _BATCH)
    if not ids:
        raise DataError(f"{', '.join(settings.sources)}: not one of its images can be read; see the warnings above.")
    return PageItems(pack(values_NK), ids, texts if any(texts) else None, small if thumbnails else None)


def _texts(index: HashIndex) -> list[str] | None:
    """The column `text` of an index, if it has one."""
    if index.metadata is None or "text" not in index.metadata.column_names:
        return None
    return [_joined(value) for value in index.metadata["text"].to_pylist()]


def _joined(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(str(part) for part in value if part is not None)
    return "" if value is None else str(value)


def _thumbnails(index: HashIndex, ids: Sequence[Any], path: Path, progress: bool) -> Iterable[bytes] | None:
    if index.folders is None or not index.folders.roots:
        logger.warning("%s follows no folder, so the page shows ids without thumbnails.", path)
        return None
    return _thumbnails_of_files(index.folders.paths_of(ids), [str(item_id) for item_id in ids], path, progress)


def _thumbnails_of_files(
    files: Sequence[str | None], names: Sequence[str], path: Path, progress: bool
) -> Iterator[bytes]:
    """A thumbnail of each image whose file is there; counts the others in a warning."""
    missing = 0
    with progress_bar(len(names), "Thumbnails", progress) as bar, ThreadPoolExecutor() as pool:
        for start in range(0, len(names), _AHEAD):
            part = slice(start, start + _AHEAD)
            for thumbnail in pool.map(_thumbnail_of_file, files[part], names[part]):
                missing += not thumbnail
                bar.update(1)
                yield thumbnail
    if missing:
        logger.warning(
            "%d of %d images of %s cannot be read; the page shows them without thumbnails.", missing, len(names), path
        )


def _thumbnail_of_file(file: str | None, name: str) -> bytes:
    if file is None:
        return b""
    try:
        return _thumbnail(decode_image(file, name, (_SIDE, _SIDE)))
    except ImageError as error:
        logger.info("Without a thumbnail: %s", error)
        return b""


def _thumbnail(image: Image.Image) -> bytes:
    from cmfah_hf.models.image_modes import to_rgb

    small = to_rgb(image)
    small = small.copy() if small is image else small
    small.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=_QUALITY)
    return buffer.getvalue()
