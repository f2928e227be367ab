"""An index on disk: loading in another process, damaged files, full disks, and concurrent writers."""

import functools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from cmfah_hf import atomic
from cmfah_hf.errors import HashIndexError
from cmfah_hf.retrieval.codes import sign
from cmfah_hf.retrieval.index import HashIndex
from cmfah_hf.retrieval.storage import index_file

HEADER = {
    "format": "cmfah-hash-index",
    "version": "2",
    "bits": "16",
    "count": "3",
    "id_type": "str",
    "next_id": "0",
}


def tied_values(rng, rows, bits):
    """Continuous codes of few sign patterns, so that scores tie everywhere."""
    patterns = rng.normal(size=(max(2, rows // 4), bits))
    return np.clip(np.round(patterns[rng.integers(len(patterns), size=rows)] * 2) / 4, -1, 1)


def filled():
    index = HashIndex(16)
    index.add(np.ones((3, 16)))
    return index


@pytest.mark.parametrize("strings", [True, False])
@pytest.mark.parametrize("mmap", [True, False])
def test_a_saved_index_searches_the_same_in_a_new_process(tmp_path, strings, mmap):
    rng = np.random.default_rng(3)
    index = HashIndex(24)
    ids = [f"é{i}-\udcff" for i in range(50)] if strings else list(range(100, 50, -1))
    index.add(tied_values(rng, 50, 24), ids=ids)
    index.save(tmp_path / "folder" / "my.index")
    np.save(tmp_path / "queries.npy", tied_values(rng, 4, 24))
    script = (
        "import json, sys, numpy as np\n"
        "from cmfah_hf.retrieval.index import HashIndex\n"
        f"index = HashIndex.load(sys.argv[1], mmap={mmap}, bits=24)\n"
        "queries = np.load(sys.argv[2])\n"
        "out = [index.search(queries, k=9, metric=m) for m in ('hamming', 'aqd')]\n"
        "print(json.dumps([[r.ids.tolist(), r.scores.tolist()] for r in out]))\n"
    )
    command = [sys.executable, "-c", script, tmp_path / "folder" / "my.index", tmp_path / "queries.npy"]
    found = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    queries = np.load(tmp_path / "queries.npy")
    here = [index.search(queries, k=9, metric=m) for m in ("hamming", "aqd")]
    assert found == [[r.ids.tolist(), r.scores.tolist()] for r in here]


def test_the_file_is_plain_safetensors(tmp_path):
    index = HashIndex(16)
    index.add(sign(np.random.default_rng(0).normal(size=(5, 16))), ids=[3, 1, 4, 15, 9])
    index.save(tmp_path / "index")
    with safetensors.safe_open(tmp_path / "index", framework="numpy") as file:
        header = file.metadata()
        np.testing.assert_array_equal(file.get_tensor("codes"), index.codes)
        assert file.get_tensor("ids").tolist() == [3, 1, 4, 15, 9]
    assert {k: header[k] for k in ("format", "version", "bits", "count", "id_type")} == {
        "format": "cmfah-hash-index",
        "version": "2",
        "bits": "16",
        "count": "5",
        "id_type": "int",
    }


def test_mapped_codes_are_not_copied_and_can_be_saved_over(tmp_path):
    path = tmp_path / "index"
    index = HashIndex(16)
    index.add(sign(np.random.default_rng(0).normal(size=(50, 16))))
    index.save(path)
    mapped = HashIndex.load(path, mmap=True)
    base = mapped.codes
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)
    mapped.remove([0])
    mapped.add(np.ones((1, 16)), ids=[500])
    mapped.save(path)
    again = HashIndex.load(path)
    assert again.ids.tolist() == [*range(1, 50), 500]
    np.testing.assert_array_equal(again.codes[:-1], index.codes[1:])


def test_an_empty_index_round_trips(tmp_path):
    HashIndex(32).save(tmp_path / "index")
    loaded = HashIndex.load(tmp_path / "index", mmap=True)
    assert (len(loaded), loaded.bits) == (0, 32)
    loaded.add(np.ones((1, 32)), ids=["a"])
    assert loaded.ids.tolist() == ["a"]


@pytest.mark.parametrize("ids", [[-1], [-(2**63), -5], [0], [2**63 - 1, -1]])
def test_integer_ids_of_any_size_round_trip(tmp_path, ids):
    index = HashIndex(8)
    index.add(np.ones((len(ids), 8)), ids=ids)
    index.save(tmp_path / "index")
    loaded = HashIndex.load(tmp_path / "index")
    assert loaded.ids.tolist() == ids
    assert loaded.next_id == index.next_id


def saved(tmp_path, **changes):
    path = tmp_path / "broken.index"
    index = HashIndex(16)
    index.add(sign(np.random.default_rng(0).normal(size=(9, 16))), ids=[f"n{i}" for i in range(9)])
    index.save(path)
    if changes:
        with safetensors.safe_open(path, framework="numpy") as file:
            header = file.metadata()
        tensors = safetensors.numpy.load_file(path)
        safetensors.numpy.save_file(tensors, path, metadata={**header, **changes})
    return path


@pytest.mark.parametrize("mmap", [True, False])
def test_any_changed_byte_of_the_data_is_detected(tmp_path, mmap):
    path = saved(tmp_path)
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    assert HashIndex.load(path, mmap=mmap).ids[0] == "n0"
    for at in range(start, len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        with pytest.raises(HashIndexError, match=r"broken\.index is damaged"):
            HashIndex.load(path, mmap=mmap)


@pytest.mark.parametrize("length", [0, 5, 40, -1])
def test_a_truncated_file_is_detected(tmp_path, length):
    path = saved(tmp_path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(HashIndexError, match=r"broken\.index is damaged"):
        HashIndex.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "4"}, r"broken\.index has version 4"),
        ({"format": "other"}, r"broken\.index .*not a hash index"),
        ({"bits": "32"}, r"broken\.index is damaged"),
        ({"count": "8"}, r"broken\.index is damaged"),
        ({"id_type": "int"}, r"broken\.index is damaged"),
        ({"next_id": "x"}, r"broken\.index is damaged"),
    ],
)
def test_a_changed_header_is_detected(tmp_path, changes, message):
    with pytest.raises(HashIndexError, match=message):
        HashIndex.load(saved(tmp_path, **changes))


