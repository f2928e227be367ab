"""Saves killed at any line: nothing is lost, and the next save removes the leftovers."""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

import cmfah_hf
from cmfah_hf.retrieval.exporters import EXPORTERS
from cmfah_hf.retrieval.index import HashIndex

WRITERS = tuple(str(Path(cmfah_hf.__file__).parent / part) for part in ("atomic.py", "retrieval"))
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


def killed_at(step, act):
    """Calls `act` in a child that is killed at the given line of the package. Returns whether it ended before that."""
    child = os.fork()
    if not child:
        left = step

        def trace(frame, event, _):
            nonlocal left
            if not frame.f_code.co_filename.startswith(WRITERS):
                return None
            left -= event == "line"
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace

        try:
            sys.settrace(trace)
            act()
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL)
    return code == 0


def kills(act, stride):
    """Kills a save every few lines, then lets one finish."""
    for step in range(0, 5000, stride):
        if killed_at(step, act):
            return
        yield step
    raise AssertionError("the save never finished")


def index_of(count):
    index = HashIndex(16)
    index.add(np.zeros((count, 2), np.uint8), ids=[f"n{i}" for i in range(count)], metadata={"x": list(range(count))})
    return index


@pytest.mark.slow
def test_an_index(tmp_path):
    path, old, new = tmp_path / "my.index", index_of(3), index_of(4)
    old.save(path)
    seen = set()
    for _ in kills(lambda: new.save(path, overwrite=True), 3):
        seen.add(len(HashIndex.load(path)))
        old.save(path, overwrite=True)
        assert [file.name for file in tmp_path.iterdir()] == ["my.index"]
    assert seen == {3, 4}
    assert len(HashIndex.load(path)) == 4


@pytest.mark.parametrize("target", EXPORTERS)
def test_an_export(tmp_path, target):
    path, old, new = tmp_path / "export", index_of(3), index_of(4)
    export = EXPORTERS[target]
    complete = []
    for index in (old, new):
        export(index, path, overwrite=True)
        complete.append({file.name: file.read_bytes() for file in path.iterdir()})
    export(old, path, overwrite=True)
    killed = 0
    for _ in range(0, 20):
        step = killed * 37 % 800
        if not killed_at(step, lambda: export(new, path, overwrite=True)):
            killed += 1
        # Between two renames the folder is missing; the next export first restores it.
        assert not path.exists() or {file.name: file.read_bytes() for file in path.iterdir()} in complete
        export(old, path, overwrite=True)
        assert [file.name for file in tmp_path.iterdir()] == ["export"]
    assert killed > 5


@pytest.mark.slow
def test_a_sharded_index(tmp_path):
    pytest.importorskip("ray")
    from cmfah_hf.retrieval.cluster import manifest as manifests
    from cmfah_hf.retrieval.cluster.shards import Shard

    def save(number):
        """Like `ShardedHashIndex.save`, for one shard with one more item."""
        known = manifests.read_manifest(tmp_path)
        before = known.shards[0].revision if known else manifests.Revision(0, "ab")
        after = manifests.Revision(before.changes + 1, f"{number:x}")
        shard = Shard(str(tmp_path), 0, 1, 16, "ab", 1)
        assert shard.change(before, after, "add", {"codes": np.zeros((1, 2), np.uint8)}).error is None
        saved = shard.save(after).answer
        manifest = manifests.Manifest(16, saved.items, "int", None, (saved,))
        manifests.write_manifest(tmp_path, manifest)
        manifests.remove_old_files(tmp_path, manifest)

    save(1)
    for step in kills(lambda: save(2), 17):
        count = manifests.read_manifest(tmp_path).shards[0].items
        save(step + 3)
        manifest = manifests.read_manifest(tmp_path)
        assert manifest.shards[0].items == count + 1
        assert {file.name for file in tmp_path.iterdir()} == {manifest.shards[0].file, manifests.MANIFEST_NAME}
        assert len(HashIndex.load(tmp_path / manifest.shards[0].file)) == count + 1
