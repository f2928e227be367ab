"""Atomic writing of files and folders, locks, and checksums.

New content is written next to its target and renamed over it. The target is locked meanwhile, so any other temporary
file next to it was left by a process that died, and is removed.
"""

import contextlib
import errno
import functools
import hashlib
import logging
import os
import re
import secrets
import shutil
import socket
import stat
from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import filelock
from safetensors import SafetensorError

from cmfah_hf.errors import CMFAHError

logger = logging.getLogger(__name__)

LOCK_TIMEOUT_S = 60.0
# Every name, for `check_replaceable`.
ANYTHING = ("*",)

# A file name has at most 255 bytes, and temporary names are longer than their target's.
_LONGEST_NAME = 200
_TEMPORARY, _REPLACED, _LOCK = ".tmp", ".old", ".lock"
# Bytes of a lock file that name its holder, and as many that say what to do instead of waiting.
_HOLDER_BYTES = 200
# Seconds of waiting for a lock before it is said.
_SILENT_S = 1.0
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFLNK: "a link that leads to itself",
    stat.S_IFREG: "a file",
}


@contextlib.contextmanager
def atomic_file(
    path: str | os.PathLike, error: type[CMFAHError] = CMFAHError, timeout_s: float = LOCK_TIMEOUT_S
) -> Iterator[Path]:
    """Writes a new file, which replaces `path` in one step at the end of the block, or not at all.

    Yields an empty file in the folder of the target, which is created if needed. Links are followed. The new file has
    the permissions of the one it replaces, or those of the umask. `timeout_s` is the time to wait for another process
    that is writing it. The block should only write: an `OSError` or a `SafetensorError` in it is reported as a failure
    to write.
    """
    target = regular_target(path, error)
    with _writing(path, error), locked(target, error, timeout_s):
        _remove_leftovers(target)
        temporary = _next_to(target, _TEMPORARY)
        try:
            with temporary.open("xb") as file:
                mode = stat.S_IMODE(target.stat().st_mode if target.exists() else os.fstat(file.fileno()).st_mode)
            yield temporary
            temporary.chmod(mode)  # safetensors creates the file again, readable by its owner only
            flush(temporary)
            regular_target(target, error)
            temporary.replace(target)
            flush_folder(target.parent)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str, error: type[CMFAHError] = CMFAHError) -> None:
    """Writes a file of UTF-8 text as `atomic_file` does."""
    with atomic_file(path, error) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


@contextlib.contextmanager
def atomic_folder(
    path: str | os.PathLike, error: type[CMFAHError] = CMFAHError, replaces: Collection[str] = ()
) -> Iterator[Path]:
    """Fills a new folder, which replaces `path` at the end of the block, or not at all.

    Yields an empty folder next to the target. Replacing takes two renames: if a process died between them, the next
    call first restores the previous folder.

    Args:
        path: The folder.
        error: Raised if it cannot be written, or may not be replaced.
        replaces: As in `check_replaceable`.
    """
    target = _resolved(path, error)
    with _writing(path, error), locked(target, error):
        _restore_replaced(target)
        _refuse_other_than(stat.S_IFDIR, target, path, error)
        check_replaceable(path, replaces, error)
        _remove_leftovers(target)
        temporary = _next_to(target, _TEMPORARY)
        replaced = temporary.with_suffix(_REPLACED)
        temporary.mkdir()
        try:
            yield temporary
            for file in (*temporary.rglob("*"), temporary):
                flush(file)
            check_replaceable(path, replaces, error)  # others may have written there meanwhile
            if target.exists():
                target.rename(replaced)
            try:
                temporary.rename(target)
            except OSError:
                if replaced.exists():
                    replaced.rename(target)
                raise
            flush_folder(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            if target.exists():
                shutil.rmtree(replaced, ignore_errors=True)


def check_replaceable(path: str | os.PathLike, replaces: Collection[str], error: type[CMFAHError] = CMFAHError) -> None:
    """Refuses a folder that holds anything else than may be replaced; an empty or missing one passes.

    Args:
        path: The folder.
        replaces: Patterns of the names in it, such as `*.json`. `ANYTHING` is for folders that this package names, and
            for callers that have looked themselves.
        error: Raised if a name matches no pattern.
    """
    target = _resolved(path, error)
    with _writing(path, error):
        held = sorted(entry.name for entry in target.iterdir()) if target.is_dir() else []
    other = next((name for name in held if not any(fnmatchcase(name, pattern) for pattern in replaces)), None)
    if other is not None:
        raise error(f"{path} holds {other!r:.80}, which would be lost; name another folder.")


@contextlib.contextmanager
def locked(
    path: str | os.PathLike,
    error: type[CMFAHError] = CMFAHError,
    timeout_s: float = LOCK_TIMEOUT_S,
    *,
    shown: str | os.PathLike | None = None,
    instead: str = "",
) -> Iterator[None]:
    """Holds the lock of `path`, a hidden file next to it that is removed afterwards.

    The lock of a process that died is free. It is not reentrant. After a second, a warning names what is waited for and
    the holder, and after `timeout_s` seconds the error does.

    Args:
        path: What is locked.
        error: The kind of error.
        timeout_s: The seconds to wait for another holder.
        shown: The path in messages, if it is another one.
        instead: What others should do, if this holder keeps the lock until it is ended. Those who do not keep it so
            themselves are refused without waiting.
    """
    target = _resolved(path, error)
    lock = target.with_name(f"{_hidden(target)}{_LOCK}")
    with _writing(path, error):
        target.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(lock, os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0)))  # filelock retries a refusal
        held = filelock.FileLock(lock, on_acquired=functools.partial(_sign, instead=instead), thread_local=False)
        _acquire(held, f"{path if shown is None else shown} is being written", error, timeout_s, not instead)
    try:
        yield
    finally:
        # Removed while held: a process that waits for this file sees that it is gone, and opens the next one.
        lock.unlink(missing_ok=True)
        held.release()


