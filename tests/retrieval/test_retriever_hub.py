"""Mistyped model names, and a Hub that is unreachable or fails: quick one-line errors."""

import shutil
import time

import pytest
from hub_server import HubServer
from hub_server.client import use_hub

from cmfah_hf import hub_requests
from cmfah_hf.errors import CheckpointError
from cmfah_hf.hub_requests import Limits
from cmfah_hf.retrieval import CrossMediaRetriever


@pytest.fixture
def hub(tmp_path, monkeypatch, trained):
    with HubServer() as server:
        use_hub(server, tmp_path, monkeypatch)
        monkeypatch.setenv("HF_TOKEN", "hf_writer")
        monkeypatch.setattr(hub_requests, "READING", Limits(answer_s=1.0, patience_s=2.0))
        files = {path.name: path.read_bytes() for path in trained.folder.iterdir() if path.is_file()}
        server.add("org/model", {name: own for name, own in files.items() if not name.endswith(".bin")}, "model")
        yield server


def refused(source, within, **options) -> str:
    start = time.monotonic()
    with pytest.raises(CheckpointError) as caught:
        CrossMediaRetriever.from_pretrained(source, **options)
    assert time.monotonic() - start < within
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "source",
    ["./runs/model", "../model", "/nowhere/model", "~/model", "runs/first/model", "C:\\models\\one", "model", "a b/c",
     "", "owner/..", "o\0/n", "o\nn/x", "x" * 5000, "owner/" + "y" * 300, "/dev/zero", "/dev/fd/0"],
)  # fmt: skip
def test_paths_are_not_requested_from_the_hub(hub, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refused(source, within=2)
    assert "neither a folder nor the id of a model on the Hub, which is 'owner/name'; check the path." in message
    assert hub.log == []


def test_a_file_in_place_of_a_folder_is_named(trained):
    path = trained.folder / "model.safetensors"
    assert refused(path, within=2) == f"{path}: this is a file; give the folder of a training run."


def test_errors_of_the_hub_are_distinguished(hub):
    assert "no such repository on the Hub" in refused("org/modle", within=5)
    assert "no such revision" in refused("org/model", within=5, revision="v9")
    hub.add("org/empty", {"README.md": b"nothing"}, "model")
    assert "without a config.json" in refused("org/empty", within=5)
    hub.fail("HEAD /org/.*", status=503, times=None)
    message = refused("org/model", within=8)
    assert "failing or busy" in message
    assert "503" in message
    assert "no such repository" not in message


def test_a_silent_hub_and_no_network_fail_quickly(hub, monkeypatch, caplog):
    from huggingface_hub import constants

    hub.mute("HEAD /org/.*")
    assert "no connection to the Hub" in refused("org/model", within=8)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    caplog.clear()
    message = refused("runs/first", within=5)
    assert message.startswith("runs/first: no folder of this name here, and no connection to the Hub")
    assert "`hf download runs/first --local-dir FOLDER` makes one." in message
    assert caplog.messages == []  # no line about each attempt
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = refused("runs/first", within=2)
    assert "offline the Hub is not asked" in message
    assert "`hf download runs/first --local-dir FOLDER` makes one." in message


def test_without_network_a_cached_model_loads_at_once(hub, monkeypatch, caplog, trained):
    from huggingface_hub import constants

    before = CrossMediaRetriever.from_pretrained("org/model")
    assert before.fingerprint == CrossMediaRetriever.from_pretrained(trained.folder).fingerprint
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    start = time.monotonic()
    again = CrossMediaRetriever.from_pretrained("org/model")
    assert time.monotonic() - start < 10
    assert again.fingerprint == before.fingerprint
    assert again.expander.digest == before.expander.digest
    assert "then try again later. The copy in the cache is used." in caplog.text
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert CrossMediaRetriever.from_pretrained("org/model").fingerprint == before.fingerprint


def test_code_in_a_folder_is_neither_run_nor_prompted_for(trained, tmp_path):
    folder = tmp_path / "hostile"
    shutil.copytree(trained.folder, folder, ignore=shutil.ignore_patterns("checkpoint-*", "plots"))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Tokenizer: pass\n")
    for name in ("tokenizer_config.json", "processor_config.json"):
        text = (folder / name).read_text(encoding="utf-8")
        hostile = '{"auto_map": {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"], "AutoProcessor": "evil.P"},'
        (folder / name).write_text(text.replace("{", hostile, 1), encoding="utf-8")
    assert CrossMediaRetriever.from_pretrained(folder).model.config.hash_bits == 16
    assert not (tmp_path / "ran").exists()
