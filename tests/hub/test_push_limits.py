"""A push to a Hub that fails, keeps silent, or answers nonsense: one line that says so, in bounded time."""

import json
import logging
import time

import pytest
from hub_server import Answer, HubServer

from cmfah_hf import hub_requests
from cmfah_hf.errors import HubConnectionError, HubError, HubServerError
from cmfah_hf.hub import publish, publishing
from cmfah_hf.hub_access import hub_file
from cmfah_hf.hub_requests import Limits


@pytest.fixture(autouse=True)
def impatient(here, monkeypatch):
    monkeypatch.setattr(hub_requests, "WRITING", Limits(answer_s=0.4, patience_s=0.6))
    monkeypatch.setattr(publishing, "_WAITS", (0.1, 0.3, 0.6))


@pytest.fixture
def push(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n\n# Mine\n")
    (tmp_path / "weights.safetensors").write_bytes(b"weights")
    files = {name: tmp_path / name for name in ("README.md", "weights.safetensors")}

    def run(**settings):
        return publish(files, "org/model", "model", "Mine", token="hf_writer", progress=False, **settings)

    return run


def one_line(push, kind, within: float = 10.0) -> str:
    start = time.monotonic()
    with pytest.raises(kind) as raised:
        push()
    assert time.monotonic() - start < within
    message = str(raised.value)
    assert "\n" not in message
    assert message.startswith("org/model: ")
    assert "hf_writer" not in message
    assert "X-Signature" not in message
    return message


CREATE, INFO, TREE = "POST /api/repos/create", "GET /api/models/org/model$", "GET /api/models/org/model/tree"
MODES, BATCH, PUT = "POST /api/models/org/model/preupload", "POST .*objects/batch", "PUT /objects/"
CARD, COMMIT = "POST /api/validate-yaml", "POST /api/models/org/model/commit"
STEPS = {"create": CREATE, "info": INFO, "tree": TREE, "modes": MODES, "batch": BATCH, "card": CARD, "commit": COMMIT}


@pytest.mark.parametrize(
    ("step", "fault"), [("info", "503"), ("batch", "503"), ("commit", "503"), ("create", "mute"), ("put", "mute")]
)
def test_a_hub_that_fails_or_keeps_silent_at_any_step(push, hub, step, fault):
    pattern = {**STEPS, "put": PUT}[step]
    if fault == "503":
        hub.fail(pattern, times=None)
        assert "the Hub is failing or busy (HTTP 503" in one_line(push, HubServerError)
    else:
        hub.mute(pattern)
        assert "no connection to the Hub (ReadTimeout" in one_line(push, HubConnectionError)
    hub.faults.clear()
    assert push().changed


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    "content",
    [b"{}", b"[]", b"null", b"5", b'""', b"<html>busy</html>", b"", b"\xff\xfe", b"[" * 100_000, b'[{"path": 5}]',
     b'{"files": [{}], "objects": [{}], "errors": {}, "warnings": 5, "url": 5, "commitOid": "x", "sha": "../x"}'],
    ids=range(11),
)  # fmt: skip
def test_a_reply_of_another_shape(push, hub, step, content):
    hub.reply(STEPS[step], content)
    if (step, content) not in {("card", b"{}"), ("tree", b"[]")}:
        assert "sent an invalid reply" in one_line(push, HubServerError)


@pytest.mark.parametrize(
    ("step", "change"),
    [
        (MODES, lambda it: it["files"].pop()),
        (MODES, lambda it: it["files"][0].update(path="other")),
        (BATCH, lambda it: it["objects"][0].update(oid="0" * 64)),
        (BATCH, lambda it: it["objects"][0]["actions"]["upload"].update(href="file:///etc/passwd")),
        (BATCH, lambda it: it["objects"][0]["actions"]["upload"].update(header={"chunk_size": "0"})),
        (BATCH, lambda it: it["objects"][0]["actions"]["upload"].update(header={"chunk_size": "5", "00001": 5})),
        (COMMIT, lambda it: it.update(commitOid=5)),
        (INFO, lambda it: it.update(private="no")),
        (INFO, lambda it: it.update(siblings=[5])),
        (INFO, lambda it: it.update(lastModified=5)),
        (TREE, lambda it: it[0].update(size=-1)),
        (TREE, lambda it: it[0].update(lfs=5)),
    ],
)
def test_a_value_of_a_reply_that_cannot_be(push, hub, step, change):
    def changed(answer: Answer) -> Answer:
        content = json.loads(answer.content)
        change(content)
        return Answer(json.dumps(content).encode(), answer.status, answer.headers)

    hub.change(step, changed)
    one_line(push, HubServerError)


