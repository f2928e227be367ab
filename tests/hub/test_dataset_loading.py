"""Pushed data sets loaded in new processes: by this package and by `datasets` alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DIGEST = """
import hashlib, json, sys
import datasets
datasets.disable_progress_bars()
def digest(image):
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()
"""
OURS = (
    DIGEST
    + """
from cmfah_hf.data import load_image_text
from cmfah_hf.errors import DataError

def rows(part):
    return [[r["id"], r["text"], r["tags"], r["labels"], digest(r["image"])] for r in part]

out = {}
out["errors"] = []
for kwargs in ({"token": False}, {"token": "hf_stranger"}, {"token": "hf_writer", "revision": "v9"}):
    for streaming in (False, True):
        try:
            load_image_text("org/scenes", streaming=streaming, **kwargs)
        except DataError as error:
            out["errors"].append(str(error))
for streaming in (False, True):
    loaded = load_image_text("org/scenes", streaming=streaming, token="hf_writer")
    out[f"all {streaming}"] = {split: rows(part) for split, part in loaded.items()}
out["database"] = rows(load_image_text("org/scenes", split="database", streaming=True, token="hf_writer"))
texts = load_image_text("org/scenes", split="train", streaming=True, images=False, token="hf_writer")
out["texts"] = [[r["id"], r["text"]] for r in texts]
for revision in ("v1", "v2"):
    for streaming in (False, True):
        loaded = load_image_text("org/scenes", streaming=streaming, token="hf_writer", revision=revision)
        out[f"{revision} {streaming}"] = {split: [r["id"] for r in part] for split, part in loaded.items()}
print(json.dumps(out))
"""
)
PLAIN = (
    """
import sys
class Blocked:
    def find_spec(self, name, *arguments):
        if name.split(".")[0] == "cmfah_hf":
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
"""
    + DIGEST
    + """
def rows(part):
    names = part.features["labels"].feature.names
    return [[r["id"], r["text"], r["tags"], [names[n] for n in r["labels"]], digest(r["image"])] for r in part]

out = {}
for streaming in (False, True):
    loaded = datasets.load_dataset("org/scenes", streaming=streaming)
    out[str(streaming)] = {split: rows(part) for split, part in loaded.items()}
out["types"] = str(loaded["database"].features["image"]), loaded["train"].features["labels"].feature.names
print(json.dumps(out))
"""
)


def run(hub, tmp_path, program: str, token: str | None = None, **variables: str) -> subprocess.CompletedProcess:
    environment = hub.environment(tmp_path / "home", token) | {"PYTHONPATH": str(ROOT)} | variables
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )


@pytest.mark.slow
def test_this_package_loads_the_same_rows(hub, prepared, tmp_path):
    hub.add("org/scenes", {}, private=True)
    repository = hub.store.repositories["dataset", "org/scenes"]
    hub.add_folder("org/scenes", prepared.folder)
    repository.tags["v1"] = repository.branches["main"]
    # A later state without the queries.
    later = {path: content for path, content in hub.files("org/scenes").items() if "query" not in path}
    card = later["README.md"].replace(b"  - split: query\n    path: data/query-*.parquet\n", b"")
    entries = {path: entry for path, entry in repository.commit_of("main").files.items() if path in later}
    repository.add_commit("v2", entries, "Without queries", "", "me")
    repository.branches["v2"] = repository.add_commit(
        "v2", entries | {"README.md": hub.entry("README.md", card)}, "Card", "", "me"
    ).oid

    result = run(hub, tmp_path, OURS)
    assert result.returncode == 0, result.stderr
    out = json.loads(result.stdout.splitlines()[-1])
    for streaming in (False, True):
        assert out[f"all {streaming}"] == prepared.rows
        ids = {split: [row[0] for row in rows] for split, rows in prepared.rows.items()}
        assert out[f"v1 {streaming}"] == ids
        assert out[f"v2 {streaming}"] == {split: ids[split] for split in ("train", "database")}
    assert out["database"] == prepared.rows["database"]
    assert out["texts"] == [row[:2] for row in prepared.rows["train"]]
    assert len(out["errors"]) == 6
    assert all(line.startswith("org/scenes: ") and "\n" not in line and "hf_" not in line for line in out["errors"])
    assert hub.asked("GET", "/objects/")


@pytest.mark.slow
def test_datasets_alone_loads_them_too(hub, prepared, tmp_path):
    hub.add_folder("org/scenes", prepared.folder)
    result = run(hub, tmp_path, PLAIN)
    assert result.returncode == 0, result.stderr
    out = json.loads(result.stdout.splitlines()[-1])
    assert out["False"] == out["True"] == prepared.rows
    assert out["types"] == ["Image(mode=None, decode=True)", prepared.classes]
