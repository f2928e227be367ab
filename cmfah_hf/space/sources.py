"""The sources of a Space's images: folders, single images, data sets, drawn scenes, or an index."""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from cmfah_hf.data.images import decode_image
from cmfah_hf.errors import DataError, HashIndexError, ImageError
from cmfah_hf.space.settings import SCENES, SpaceSettings

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Pair:
    """An image of a Space with its text.

    Attributes:
        item_id: Its name on the page.
        image: The decoded RGB image.
        text: Empty if it has none.
        file: Its own file, or None if it came in a file of many, from an address, or was drawn.
        place: The path of its file below the folder of the source, after the name of the source as in `item_id`; None
            if there is none.
    """

    item_id: str
    image: Image.Image
    text: str
    file: Path | None = None
    place: str | None = None


def read_pairs(settings: SpaceSettings) -> Iterator[Pair]:
    """Yields the images of all sources, one of each in turn; skips unreadable images with a warning.

    With several sources, ids begin with the name of their source.

    Raises:
        DataError: If a source cannot be used.
    """
    names = _distinct([Path(source).name for source in settings.sources])
    prefixes = [f"{name}/" for name in names] if len(names) > 1 else [""]
    pairs = [_pairs(source, settings, prefix) for source, prefix in zip(settings.sources, prefixes, strict=True)]
    return islice(_in_turn(pairs), settings.limit)


def _pairs(source: str, settings: SpaceSettings, prefix: str) -> Iterator[Pair]:
    if source == SCENES:
        yield from _scenes(settings.limit, prefix)
        return
    from cmfah_hf.data import resolve_data_path
    from cmfah_hf.models.image_modes import to_rgb

    for item_id, value, text in _values(source, settings.split):
        name = prefix + item_id
        try:
            file = _file_of(value)
            place = None if file is None else place_below(file, resolve_data_path(source), prefix)
            yield Pair(name, to_rgb(decode_image(value, name)), text, file, place)
        except ImageError as error:
            logger.warning("Left out: %s", error)


def _values(source: str, split: str | None) -> Iterator[tuple[str, Any, str]]:
    """Id, undecoded image and text of a source's images; those of a folder without metadata have empty texts."""
    from cmfah_hf.data import resolve_data_path
    from cmfah_hf.data.images import describe_skipped, find_image_files, is_image_file
    from cmfah_hf.data.loading import is_data_set

    path = resolve_data_path(source)
    if is_image_file(path):
        yield path.name, path, ""
    elif path.is_dir() and not is_data_set(path):
        found = find_image_files(path)
        if found.skipped:
            logger.warning("Skipped in %s: %s.", source, describe_skipped(found.skipped))
        for file in found.files:
            yield file.relative_to(path).as_posix(), file, ""
    else:
        yield from _rows(source, split)


def _rows(source: str, split: str | None) -> Iterator[tuple[str, Any, str]]:
    from cmfah_hf.data import load_image_text
    from cmfah_hf.data.images import decoding_off

    streams = load_image_text(source, streaming=True)
    name = split or next((name for name in ("database", "train") if name in streams), next(iter(streams)))
    if name not in streams:
        raise DataError(f"{source}: has no split {name!r}; its splits are {', '.join(streams)}.")
    for row in decoding_off(streams[name]):
        text = row.get("text")
        yield row["id"], row["image"], text if isinstance(text, str) else " ".join(text or ())


def _scenes(count: int, prefix: str) -> Iterator[Pair]:
    """Synthetic scenes that are not among the training scenes."""
    from cmfah_hf.data.scenes import FIRST_QUERY, draw_scene

    for index in range(FIRST_QUERY, FIRST_QUERY + count):
        scene = draw_scene(index)
        yield Pair(f"{prefix}scene-{index:06d}", scene.image, scene.text)


def _file_of(value: Any) -> Path | None:
    """The file that an undecoded image is, if it is one on this machine."""
    if isinstance(value, dict):
        value = value.get("path") if value.get("bytes") is None else None
    return None if value is None or "://" in str(value) else Path(value)


def place_below(file: str | Path, folder: str | Path, prefix: str = "") -> str | None:
    """The prefix and the path of a file below a folder; None if it is not there, so that no other path is shown."""
    path, root = Path(os.path.abspath(file)), Path(os.path.abspath(folder))  # noqa: PTH100 - links are not followed
    return prefix + path.relative_to(root).as_posix() if root in path.parents else None


def _in_turn(iterators: Sequence[Iterator[T]]) -> Iterator[T]:
    """One value of each iterator in turn, until all have ended."""
    left = list(iterators)
    while left:
        for iterator in list(left):
            try:
                yield next(iterator)
            except StopIteration:
                left.remove(iterator)


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, numbered from the second of the same name on."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return found


def index_of(settings: SpaceSettings) -> Path | None:
    """The index file that a Space searches, or None if its sources are to be encoded.

    Raises:
        DataError: If an index is not the only source.
    """
    from cmfah_hf.data import resolve_data_path
    from cmfah_hf.retrieval.storage.index_file import is_index_file

    found = next((source for source in settings.sources if is_index_file(resolve_data_path(source))), None)
    if found is not None and len(settings.sources) > 1:
        raise DataError(f"{found}: an index is searched by itself; leave the other sources out, or index them too.")
    return None if found is None else resolve_data_path(found)


@dataclass(frozen=True)
class IndexedImage:
    """An image of an index: its row there, its id, its file, its text if the index keeps a column `text`, and the place
    of its file below its folder, after the folder's name if ids begin with it; None if it is outside."""

    row: int
    item_id: str
    file: Path
    text: str
    place: str | None


def indexed_images(index: Any, path: Path) -> list[IndexedImage]:
    """The items of an index whose image files are in the folders that it follows; counts the others in a warning.

    Args:
        index: A `HashIndex`.
        path: Its file, for messages.

    Raises:
        HashIndexError: If it follows no folder.
        DataError: If not one of its images is there.
    """
    if index.folders is None or not index.folders.roots:
        raise HashIndexError(
            f"{path}: this index follows no folder, so its images cannot be shown; give the data set that it was made "
            "of."
        )
    ids = index.ids.tolist()
    texts = index.metadata["text"].to_pylist() if index.metadata and "text" in index.metadata.column_names else None
    folders = [(root.path, root.id_of("")) for root in index.folders.roots]

    def place_of(file: str) -> str | None:
        return next(filter(None, (place_below(file, folder, prefix) for folder, prefix in folders)), None)

    items = [
        IndexedImage(row, item_id, Path(file), str((texts[row] if texts else None) or ""), place_of(file))
        for row, (item_id, file) in enumerate(zip(ids, index.folders.paths_of(ids), strict=True))
        if file is not None and os.path.isfile(file)  # noqa: PTH113 - a name of any length
    ]
    if not items:
        raise DataError(f"{path}: not one of its images is in its folders; bring it up to date with `cmfah index`.")
    if len(items) < len(index):
        logger.warning("Left out: %d items of %s without an image file.", len(index) - len(items), path)
    return items
