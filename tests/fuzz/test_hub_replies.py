"""Mutated replies of a Hub, and mutated cards and records on it, during downloads and pushes."""

import json
import random
import shutil

import pytest
from hub_server import Answer, HubServer
from hub_server.client import use_hub

from cmfah_hf import hub_requests
from cmfah_hf.errors import HubError
from cmfah_hf.hub import publish, publishing
from cmfah_hf.hub.cards import card_of
from cmfah_hf.hub_access import hub_file
from cmfah_hf.hub_requests import Limits
from fuzz.harness import ODD_VALUES, mutated, mutated_json

CARD = card_of("license: mit\ntags:\n- a\nmodel-index:\n- name: x\n  results: []\n", "# One\n\ntext")
HEADERS = (
    "ETag", "X-Repo-Commit", "X-Linked-Etag", "X-Linked-Size", "Location", "Link", "Content-Length", "Content-Type",
    "Content-Encoding", "Retry-After", "RateLimit", "X-Error-Code", "X-Error-Message", "X-Xet-Hash", "X-HF-Warning",
    "Transfer-Encoding", "Content-Range",
)  # fmt: skip
VALUES = (
    "", "0", "-1", "5", "99999999999999999999", "9" * 5000, "gzip", "chunked", "../../../../x", "/etc/passwd", '"x"',
    "W/", "a" * 9000, "\xff", "²", '"api";r=0;t=99999', "RepoNotFound", "EntryNotFound", "GatedRepo", "x; y",
    "bytes 0-1/2", "file:///etc/passwd", "http://[", "http://127.0.0.1:1/x", '<http://127.0.0.1:1/x>; rel="next"',
    "<x>; rel=next", "/",
)  # fmt: skip
STATUSES = (200, 201, 204, 206, 301, 302, 304, 307, 400, 401, 402, 403, 404, 409, 412, 416, 418, 429, 500, 503, 599)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub, used by this process with minimal timeouts."""
    monkeypatch.setattr(hub_requests, "READING", Limits(answer_s=0.5, patience_s=0.0))
    monkeypatch.setattr(hub_requests, "WRITING", Limits(answer_s=0.5, patience_s=0.0))
    monkeypatch.setattr(hub_requests, "_UPLOAD_FACTOR", 1)
    monkeypatch.setattr(publishing, "_WAITS", ())
    with HubServer(page_size=3) as server:
        use_hub(server, tmp_path, monkeypatch)
        yield server


def changed(rng: random.Random, answer: Answer, canary) -> Answer:
    """A response with its body, a header or its status changed.

    Addresses of the canary are inserted only into bodies: redirects may lead anywhere, as the Hub chooses its storage.
    """
    content, status, headers = answer.content, answer.status, dict(answer.headers)
    kind = rng.randrange(6)
    if kind <= 2 and headers.get("Content-Type") == "application/json":
        value = mutated_json(rng, json.loads(content), (*ODD_VALUES, *canary.names()))
        content = json.dumps(value).encode()
    elif kind == 3:
        content = mutated(rng, content)
    elif kind == 4:
        status = rng.choice(STATUSES)
    else:
        headers[rng.choice(HEADERS)] = rng.choice((*VALUES, *canary.names()[:-1]))
    return Answer(content, status, headers, answer.ranges and rng.random() < 0.8)


def test_replies_to_a_push(hub, fuzzer, tmp_path, canary):
    (tmp_path / "README.md").write_text(CARD)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "weights.safetensors").write_bytes(b"weights")
    files = {name: tmp_path / name for name in ("README.md", "config.json", "weights.safetensors")}
    replies = (
        "POST /api/repos/create", "GET /api/models/org/model$", "/revision/main", "/tree/", "/resolve/", "/preupload/",
        "objects/batch", "PUT /objects/", "/verify", "/validate-yaml", "/commit/", "",
    )  # fmt: skip
    hub.multipart_size = 4

    def attempt(rng):
        hub.faults.clear()
        hub.store.repositories.clear()
        hub.store.objects.clear()
        hub.multipart_size = rng.choice((None, 4))
        if rng.random() < 0.6:
            theirs = {"README.md": b"---\nlicense: x\n---\nmine", "a/b": b"", "c": b"", "d": b""}
            hub.add("org/model", theirs, "model")
        hub.change(rng.choice(replies), lambda answer: changed(rng, answer, canary), times=rng.choice((1, 1, 3, None)))
        publish(
            files, "org/model", "model", "Mine", token="hf_writer", progress=False, replaces=lambda path: path == "c"
        )

    try:
        fuzzer(share=0.014, limit_s=8).run(attempt)
    finally:
        hub.errors.clear()  # for instance, a status without a body where there was one


def test_replies_to_a_download(hub, fuzzer, tmp_path, canary):
    hub.add("org/model", {"config.json": b'{"a": 1}', "model.safetensors": b"weights"}, "model")

    def attempt(rng):
        hub.faults.clear()
        shutil.rmtree(tmp_path / "hub-cache", ignore_errors=True)
        hub.change("", lambda answer: changed(rng, answer, canary), times=rng.choice((1, 1, 3, None)))
        for name in ("config.json", "model.safetensors", "none.json"):
            hub_file("org/model", name, token="hf_reader")

    try:
        fuzzer(share=0.008, limit_s=8).run(attempt)
    finally:
        hub.errors.clear()
    assert {path.name for path in tmp_path.iterdir()} <= {"hub-cache", "assets"}


def test_cards_and_records_on_the_hub(hub, fuzzer, tmp_path):
    (tmp_path / "README.md").write_text(CARD.replace("text", "another text"))
    files = {"README.md": tmp_path / "README.md"}
    record = {
        "format_version": 1,
        "files": {"README.md": {"sha256": "0" * 64, "git": "0" * 40}},
        "card": {"tags": ["a"]},
    }

    def attempt(rng):
        hub.store.repositories.clear()
        card = mutated(rng, CARD.encode())
        there = {"README.md": card}
        if rng.random() < 0.5:
            there[".cmfah-hf.json"] = mutated(rng, json.dumps(mutated_json(rng, record)).encode())
        hub.add("org/model", there, "model")
        try:
            publish(files, "org/model", "model", "Mine", token="hf_writer", progress=False)
        except HubError:
            assert hub.files("org/model", "model") | there == hub.files("org/model", "model")
            raise

    fuzzer(share=0.01, limit_s=8).run(attempt)


def test_replies_to_loading_a_model(hub, fuzzer, tmp_path, canary, trained):
    from cmfah_hf.retrieval import CrossMediaRetriever

    files = ("config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json")
    hub.add("org/model", {name: (trained.folder / name).read_bytes() for name in files}, "model")

    def attempt(rng):
        hub.faults.clear()
        shutil.rmtree(tmp_path / "hub-cache", ignore_errors=True)
        hub.change(
            rng.choice(("", *files)), lambda answer: changed(rng, answer, canary), times=rng.choice((1, 3, None))
        )
        CrossMediaRetriever.from_pretrained("org/model", device="cpu", token="hf_reader")

    try:
        fuzzer(share=0.002, limit_s=20).run(attempt)
    finally:
        hub.errors.clear()
