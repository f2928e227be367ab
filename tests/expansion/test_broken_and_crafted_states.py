"""Interrupted saves, and crafted states with a valid checksum."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cmfah_hf.errors import CheckpointError
from cmfah_hf.expansion import GraphExpander, SkipGramEmbedding, WikipediaKnowledge

OLD, NEW = ["dog beach", "dog park", "cat sofa"], ["dog river", "dog forest", "cat tree"]

SAVE = """
import os, signal, sys
from pathlib import Path
from cmfah_hf.expansion import GraphExpander, WikipediaKnowledge
texts, folder, steps = sys.argv[1].split("|"), sys.argv[2], int(sys.argv[3])
expander = GraphExpander().fit(texts)
knowledge = WikipediaKnowledge(window=1, min_count=1, min_pair_count=1)
expander.knowledge = knowledge.fit(texts, expander.graph.vocabulary)
replace, rename, done = Path.replace, Path.rename, 0
def counted(move):
    def counting(path, target):
        global done
        if done == steps:
            os.kill(os.getpid(), signal.SIGKILL)
        done += 1
        return move(path, target)
    return counting
Path.replace, Path.rename = counted(replace), counted(rename)
expander.save(folder)
print(done)
"""


def save(folder: Path, texts: list[str], steps: int) -> subprocess.CompletedProcess:
    """Saves an expander with knowledge in a process that is killed after a number of files."""
    command = [sys.executable, "-c", SAVE, "|".join(texts), str(folder), str(steps)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ)


@pytest.mark.slow
def test_a_killed_save_keeps_the_previous_state(tmp_path):
    whole = save(tmp_path, OLD, 1_000)
    assert whole.returncode == 0, whole.stderr
    names = sorted(path.name for path in tmp_path.iterdir())
    renames = int(save(tmp_path, OLD, 1_000).stdout)
    assert renames > 4
    old = GraphExpander.load(tmp_path)
    for steps in range(renames):
        assert save(tmp_path, NEW, steps).returncode == -signal.SIGKILL
        found = GraphExpander.load(tmp_path)
        new = "river" in found.graph.vocabulary
        assert found.graph.vocabulary == old.graph.vocabulary or new
        assert found.knowledge.digest == old.knowledge.digest or new
        assert not new or steps == renames - 1  # the new files were in place, but the old ones not yet removed
        assert save(tmp_path, OLD, 1_000).returncode == 0
        assert sorted(path.name for path in tmp_path.iterdir()) == names


@pytest.fixture
def folder(tmp_path) -> Path:
    expander = GraphExpander().fit(OLD)
    knowledge = WikipediaKnowledge(window=1, min_count=1, min_pair_count=1)
    expander.knowledge = knowledge.fit(OLD, expander.graph.vocabulary)
    expander.save(tmp_path)
    SkipGramEmbedding(vector_size=4, epochs=1).fit(OLD).save(tmp_path)
    return tmp_path


def craft(folder: Path, stem: str, content: dict | None = None, **arrays) -> None:
    """Changes the arrays and the JSON of a state and updates its checksum."""
    path = folder / f"{stem}.safetensors"
    tensors = load_file(path)
    save_file(tensors | {name: change(tensors[name].copy()) for name, change in arrays.items()}, path)
    about = json.loads((folder / f"{stem}.json").read_text("utf-8")) | (content or {})
    about["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / f"{stem}.json").write_text(json.dumps(about), "utf-8")


def put(place: int, value: float):
    def change(array: np.ndarray) -> np.ndarray:
        array.ravel()[place] = value
        return array

    return change


@pytest.mark.parametrize("stem", ["expander", "knowledge"])
@pytest.mark.parametrize(
    "arrays",
    [
        {"indices": put(0, 2**30)},
        {"indices": put(0, -1)},
        {"indptr": put(1, 2**30)},
        {"indptr": put(0, 1)},
        {"indptr": put(-1, 0)},
        {"data": put(0, float("nan"))},
        {"data": put(0, -1.0)},
        {"data": lambda array: array.astype(np.float32)},
        {"indices": lambda array: array.astype(np.float64)},
        {"indices": lambda array: array[:, None]},
        {"indices": lambda array: np.zeros_like(array)},
    ],
)
def test_matrices_are_checked_before_they_are_used(folder, stem, arrays):
    craft(folder, stem, **arrays)
    with pytest.raises(CheckpointError, match=f"{stem}.json is damaged") as raised:
        {"expander": GraphExpander, "knowledge": WikipediaKnowledge}[stem].load(folder)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("stem", "kind", "content", "arrays"),
    [
        ("expander", GraphExpander, {"num_images": 10**400}, {}),
        ("expander", GraphExpander, {"num_images": "3"}, {}),
        ("expander", GraphExpander, {"vocabulary": [["dog"]] * 5}, {}),
        ("expander", GraphExpander, {"vocabulary": 5}, {}),
        ("expander", GraphExpander, {"knowledge": [1]}, {}),
        ("expander", GraphExpander, {"knowledge": {"top_k": "x", "digest": ""}}, {}),
        ("expander", GraphExpander, {"settings": {"walk_length": 10**9 + 1}}, {}),
        ("expander", GraphExpander, {"settings": {"num_walks": 10**9}}, {}),
        ("expander", GraphExpander, {"settings": {"output_column": ["x"]}}, {}),
        ("expander", GraphExpander, {}, {"counts": put(0, -5)}),
        ("knowledge", WikipediaKnowledge, {"words": [1, 2]}, {}),
        ("knowledge", WikipediaKnowledge, {"settings": {"smoothing": float("nan")}}, {}),
        ("skip_gram", SkipGramEmbedding, {"settings": {"vector_size": 10**400}}, {}),
        ("skip_gram", SkipGramEmbedding, {"vocabulary": [1, 2, 3, 4, 5]}, {}),
        ("skip_gram", SkipGramEmbedding, {}, {"vectors": put(0, float("inf"))}),
        ("skip_gram", SkipGramEmbedding, {}, {"counts": put(0, -1)}),
        ("skip_gram", SkipGramEmbedding, {}, {"counts": lambda array: array.astype(np.float64)}),
    ],
)  # fmt: skip
def test_settings_and_words_are_checked(folder, stem, kind, content, arrays):
    craft(folder, stem, content, **arrays)
    with pytest.raises(CheckpointError) as raised:
        kind.load(folder)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["expander.json", "expander.safetensors", "knowledge.json"])
def test_links_out_of_the_folder_are_refused(folder, tmp_path_factory, name):
    outside = tmp_path_factory.mktemp("outside") / name
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    with pytest.raises(CheckpointError, match="leads out of"):
        GraphExpander.load(folder)


def test_a_deeply_nested_state_is_refused(folder):
    (folder / "expander.json").write_text('{"a":' * 100_000, "utf-8")
    with pytest.raises(CheckpointError, match=r"expander\.json"):
        GraphExpander.load(folder)
