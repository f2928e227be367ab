"""Random changes of a folder: an index that follows it equals one that is made anew."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from cmfah_hf.retrieval import HashIndex
from cmfah_hf.retrieval.folders import FolderRequest, UpdateOptions, remove_items, update_folders

NAMES = st.sampled_from([f"{folder}{name}.jpg" for folder in ("", "a/", "a/b/") for name in "123"])
SEEDS = st.integers(0, 5)  # few, so that contents repeat


def content_of(path):
    index = HashIndex.load(path)
    return dict(zip(index.ids.tolist(), map(bytes, index.codes), strict=True))


class Folder(RuleBasedStateMachine):
    """Two folders with images, an index that follows them, and the images removed from it by hand."""

    model: Any
    drawn: Any

    def __init__(self):
        super().__init__()
        self.place = Path(tempfile.mkdtemp())
        self.roots = [self.place / "one", self.place / "two"]
        self.index = self.place / "x.index"

    def update(self, path, **options):
        requests = map(FolderRequest, self.roots)
        return update_folders(path, requests, self.model, UpdateOptions(**options, prune_missing=True))

    @initialize()
    def start(self):
        for number, root in enumerate(self.roots):
            self.drawn(root / "always.jpg", number)
        self.update(self.index)

    @rule(root=st.integers(0, 1), name=NAMES, seed=SEEDS)
    def write(self, root, name, seed):
        self.drawn(self.roots[root] / name, seed)

    @rule(root=st.integers(0, 1), name=NAMES)
    def delete(self, root, name):
        (self.roots[root] / name).unlink(missing_ok=True)

    @rule(root=st.integers(0, 1), to=st.integers(0, 1), name=NAMES, other=NAMES)
    def move(self, root, to, name, other):
        if (self.roots[root] / name).exists():
            (self.roots[to] / other).parent.mkdir(parents=True, exist_ok=True)
            (self.roots[root] / name).replace(self.roots[to] / other)

    @rule(root=st.integers(0, 1), name=NAMES, other=NAMES)
    def copy(self, root, name, other):
        if name != other and (self.roots[root] / name).exists():
            (self.roots[root] / other).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.roots[root] / name, self.roots[root] / other)

    @rule(root=st.integers(0, 1), name=NAMES, seconds=st.integers(0, 2))
    def touch(self, root, name, seconds):
        if (self.roots[root] / name).exists():
            os.utime(self.roots[root] / name, (10**9 + seconds, 10**9 + seconds))

    @rule(root=st.integers(0, 1), name=NAMES)
    def damage(self, root, name):
        if (self.roots[root] / name).exists():
            (self.roots[root] / name).write_bytes(b"no image")

    @rule(root=st.integers(0, 1), name=NAMES)
    def remove_from_the_index(self, root, name):
        item_id = f"{self.roots[root].name}/{name}"
        if item_id in HashIndex.load(self.index):
            remove_items(self.index, [item_id])

    @rule()
    def update_only(self):
        self.update(self.index)

    @invariant()
    def equals_a_new_index(self):
        if not self.index.exists():
            return
        changes = self.update(self.index, restore=True)
        fresh = self.place / "fresh.index"
        anew = self.update(fresh, rebuild=True)
        assert content_of(self.index) == content_of(fresh)
        assert sorted(changes.unreadable) == sorted(anew.unreadable)
        seen = changes.added + changes.changed + changes.renamed + changes.unchanged
        assert seen == anew.added == len(HashIndex.load(self.index))

    def teardown(self):
        shutil.rmtree(self.place)


@pytest.mark.parametrize(
    ("examples", "steps"), [(6, 12), pytest.param(25, 24, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_an_index_that_follows_folders_equals_a_new_one(model, drawn, examples, steps):
    machine = type("Own", (Folder,), {"model": model, "drawn": staticmethod(drawn)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