def test_a_header_with_too_many_codes_is_detected(tmp_path):
    """The checksum is correct, as anyone can compute it; the kernels would read past the end of the codes."""
    path = tmp_path / "crafted"
    for header, codes in (({"bits": "64"}, (3, 2)), ({"count": "9"}, (3, 2)), ({"id_type": "str"}, (3, 2)), ({}, (6,))):
        index = filled()
        index.save(path)
        with safetensors.safe_open(path, framework="numpy") as file:
            header = {**file.metadata(), **header}
        tensors = {"codes": np.zeros(codes, np.uint8), "ids": np.arange(3)}
        header["checksum"] = index_file.checksum(header, tensors)
        safetensors.numpy.save_file(tensors, path, metadata=header)
        with pytest.raises(HashIndexError, match="damaged"):
            HashIndex.load(path)


def test_foreign_files_are_named(tmp_path):
    safetensors.numpy.save_file({"w": np.ones(3)}, tmp_path / "model.safetensors")
    (tmp_path / "notes.txt").write_text("not an index at all, but long enough to have a header length")
    for name, message in (
        ("model.safetensors", "not a hash index"),
        ("notes.txt", "damaged or not"),
        ("none", "not a file"),
    ):
        with pytest.raises(HashIndexError, match=f"{name} .*{message}"):
            HashIndex.load(tmp_path / name)
    with pytest.raises(HashIndexError, match="not a file"):
        HashIndex.load(tmp_path)
    with pytest.raises(HashIndexError, match="is a folder"):
        HashIndex(16).save(tmp_path)


def test_the_expected_bits_are_checked(tmp_path):
    with pytest.raises(HashIndexError, match=r"broken\.index .*16 bits, where 64"):
        HashIndex.load(saved(tmp_path), bits=64)


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = saved(tmp_path)
    before = path.read_bytes()

    def half(tensors, file, metadata):
        file.write_bytes(b"half of")
        raise OSError("no space left")

    monkeypatch.setattr(safetensors.numpy, "save_file", half)
    with pytest.raises(HashIndexError, match=r"broken\.index could not be written \(no space left\)"):
        HashIndex(16).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["broken.index"]


def test_an_index_of_the_first_version_is_read(tmp_path):
    """Its format has no stamps and no metadata."""
    ids = ["b", "", "é"]
    text = "".join(ids).encode()
    tensors = {
        "codes": np.arange(6, dtype=np.uint8).reshape(3, 2),
        "id_bytes": np.frombuffer(text, np.uint8),
        "id_ends": np.array([1, 1, 3]),
    }
    header = {
        "format": "cmfah-hash-index",
        "version": "1",
        "bits": "16",
        "count": "3",
        "id_type": "str",
        "next_id": "0",
    }
    header["checksum"] = index_file.checksum(header, tensors)
    safetensors.numpy.save_file(tensors, tmp_path / "old", metadata=header)
    for mmap in (True, False):
        index = HashIndex.load(tmp_path / "old", mmap=mmap)
        assert index.ids.tolist() == ids
        assert index.codes.tolist() == tensors["codes"].tolist()
        index.save(tmp_path / "new")
        assert HashIndex.load(tmp_path / "new").ids.tolist() == ids


@pytest.mark.parametrize("ends", [[2, 1, 3], [1, 1, 9], [-1, 1, 3]])
def test_id_offsets_beyond_the_file_are_detected(tmp_path, ends):
    tensors = {
        "codes": np.zeros((3, 2), np.uint8),
        "id_bytes": np.frombuffer(b"abc", np.uint8),
        "id_ends": np.array(ends),
    }
    header = {
        "format": "cmfah-hash-index",
        "version": "2",
        "bits": "16",
        "count": "3",
        "id_type": "str",
        "next_id": "0",
    }
    header["checksum"] = index_file.checksum(header, tensors)
    safetensors.numpy.save_file(tensors, tmp_path / "crafted", metadata=header)
    with pytest.raises(HashIndexError, match="damaged"):
        HashIndex.load(tmp_path / "crafted")


