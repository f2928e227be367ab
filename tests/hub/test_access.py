"""Requests to a Hub that fails, is slow, or sends invalid replies: one-line errors in bounded time."""

import time
from pathlib import Path

import pytest
from hub_server import Answer

from cmfah_hf import hub_requests
from cmfah_hf.errors import (
    CheckpointError,
    HubAccessError,
    HubConnectionError,
    HubNotFoundError,
    HubServerError,
)
from cmfah_hf.hub_access import hub_errors, hub_file
from cmfah_hf.hub_requests import Limits


@pytest.fixture(autouse=True)
def short_timeouts(monkeypatch):
    """Short timeouts for these tests."""
    monkeypatch.setattr(hub_requests, "READING", Limits(answer_s=1.0, patience_s=2.0))
    monkeypatch.setattr(hub_requests, "WRITING", Limits(answer_s=1.0, patience_s=2.0))


@pytest.fixture
def model(here, hub):
    hub.add("org/model", {"config.json": b"{}", "model.safetensors": b"weights"}, "model")
    return hub


def refused(kind, *arguments, within=6.0, **options) -> str:
    start = time.monotonic()
    with pytest.raises(kind) as raised:
        hub_file(*arguments, **options)
    assert time.monotonic() - start < within
    message = str(raised.value)
    assert "\n" not in message
    assert message.startswith(f"{arguments[0]}: ")
    assert "hf_" not in message
    return message


def test_existing_and_missing_files(model, hub):
    assert Path(hub_file("org/model", "config.json")).read_text() == "{}"
    assert Path(hub_file("org/model", "model.safetensors")).read_text() == "weights"
    assert hub_file("org/model", "expander.json") is None
    assert "no such repository" in refused(HubNotFoundError, "org/none", "config.json")
    assert "no such revision" in refused(HubNotFoundError, "org/model", "config.json", revision="v9")
    assert "rejects the token" in refused(HubAccessError, "org/model", "x.json", token="hf_wrong")
    hub.store.repositories["model", "org/model"].gated = True
    assert "gated" in refused(HubAccessError, "org/model", "other.json")
    refused(HubNotFoundError, "no id at all", "config.json")
    refused(CheckpointError, "org/none", "config.json", error=CheckpointError)


def test_without_network_the_cache_is_used_and_missing_files_are_reported(model, hub, monkeypatch):
    from huggingface_hub import constants

    hub_file("org/model", "config.json")
    for options in ({"local_files_only": True}, {}):
        if not options:
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert hub_file("org/model", "config.json", **options)
        assert hub_file("org/model", "expander.json", **options) is None
        refused(HubConnectionError, "org/other", "config.json", **options)
    assert "HF_HUB_OFFLINE" in refused(HubConnectionError, "org/other", "config.json")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    message = refused(HubConnectionError, "org/other", "config.json", "dataset")
    assert "no connection to the Hub" in message
    assert "`hf download org/other --repo-type dataset --local-dir FOLDER` makes one." in message


@pytest.mark.parametrize(
    ("fault", "kind", "part"),
    [
        (lambda hub: hub.fail("", status=503, times=None), HubServerError, "HTTP 503"),
        (lambda hub: hub.fail("", status=500, times=None), HubServerError, "HTTP 500"),
        (lambda hub: hub.fail("", status=429, times=None, retry_after=100_000), HubServerError, "wait of 100,000 s"),
        (lambda hub: hub.fail("", status=429, times=None, retry_after="9" * 5000), HubServerError, "HTTP 429"),
        (lambda hub: hub.fail("", status=503, times=None, retry_after=3600), HubServerError, "wait of 3,600 s"),
        (lambda hub: hub.mute(""), HubConnectionError, "no connection"),
        (lambda hub: hub.cut("", times=None), HubConnectionError, "no connection"),
        (lambda hub: hub.reply("", b"<html>"), HubServerError, "not a Hub"),
        (lambda hub: hub.endless("GET "), HubServerError, "has more than"),
        (lambda hub: hub.slow("GET ", seconds=0.4, chunk=1), HubConnectionError, "bytes in"),
        (lambda hub: hub.reply("", b"", 302, {"Location": "http://127.0.0.1:9/x"}), HubServerError, "not a Hub"),
        (lambda hub: hub.reply("", b"", 302, {"Location": "/x"}), HubConnectionError, "TooManyRedirects"),
    ],
    ids=[
        "503",
        "500",
        "429",
        "429 huge",
        "503 later",
        "mute",
        "cut",
        "html",
        "endless",
        "slow",
        "redirect",
        "redirect loop",
    ],
)
def test_a_failing_hub_is_distinguished_from_a_missing_model(model, hub, fault, kind, part, monkeypatch):
    monkeypatch.setattr(hub_requests, "_LARGEST_UNSIZED", 2**20)
    hub.add("org/model", {"vocab.json": b"[" + b" " * 40 + b"]"}, "model")
    fault(hub)
    assert part in refused(kind, "org/model", "vocab.json")


def test_a_busy_hub_is_retried(model, hub):
    hub.fail("HEAD ", status=503, times=1)
    assert hub_file("org/model", "config.json")
    with hub_errors("org/model"):
        pass


@pytest.mark.parametrize("name", ["ETag", "X-Repo-Commit"])
def test_headers_of_a_reply_are_not_used_as_paths(model, hub, tmp_path, name):
    def elsewhere(answer: Answer) -> Answer:
        return Answer(answer.content, answer.status, answer.headers | {name: "../../../../escaped"}, answer.ranges)

    hub.change("", elsewhere)
    assert name in refused(HubServerError, "org/model", "config.json")
    assert not list(tmp_path.rglob("escaped*"))


def test_requests_outside_the_context_are_not_watched(model, hub):
    from huggingface_hub import hf_hub_download

    with hub_errors("org/model"):
        pass
    hub.slow("HEAD ", seconds=1.5, times=1)
    assert hf_hub_download("org/model", "config.json")
