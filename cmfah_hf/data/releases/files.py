"""Files of a released data set, in folders or in zip and tar archives."""

import lzma
import os
import stat
import struct
import tarfile
import threading
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from cmfah_hf.data.images import MOST_BYTES
from cmfah_hf.documents import file_of
from cmfah_hf.errors import DataError

# Archives without random access, which are not read.
_CLOSED_ENDINGS = (".rar", ".7z", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_LISTED = 6
# The largest matrix of tags has half a gigabyte, the largest list of lines 60 MB. Deflate compresses zeros to a
# thousandth; a higher ratio is a decompression bomb.
_MOST_STREAMED, _MOST_LINES_BYTES, _LONGEST_LINE = 2**32, 2**30, 2**24
_MOST_RATIO, _SMALL = 1100, 2**20
# Errors of the readers of archives on damaged ones.
_DAMAGED = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error, EOFError, KeyError, ValueError,
    OverflowError, NotImplementedError, RuntimeError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Place:
    """Location of a file: on disk (no archive) or in an archive; offset and size if that is a tar file."""

    path: str
    archive: Path | None = None
    offset: int = -1
    size: int = 0


class ReleaseFiles:
    """Finds files of a release anywhere below a folder (or in one archive), by the end of their path.

    Zip files and uncompressed tar files are read without unpacking them. Folders take precedence over archives, and
    shorter paths over longer ones. Case and the kind of slash are ignored. Reading is thread-safe.
    """

    def __init__(self, root: str | os.PathLike):
        self.root = Path(root).expanduser()
        is_file = file_of(self.root) is not None
        if not is_file and not os.path.isdir(self.root):  # noqa: PTH112 - it accepts names that no file can have
            raise DataError(f"{self.root}: there is no such folder; give the folder of the release.")
        self._real_root = os.path.realpath(self.root.parent if is_file else self.root)
        self._places: dict[str, list[_Place]] = {}
        self._closed: list[str] = []
        self._zips: dict[Path, zipfile.ZipFile] = {}
        self._tars: dict[Path, BinaryIO] = {}
        self._opened = ExitStack()
        self._lock = threading.Lock()  # for the position in tar files
        for file in [self.root] if is_file else _walk(self.root):
            self._add(file)

    def __enter__(self) -> "ReleaseFiles":
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def find(self, name: str) -> str | None:
        """The key of the file whose path ends with `name` (`"tags/tags1.txt"`), for `read` and `describe`."""
        wanted = _normal(name)
        named = self._places.get(_base(wanted), ())
        found = [place for place in named if f"/{_normal(place.path)}".endswith(f"/{wanted}")]
        if not found:
            return None
        return self._key(min(found, key=lambda place: (place.archive is not None, len(place.path), place.path)))

    def need(self, name: str, what: str) -> str:
        """The key of a required file; the error for a missing one lists files that are present."""
        key = self.find(name)
        if key is None:
            raise DataError(
                f"{self.root}: {name} ({what}) is missing, in folders as well as in zip and tar files; "
                f"{self._instead(name)}"
            )
        return key

    def read(self, key: str) -> bytes:
        """The content of a file; `OSError` if it cannot be read, or is damaged in its archive."""
        archive, _, path = key.partition("\0")
        if not archive:
            with self._open(path) as file:
                content = file.read(MOST_BYTES + 1)
            if len(content) > MOST_BYTES:
                raise OSError(f"has more than {MOST_BYTES:,} bytes")
            return content
        try:
            if Path(archive) in self._zips:
                with self._open_member(archive, path, MOST_BYTES) as file:
                    return file.read()
            place = next(p for p in self._places[_base(_normal(path))] if self._key(p) == key)
            tar = self._tars[Path(archive)]
            with self._lock:
                tar.seek(place.offset)
                content = tar.read(place.size)
        except _DAMAGED as error:
            raise OSError(f"{self.describe(key)}: {error}") from error
        if len(content) != place.size:
            raise OSError(f"{self.describe(key)}: the archive ends before it")
        return content

    def chunks(self, key: str, size: int) -> Iterator[bytes]:
        """The content of a file in pieces of at most `size` bytes; `DataError` if it cannot be read."""
        archive, _, path = key.partition("\0")
        try:
            if not archive:
                with self._open(path) as file:
                    yield from iter(lambda: file.read(size), b"")
            elif Path(archive) in self._zips:
                with self._open_member(archive, path, _MOST_STREAMED) as file:
                    yield from iter(lambda: file.read(size), b"")
            else:
                yield self.read(key)
        except (OSError, *_DAMAGED) as error:
            raise DataError(f"{self.describe(key)}: cannot be read ({error}); fetch it again.") from error

    def lines(self, key: str) -> Iterator[bytes]:
        """The lines of a file without their LF or CR LF."""
        rest = b""
        total = 0
        for chunk in self.chunks(key, 1 << 22):
            total += len(chunk)
            *whole, rest = (rest + chunk).split(b"\n")
            if len(rest) > _LONGEST_LINE or total > _MOST_LINES_BYTES:
                raise DataError(f"{self.describe(key)}: is too long for a list of a release; fetch it again.")
            for line in whole:
                yield line.removesuffix(b"\r")
        if rest:
            yield rest.removesuffix(b"\r")

    def describe(self, key: str) -> str:
        """A file as errors name it: its path, or archive and path."""
        archive, _, path = key.partition("\0")
        return f"{archive}, {path}" if archive else path

    def without_root(self, text: str) -> str:
        """A text without the path of the release on this machine."""
        return text.replace(f"{self.root}{os.sep}", "").replace(str(self.root), "the release")

    def unread_archives(self) -> list[str]:
        """Names of archives in formats that are not read."""
        return self._closed

    def _add(self, file: Path) -> None:
        lower = file.name.lower()
        if lower.endswith(".zip"):
            self._add_archive(file, self._add_zip)
        elif lower.endswith(".tar"):
            self._add_archive(file, self._add_tar)
        elif lower.endswith(_CLOSED_ENDINGS):
            self._closed.append(file.name)
        else:
            self._keep(_Place(str(file)))

    def _add_archive(self, file: Path, add: Callable[[Path, BinaryIO], None]) -> None:
        try:
            add(file, self._opened.enter_context(self._open(file)))
        except (OSError, *_DAMAGED) as error:
            raise DataError(f"{file}: damaged or cut short ({error}); fetch it again.") from error

    def _add_zip(self, file: Path, opened: BinaryIO) -> None:
        self._zips[file] = self._opened.enter_context(zipfile.ZipFile(opened))
        for info in self._zips[file].infolist():
            if not info.is_dir():
                self._keep(_Place(info.filename, file))

    def _add_tar(self, file: Path, opened: BinaryIO) -> None:
        self._tars[file] = opened
        end = opened.seek(0, os.SEEK_END)
        opened.seek(0)
        with tarfile.open(fileobj=opened, mode="r:") as tar:
            for member in tar:
                if member.isfile() and not member.issparse():
                    if not 0 <= member.size <= end - member.offset_data:
                        raise tarfile.ReadError(f"{member.name[:200]!r} extends beyond its end")
                    self._keep(_Place(member.name, file, member.offset_data, member.size))

    def _open(self, path: str | os.PathLike) -> BinaryIO:
        """Opens a regular file of the release without blocking on a pipe; refuses links that lead outside."""
        real = os.path.realpath(path)
        if real != self._real_root and not real.startswith(self._real_root.rstrip(os.sep) + os.sep):
            raise OSError(f"{path}: is a link that leads outside {self.root}")
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        file = os.fdopen(descriptor, "rb")
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            file.close()
            raise OSError(f"{path}: is not a regular file")
        return file

    def _open_member(self, archive: str, path: str, most_bytes: int) -> IO[bytes]:
        opened = self._zips[Path(archive)]
        info = opened.getinfo(path)
        if info.file_size > most_bytes or info.file_size > _MOST_RATIO * info.compress_size + _SMALL:
            raise OSError(
                f"would expand from {info.compress_size:,} bytes to {info.file_size:,}, more than any data do"
            )
        return opened.open(info)

    def _keep(self, place: _Place) -> None:
        self._places.setdefault(_base(_normal(place.path)), []).append(place)

    def _key(self, place: _Place) -> str:
        return f"{place.archive or ''}\0{place.path}"

    def _instead(self, name: str) -> str:
        """A hint for a missing file: archives that are not read, or similar files."""
        if self._closed:
            return f"{_some(sorted(self._closed))} cannot be read; unpack it there."
        folder, _, base = _normal(name).rpartition("/")
        ending = base.rpartition(".")[2]
        stem = base.partition("_")[0] if "_" in base else ""
        others = {
            place.path for places in self._places.values() for place in places if _normal(place.path).endswith(ending)
        }
        near = {path for path in others if folder and f"/{folder}/" in f"/{_normal(path)}"}
        near = {path for path in near if stem in _normal(path)} or near or others
        root = f"{self.root}{os.sep}"
        return f"present are: {_some(sorted(path.removeprefix(root) for path in near))}."


def _walk(root: Path) -> Iterator[Path]:
    for folder, below, files in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield Path(folder, name)


def _normal(path: str) -> str:
    return unicodedata.normalize("NFC", path).replace("\\", "/").lower()


def _base(path: str) -> str:
    return path.rpartition("/")[2]


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return (", ".join(names[:_LISTED]) or "no such files") + more
