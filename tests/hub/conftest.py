"""A prepared data set with two shards of training pairs, and a Hub to push it to."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pytest
from hub_server import HubServer
from hub_server.client import use_hub

ROOT = Path(__file__).parents[2]
CARD = """---
license: cc-by-4.0
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
  - split: query
    path: data/query-*.parquet
  - split: database
    path:
    - data/train-*.parquet
    - data/rest-*.parquet
---

# Scenes
"""


@dataclass(frozen=True)
class Prepared:
    """The folder, its class names, and the content of each split: id, text, tags, label names, digest of the pixels."""

    folder: Path
    classes: list[str]
    rows: dict[str, list[list[Any]]]


def digest(image: Any) -> str:
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


@pytest.fixture(scope="session")
def prepared(tmp_path_factory, datasets_cache) -> Prepared:
    """22 scenes: 12 training pairs, 4 queries, 6 more in the database. Read-only: tests change copies."""
    from cmfah_hf.data import collect_classes, make_scenes

    folder = tmp_path_factory.mktemp("prepared") / "scenes"
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    scenes = make_scenes(22, image_size=32)
    classes = collect_classes(scenes)
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "image": datasets.Image(),
            "text": datasets.Value("string"),
            "tags": datasets.List(datasets.Value("string")),
            "labels": datasets.List(datasets.ClassLabel(names=classes)),
        }
    )
    undecoded = scenes.cast_column("image", datasets.Image(decode=False))
    content = {
        "id": undecoded["id"],
        "image": undecoded["image"],
        "text": undecoded["text"],
        "tags": [text.split() for text in undecoded["text"]],
        "labels": [[classes.index(name) for name in names] for names in undecoded["labels"]],
    }
    whole = datasets.Dataset.from_dict({name: list(values) for name, values in content.items()}, features=features)
    shards = {
        "train-00000-of-00002": (0, 7),
        "train-00001-of-00002": (7, 12),
        "query-00000-of-00001": (12, 16),
        "rest-00000-of-00001": (16, 22),
    }
    for name, bounds in shards.items():
        whole.select(range(*bounds)).to_parquet(folder / "data" / f"{name}.parquet", batch_size=3)
    expected = [[r["id"], r["text"], r["text"].split(), r["labels"], digest(r["image"])] for r in scenes]
    rows = {"train": expected[:12], "query": expected[12:16], "database": expected[:12] + expected[16:]}
    return Prepared(folder, classes, rows)


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture
def push(hub, tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    """A function that runs `cmfah data push` in a new process; with `start=True` it does not wait for the result."""

    def run(
        *arguments: Any, token: str | None = "hf_writer", start: bool = False, home: str = "home", **variables: str
    ):
        command = [sys.executable, "-c", "from cmfah_hf.cli import main; main()", "data", "push"]
        environment = hub.environment(tmp_path / home, token) | {"PYTHONPATH": str(ROOT)} | variables
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path}
        process = subprocess.Popen([*command, *map(str, arguments)], env=environment, **streams)
        if start:
            return process
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run


@dataclass(frozen=True)
class Outcome:
    """The result, like that of a finished process."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def here(hub, tmp_path, monkeypatch) -> None:
    """Makes this process use the Hub."""
    use_hub(hub, tmp_path, monkeypatch)


@pytest.fixture
def push_run(here, monkeypatch) -> Callable[..., Any]:
    """A function that pushes a run from this process."""
    from cmfah_hf.hub import push_model

    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    return lambda folder, repo_id="org/model", **settings: push_model(folder, repo_id, progress=False, **settings)


@dataclass(frozen=True)
class Published:
    """A Hub with a private model uploaded by `push_model`, and the run of that model."""

    hub: HubServer
    done: Any
    run: Any
    index: Path

    @property
    def card(self) -> str:
        return self.hub.files(self.done.repo_id, "model")["README.md"].decode()


@pytest.fixture(scope="module", params=["trained", "trained_scahn"])
def published(request, tmp_path_factory) -> Published:
    """A tiny run of either method with an index of its query images, pushed as the private `org/model`."""
    from cmfah_hf.hub import push_model
    from cmfah_hf.retrieval import CrossMediaRetriever

    trained = request.getfixturevalue(request.param)
    folder = tmp_path_factory.mktemp("published")
    retriever = CrossMediaRetriever.from_pretrained(trained.folder)
    retriever.add_source(trained.scenes, split="query", metadata=["text"])
    retriever.images.save(folder / "query.index")
    with HubServer() as server, pytest.MonkeyPatch.context() as patch:
        use_hub(server, folder, patch)
        done = push_model(
            trained.folder,
            "org/model",
            private=True,
            token="hf_writer",
            images_index=folder / "query.index",
            license="apache-2.0",
            progress=False,
        )
        patch.undo()
        yield Published(server, done, trained, folder / "query.index")


@pytest.fixture
def published_here(published, tmp_path, monkeypatch) -> Published:
    """The same, with this process set up to use it: its own cache and the token of an owner."""
    use_hub(published.hub, tmp_path, monkeypatch)
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    published.hub.log.clear()
    return published


@pytest.fixture
def push_here(here, capsys, monkeypatch) -> Callable[..., Outcome]:
    """Like `push`, but in this process, without startup time."""
    from huggingface_hub import constants
    from huggingface_hub.utils import are_progress_bars_disabled

    from cmfah_hf.cli import main

    def run(*arguments: Any, token: str | None = "hf_writer") -> Outcome:
        if token is None:
            monkeypatch.delenv("HF_TOKEN", raising=False)
            monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere/token")
        else:
            monkeypatch.setenv("HF_TOKEN", token)
        were_disabled = are_progress_bars_disabled()
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main(["data", "push", *map(str, arguments)])
        assert are_progress_bars_disabled() == were_disabled
        streams = capsys.readouterr()
        return Outcome(left.value.code or 0, streams.out, streams.err)

    return run
