"""The folders that an index follows: their names, their places, and the folders that an update is about."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cmfah_hf.data import resolve_data_path
from cmfah_hf.errors import DataError, HashIndexError
from cmfah_hf.retrieval.folders.reach import in_time
from cmfah_hf.retrieval.storage.folder_records import Root


@dataclass(frozen=True)
class FolderRequest:
    """A folder to follow.

    Attributes:
        path: The folder, or its new place.
        name: Its name in the index. None: the name that the index has for it, or the folder's own.
        hidden: Include hidden files and folders, and those of thumbnails.
        split: With metadata, one split. None: all.
        keep: With metadata, the columns that the index stores.

    A folder that the index follows already keeps its `hidden`, `split` and `keep` where they are not given.
    """

    path: str | Path
    name: str | None = None
    hidden: bool = False
    split: str | None = None
    keep: tuple[str, ...] = ()

    @classmethod
    def of_option(cls, text: str) -> "FolderRequest":
        """The folder of an option `NAME=PATH`."""
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise HashIndexError(f"--root {text}: give a name and a folder, such as --root cam2023=/mnt/cam2023.")
        return cls(path, name)

    @property
    def place(self) -> str:
        """The absolute path; links are not followed, so a link may lead to another disk later.

        Raises:
            DataError: If its drive does not answer.
        """
        try:
            found = in_time(resolve_data_path, str(self.path))
        except TimeoutError as error:
            raise DataError(f"{self.path}: {error.strerror}; check its drive.") from error
        return os.path.abspath(found)  # noqa: PTH100 - `Path.absolute` keeps `..`


@dataclass(frozen=True)
class Roots:
    """The folders of an index after a request.

    Attributes:
        all: All folders that the index follows, in their order.
        asked: The names of those to update.
    """

    all: tuple[Root, ...]
    asked: frozenset[str]


def requested_roots(recorded: Sequence[Root], requests: Iterable[FolderRequest], in_ids: bool = False) -> Roots:
    """The folders of an index after a request; without any request, all folders of the index are asked for.

    `in_ids`: whether ids begin with the folder's name even if there is one folder.

    Raises:
        HashIndexError: If a name is taken or no name, a folder is named twice, or one is inside another.
    """
    roots = {root.name: root for root in recorded}
    asked: list[str] = []
    for request in requests:
        root = _root_of(request, roots)
        if root.name in asked:
            raise HashIndexError(f"{request.path}: this folder is named twice; name it once.")
        roots[root.name] = root
        asked.append(root.name)
    _refuse_nested(list(roots.values()))
    in_ids = in_ids or len(roots) > 1
    found = tuple(replace(root, in_ids=in_ids or root.in_ids) for root in roots.values())
    return Roots(found, frozenset(asked or roots))


def _root_of(request: FolderRequest, roots: dict[str, Root]) -> Root:
    place = request.place
    here = next((root for root in roots.values() if is_same_place(root.path, place)), None)
    known = here if request.name is None else roots.get(request.name)
    asked = Root("", place, hidden=request.hidden, split=request.split, keep=request.keep)
    if known is not None:  # what was asked for once stays, as the folder does
        asked = replace(
            asked,
            hidden=request.hidden or known.hidden,
            split=request.split or known.split,
            keep=request.keep or known.keep,
        )
    if request.name is None:
        if here is not None:
            return replace(asked, name=here.name, path=here.path, in_ids=here.in_ids)
        name = Path(place).name or "root"
        if name in roots:
            raise HashIndexError(
                f"{request.path}: the index has a folder named {name} at {roots[name].path}; if it moved, pass --root "
                f"{name}={request.path}, and if this is another one, name it: --root OTHER={request.path}."
            )
        return replace(asked, name=name)
    if not request.name or request.name in (".", "..") or any(part in request.name for part in "/\\\0"):
        raise HashIndexError(f"{request.name!r} is no name for a folder; give one without slashes.")
    if here is not None and here.name != request.name:
        raise HashIndexError(f"{request.path}: the index follows this folder as {here.name}; use that name.")
    return replace(asked, name=request.name, in_ids=known is not None and known.in_ids)


def _refuse_nested(roots: Sequence[Root]) -> None:
    places = [(Path(_real(root.path)), root) for root in roots]
    for inner, root in places:
        for outer, other in places:
            if root is not other and inner.is_relative_to(outer):
                raise HashIndexError(
                    f"{root.path}: this folder is inside {other.path}, so its images would be there twice; name the "
                    "outer one only."
                )


def is_same_place(path: str, other: str) -> bool:
    """Whether two absolute paths lead to one place, links followed."""
    return path == other or _real(path) == _real(other)


def _real(path: str) -> str:
    """The path with its links followed, or as it is if its drive does not answer."""
    try:
        return in_time(os.path.realpath, path)
    except TimeoutError:
        return path
