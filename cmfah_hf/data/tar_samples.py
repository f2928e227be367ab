"""Samples of WebDataset shards: tar files in which neighbors with one name up to the first dot are one sample."""

import logging
import os
import posixpath
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from cmfah_hf.data.images.decoding import MOST_BYTES
from cmfah_hf.documents import file_of
from cmfah_hf.errors import DataError

logger = logging.getLogger(__name__)

# Errors of `tarfile` on damaged files.
_DAMAGED = (tarfile.TarError, EOFError, OSError, ValueError, OverflowError, RecursionError, zlib.error)
# Bytes of a file that is not an image.
_MOST_TEXT_BYTES = 2**24
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_SHARDS = 100_000


class Sample(NamedTuple):
    """A sample of a shard.

    Attributes:
        key: The name of its files up to the first dot, with their folder.
        files: The contents of its files by the rest of their names in lower case, such as `jpg` or `seg.png`. Those
            that were not wanted are empty.
    """

    key: str
    files: dict[str, bytes]


def read_samples(path: str | os.PathLike, is_wanted: Callable[[str], bool]) -> Iterator[Sample]:
    """The samples of a shard, in their order.

    Args:
        path: The tar file, not compressed.
        is_wanted: Whether a file with this rest of its name is read. Others are named only.

    Raises:
        DataError: If the file is damaged, or cut short: after the samples before that place, with their number.
    """
    if file_of(path) is None:
        raise DataError(f"{path}: there is no such file; check its name.")
    number = 0
    try:
        with tarfile.open(path, "r:", errorlevel=2) as tar:
            for sample in _grouped(tar, str(path), is_wanted):
                yield sample
                number += 1
    except DataError:
        raise
    except _DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{path}: is cut short or damaged after {number:,} samples ({reason}); fetch it again, or leave it out."
        ) from error


def _grouped(tar: tarfile.TarFile, name: str, is_wanted: Callable[[str], bool]) -> Iterator[Sample]:
    current: Sample | None = None
    seen: set[str] = set()
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # otherwise it keeps all of them
        place = _place(member)
        if place is None:
            continue
        key, ending = place
        if current is None or key != current.key:
            if current is not None:
                yield current
            if key in seen:
                raise DataError(f"{name}: the files of the sample {key!r} are in two places; write them together.")
            seen.add(key)
            current = Sample(key, {})
        if ending in current.files:
            raise DataError(f"{name}: the sample {key!r} has two files {ending!r}; leave one of them out.")
        current.files[ending] = _content(tar, member, name) if is_wanted(ending) else b""
    _check_end(tar, len(seen))  # before the last sample, which may lack files
    if current is not None:
        yield current


def _place(member: tarfile.TarInfo) -> tuple[str, str] | None:
    """Key and ending of a member; `None` of one that is no file of a sample."""
    folder, base = posixpath.split(member.name)
    stem, _, ending = base.partition(".")
    if not member.isreg() or member.issparse() or not stem or not ending:
        return None
    return posixpath.join(folder, stem), ending.lower()


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> bytes:
    most = MOST_BYTES if not member.name.lower().endswith((".json", ".txt", ".cls")) else _MOST_TEXT_BYTES
    if member.size > most:
        raise DataError(f"{name}: {member.name!r} has more than {most:,} bytes; make it smaller.")
    file = tar.extractfile(member)
    return b"" if file is None else file.read()


def _check_end(tar: tarfile.TarFile, number: int) -> None:
    """Raises an error if the file goes on with something that is no header: `tarfile` ends there silently."""
    if tar.fileobj is None:
        return
    tar.fileobj.seek(tar.offset)
    block = tar.fileobj.read(tarfile.BLOCKSIZE)
    if block.strip(b"\0"):
        raise tarfile.ReadError(f"no header at byte {tar.offset:,}")
    if not block:  # some programs write none
        logger.warning("%s: has no end mark, so it may be cut short after its %d samples.", tar.name, number)


def expanded(name: str) -> list[str]:
    """The names of a pattern such as `x-{000..009}.tar`, as shells write it; of a name without braces, itself."""
    match = _RANGE.search(name)
    if match is None:
        return [name]
    first, last = int(match[1]), int(match[2])
    if not first <= last < first + _MOST_SHARDS:
        raise DataError(f"{name}: the range {match[0]} is empty or too long; write it as {{000..009}}.")
    width = len(match[1])
    head, rest = name[: match.start()], expanded(name[match.end() :])
    if (last - first + 1) * len(rest) > _MOST_SHARDS:
        raise DataError(f"{name}: names more than {_MOST_SHARDS:,} files; name fewer.")
    return [f"{head}{number:0{width}d}{tail}" for number in range(first, last + 1) for tail in rest]


def stem_of(path: str | os.PathLike) -> str:
    """The name of a shard without its ending."""
    return Path(path).name.removesuffix(".tar")
