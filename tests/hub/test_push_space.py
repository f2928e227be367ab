"""`push_space` against the Hub on the loopback."""

import json
import shutil
import subprocess
import sys
import time
from importlib.metadata import version

import httpx
import pytest
import torch
import yaml
from hub_server.store import GIT_ATTRIBUTES
from safetensors.torch import load_file

from cmfah_hf.cli import main
from cmfah_hf.errors import CheckpointError, HubError
from cmfah_hf.hub import push_space
from cmfah_hf.space import SpaceSettings, space_files
from cmfah_hf.space.files import model_requirements
from cmfah_hf.space.settings import bundled_space


@pytest.fixture
def push_the_space(here, monkeypatch):
    """`push_space` with the token of a user who may write."""
    monkeypatch.setenv("HF_TOKEN", "hf_writer")

    def push(**settings):
        return push_space("org/search", progress=False, **settings)

    return push


def test_the_embedded_space_is_uploaded_completely_in_one_commit(push_the_space, hub):
    done = push_the_space()
    files = hub.files("org/search", "space")
    assert files.pop(".gitattributes")
    assert files.pop(".cmfah-hf.json")
    expected = {name: path.read_bytes() for name, path in space_files(bundled_space() / "model").items()}
    assert {name: content for name, content in files.items() if name != "space.json"} == expected
    assert json.loads(files["space.json"]) == json.loads((bundled_space() / "space.json").read_text(encoding="utf-8"))
    assert hub.history("org/search", "space") == ["Upload the Space", "initial commit"]
    assert hub.store.repositories["space", "org/search"].sdk == "gradio"
    assert (done.changed, done.model, done.data, set(done.files)) == (
        True, "model", "scenes", {*files, ".cmfah-hf.json"}
    )  # fmt: skip
    assert done.size == sum(map(len, hub.files("org/search", "space").values())) - len(GIT_ATTRIBUTES)
    assert done.url == f"{hub.endpoint}/spaces/org/search"

    again = push_the_space()
    assert (again.changed, again.commit) == (False, done.commit)


def test_another_model_replaces_only_the_previous_model(push_the_space, hub, trained, tmp_path):
    hub.add("org/search", {"model/old.bin": b"old", "cmfah_hf/gone.py": b"", "banner.txt": b"mine"}, "space")
    push_the_space(model=trained.folder, data="org/images", split="database", limit=50, title="Mine")
    files = hub.files("org/search", "space")
    assert "model/old.bin" not in files
    assert "cmfah_hf/gone.py" not in files
    assert files["banner.txt"] == b"mine"
    (tmp_path / "model.safetensors").write_bytes(files["model/model.safetensors"])
    towers, whole = (load_file(folder / "model.safetensors") for folder in (tmp_path, trained.folder))
    assert all(torch.equal(tensor, whole[f"cmfah.{name}"]) for name, tensor in towers.items())
    assert files["model/expander.json"] == (trained.folder / "expander.json").read_bytes()
    assert not [name for name in files if "checkpoint-" in name]
    (tmp_path / "space.json").write_bytes(files["space.json"])
    assert SpaceSettings.load(tmp_path) == SpaceSettings("model", "org/images", "database", 50, "Mine", ())

    # A model on the Hub is loaded from the Hub.
    push_the_space(model="org/my-model", data="org/images")
    files = hub.files("org/search", "space")
    assert json.loads(files["space.json"])["model"] == "org/my-model"
    assert not [name for name in files if name.startswith("model/")]


def test_libraries_of_a_model_are_added_to_the_requirements(push_the_space, hub, trained, tmp_path):
    plain = space_files()["requirements.txt"].read_bytes()
    push_the_space(model=trained.folder, data="org/images")
    assert hub.files("org/search", "space")["requirements.txt"] == plain
    folder = tmp_path / "model"
    shutil.copytree(trained.folder, folder)
    path = folder / "processor_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**settings, "word_rules": {"segmenter": "icu", "fold_marks": False}}), encoding="utf-8")
    push_the_space(model=folder, data="org/images")
    further = f"icu4py=={version('icu4py')}\n".encode()
    assert hub.files("org/search", "space")["requirements.txt"] == plain + further


