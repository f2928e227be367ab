"""The root of a data set: files that its rows name are read below it and nowhere else.

Rows come from strangers. A row that names a path can otherwise bring any file of this machine, or any repository that
the user's token opens, into an index, a page or a push: `datasets.Image` opens whatever path a row holds. So every path
is placed here, once, when a data set is loaded: below the root, links followed, or in an error.
"""

import os
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cmfah_hf.errors import DataError

# Archives that `datasets` reads in place, as `zip://name::archive`.
_ARCHIVES = frozenset({"zip", "gzip", "bz2", "xz", "zstd", "lz4"})
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


@dataclass(frozen=True)
class DataRoot:
    """Where the files that the rows of a data set name may lie.

    Args:
        folders: Local folders. Relative names are below the first of them, unless there are addresses.
        addresses: Beginnings of addresses, such as `hf://datasets/owner/name@`. Relative names are below the first.
        allow_urls: Whether images may be fetched from `http(s)` addresses that rows name.
    """

    folders: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    allow_urls: bool = False

    @classmethod
    def of_folder(cls, folder: str | os.PathLike, more: Sequence[str | os.PathLike] = ()) -> "DataRoot":
        """That of a local folder, and `more` folders that the user names.

        A folder in the Hub's cache is links into the blobs of its repository, so these belong to it.
        """
        real = Path(folder).resolve()
        folders = [real, *(Path(other).expanduser().resolve() for other in more)]
        for inner in (real, *real.parents):
            if inner.parent.name == "snapshots" and _COMMIT.fullmatch(inner.name):
                folders.append(inner.parents[1] / "blobs")
        return cls(tuple(map(str, folders)))

    @classmethod
    def of_address(cls, address: str) -> "DataRoot":
        """That of a file behind an address: its folder; of a file on the Hub, the repository at that revision."""
        if address.startswith("file://"):
            return cls.of_folder(Path(address.removeprefix("file://")).parent)
        if match := re.match(r"hf://datasets/[^/@]+/[^/@]+(@[^/]+)?/", address):
            return cls(addresses=(match[0],))
        return cls(addresses=(posixpath.dirname(address) + "/",))

    @classmethod
    def of_hub(cls, repo_id: str, revision: str | None, cache_dir: str | os.PathLike | None = None) -> "DataRoot":
        """That of a repository on the Hub: its files there, and its files in the cache."""
        import datasets
        from huggingface_hub import constants

        cache = Path(constants.HF_HUB_CACHE)
        own = "datasets--" + repo_id.replace("/", "--")
        found = [path for path in (cache.iterdir() if cache.is_dir() else ()) if path.name.lower() == own.lower()]
        unpacked = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "downloads" / "extracted"
        base = f"hf://datasets/{repo_id}"
        return cls(
            tuple(str(path.resolve()) for path in [*found, unpacked]),
            (f"{base}@{quote(revision or 'main', safe='')}/", f"{base}@", f"{base}/"),
        )

    def allowing(self, urls: bool, folders: Sequence[str | os.PathLike]) -> "DataRoot":
        """The same root, wider by what the user asked for."""
        more = tuple(str(Path(folder).expanduser().resolve()) for folder in folders)
        return replace(self, folders=(*self.folders, *more), allow_urls=urls)

    @cached_property
    def files(self) -> "LocalFiles":
        return LocalFiles(self.folders)

    def __getstate__(self) -> dict[str, Any]:
        return {"folders": self.folders, "addresses": self.addresses, "allow_urls": self.allow_urls}

    def place(self, path: str) -> str:
        """Where a file lies that a row names: a local path or an address. A missing one has a place too.

        Raises:
            DataError: If it is outside the root, no regular file, or an address that was not asked for.
        """
        if not path or "\0" in path:
            raise DataError(f"the path {path!r} names no file; correct it.")
        if path.lower().startswith(("http://", "https://")) and "::" not in path:
            if not self.allow_urls:
                raise DataError(
                    f"{_shown(path)} is an address, and those in rows are fetched only where allow_urls=True asks for "
                    "it; download the image, or ask for that."
                )
            return path
        *archives, last = path.split("::")
        if any(protocol not in _ARCHIVES for protocol in (part.partition("://")[0] for part in archives)):
            raise self._outside(path)
        return "::".join([*archives, self._place(last, path)])

    def _place(self, last: str, path: str) -> str:
        if "://" in last:
            address = next((own for own in self.addresses if last.lower().startswith(own.lower())), None)
            if address is None or ".." in last.split("/"):
                raise self._outside(path)
            return last
        if _DRIVE.match(last) and os.name != "nt":
            raise self._outside(path)
        if self.addresses and not posixpath.isabs(last):
            name = posixpath.normpath(last.replace("\\", "/"))
            if name.split("/")[0] == "..":
                raise self._outside(path)
            return self.addresses[0] + name
        if not self.folders:
            raise self._outside(path)
        try:
            return self.files.find(last) or posixpath.normpath(posixpath.join(self.folders[0], last))
        except OutsideError as error:
            raise self._outside(path) from error

    def _outside(self, path: str) -> DataError:
        root = ", ".join([*self.folders[:1], *self.addresses[:1]]) or "it, which has no files of its own"
        return DataError(
            f"the path {_shown(path)} leads outside the data set's own folder ({root}); put the file inside, or name "
            "its folder with image_folders=."
        )


