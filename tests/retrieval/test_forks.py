"""Searches in forked children of a process that searched with several threads before."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from cmfah_hf.retrieval.index import HashIndex

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")

# Each in a separate process: OpenMP reads its settings once, and a hang must not block the tests.
_SCRIPT = """
import multiprocessing, os, sys, threading
import faiss
import numpy as np
from cmfah_hf.retrieval.index import HashIndex

codes = np.random.default_rng(0).integers(0, 256, (20_000, 8), dtype=np.uint8)
queries = np.random.default_rng(1).normal(size=(64, 64)).astype(np.float32)
index = HashIndex(64)
index.add(codes, metadata={"even": [i % 2 == 0 for i in range(20_000)]})
expected = index.search(queries, k=5).ids.tolist()

def same():
    return index.search(queries, k=5).ids.tolist() == expected

def approximate():
    return index.search(queries, k=1, exact=False, probes=100).ids.shape == (64, 1)

def filtered():
    found = index.search(queries, k=5, where={"even": True}).metadata["even"]
    return all(found.to_pylist())

def in_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append((faiss.omp_get_max_threads(), same())))
    thread.start()
    thread.join()
    return found == [(2, True)]

def anew():
    other = HashIndex(64)
    other.add(codes)
    other.optimize()
    return other.search(queries, k=5).ids.tolist() == expected

def torch_too():
    import torch
    return bool(torch.isfinite(torch.sigmoid(torch.randn(1_000_000))).all())

def work(number):
    return [same, approximate, filtered, in_thread, anew, torch_too][number]()

if __name__ == "__main__":
    import torch
    torch.set_num_threads(2)
    torch_too()
    filtered()
    assert faiss.omp_get_max_threads() == 2
    with multiprocessing.get_context("fork").Pool(2) as pool:
        print(pool.map(work, range(6)))
"""


def test_children_search_like_their_parent(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    process = subprocess.Popen(
        [sys.executable, script], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.communicate(timeout=100)[0] == f"{[True] * 6}\n"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its children too, which may wait forever


def test_a_lock_held_by_another_thread_is_free_in_a_child():
    index = HashIndex(16)
    index.add(np.zeros((3, 2), np.uint8))
    held, release = threading.Event(), threading.Event()

    def hold():
        with index._changing, index._rows.now.segments[0]._building:
            held.set()
            release.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    child = os.fork()
    if not child:
        index.add(np.zeros((1, 2), np.uint8))
        index.optimize()
        os._exit(len(index))
    try:
        for _ in range(300):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                break
            time.sleep(0.1)
        else:
            os.kill(child, 9)
            os.waitpid(child, 0)
            pytest.fail("the child waits forever")
    finally:
        release.set()
        holder.join()
    assert os.waitstatus_to_exitcode(status) == 4
