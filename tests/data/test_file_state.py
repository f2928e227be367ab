"""File states: changes are detected even with equal times, and unchanged files are not reported."""

import os
import time

import pytest

from cmfah_hf.data import file_state
from cmfah_hf.data.file_state import changed_files, digest_of, file_states


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"first")
    return path


def overwrite(path, content, times):
    path.write_bytes(content)
    os.utime(path, ns=times)


def test_another_content_of_the_same_size_and_time_is_detected(file):
    old = (10**18, 10**18)
    overwrite(file, b"first", old)
    for content in (b"other", b"again", b"third"):
        before = file_states([file])
        assert changed_files(before) == []
        overwrite(file, content, old)
        assert file.stat().st_mtime_ns == before[0].mtime_ns
        assert changed_files(before) == [str(file)]
        assert digest_of(file_states([file])) != digest_of(before)


def test_an_unchanged_older_file_is_not_reported(file):
    before = file_states([file])
    time.sleep(0.1)
    assert file_states([file]) == before
    assert changed_files(before) == []


@pytest.mark.parametrize("clock", ["whole seconds", "the future"])
def test_content_decides_when_times_are_inconclusive(file, monkeypatch, clock):
    now = time.time_ns() // 10**9 * 10**9
    shown = now - 10**9 if clock == "whole seconds" else now + 10**15
    monkeypatch.setattr(file_state, "changed_at", lambda found: shown)
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    before = file_states([file])
    assert before[0].sha256 is not None
    assert changed_files(before) == []
    overwrite(file, b"other", times)
    assert changed_files(before) == [str(file)]
    assert digest_of(file_states([file])) != digest_of(before)


def test_missing_files_have_a_state_that_changes_when_they_appear(tmp_path, file):
    os.mkfifo(tmp_path / "pipe")
    paths = [tmp_path / "none", tmp_path / "pipe", tmp_path, "hf://datasets/a/b@0/x.png", "nul\0l", "x" * 5000]
    states = file_states(paths)
    assert [state.size for state in states] == [-1] * 6
    assert changed_files(states) == []
    file.rename(tmp_path / "none")
    assert changed_files(states) == [str(tmp_path / "none")]
    assert digest_of(states[:2]) != digest_of(states[1::-1])
