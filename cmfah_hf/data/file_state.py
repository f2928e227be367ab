"""The state of source files, as keys of caches: path, size, times, and the content where the times prove nothing.

Copies carry the time of the last change of their originals over, so that of the inode counts too, which the system sets
whatever changes. Its clock ticks, though: of a file that was changed just now, the state is taken a tick later, so that
a further change gives another time. Where the clock is coarse or the time lies in the future, the content tells.
"""

import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path

from cmfah_hf.errors import DataError

# Twice the longest tick of Linux; and that of FAT, the coarsest of the common file systems.
_TICK_NS, _COARSE_NS = 20 * 10**6, 2 * 10**9
_PIECE = 1 << 20


@dataclass(frozen=True)
class FileState:
    """One file as it was found.

    Args:
        path: As it was given.
        size: In bytes; -1 for an address (`hf://...`, which holds its commit), a missing file, or what is no file.
        mtime_ns: Time of the last change of the content.
        ctime_ns: Time of the last change of the inode, which no copy can carry over.
        sha256: Of the content, where the times cannot prove anything; else None.
    """

    path: str
    size: int
    mtime_ns: int = 0
    ctime_ns: int = 0
    sha256: str | None = None


def file_states(paths: Iterable[str | os.PathLike]) -> list[FileState]:
    """The states of files, in their order. A missing file, or an address, has a state too.

    Raises:
        DataError: If a file that has to be read for its state cannot be.
    """
    return [_state(os.fspath(path)) for path in paths]


def changed_files(before: Iterable[FileState]) -> list[str]:
    """The paths of those files that are not as they were when these states were taken.

    Unlike a comparison with fresh states, this compares the content of a file if its state holds one, so that a file
    does not count as changed for having grown older.
    """
    return [state.path for state in before if _differs(state)]


def digest_of(states: Iterable[FileState]) -> str:
    """One name for the states of many files, 32 hexadecimal digits; another order is another name."""
    digest = hashlib.sha256()
    for state in states:
        digest.update(json.dumps(astuple(state)).encode() + b"\n")
    return digest.hexdigest()[:32]


def _state(path: str) -> FileState:
    found = None if "://" in path else _stat(path)
    if found is None:
        return FileState(path, -1)
    age = time.time_ns() - _changed_at(found)
    if 0 <= age < _TICK_NS:
        time.sleep((_TICK_NS - age) / 1e9)
        found = _stat(path) or found
    is_coarse = _changed_at(found) % 10**9 == 0
    content = _sha256(path) if age < 0 or (is_coarse and age < _COARSE_NS) else None
    return FileState(path, found.st_size, found.st_mtime_ns, _changed_at(found), content)


def _changed_at(found: os.stat_result) -> int:
    # On Windows, the other one is the time of creation.
    return found.st_mtime_ns if os.name == "nt" else found.st_ctime_ns


def _differs(before: FileState) -> bool:
    found = None if "://" in before.path else _stat(before.path)
    if found is None:
        return before.size != -1
    if (before.size, before.mtime_ns, before.ctime_ns) != (found.st_size, found.st_mtime_ns, _changed_at(found)):
        return True
    return before.sha256 is not None and before.sha256 != _sha256(before.path)


def _stat(path: str) -> os.stat_result | None:
    """Of a regular file, links followed; None for anything else, and for a path that no file can have."""
    try:
        found = os.stat(path)  # noqa: PTH116 - a `Path` takes longer than the call, and a data set has many files
    except (OSError, ValueError):
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file.") from error
    return digest.hexdigest()
