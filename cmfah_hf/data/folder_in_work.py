"""A folder that one process at a time writes file by file; an interrupted process can be continued."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cmfah_hf.atomic import locked
from cmfah_hf.errors import DataError

DATA = "data"
# Files that `atomic_file` leaves next to these when its process is killed.
_LEFT = re.compile(r"\.(.+\.parquet|README\.md|.+\.json)(\.[0-9a-f]{16}\.tmp|\.lock)")


@contextmanager
def folder_in_work(folder: Path) -> Iterator[None]:
    """Locks a folder for writing, creates it with `data` in it, and removes files that killed writers left."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: is a file; name a folder.")
    with locked(folder / DATA, DataError, timeout_s=0):
        (folder / DATA).mkdir(exist_ok=True)
        for below in (folder, folder / DATA):
            for path in below.iterdir():
                if _LEFT.fullmatch(path.name) and not path.is_dir():
                    path.unlink()
        yield
