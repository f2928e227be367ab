"""Splits and classes that the folders of images stand for."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

# Folders that divide a data set, and the names of the splits here.
_SPLITS = {
    "train": "train", "training": "train", "test": "query", "testing": "query", "query": "query", "queries": "query",
    "val": "validation", "valid": "validation", "validation": "validation", "dev": "validation", "database": "database",
}  # fmt: skip
# Folders that order photos by time, camera or program.
_NO_CLASS = re.compile(
    r"\d+|\d{2,4}([-_. ]\d{1,2}){1,2}.*|\d{3}[a-z_]{5}|dcim|camera( roll)?|images?|img|photos?|pictures?|screenshots?"
    r"|new folder.*|untitled.*|album.*|export.*|misc",
    re.IGNORECASE,
)
FOLDERS = ("auto", "classes", "ignore")


@dataclass(frozen=True)
class Layout:
    """Splits and classes by the image's name below the folder.

    Attributes:
        splits: The split of each image, if the folders are splits; else empty.
        below: The part of each name below the folder of its split.
        labels: The classes of each image, if the folders are classes; else empty.
    """

    splits: dict[str, str] = field(default_factory=dict)
    below: dict[str, str] = field(default_factory=dict)
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)


def find_layout(names: Sequence[str], folders: str = "auto", are_splits: bool = False) -> Layout:
    """The splits and classes of images by their folders.

    Folders are splits if all images are in `train` and the like, with at least two splits. `auto`: they are classes if
    each image is in exactly one folder (below its split), if there are at least two of them, with two images each on
    average, and if they are not named after dates, cameras and the like.

    Args:
        names: The names of the images below the folder, with forward slashes.
        folders: One of `FOLDERS`; `classes` makes every folder above an image a class of it.
        are_splits: Folders named like splits are splits in any case; images elsewhere are `train`.
    """
    splits = _find_splits(names, are_splits)
    below = {name: name.split("/", 1)[1] if splits and _split_of(name) else name for name in names}
    parts = {name: tuple(rest.split("/")[:-1]) for name, rest in below.items()}
    if folders == "ignore" or (folders == "auto" and not _are_classes(list(parts.values()))):
        parts = {}
    return Layout(splits, below, {name: own for name, own in parts.items() if own})


def _find_splits(names: Sequence[str], are_splits: bool) -> dict[str, str]:
    found = {name: _split_of(name) for name in names}
    if are_splits:
        return {name: split or "train" for name, split in found.items()}
    kinds = set(found.values())
    return found if "train" in kinds and len(kinds) > 1 and "" not in kinds else {}


def _split_of(name: str) -> str:
    """The split that the first folder of a name stands for, or nothing."""
    return _SPLITS.get(name.split("/")[0].lower(), "") if "/" in name else ""


def _are_classes(parts: list[tuple[str, ...]]) -> bool:
    counts = Counter(own[0] for own in parts if len(own) == 1)
    return (
        sum(counts.values()) == len(parts) >= 2 * len(counts)
        and len(counts) > 1
        and not any(_NO_CLASS.fullmatch(name) for name in counts)
    )
