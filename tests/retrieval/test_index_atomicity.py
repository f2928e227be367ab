"""Atomicity of changes to an index, at whichever line an exception is raised."""

import linecache
import sys
from pathlib import Path

import numpy as np
import pytest

import cmfah_hf.retrieval
from cmfah_hf.errors import HashIndexError
from cmfah_hf.retrieval.index import HashIndex
from cmfah_hf.retrieval.storage import rows, segments
from cmfah_hf.retrieval.storage.id_lookup import IdLookup

FOLDER = str(Path(cmfah_hf.retrieval.__file__).parent)
CODES = np.random.default_rng(0).integers(0, 256, (400, 2), dtype=np.uint8)


class Broken(BaseException):
    """An exception that no handler catches."""


def broken_at(step, act):
    """Calls `act` and raises at its `step`-th line in the package. Returns whether it ended before that."""
    left = step

    def trace(frame, event, _):
        nonlocal left
        if not frame.f_code.co_filename.startswith(FOLDER):
            return None
        if event == "line":
            left -= 1
            if left < 0 and not _takes_a_lock(frame):
                sys.settrace(None)
                raise Broken
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
        return True
    except Broken:
        return False
    finally:
        sys.settrace(previous)


def _takes_a_lock(frame):
    """Python itself may lose a lock between the line that takes it and the block that releases it."""
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    return line.strip().startswith(("with ", "try:"))


def state(index, names):
    found = index.search(CODES[:2], k=4) if len(index) else None
    return (
        index.ids.tolist(),
        index.codes.tolist(),
        None if index.metadata is None else index.metadata.to_pylist(),
        index.next_id,
        [name in index for name in names],
        None if found is None else (found.ids.tolist(), found.scores.tolist()),
    )


def made(strings, path, mapped):
    index = HashIndex(16)
    ids = [f"n{i}" for i in range(8)] if strings else list(range(8))
    index.add(CODES[:8], ids=ids, metadata={"place": [f"p{i}" for i in range(8)]})
    index.remove(ids[3:4])
    if mapped:
        index.save(path)
        index = HashIndex.load(path, mmap=True)
    return index


CHANGES = {
    "add": lambda index, name: index.add(CODES[8:10], [name(20), name(21)], {"place": ["a", "b"], "size": [1, 2]}),
    "add without metadata": lambda index, name: index.add(CODES[8:9], [name(20)]),
    "upsert": lambda index, name: index.upsert(CODES[8:10], [name(2), name(20)], {"place": ["a", None]}),
    "update": lambda index, name: index.update([name(2), name(5)], CODES[8:10], {"place": ["a", "b"]}),
    "update codes": lambda index, name: index.update([name(2)], CODES[8:9]),
    "update metadata": lambda index, name: index.update([name(2)], metadata={"size": [7]}),
    "remove": lambda index, name: index.remove([name(5), name(1)]),
    "remove all": lambda index, name: index.remove([name(i) for i in (0, 1, 2, 4, 5, 6, 7)]),
}


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("strings", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_interrupted_at_any_line_is_atomic(tmp_path, monkeypatch, change, strings, mapped):
    monkeypatch.setattr(rows, "_FEW_CHANGED", 2)  # these changes rewrite the rows
    monkeypatch.setattr(IdLookup, "_FEW", 3)

    def name(number):
        return f"n{number}" if strings else number

    names = [name(number) for number in (0, 1, 2, 3, 5, 20, 21)]
    path = tmp_path / "index"

    def act():
        CHANGES[change](index, name)

    index = made(strings, path, mapped)
    act()
    after = state(index, names)
    index = made(strings, path, mapped)
    before = state(index, names)
    assert before != after
    outcomes = []
    for step in range(2000):
        if broken_at(step, act):
            break
        outcomes.append(now := state(index, names))
        assert now in (before, after)
        if now == after:  # it was interrupted on return
            index = made(strings, path, mapped)
    assert outcomes.count(before) > 20
    assert state(index, names) == after
    index.save(path)
    assert state(HashIndex.load(path, mmap=mapped), names) == after


@pytest.mark.parametrize("mapped", [False, True])
def test_empty_string_is_a_valid_id(tmp_path, mapped):
    index = HashIndex(16)
    if mapped:
        index.save(tmp_path / "index")
        index = HashIndex.load(tmp_path / "index", mmap=True)
    index.add(CODES[:1], ids=[""])
    index.add(CODES[1:2], ids=["a"])
    assert index.ids.tolist() == ["", "a"]
    assert index.holds(["", "a", "b"]).tolist() == [True, True, False]


def test_rows_of_a_failed_change_never_reappear(monkeypatch):
    """Arrow rejects the metadata after all other parts are ready, or memory runs out before that."""
    index = made(False, None, mapped=False)
    before = state(index, [9])
    for _ in range(3):
        with pytest.raises(HashIndexError, match="does not fit"):
            index.add(CODES[9:11], metadata={"place": [1, 2]})

        def no_memory(*_):
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(rows, "_extended", no_memory)
            with pytest.raises(MemoryError):
                index.add(CODES[9:11])
        assert state(index, [9]) == before
    index.add(CODES[20:21])
    assert index.ids.tolist() == [0, 1, 2, 4, 5, 6, 7, 8]
    assert index.codes[-1].tolist() == CODES[20].tolist()


def test_interrupted_caches_are_rebuilt(monkeypatch):
    monkeypatch.setattr(segments, "PLAIN_CODES", 16)
    index = HashIndex(16)
    index.add(CODES, ids=[f"n{i}" for i in range(400)])
    exact = index.search(CODES[:3], k=5)
    acts = {
        "search": lambda: index.search(CODES[:3], k=5),
        "approximate": lambda: index.search(CODES[:3], k=5, exact=False, probes=1000),
        "holds": lambda: index.holds(["n7", "x"]),
        "optimize": index.optimize,
    }
    for act in acts.values():
        for step in range(0, 2000, 3):
            if broken_at(step, act):
                break
            found = index.search(CODES[:3], k=5, exact=False, probes=1000)
            assert found.ids.tolist() == exact.ids.tolist() == index.search(CODES[:3], k=5).ids.tolist()
            assert index.holds(["n7", "x"]).tolist() == [True, False]