def test_changes_of_another_writer_are_not_overwritten(tmp_path):
    path = tmp_path / "index"
    filled().save(path)
    mine, theirs = HashIndex.load(path), HashIndex.load(path)
    theirs.add(np.ones((1, 16)), ids=[77])
    theirs.save(path)
    theirs.save(path)  # saving the same index again is no conflict
    mine.remove([0])
    with pytest.raises(HashIndexError, match=r"index was saved by another program .* pass overwrite=True"):
        mine.save(path)
    assert HashIndex.load(path).ids.tolist() == [0, 1, 2, 77]
    mine.save(tmp_path / "other")
    mine.save(path, overwrite=True)
    assert HashIndex.load(path).ids.tolist() == [1, 2]
    filled().save(path)  # an index that was not loaded from the file replaces it
    assert len(HashIndex.load(path)) == 3


def _hold_the_lock(path, ready):
    with atomic.locked(path):
        ready.set()
        time.sleep(60)


def test_saving_waits_for_another_writing_process(tmp_path, monkeypatch):
    path = tmp_path / "index"
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    rival = context.Process(target=_hold_the_lock, args=(path, ready))
    rival.start()
    try:
        assert ready.wait(60)
        quick = functools.partial(atomic.atomic_file, timeout_s=0.2)
        monkeypatch.setattr(index_file, "atomic_file", quick)
        with pytest.raises(HashIndexError, match=rf"index is being written for 0\.2 seconds by process {rival.pid} on"):
            filled().save(path)
        assert not path.exists()
    finally:
        rival.kill()
        rival.join()
    filled().save(path)  # the lock of a dead process is released
    assert len(HashIndex.load(path)) == 3


_SAVING = """
import sys, numpy as np
from cmfah_hf.retrieval.index import HashIndex
index = HashIndex(64)
index.add(np.zeros((200_000, 8), np.uint8), ids=[f"item-{i}" for i in range(200_000)])
index.save(sys.argv[1])
print("saved", flush=True)
while True:
    index.update(["item-7"], codes=np.full((1, 8), 255, np.uint8))
    index.save(sys.argv[1])
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_valid_file(tmp_path):
    path = tmp_path / "index"
    for delay in (0.0, 0.003, 0.01, 0.02, 0.05):
        process = subprocess.Popen([sys.executable, "-c", _SAVING, path], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout.readline() == "saved\n"
            time.sleep(delay)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        index = HashIndex.load(path)
        assert len(index) == 200_000
        assert "item-7" in index
        index.save(path)


def _save_many(path, number):
    for _ in range(20):
        index = HashIndex(16)
        index.add(np.zeros((1000 + number, 2), np.uint8))
        index.save(path)


@pytest.mark.slow
def test_two_processes_saving_to_one_file_leave_one_of_the_results(tmp_path):
    path = tmp_path / "index"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_save_many, args=(path, number)) for number in (1, 2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            assert len(HashIndex.load(path)) in (1001, 1002)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert [file.name for file in tmp_path.iterdir()] == ["index"]


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting a small disk requires root on Linux")
def test_a_full_disk(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        path = small / "index"
        filled().save(path)
        large = HashIndex.load(path)
        large.add(np.zeros((50_000, 2), np.uint8))
        with pytest.raises(HashIndexError, match=r"small/index could not be written .* is unchanged"):
            large.save(path)
        assert len(HashIndex.load(path)) == 3
        assert {file.name for file in small.iterdir()} == {"index"}
        large.save(tmp_path / "elsewhere")  # nothing is lost
        assert len(HashIndex.load(tmp_path / "elsewhere")) == 50_003
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_the_fingerprint_of_a_model_is_saved(tmp_path):
    index = filled()
    index.model = "sha256:ab"
    index.save(tmp_path / "index")
    assert HashIndex.load(tmp_path / "index").model == "sha256:ab"
    assert HashIndex(16, model="x").model == "x"
    filled().save(tmp_path / "other")
    assert HashIndex.load(tmp_path / "other").model is None


@pytest.mark.skipif(os.name == "nt", reason="modes, links and pipes of POSIX")
def test_umask_links_and_pipes(tmp_path):
    path, link, pipe = tmp_path / "index", tmp_path / "link", tmp_path / "pipe"
    before = os.umask(0o027)
    try:
        filled().save(path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640
    link.symlink_to(path)
    larger = HashIndex.load(link)
    larger.add(np.ones((1, 16)))
    larger.save(link)
    assert link.is_symlink()
    assert len(HashIndex.load(path)) == 4
    theirs = HashIndex.load(path)
    larger.save(path)
    with pytest.raises(HashIndexError, match="saved by another program"):  # also under the other name
        theirs.save(link)
    os.mkfifo(pipe)
    for act in (filled().save, HashIndex.load):
        with pytest.raises(HashIndexError, match=r"pipe is (a pipe|not a file)"):
            act(pipe)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["index", "link", "pipe"]
