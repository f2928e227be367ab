"""Folders whose content the system refuses, also to a superuser, as which tests run in containers."""

import errno
import os
import shutil
from pathlib import Path

import pytest

_CALLS = ("stat", "lstat", "scandir", "listdir", "open")


def close(monkeypatch: pytest.MonkeyPatch, folder: Path, is_listed: bool = False) -> None:
    """Lets each call on a place below a folder fail as without permission, and with `is_listed` not the listing."""
    place = os.fspath(folder)

    def refusing(call, lists):
        def refuse(path=".", *args, **options):
            name = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
            if name.startswith(f"{place}/") or (lists and name == place and not is_listed):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
            return call(path, *args, **options)

        return refuse

    for name in _CALLS:
        monkeypatch.setattr(os, name, refusing(getattr(os, name), name in ("scandir", "listdir")))
    assert folder.is_dir()


def without_privileges() -> list[str]:
    """The beginning of a command line whose program obeys the permissions of folders; skips a test if there is none."""
    if os.geteuid():
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv of util-linux, as a superuser")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
