"""Export folders, written completely or not at all, and the names and notes in them."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cmfah_hf.atomic import ANYTHING, atomic_folder
from cmfah_hf.errors import HashIndexError
from cmfah_hf.retrieval.base import BaseHashIndex

DEFAULT_NAME = "cmfah"
# Valid in all databases without quotes, and short enough for the suffixes that they add.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,47}")


@contextmanager
def export_folder(path: str | os.PathLike, overwrite: bool, own_files: str) -> Iterator[Path]:
    """A new folder to write to, which replaces `path` in one step at the end of the block.

    With `overwrite`, a folder is replaced if the names of all its files match the regular expression `own_files`.
    """
    _check_replaceable(path, overwrite, own_files)
    with atomic_folder(path, HashIndexError, ANYTHING) as folder:
        yield folder
        _check_replaceable(path, overwrite, own_files)


def check_name(name: str) -> str:
    """`name` itself if every database can have a collection, a table or a document type of this name."""
    if not _NAME.fullmatch(name):
        raise HashIndexError(
            f"The name {name!r} does not fit; take up to 48 letters, digits and underscores, no digit at the start."
        )
    return name


def model_note(index: BaseHashIndex) -> str:
    """The line of an export that names the model of its codes: queries need the same one."""
    fingerprint = re.sub(r"[^0-9A-Za-z-]", "", str(index.model))  # an index can come from anywhere
    return f"Hash codes of the cmfah model with the fingerprint {fingerprint}"


def _check_replaceable(path: str | os.PathLike, overwrite: bool, own_files: str) -> None:
    try:
        target = Path(path)
        if target.exists() and not target.is_dir():
            raise HashIndexError(f"{path} is a file; name a folder for the export.")
        held = sorted(target.iterdir()) if target.is_dir() else []
    except OSError as error:
        raise HashIndexError(f"{path} cannot be read ({error.strerror or error}); name another folder.") from error
    for file in held:
        if file.is_symlink() or not file.is_file() or not re.fullmatch(own_files, file.name):
            raise HashIndexError(f"{path} holds {file.name!r}, which is not part of an export; name another folder.")
    if held and not overwrite:
        raise HashIndexError(f"{path} holds an export already; name another folder, or have it overwritten.")
