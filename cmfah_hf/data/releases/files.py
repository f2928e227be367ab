"""The files of a data set as it was released: in folders, in the archives that they came in, or some in each."""

import os
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cmfah_hf.errors import DataError

_TAR_ENDINGS = (".tar",)
# What is there but cannot be read at random places, so not at all here.
_CLOSED_ENDINGS = (".rar", ".7z", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_LISTED = 6


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a file lies: on the disk (no archive), or in an archive, of a tar with offset and size."""

    path: str
    archive: Path | None = None
    offset: int = -1
    size: int = 0


class ReleaseFiles:
    """Finds files of a release by the end of their path, wherever below `root` they are.

    Folders go before archives, and of several files of one name the one with the shortest path is taken. Capital
    letters and the kind of slash make no difference. Nothing is unpacked. It can be read from several threads.

    Args:
        root: A folder that holds folders, zip files or uncompressed tar files, or one such archive.

    Raises:
        DataError: If `root` is not there, or an archive in it is damaged.
    """

    def __init__(self, root: str | os.PathLike):
        self.root = Path(root).expanduser()
        if not self.root.exists():
            raise DataError(f"{self.root}: there is no such folder; give the one that holds the release.")
        self._places: dict[str, list[_Place]] = {}
        self._closed: list[str] = []
        self._zips: dict[Path, zipfile.ZipFile] = {}
        self._tars: dict[Path, BinaryIO] = {}
        # A tar file has one place at which it is read.
        self._lock = threading.Lock()
        for file in [self.root] if self.root.is_file() else _walk(self.root):
            self._add(file)

    def __enter__(self) -> "ReleaseFiles":
        return self

    def __exit__(self, *_: object) -> None:
        for opened in self._zips.values():
            opened.close()
        for opened in self._tars.values():
            opened.close()

    def find(self, name: str) -> str | None:
        """The key of the file whose path ends with `name` (`"tags/tags1.txt"`), for `read` and `describe`."""
        wanted = _normal(name)
        found = [place for place in self._places.get(_base(wanted), ()) if _ends_with(_normal(place.path), wanted)]
        if not found:
            return None
        return self._key(min(found, key=lambda place: (place.archive is not None, len(place.path), place.path)))

    def need(self, name: str, what: str) -> str:
        """The key of a file that has to be there.

        Raises:
            DataError: If it is not; the line says what is there instead.
        """
        key = self.find(name)
        if key is None:
            raise DataError(
                f"{self.root}: {name} ({what}) is not there, neither in a folder nor in a zip or tar file; "
                f"{self._instead(name)}"
            )
        return key

    def read(self, key: str) -> bytes:
        """The content of a file.

        Raises:
            OSError: If it cannot be read, also where an archive is damaged at this place.
        """
        archive, _, path = key.partition("\0")
        if not archive:
            return Path(path).read_bytes()
        try:
            if Path(archive) in self._zips:
                return self._zips[Path(archive)].read(path)
            place = next(p for p in self._places[_base(_normal(path))] if self._key(p) == key)
            with self._lock:
                self._tars[place.archive].seek(place.offset)
                content = self._tars[place.archive].read(place.size)
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
            raise OSError(f"{self.describe(key)}: {error}") from error
        if len(content) != place.size:
            raise OSError(f"{self.describe(key)}: the archive ends before it")
        return content

    def chunks(self, key: str, size: int) -> Iterator[bytes]:
        """The content of a file in pieces of at most `size` bytes, for files too large to be held.

        Raises:
            DataError: If it cannot be read.
        """
        archive, _, path = key.partition("\0")
        try:
            if not archive:
                with Path(path).open("rb") as file:
                    yield from iter(lambda: file.read(size), b"")
            elif Path(archive) in self._zips:
                with self._zips[Path(archive)].open(path) as file:
                    yield from iter(lambda: file.read(size), b"")
            else:
                yield self.read(key)
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise DataError(f"{self.describe(key)}: cannot be read ({error}); fetch it again.") from error

    def lines(self, key: str) -> Iterator[bytes]:
        """The lines of a file without their ends, be these of Unix or of Windows."""
        rest = b""
        for chunk in self.chunks(key, 1 << 22):
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                yield line.removesuffix(b"\r")
        if rest:
            yield rest.removesuffix(b"\r")

    def describe(self, key: str) -> str:
        """A file in the words of an error: its path, or archive and path."""
        archive, _, path = key.partition("\0")
        return f"{archive}, {path}" if archive else path

    def without_root(self, text: str) -> str:
        """A text without the part of its paths that is this machine's own."""
        return text.replace(f"{self.root}{os.sep}", "").replace(str(self.root), "the release")

    def unread_archives(self) -> list[str]:
        """Names of archives of kinds that are not read."""
        return self._closed

    def _add(self, file: Path) -> None:
        lower = file.name.lower()
        if lower.endswith(".zip"):
            try:
                opened = zipfile.ZipFile(file)
            except (zipfile.BadZipFile, OSError) as error:
                raise DataError(f"{file}: damaged or cut short ({error}); fetch it again.") from error
            self._zips[file] = opened
            for info in opened.infolist():
                if not info.is_dir():
                    self._keep(_Place(info.filename, file))
        elif lower.endswith(_TAR_ENDINGS):
            try:
                with tarfile.open(file, "r:") as opened:
                    for member in opened:
                        if member.isfile():
                            self._keep(_Place(member.name, file, member.offset_data, member.size))
            except (tarfile.TarError, OSError) as error:
                raise DataError(f"{file}: damaged or cut short ({error}); fetch it again.") from error
            self._tars[file] = file.open("rb")
        elif lower.endswith(_CLOSED_ENDINGS):
            self._closed.append(file.name)
        else:
            self._keep(_Place(str(file)))

    def _keep(self, place: _Place) -> None:
        self._places.setdefault(_base(_normal(place.path)), []).append(place)

    def _key(self, place: _Place) -> str:
        return f"{place.archive or ''}\0{place.path}"

    def _instead(self, name: str) -> str:
        """What a missing file may be mistaken for, or lie in."""
        if self._closed:
            return f"{_some(sorted(self._closed))} cannot be read as it is; unpack it there."
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
    return path.replace("\\", "/").lower()


def _base(path: str) -> str:
    return path.rpartition("/")[2]


def _ends_with(path: str, wanted: str) -> bool:
    return path == wanted or path.endswith(f"/{wanted}")


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return (", ".join(names[:_LISTED]) or "no such files") + more
