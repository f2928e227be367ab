"""Atomic writes of files and folders."""

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cmfah_hf import atomic
from cmfah_hf.atomic import ANYTHING, atomic_file, atomic_folder, locked, write_text
from cmfah_hf.errors import CMFAHError, HashIndexError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_complete_and_without_leftovers(tmp_path):
    with atomic_file(tmp_path / "new" / "a.txt") as temporary:
        temporary.write_text("half")
        assert not (tmp_path / "new" / "a.txt").exists()
        temporary.write_text("whole")
    assert (tmp_path / "new" / "a.txt").read_text() == "whole"
    assert names(tmp_path / "new") == ["a.txt"]


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "before")
    with pytest.raises(KeyError), atomic_file(path) as temporary:
        temporary.write_text({}["half"])
    assert path.read_text() == "before"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_file_follows_the_umask_and_an_old_one_keeps_its_mode(tmp_path, umask):
    code = (
        "import os, sys; os.umask(int(sys.argv[2], 8))\n"
        "from safetensors.numpy import save_file; import numpy as np\n"
        "from cmfah_hf.atomic import atomic_file\n"
        "with atomic_file(sys.argv[1]) as temporary: save_file({'a': np.zeros(2)}, temporary)\n"
    )
    path = tmp_path / "a.safetensors"
    subprocess.run([sys.executable, "-c", code, str(path), oct(umask)], check=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    path.chmod(0o640)
    subprocess.run([sys.executable, "-c", code, str(path), oct(umask)], check=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_links_are_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "target", tmp_path / "link"
    target.write_text("before")
    link.symlink_to("elsewhere/target")
    write_text(link, "after")
    assert link.is_symlink()
    assert target.read_text() == "after"
    assert names(tmp_path / "elsewhere") == ["target"]


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "loop"])
def test_paths_that_are_not_regular_files_are_refused(tmp_path, kind):
    path = tmp_path / "special"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    else:
        path = Path(os.devnull)
    before = path.lstat()
    with pytest.raises(HashIndexError, match=r"special|null") as error:
        write_text(path, "text", HashIndexError)
    assert "\n" not in str(error.value)
    assert stat.S_IFMT(path.lstat().st_mode) == stat.S_IFMT(before.st_mode)


@pytest.mark.timeout(20)
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="there is no /proc")
def test_an_unwritable_folder_is_refused_at_once():
    with pytest.raises(CMFAHError, match="/proc/x could not be written"):
        write_text("/proc/x", "text")


@pytest.mark.parametrize("name", ["n" * 250, "é" * 120, "n" * 5000, "a\0b"])
def test_a_long_name_is_written_or_refused_in_one_line(tmp_path, name):
    path = tmp_path / name
    if len(os.fsencode(name)) <= 255 and "\0" not in name:
        write_text(path, "text")
        assert names(tmp_path) == [name]
    else:
        with pytest.raises(CMFAHError):
            write_text(path, "text")
        assert names(tmp_path) == []


KILLED = """
import os, signal, sys
from cmfah_hf import atomic
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
what, where, name = sys.argv[1:]
for owner in (atomic, atomic.Path, atomic.os):
    if hasattr(owner, name): setattr(owner, name, die)
if what == "file":
    with atomic.atomic_file(where) as temporary: temporary.write_text("after")
else:
    with atomic.atomic_folder(where, replaces=["a"]) as temporary: (temporary / "a").write_text("after")
"""