def _acquire(
    held: filelock.BaseFileLock, fact: str, error: type[CMFAHError], timeout_s: float, is_refused: bool
) -> None:
    """Acquires a lock, or raises `error`; `is_refused`: at once if the holder says what to do instead."""
    lock, silent_s = Path(held.lock_file), min(_SILENT_S, timeout_s)
    for seconds in (0.0, silent_s, timeout_s - silent_s):
        try:
            held.acquire(timeout=seconds)
            return
        except filelock.Timeout:
            holder, instead = _holder(lock)
            if is_refused and instead:
                raise error(f"{fact} by {holder}, {instead}.") from None
        if 0 < seconds < timeout_s:
            logger.warning("%s by %s; waiting for it, at most %g seconds.", fact, holder, timeout_s)
    since = f"for {timeout_s:g} seconds" if timeout_s else "already"
    raise error(f"{fact} {since} by {holder}{f', {instead}' if instead else '; wait for it, or name another'}.")


def regular_target(path: str | os.PathLike, error: type[CMFAHError] = CMFAHError) -> Path:
    """The path with its links followed, where a file of this name is written; an error if it is anything else."""
    target = _resolved(path, error)
    _refuse_other_than(stat.S_IFREG, target, path, error)
    return target


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def flush(path: Path) -> None:
    """Flushes a file, or the entries of a folder, to the disk."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as reason:
        if reason.errno != errno.EINVAL:  # some file systems cannot flush folders
            raise
    finally:
        os.close(descriptor)


def flush_folder(folder: Path) -> None:
    """Flushes the entries of a folder to the disk, which a rename alone does not do, if the system supports it."""
    if hasattr(os, "O_DIRECTORY"):
        flush(folder)


def _resolved(path: str | os.PathLike, error: type[CMFAHError]) -> Path:
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError) as reason:  # ValueError: a null character in the name
        raise error(f"{os.fspath(path)!r} names no file ({_reason(reason)}); give another path.") from reason


def _refuse_other_than(kind: int, target: Path, path: str | os.PathLike, error: type[CMFAHError]) -> None:
    try:
        found = stat.S_IFMT(target.lstat().st_mode)
    except FileNotFoundError:
        return
    except OSError as reason:
        raise error(f"{path} cannot be written ({_reason(reason)}); give another path.") from reason
    if found != kind:
        wanted = "a folder" if kind == stat.S_IFDIR else "a file"
        raise error(f"{path} is {_KINDS.get(found, 'a special file')}, which is left alone; name {wanted} to write.")


@contextlib.contextmanager
def _writing(path: str | os.PathLike, error: type[CMFAHError]) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as reason:
        raise error(
            f"{path} could not be written ({_reason(reason)}); what was there before is unchanged. Make room, or "
            "write elsewhere."
        ) from reason


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())


def _hidden(target: Path) -> str:
    name = target.name
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return f".{name}"


def _next_to(target: Path, ending: str) -> Path:
    return target.with_name(f"{_hidden(target)}.{secrets.token_hex(8)}{ending}")


def _left(target: Path, ending: str) -> list[Path]:
    name = re.compile(rf"{re.escape(_hidden(target))}\.[0-9a-f]{{16}}{re.escape(ending)}")
    return [path for path in target.parent.iterdir() if name.fullmatch(path.name)]


def _remove_leftovers(target: Path) -> None:
    """Removes temporary files of `target` that dead processes left. The caller holds its lock."""
    for ending in (_TEMPORARY, _REPLACED):
        for path in _left(target, ending):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _restore_replaced(target: Path) -> None:
    if not target.exists() and (left := _left(target, _REPLACED)):
        left[0].rename(target)


def _sign(descriptor: int, instead: str) -> None:
    holder = f"process {os.getpid()} on {socket.gethostname()}"[:_HOLDER_BYTES]
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{holder}\n{instead}".encode(), 0)


def _holder(lock: Path) -> tuple[str, str]:
    """The holder of a lock, and what to do instead of waiting for it, if it says so."""
    try:
        with lock.open("rb") as file:
            text = file.read(2 * _HOLDER_BYTES).decode("utf-8", "replace")
    except OSError:  # released in the meantime, or not readable on this system
        text = ""
    holder, _, instead = text.partition("\n")
    return (holder, instead) if holder and (holder + instead).isprintable() else ("another process", "")
