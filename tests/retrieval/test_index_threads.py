"""Searches concurrent with changes: each sees the index before or after a change, and none waits."""

import threading

import numpy as np
import pytest

from cmfah_hf.retrieval.index import HashIndex


def run_all(workers):
    """Runs the workers concurrently and raises their exceptions here."""
    errors = []

    def guarded(worker):
        try:
            worker()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("metric", ["hamming", "aqd"])
def test_a_search_sees_whole_changes(metric):
    """Ids come in pairs with one code: a search that finds one of a pair finds both, at any time."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (4000, 8), dtype=np.uint8)
    index = HashIndex(64)
    index.add(np.repeat(codes[:2000], 2, axis=0), ids=np.arange(4000), metadata={"pair": np.arange(4000) // 2})
    stop = threading.Event()

    def change():
        own = np.random.default_rng(1)
        try:
            for pair in range(2000, 4000):
                both = [2 * pair, 2 * pair + 1]
                index.add(codes[[pair, pair]], ids=both, metadata={"pair": [pair, pair]})
                old = int(own.integers(1000, 2000))
                if 2 * old in index:
                    (index.remove if pair % 2 else index.update)(
                        [2 * old, 2 * old + 1], *[codes[[old, old]]][pair % 2 :]
                    )
        finally:
            stop.set()

    def look():
        own = np.random.default_rng(threading.get_ident() % 1000)
        while not stop.is_set():
            pair = int(own.integers(4000))
            values = np.unpackbits(codes[pair], bitorder="little") * 2.0 - 1
            found = index.search(values, k=2, metric=metric)
            names = sorted(found.ids[0].tolist())
            assert names[1] == names[0] + 1
            assert names[0] % 2 == 0
            assert found.scores[0, 0] == found.scores[0, 1]
            assert found.metadata["pair"].to_pylist() == [names[0] // 2] * 2
            if pair < 1000:  # never changed
                assert names[0] == 2 * pair

    run_all([change, look, look, look])
    assert len(index) == len(np.unique(index.ids))


def test_concurrent_writers_lose_nothing():
    index = HashIndex(16)

    def write(start):
        def work():
            for at in range(200):
                index.add(np.ones((3, 16)), ids=[start + 3 * at + i for i in range(3)])
                index.remove([start + 3 * at])

        return work

    run_all([write(start) for start in (0, 10_000, 20_000)])
    expected = {start + i for start in (0, 10_000, 20_000) for i in range(600) if i % 3}
    assert set(index.ids.tolist()) == expected
    assert len(index) == len(expected)


def test_saving_during_changes_saves_one_state(tmp_path):
    index = HashIndex(16)
    index.add(np.ones((2, 16)), ids=[0, 1])
    stop = threading.Event()

    def change():
        for at in range(2, 3000, 2):
            index.add(np.ones((2, 16)), ids=[at, at + 1])
        stop.set()

    def save():
        while not stop.is_set():
            index.save(tmp_path / "index")
            ids = HashIndex.load(tmp_path / "index").ids.tolist()
            assert ids == list(range(len(ids)))
            assert len(ids) % 2 == 0

    run_all([change, save])


def test_approximate_searches_during_additions():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (20_000, 8), dtype=np.uint8)
    index = HashIndex(64)
    index.add(codes[:4000])
    stop = threading.Event()

    def change():
        for start in range(4000, 20_000, 500):
            index.add(codes[start : start + 500])
        stop.set()

    def look():
        while not stop.is_set():
            held = len(index)
            found = index.search(codes[[held - 1]], k=1, exact=False, probes=10_000)
            assert found.scores.tolist() == [[0]]

    run_all([change, look, look])
    assert index.measure_recall(codes[::1000], k=5, probes=10_000) == 1