@pytest.mark.parametrize("name", ["chmod", "flush", "fsync", "replace", "flush_folder"])
def test_a_killed_writer_loses_nothing_and_the_next_one_cleans_up(tmp_path, name):
    path = tmp_path / "a.txt"
    write_text(path, "before")
    done = subprocess.run([sys.executable, "-c", KILLED, "file", str(path), name], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == ("after" if name == "flush_folder" else "before")
    assert len(names(tmp_path)) > 1
    write_text(path, "next")
    assert path.read_text() == "next"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("name", ["flush", "rename", "flush_folder"])
def test_a_killed_writer_of_a_folder_loses_nothing(tmp_path, name):
    path = tmp_path / "folder"
    with atomic_folder(path) as temporary:
        (temporary / "a").write_text("before")
    done = subprocess.run([sys.executable, "-c", KILLED, "folder", str(path), name], check=False)
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(KeyError), atomic_folder(path, replaces=ANYTHING):
        raise KeyError
    assert (path / "a").read_text() == ("after" if name == "flush_folder" else "before")
    assert names(tmp_path) == ["folder"]


def test_a_folder_with_content_of_others_is_not_replaced(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    with atomic_folder(path) as temporary:  # an empty one
        (temporary / "a").write_text("ours")
    (path / "photo.jpg").write_text("theirs")
    for replaces, other in (((), "a"), (["a"], "photo.jpg")):
        refused = pytest.raises(HashIndexError, match=f"holds '{other}', which would be lost; name another folder")
        with refused, atomic_folder(path, HashIndexError, replaces):
            raise AssertionError("nothing is computed before")
    assert names(path) == ["a", "photo.jpg"]
    for file in path.iterdir():
        file.unlink()
    with pytest.raises(CMFAHError, match="which would be lost"), atomic_folder(path) as temporary:
        (path / "photo.jpg").write_text("written meanwhile")
    assert names(path) == ["photo.jpg"]
    assert names(tmp_path) == ["folder"]


def test_a_folder_between_its_two_renames_is_restored(tmp_path):
    path = tmp_path / "folder"
    with atomic_folder(path) as temporary:
        (temporary / "a").write_text("before")
    path.rename(tmp_path / f".folder.{'0' * 16}.old")
    with pytest.raises(KeyError), atomic_folder(path, replaces=ANYTHING):
        raise KeyError
    assert (path / "a").read_text() == "before"
    assert names(tmp_path) == ["folder"]


def test_a_lock_names_its_holder_and_is_removed_on_release(tmp_path):
    path = tmp_path / "a"
    with locked(path):
        with pytest.raises(CMFAHError, match=rf"process {os.getpid()} on "), locked(path, timeout_s=0):
            pass
        assert names(tmp_path) == [".a.lock"]
    assert names(tmp_path) == []


def test_concurrent_writers_take_turns(tmp_path):
    path = tmp_path / "a"

    def add(number: int) -> None:
        with locked(path):
            held = set(path.read_text().split()) if path.exists() else set()
            path.write_text(" ".join(held | {str(number)}))

    threads = [threading.Thread(target=add, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(path.read_text().split()) == {str(number) for number in range(20)}
    assert names(tmp_path) == ["a"]


def test_waiting_for_a_lock_is_said_soon(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(atomic, "_SILENT_S", 0.05)
    path, held, free = tmp_path / "a", threading.Event(), threading.Event()

    def hold():
        with locked(path):
            held.set()
            free.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(30)
    threading.Timer(0.5, free.set).start()
    with locked(path, shown="b"):
        assert [record.getMessage() for record in caplog.records] == [
            f"b is being written by process {os.getpid()} on {socket.gethostname()}; waiting for it, at most 60 seconds."  # noqa: E501
        ]
    thread.join()


def test_a_holder_that_stays_says_what_to_do_instead(tmp_path):
    path = tmp_path / "a"
    with locked(path, instead="which serves it; ask it"):
        start = time.monotonic()
        message = r"a is being written by process \d+ on .*, which serves it; ask it\.$"
        with pytest.raises(CMFAHError, match=message), locked(path):
            pass
        assert time.monotonic() - start < 30
        for wait in (0, 0.1):  # another such holder may be about to end
            message = "written (already|for 0.1 seconds) by"
            with pytest.raises(CMFAHError, match=message), locked(path, timeout_s=wait, instead="x"):
                pass
    assert names(tmp_path) == []
