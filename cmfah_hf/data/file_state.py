"""States of source files as cache keys: path, size and times, and the content if the times are not reliable.

A copy keeps the modification time of its original, so the change time of the inode counts too, which the system always
sets. That clock has ticks: the state of a file that was changed just now is taken a tick later, so that a later change
gets another time. If the clock is coarse or the time is in the future, the content is hashed.
"""

import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path

from cmfah_hf.atomic import sha256_of
from cmfah_hf.errors import DataError

# Twice the longest tick of Linux, and the tick of FAT, the coarsest of the common file systems.
_TICK_NS, COARSE_NS = 20 * 10**6, 2 * 10**9


@dataclass(frozen=True)
class FileState:
    """The state of one file; `size` is -1 for an address (`hf://...` contains its commit) and anything but a file."""

    path: str
    size: int
    mtime_ns: int = 0
    ctime_ns: int = 0  # change time of the inode, which a copy does not keep
    sha256: str | None = None  # of the content, if the times are not reliable


def file_states(paths: Iterable[str | os.PathLike]) -> list[FileState]:
    """The states of files, in their order; a missing file and an address have a state too."""
    return [_state(os.fspath(path)) for path in paths]


def changed_files(before: Iterable[FileState]) -> list[str]:
    """The paths of the files that changed since these states were taken.

    A state with a hash is compared by content, so a file does not count as changed because it has become older.
    """
    return [state.path for state in before if _differs(state)]


def digest_of(states: Iterable[FileState]) -> str:
    """A digest of the states of files in their order, 32 hexadecimal digits."""
    digest = hashlib.sha256()
    for state in states:
        digest.update(json.dumps(astuple(state)).encode() + b"\n")
    return digest.hexdigest()[:32]


def _state(path: str) -> FileState:
    found = None if "://" in path else _stat(path)
    if found is None:
        return FileState(path, -1)
    age = time.time_ns() - changed_at(found)
    if 0 <= age < _TICK_NS:
        time.sleep((_TICK_NS - age) / 1e9)
        found = _stat(path) or found
    is_coarse = changed_at(found) % 10**9 == 0
    content = _sha256(path) if age < 0 or (is_coarse and age < COARSE_NS) else None
    return FileState(path, found.st_size, found.st_mtime_ns, changed_at(found), content)


def changed_at(found: os.stat_result) -> int:
    """The time of the last change in nanoseconds, which no program sets; on Windows, that of the content."""
    # On Windows, `st_ctime_ns` is the time of creation.
    return found.st_mtime_ns if os.name == "nt" else found.st_ctime_ns


def _differs(before: FileState) -> bool:
    found = None if "://" in before.path else _stat(before.path)
    if found is None:
        return before.size != -1
    if (before.size, before.mtime_ns, before.ctime_ns) != (found.st_size, found.st_mtime_ns, changed_at(found)):
        return True
    return before.sha256 is not None and before.sha256 != _sha256(before.path)


def _stat(path: str) -> os.stat_result | None:
    """The status of a regular file, links followed; `None` for anything else and for an invalid path."""
    try:
        found = os.stat(path)  # noqa: PTH116 - a `Path` takes longer than the call, and a data set has many files
    except (OSError, ValueError):
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def _sha256(path: str) -> str:
    try:
        return sha256_of(Path(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file.") from error
