"""The root of a data set: the only place from which files that its rows name are read.

Rows are untrusted. `datasets.Image` opens any path in a row, so a row could bring any file of this machine, or any
repository that the user's token opens, into an index, a page or a push. Therefore every path is resolved here once,
when a data set is loaded: below the root, links followed, or it is an error.
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
ARCHIVES = frozenset({"zip", "gzip", "bz2", "xz", "zstd", "lz4"})
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


@dataclass(frozen=True)
class DataRoot:
    """The places in which the files that rows name may be.

    Args:
        folders: Local folders. Relative names are below the first, unless there are addresses.
        addresses: Prefixes of addresses, such as `hf://datasets/owner/name@`. Relative names are below the first.
        allow_urls: Whether images may be fetched from `http(s)` addresses in rows.
    """

    folders: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    allow_urls: bool = False

    @classmethod
    def of_folder(cls, folder: str | os.PathLike) -> "DataRoot":
        """The root of a local folder; of one in the Hub's cache, whose files are links, also its repository's blobs."""
        real = Path(folder).resolve()
        folders = [real]
        for inner in (real, *real.parents):
            if inner.parent.name == "snapshots" and _COMMIT.fullmatch(inner.name):
                folders.append(inner.parents[1] / "blobs")
        return cls(tuple(map(str, folders)))

    @classmethod
    def of_address(cls, address: str) -> "DataRoot":
        """The root of a file at an address: its folder; of a file on the Hub, its repository at that revision."""
        if address.startswith("file://"):
            return cls.of_folder(Path(address.removeprefix("file://")).parent)
        if match := re.match(r"hf://datasets/[^/@]+/[^/@]+(@[^/]+)?/", address):
            return cls(addresses=(match[0],))
        return cls(addresses=(posixpath.dirname(address) + "/",))

    @classmethod
    def of_hub(cls, repo_id: str, revision: str | None, cache_dir: str | os.PathLike | None = None) -> "DataRoot":
        """The root of a repository on the Hub: its files there, and its files in the cache."""
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
        """The same root with further places that the user allows."""
        more = tuple(str(Path(folder).expanduser().resolve()) for folder in folders)
        return replace(self, folders=(*self.folders, *more), allow_urls=urls)

    @cached_property
    def files(self) -> "LocalFiles":
        return LocalFiles(self.folders)

    def __getstate__(self) -> dict[str, Any]:
        return {"folders": self.folders, "addresses": self.addresses, "allow_urls": self.allow_urls}

    def place(self, path: str) -> str:
        """The local path or the address of a file that a row names; of a missing file too.

        Raises:
            DataError: If it is outside the root, not a regular file, or an address that the user did not allow.
        """
        if not path or "\0" in path:
            raise DataError(f"the path {path!r} names no file; correct it.")
        if path.lower().startswith(("http://", "https://")) and "::" not in path:
            if not self.allow_urls:
                raise DataError(
                    f"{_shown(path)} is an address, and addresses in rows are fetched only with allow_urls=True; "
                    "download the image, or allow it."
                )
            return path
        *archives, last = path.split("::")
        if any(protocol not in ARCHIVES for protocol in (part.partition("://")[0] for part in archives)):
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
    """A name that leads out of the allowed folders."""


class LocalFiles:
    """Regular files below some folders, found by the names in rows. Each folder is listed once.

    Relative names are below the first folder. A name is found as written, or else by its normal form in Unicode:
    archives made on a Mac hold `é` as two characters where people write one.
    """

    def __init__(self, folders: Sequence[str]):
        self._folders = [os.path.realpath(folder) for folder in folders]
        self._listings: dict[str, dict[str, os.DirEntry]] = {}
        self._by_form: dict[str, dict[str, list[str]]] = {}
        self._spelled: dict[str, str | None] = {}
        self._reals: dict[str, str] = {}

    def find(self, name: str) -> str | None:
        """The path of a file, in its folder as named; `None` if it is missing, `OutsideError` if it is elsewhere."""
        path = posixpath.normpath(posixpath.join(self._folders[0], name.replace("\\", "/")))
        folder, base = posixpath.split(path)
        found = self._folder(folder)
        real = None if found is None else self._real(found)
        if found is None or real is None or not self._is_inside(real):
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
            raise DataError(f"{name!r} is not a regular file; put the image itself there.")
        return posixpath.join(found, entry.name)

    def _is_inside(self, real: str) -> bool:
        return any(real == folder or real.startswith(folder.rstrip("/") + "/") for folder in self._folders)

    def _real(self, folder: str) -> str:
        if folder not in self._reals:
            self._reals[folder] = os.path.realpath(folder)
        return self._reals[folder]

    def _folder(self, folder: str) -> str | None:
        """The folder as the disk spells it; `None` if there is none."""
        if folder not in self._spelled:
            self._spelled[folder] = folder if Path(folder).is_dir() else self._folder_by_form(folder)
        return self._spelled[folder]

    def _folder_by_form(self, folder: str) -> str | None:
        above, base = posixpath.split(folder)
        upper = self._folder(above) if base else None
        if upper is None or not self._is_inside(self._real(upper)):
            return None
        entry = self._entry(self._real(upper), base)
        return posixpath.join(upper, entry.name) if entry is not None and entry.is_dir() else None

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
                f"{name!r} could be either of {both} in {folder}, which differ only in their form in Unicode; rename "
                "one."
            )
        return listing[names[0]] if names else None


def refuse_links_outside(root: Path, paths: Iterable[Path]) -> None:
    """Raises a `DataError` that names the first of these paths that leads outside `root`."""
    files = LocalFiles(DataRoot.of_folder(root).folders)
    for path in paths:
        try:
            files.find(str(path.absolute()))
        except OutsideError as error:
            raise DataError(f"{path}: leads outside the folder {root}; put the file itself there.") from error


def _shown(path: str) -> str:
    return repr(path if len(path) <= 200 else path[:197] + "...")
