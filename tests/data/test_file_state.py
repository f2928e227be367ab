"""The state of files: what changed is seen, whatever the times say, and what did not change is not."""

import os
import time

import pytest

from cmfah_hf.data.file_state import RACY_NS, changed_files, digest_of, file_states


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"first")
    return path


def with_times_of(path, content, times):
    path.write_bytes(content)
    os.utime(path, ns=times)


def test_another_content_of_the_same_size_and_time_is_seen(file):
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    before = file_states([file])
    assert before[0].sha256 is not None
    assert changed_files(before) == []
    with_times_of(file, b"other", times)
    assert file.stat().st_mtime_ns == before[0].mtime_ns
    assert changed_files(before) == [str(file)]
    assert digest_of(file_states([file])) != digest_of(before)


def test_a_copy_that_carries_its_time_over_is_seen_by_the_inode(file):
    old = (10**18, 10**18)
    with_times_of(file, b"first", old)
    later = time.time_ns() + 2 * RACY_NS
    before = file_states([file], now_ns=later)
    assert before[0].sha256 is None
    assert changed_files(before) == []
    time.sleep(0.02)
    with_times_of(file, b"other", old)
    assert file_states([file], now_ns=later)[0].mtime_ns == before[0].mtime_ns
    assert changed_files(before) == [str(file)]


def test_a_file_from_the_future_is_told_by_its_content(file):
    future = time.time_ns() + 10**15
    os.utime(file, ns=(future, future))
    (before,) = file_states([file])
    assert before.sha256 is not None
    assert changed_files([before]) == []


def test_a_file_that_has_only_grown_older_is_the_same(file):
    before = file_states([file])
    (fresh,) = file_states([file], now_ns=time.time_ns() + 2 * RACY_NS)
    assert (before[0].sha256 is None, fresh.sha256) == (False, None)
    assert changed_files(before) == changed_files([fresh]) == []


def test_what_is_no_file_has_a_state_and_can_become_one(tmp_path, file):
    os.mkfifo(tmp_path / "pipe")
    paths = [tmp_path / "none", tmp_path / "pipe", tmp_path, "hf://datasets/a/b@0/x.png", "nul\0l", "x" * 5000]
    states = file_states(paths)
    assert [state.size for state in states] == [-1] * 6
    assert changed_files(states) == []
    file.rename(tmp_path / "none")
    assert changed_files(states) == [str(tmp_path / "none")]
    assert digest_of(states[:2]) != digest_of(states[1::-1])