def test_libraries_that_only_some_models_need(tmp_path):
    assert model_requirements(tmp_path) == []
    (tmp_path / "config.json").write_text('{"backbone_config": {"model_type": "timm_backbone"}}')
    (tmp_path / "expander.json").write_text('{"tokenizer": "chinese"}')
    assert model_requirements(tmp_path) == [f"{name}=={version(name)}" for name in ("timm", "rjieba")]
    (tmp_path / "config.json").write_text('{"backbone_config": null}')
    (tmp_path / "expander.json").write_text('{"tokenizer": "icu"}')
    assert model_requirements(tmp_path) == [f"icu4py=={version('icu4py')}"]


def test_a_space_for_agents_has_the_setting_the_tag_and_the_library(push_the_space, hub):
    push_the_space(mcp=True)
    files = hub.files("org/search", "space")
    assert json.loads(files["space.json"])["mcp"] is True
    head = yaml.safe_load(files["README.md"].split(b"---")[1])
    assert head["tags"] == ["mcp-server", "cross-modal-retrieval", "hashing"]
    assert head["sdk"] == "gradio"
    assert b"\ngradio[mcp]==" in files["requirements.txt"]
    push_the_space()
    head = yaml.safe_load(hub.files("org/search", "space")["README.md"].split(b"---")[1])
    assert head["tags"] == ["cross-modal-retrieval", "hashing"]


def test_an_unusable_space_is_refused_before_any_upload(push_the_space, hub, trained, tmp_path):
    refused = [
        ({"model": trained.folder}, HubError, "needs images to search"),
        ({"data": str(trained.scenes)}, HubError, "push it with `cmfah data push`"),
        ({"data": "images"}, HubError, "push it with"),
        ({"model": tmp_path, "data": "org/images"}, CheckpointError, r"a folder without config\.json"),
    ]
    for settings, kind, reason in refused:
        with pytest.raises(kind, match=reason):
            push_the_space(**settings)
    assert hub.log == []


def test_the_command(hub, here, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    options = ["--data", "org/images", "--split", "database", "--limit", "50", "--title", "Mine"]
    with pytest.raises(SystemExit) as exit_of:
        main(["push", "org/my-model", "--space", "--repo-id", "org/search", *options, "--json"])
    assert exit_of.value.code == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["repo_id"], done["model"], done["data"]) == ("org/search", "org/my-model", "org/images")
    settings = json.loads(hub.files("org/search", "space")["space.json"])
    assert settings == {
        "model": "org/my-model", "data": "org/images", "split": "database", "limit": 50, "title": "Mine",
        "examples": [], "hosts": [], "mcp": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "Nothing to push: give the output folder of a training run, or add --space."),
        (["my-model", "--limit", "5"], "--limit is for Spaces; add --space."),
        (["my-model", "--mcp"], "--mcp is for Spaces; add --space."),
        (["--space", "--license", "mit"], "--license is for models; leave it out."),
        (["my-model", "--space"], "my-model: this model needs images to search; name a data set on the Hub."),
    ],
)
def test_the_command_reports_conflicts_in_one_line(hub, here, monkeypatch, capsys, arguments, reason):
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    with pytest.raises(SystemExit) as exit_of:
        main(["push", *arguments, "--repo-id", "org/search"])
    assert exit_of.value.code == 2
    assert capsys.readouterr().err.splitlines() == [f"cmfah: {reason}"]
    assert hub.log == []


@pytest.mark.slow
def test_a_pushed_space_starts_on_its_own(push_the_space, hub, tmp_path):
    """As on the Hub: the repository's files and its own copy of the package, nothing from this checkout."""
    push_the_space(limit=12)
    folder = tmp_path / "space"
    for name, content in hub.files("org/search", "space").items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    with (folder / "cmfah_hf" / "__init__.py").open("a") as copy:
        copy.write("print('the copy of the Space', flush=True)\n")
    environment = hub.environment(tmp_path / "home") | {
        "GRADIO_TEMP_DIR": str(tmp_path / "uploads"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    environment.pop("PYTHONPATH", None)
    log = tmp_path / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=folder, env=environment, stdout=stream, stderr=stream
        )
    try:
        end = time.monotonic() + 280
        while "Serving at" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        url = log.read_text().split("Serving at ")[1].split()[0].rstrip("/")
        assert "the copy of the Space" in log.read_text()
        event = httpx.post(f"{url}/gradio_api/call/search_text", json={"data": ["boat sun", 12]}).json()["event_id"]
        answer = httpx.get(f"{url}/gradio_api/call/search_text/{event}", timeout=60).text
        assert answer.count("scene-9000") == 24  # twelve by either metric
    finally:
        process.terminate()
        process.wait(30)