def test_the_token_goes_nowhere_else(push, hub):
    """Not to a next page, nor to where an upload is to be verified; redirects are the client's matter."""
    with HubServer() as elsewhere:

        def verify_there(answer: Answer) -> Answer:
            content = answer.content.replace(hub.endpoint.encode() + b"/api/lfs/verify", elsewhere.endpoint.encode())
            return Answer(content, answer.status, answer.headers)

        hub.change(BATCH, verify_there, times=1)
        assert "requests the token for another server" in one_line(push, HubServerError)
        link = {"Link": f'<{elsewhere.endpoint}/api/models/org/model/tree/x>; rel="next"'}
        hub.change(TREE, lambda answer: Answer(answer.content, answer.status, answer.headers | link), times=1)
        assert "next page is on another server" in one_line(push, HubServerError)
        hub.add("org/model", {"x.safetensors": b"x"}, "model")
        xet = {"X-Xet-Hash": "0" * 64, "X-Xet-Refresh-Route": f"{elsewhere.endpoint}/api/token"}
        hub.change("/resolve/", lambda answer: Answer(answer.content, answer.status, answer.headers | xet))
        with pytest.raises(HubServerError, match="requests the token for another server"):
            hub_file("org/model", "x.safetensors", token="hf_writer")
        assert elsewhere.log == []


def test_a_listing_without_an_end(push, hub, monkeypatch):
    monkeypatch.setattr(hub_requests, "_MOST_PAGES", 20)
    link = {"Link": f'<{hub.endpoint}/api/models/org/model/tree/main?recursive=true>; rel="next"'}
    hub.change(TREE, lambda answer: Answer(answer.content, answer.status, answer.headers | link))
    assert "is endless" in one_line(push, HubServerError)


@pytest.mark.parametrize("step", ["create", "tree", "commit"])
def test_a_body_without_an_end(push, hub, step):
    hub.endless(STEPS[step])
    assert "has more than" in one_line(push, HubServerError)


@pytest.mark.parametrize(("status", "asked"), [(429, 100_000), (503, 100_000), (429, "9" * 5000), (429, 2)])
def test_the_hub_is_not_waited_for_longer_than_there_is_patience(push, hub, status, asked):
    hub.fail(MODES, status=status, times=None, retry_after=asked)
    assert "it requests a wait of" in one_line(push, HubServerError)
    hub.faults.clear()
    limit = {"RateLimit": '"api";r=0;t=99999', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}
    hub.reply(MODES, b"{}", 429, limit)
    assert "requests a wait of 99,999 s" in one_line(push, HubServerError)


def test_an_upload_takes_as_long_as_it_makes_progress(push, hub, tmp_path, monkeypatch):
    (tmp_path / "weights.safetensors").write_bytes(bytes(600_000))
    hub.slow(PUT, seconds=0.1, chunk=2**16)
    start = time.monotonic()
    assert push().changed
    assert time.monotonic() - start > 0.8  # twice what one reply may take


def test_waiting_is_shown(push, hub, monkeypatch, caplog):
    monkeypatch.setattr(hub_requests, "_NOTICE_S", 0.1)
    hub.slow(MODES, seconds=0.3, times=1)
    hub.fail(INFO, times=1)
    with caplog.at_level(logging.WARNING):
        assert push().changed
    said = [record.getMessage() for record in caplog.records]
    assert "Waiting for a reply of the Hub." in said
    assert "The Hub is failing (HTTP 503 Service Unavailable)." in said


def test_no_log_holds_the_address_of_an_upload(push, hub, caplog, monkeypatch):
    monkeypatch.setattr(hub_requests, "WRITING", Limits(answer_s=1, patience_s=5))
    hub.fail(PUT, times=1)
    with caplog.at_level(logging.WARNING):
        push()
    assert caplog.records
    assert not [record for record in caplog.records if "X-Signature" in record.getMessage()]


def test_a_token_that_no_header_can_hold(tmp_path):
    (tmp_path / "x").touch()
    with pytest.raises(HubError, match="contains invalid characters") as raised:
        publish({"x": tmp_path / "x"}, "org/model", "model", "Mine", token="hf_secret\nx")
    assert "secret" not in str(raised.value)
