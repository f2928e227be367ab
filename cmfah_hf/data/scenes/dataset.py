"""Data sets of synthetic scenes: `train` and `query`, with labels and bounding boxes."""

import copy
import io
from functools import lru_cache
from typing import Any

from PIL import Image

from cmfah_hf.data.scenes.scene import draw_scene
from cmfah_hf.errors import DataError

# The queries start here, so they do not depend on the number of training scenes and never overlap with them.
FIRST_QUERY = 900_000
_MIN_SIDE = 32


def make_scenes(num: int, seed: int = 0, image_size: int = 128, start: int = 0, clutter: int = 0) -> Any:
    """The scenes `start` to `start + num - 1` as a `datasets.Dataset`.

    Args:
        num: Number of scenes.
        seed: Another seed gives other scenes.
        image_size: Width and height of the images in pixels, at least 32.
        start: Number of the first scene.
        clutter: Shards in every image, see `draw_scene`.

    Returns:
        A data set in memory with `id` (`scene-000017`), `image` (PNG), `text`, `labels` and `boxes` (see `draw_scene`).

    Raises:
        DataError: If a number is out of range.
    """
    for name, value, least in (
        ("num", num, 1),
        ("seed", seed, 0),
        ("image_size", image_size, _MIN_SIDE),
        ("start", start, 0),
        ("clutter", clutter, 0),
    ):
        if value < least:
            raise DataError(f"{name}={value}: scenes need {least} or more.")
    # A copy, so that a format set by the caller does not change the cached data set.
    return copy.copy(_drawn(num, seed, image_size, start, clutter))


# A run draws the same scenes for training and for evaluation, and drawing takes as long as some epochs.
@lru_cache(maxsize=4)
def _drawn(num: int, seed: int, image_size: int, start: int, clutter: int) -> Any:
    import datasets

    text = datasets.Value("string")
    features = datasets.Features(
        {
            "id": text,
            "image": datasets.Image(),
            "text": text,
            "labels": datasets.List(text),
            "boxes": datasets.List({"label": text, "word": text, "box": datasets.List(datasets.Value("int64"))}),
        }
    )
    columns: dict[str, list[Any]] = {name: [] for name in features}
    for index in range(start, start + num):
        scene = draw_scene(index, seed, image_size, clutter)
        columns["id"].append(f"scene-{index:06d}")
        columns["image"].append({"path": None, "bytes": _to_png(scene.image)})
        columns["text"].append(scene.text)
        columns["labels"].append(scene.labels)
        columns["boxes"].append(scene.boxes)
    return datasets.Dataset.from_dict(columns, features=features)


def load_scenes(
    num_train: int = 2000, num_query: int = 300, seed: int = 0, image_size: int = 128, clutter: int = 0
) -> Any:
    """The scenes as a `datasets.DatasetDict` with `train` and `query`, which have no scene in common.

    Args:
        num_train: Scenes in `train`.
        num_query: Scenes in `query`.
        seed: Seed of all drawings.
        image_size: Width and height in pixels.
        clutter: Shards in every image, in the colors and sizes of things.

    Raises:
        DataError: If a number is out of range.
    """
    import datasets

    if num_train > FIRST_QUERY:
        raise DataError(f"num_train={num_train}: at most {FIRST_QUERY}, because the queries begin there.")
    return datasets.DatasetDict(
        train=make_scenes(num_train, seed, image_size, clutter=clutter),
        query=make_scenes(num_query, seed, image_size, FIRST_QUERY, clutter),
    )


def _to_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    # Compression takes most of the drawing time; the lowest level is three times as fast and hardly larger.
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
