"""Image files below a folder, and counts of the files that are not images."""

import errno
import os
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cmfah_hf.data.images.decoding import image_endings
from cmfah_hf.data.images.extras import extra_of
from cmfah_hf.errors import DataError

# Reasons other than an ending.
HIDDEN, NO_ENDING, SPECIAL = "hidden", "no ending", "special files"
LINKED_FOLDERS, LINKS_OUT, CLOSED = "linked folders", "links that leave the folder", "folders that cannot be read"
CLOSED_FILES = "files that cannot be read"
# The record that `prepare_folder` leaves in a folder of images. It counts neither as an image nor as skipped.
RECORD_NAME = ".from-folder.json"
# Files that programs and systems leave among photos: thumbnails, deleted files, resource forks of a Mac.
_LEFT_BY_PROGRAMS = frozenset(
    ("@eadir", "__macosx", "#recycle", "@recycle", "$recycle.bin", "thumbs.db", "ehthumbs.db", "desktop.ini")
)
_MOST_REASONS = 20


@dataclass(frozen=True)
class ImageFiles:
    """Image files by path, and what was skipped.

    Attributes:
        files: The paths in order.
        skipped: The numbers of skipped files by ending in lower case (`.heic`) or by reason.
        closed: The folders and files that could not be read, with the system's reason: what is below them is unknown.
    """

    files: list[Path]
    skipped: Mapping[str, int] = field(default_factory=dict)
    closed: Mapping[str, str] = field(default_factory=dict)


def find_image_files(folder: Path, hidden: bool = False) -> ImageFiles:
    """As `list_image_files`; `DataError` if there is no image."""
    found = list_image_files(folder, hidden)
    if not found.files:
        others = f" ({describe_skipped(found.skipped)} there)" if found.skipped else ""
        raise DataError(f"{folder}: no image below this folder{others}; give the folder that holds them.")
    return found


def list_image_files(folder: Path, hidden: bool = False) -> ImageFiles:
    """The files below a folder that are images by their ending.

    Links to folders are not followed, links to files only to those below the folder. `hidden` includes hidden files and
    folders, and those of thumbnails and of deleted files.
    """
    files: list[Path] = []
    skipped: Counter[str] = Counter()
    root = folder.resolve()
    closed: dict[str, str] = {}

    def note(error: OSError) -> None:
        closed[str(error.filename)] = error.strerror or str(error)

    for parent, folders, names in os.walk(folder, onerror=note):
        below = Path(parent)
        visible = [name for name in folders if hidden or not is_hidden(name)]
        skipped[HIDDEN] += len(folders) - len(visible)
        # `Path.is_symlink` raises `PermissionError` in a folder that can be listed and not entered.
        skipped[LINKED_FOLDERS] += sum(os.path.islink(below / name) for name in visible)  # noqa: PTH114
        folders[:] = visible
        for name in names:
            if name == RECORD_NAME:
                continue
            path = below / name
            try:
                reason = _reason_to_skip(path, root, hidden)
            except OSError as error:
                closed[str(path)] = error.strerror or str(error)
                skipped[CLOSED_FILES] += 1
                continue
            if reason is None:
                files.append(path)
            else:
                skipped[reason] += 1
    skipped[CLOSED] = len(closed) - skipped[CLOSED_FILES]
    kept = {reason: count for reason, count in sorted(skipped.items(), key=lambda own: (-own[1], own[0])) if count}
    return ImageFiles(sorted(files), kept, closed)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is skipped: hidden, or left by a program among photos."""
    return name.startswith(".") or name.lower() in _LEFT_BY_PROGRAMS


def describe_skipped(skipped: Mapping[str, int]) -> str:
    """The counts of skipped files as text: `".heic 12 (pip install "cmfah-hf[heic]"), hidden 1"`."""
    parts = []
    for reason, count in list(skipped.items())[:_MOST_REASONS]:
        extra = extra_of(reason)
        parts.append(f"{reason} {count:,}" + (f" ({extra.command})" if extra else ""))
    if len(skipped) > len(parts):
        parts.append(f"{len(skipped) - len(parts)} more endings")
    return ", ".join(parts)


def _reason_to_skip(path: Path, root: Path, hidden: bool) -> str | None:
    if not hidden and is_hidden(path.name):
        return HIDDEN
    ending = path.suffix.lower()
    if ending not in image_endings():
        return ending or NO_ENDING
    # Not by the methods of `Path`: some of them raise, and others take a file in a closed folder for none.
    if stat.S_ISLNK(os.lstat(path).st_mode) and not path.resolve().is_relative_to(root):
        return LINKS_OUT
    return None if stat.S_ISREG(_mode(path)) else SPECIAL


def _mode(path: Path) -> int:
    """The mode of a file, links followed; 0 if there is none. Raises `OSError` if it cannot be asked for."""
    try:
        return os.stat(path).st_mode  # noqa: PTH116 - a `Path` takes longer than the call
    except FileNotFoundError:
        return 0
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link that leads to itself
            return 0
        raise