class OutsideError(DataError):
    """A name that leads out of the folders in which files may lie."""


class LocalFiles:
    """Regular files below some folders, by the names that rows give them. Each folder is listed once.

    A name is found as it is written, or else by its normal form in Unicode: archives made on a Mac hold `é` as two
    characters where people write one.

    Args:
        folders: Those that names may lead to, links followed; relative names are below the first.
    """

    def __init__(self, folders: Sequence[str]):
        self._folders = [os.path.realpath(folder) for folder in folders]
        self._listings: dict[str, dict[str, os.DirEntry]] = {}
        self._by_form: dict[str, dict[str, list[str]]] = {}
        self._places: dict[str, str | None] = {}

    def find(self, name: str) -> str | None:
        """The path of a file, its folder as it was named; None if there is no such file.

        Raises:
            OutsideError: If it lies elsewhere.
            DataError: If it is no regular file, or two files have this name but for their form in Unicode.
        """
        path = posixpath.normpath(posixpath.join(self._folders[0], name.replace("\\", "/")))
        folder, base = posixpath.split(path)
        found = self._folder(folder)
        real = None if found is None else self._real(found)
        if real is None or not self._is_inside(real):
            if self._is_inside(os.path.realpath(path)):
                return None
            raise OutsideError(f"{name!r} leads outside the folder; put the file inside.")
        entry = self._entry(real, base)
        if entry is None:
            return None
        if entry.is_symlink():
            target = os.path.realpath(entry.path)
            if not self._is_inside(target):
                raise OutsideError(f"{name!r} is a link that leads outside the folder; put the file itself inside.")
            if not Path(target).exists():
                return None
        if not entry.is_file():
            raise DataError(f"{name!r} is no regular file; put the image itself there.")
        return posixpath.join(found, entry.name)

    def _is_inside(self, real: str) -> bool:
        return any(real == folder or real.startswith(folder.rstrip("/") + "/") for folder in self._folders)

    def _real(self, folder: str) -> str:
        key = f"\0{folder}"
        if key not in self._places:
            self._places[key] = os.path.realpath(folder)
        return self._places[key]

    def _folder(self, folder: str) -> str | None:
        """The folder as the disk spells it; None if there is none."""
        if folder not in self._places:
            spelled: str | None = folder
            if not Path(folder).is_dir():
                above, base = posixpath.split(folder)
                upper = self._folder(above) if base else None
                inside = upper is not None and self._is_inside(self._real(upper))
                entry = self._entry(self._real(upper), base) if inside else None
                spelled = posixpath.join(upper, entry.name) if entry is not None and entry.is_dir() else None
            self._places[folder] = spelled
        return self._places[folder]

    def _entry(self, folder: str, name: str) -> os.DirEntry | None:
        if folder not in self._listings:
            try:
                with os.scandir(folder) as entries:
                    self._listings[folder] = {entry.name: entry for entry in entries}
            except OSError as error:
                raise DataError(f"{folder}: cannot be listed ({error.strerror}); check the folder.") from error
        listing = self._listings[folder]
        if name in listing:
            return listing[name]
        if name.isascii():
            return None
        if folder not in self._by_form:
            forms: dict[str, list[str]] = {}
            for present in listing:
                if not present.isascii():
                    forms.setdefault(unicodedata.normalize("NFC", present), []).append(present)
            self._by_form[folder] = forms
        names = self._by_form[folder].get(unicodedata.normalize("NFC", name), [])
        if len(names) > 1:
            both = " and ".join(ascii(present) for present in sorted(names))
            raise DataError(
                f"{name!r} could be either of {both} in {folder}, which differ in nothing but their form in Unicode; "
                "rename one."
            )
        return listing[names[0]] if names else None


def refuse_links_outside(root: Path, paths: Iterable[Path]) -> None:
    """Refuse files of a folder that are links to somewhere else.

    Raises:
        DataError: Naming the first path that leads outside `root`.
    """
    files = LocalFiles(DataRoot.of_folder(root).folders)
    for path in paths:
        try:
            files.find(str(path.absolute()))
        except OutsideError as error:
            raise DataError(f"{path}: leads outside the folder {root}; put the file itself there.") from error


def _shown(path: str) -> str:
    return repr(path if len(path) <= 200 else path[:197] + "...")
