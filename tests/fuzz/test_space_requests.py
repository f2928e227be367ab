"""Requests to the Space: JSON bodies, uploads, and raw HTTP, against the served app."""

import base64
import io
import json
import logging
import random
import socket
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image

from cmfah_hf.errors import QueryError
from cmfah_hf.space import SpaceSettings, serve
from cmfah_hf.space.settings import bundled_space
from fuzz.harness import ODD_VALUES, Canary, mutated, mutated_json

ENDPOINTS = ("search_text", "search_image", "explain", "index_info", "search_encoded_image")
IS_FILE = {"_type": "gradio.FileData"}


@dataclass
class Server:
    """A served app: its address, its functions by their input types, and its error reports."""

    url: str
    http: httpx.Client
    joins: list[dict[str, Any]]
    raised: list[str] = field(default_factory=list)

    def ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        """Sends a request and returns a response below 500; a refusal is raised."""
        answer = self.http.request(method, path, **request)
        assert answer.status_code < 500, (answer.status_code, path, answer.text[:300])
        if answer.status_code >= 400:
            raise QueryError(answer.json()["detail"])
        return answer

    def upload(self, content: bytes) -> str:
        return self.ask("POST", "/gradio_api/upload", files={"files": ("x.png", content)}).json()[0]

    def call(self, endpoint: str, body: bytes) -> Any:
        """The result of an API call; a refusal is raised."""
        event = self.ask("POST", f"/gradio_api/call/{endpoint}", content=body).json()["event_id"]
        lines = [line for line in self.ask("GET", f"/gradio_api/call/{endpoint}/{event}").text.splitlines() if line]
        assert lines[-2] in ("event: complete", "event: error"), lines
        return self._ended(lines[-2].endswith("complete"), json.loads(lines[-1].removeprefix("data: ")))

    def join(self, body: bytes) -> Any:
        """The result of a call from the page; a refusal is raised."""
        self.ask("POST", "/gradio_api/queue/join", content=body)
        session = json.loads(body)["session_hash"]
        stream = self.ask("GET", "/gradio_api/queue/data", params={"session_hash": session}).text
        messages = [json.loads(line.removeprefix("data: ")) for line in stream.splitlines() if line]
        (ended,) = [message for message in messages if message["msg"] == "process_completed"]
        return self._ended(ended["success"], ended["output"])

    def message(self, body: bytes) -> Any:
        """The result of an agent's message; a refusal is raised."""
        headers = {"Accept": "application/json, text/event-stream"}
        reply = self.ask("POST", "/gradio_api/mcp", content=body, headers=headers).text
        assert not self.raised, self.raised.pop()
        lines = [line.removeprefix("data: ") for line in reply.splitlines() if line.startswith(("data: ", "{"))]
        document = json.loads(lines[-1]) if lines else {}
        if "error" in document or document.get("result", {}).get("isError"):
            raise QueryError(str(document))
        return document

    def _ended(self, success: bool, output: Any) -> Any:
        assert not self.raised, self.raised.pop()
        if not success:
            assert isinstance(output["error"], str), output  # unexpected errors have no message
            raise QueryError(output["error"])
        return output


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    """The embedded Space with a few scenes, in this process."""
    patch = pytest.MonkeyPatch()
    patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
    patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    app = serve(SpaceSettings(limit=24, mcp=True), bundled_space(), block=False)
    joins = []
    defaults = {"textbox": "boat", "slider": 3, "dropdown": "scene-900001", "radio": "boat", "dataset": 0}
    defaults["checkbox"] = True
    for number, function in app.fns.items():
        data = [0.5 if block.elem_id == "least" else defaults.get(block.get_block_name()) for block in function.inputs]
        event = {"id": "scene-900001", "region": 1}
        joins.append({"data": data, "fn_index": number, "session_hash": "s", "event_data": event})
    with httpx.Client(base_url=app.local_url.rstrip("/"), timeout=30) as http:
        server = Server(app.local_url, http, joins)
        # Gradio prints exceptions of functions, and the server prints those of the app.
        patch.setattr(traceback, "print_exc", lambda *_, **__: server.raised.append(traceback.format_exc()))
        handler = logging.Handler()
        handler.setLevel(logging.ERROR)
        handler.emit = lambda record: server.raised.append(record.getMessage() + str(record.exc_info))
        log = logging.getLogger("uvicorn.error")
        log.addHandler(handler)
        yield server
        log.removeHandler(handler)
    app.close(verbose=False)
    patch.undo()


def image_bytes(kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((24, 20), 60).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


def templates(server: Server) -> list[tuple[Callable[[bytes], Any], dict[str, Any]]]:
    """Each way to send a body, with a body that is accepted."""
    file = {"path": server.upload(image_bytes()), "orig_name": "x.png", "url": None, "size": 9, "meta": IS_FILE}
    bodies: list[tuple[Callable[[bytes], Any], dict[str, Any]]] = [
        (lambda body: server.call("search_text", body), {"data": ["boat zebra", 3]}),
        (lambda body: server.call("search_image", body), {"data": [file, 3], "session_hash": "own"}),
        (lambda body: server.call("explain", body), {"data": ["boat", "scene-900001"]}),
        (
            lambda body: server.ask("POST", "/gradio_api/cancel", content=body),
            {"session_hash": "s", "event_id": "e", "fn_index": 0},
        ),
        (lambda body: server.ask("POST", "/gradio_api/reset", content=body), {"event_id": "e"}),
    ]
    return bodies + [(server.join, join) for join in server.joins]


def test_unchanged_bodies_are_accepted(server):
    for send, body in templates(server):
        if body.get("data") != [None, 3] and None not in body.get("data", []):
            send(json.dumps(body).encode())


def test_bodies(server, fuzzer, canary):
    sends = templates(server)
    names = canary.names()
    odd = (*ODD_VALUES, *names, "\ud800", *({"path": name, "meta": IS_FILE} for name in names), {"url": names[-1]})

    def attempt(rng: random.Random) -> None:
        send, body = rng.choice(sends)
        content = json.dumps(mutated_json(rng, body, odd) if rng.random() < 0.8 else body).encode()
        send(mutated(rng, content) if rng.random() < 0.25 else content)

    fuzzer(share=0.18).run(attempt)
    assert not server.raised


def test_messages_of_agents(server, fuzzer, canary):
    image = base64.b64encode(image_bytes()).decode()
    calls: list[tuple[str, dict[str, Any]]] = [
        ("search_by_text", {"text": "boat sun", "k": 3, "avoid": "fish", "min_score": 0.1}),
        ("search_by_image", {"image_base64": image, "k": 3}),
        ("search_by_image", {"image_base64": server.upload(image_bytes())}),
        ("explain_answer", {"text": "boat", "image": "scene-900001"}),
        ("index_info", {}),
    ]
    messages = [{"method": "tools/call", "params": {"name": name, "arguments": given}} for name, given in calls]
    told = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}
    messages += [{"method": "initialize", "params": told}, {"method": "tools/list"}]
    for message in messages:
        server.message(json.dumps({"jsonrpc": "2.0", "id": 1} | message).encode())
    odd = (*ODD_VALUES, *canary.names(), "\ud800", *({"path": name, "meta": IS_FILE} for name in canary.names()))

    def attempt(rng: random.Random) -> None:
        message = {"jsonrpc": "2.0", "id": 1} | rng.choice(messages)
        content = json.dumps(mutated_json(rng, message, odd)).encode()
        server.message(mutated(rng, content) if rng.random() < 0.2 else content)

    fuzzer(share=0.05).run(attempt)
    assert not server.raised


def test_a_private_path_is_not_opened_and_looks_like_a_missing_one(server, canary):
    missing, rng = str(canary.path.with_name("missing.png")), random.Random(1)
    uploaded = server.upload(image_bytes())
    forms: list[Callable[[str], Any]] = [
        lambda path: path,
        lambda path: {"path": path, "meta": rng.choice((None, IS_FILE))},
        lambda path: {"path": uploaded, "url": path, "meta": IS_FILE},
    ]
    for send, body in templates(server):
        places = [(key, None) for key in body] + [("data", place) for place in range(len(body.get("data", ())))]
        for key, place in places:
            for form in forms:
                answers = set()
                for path in (str(canary.path), missing, canary.url):
                    changed = {**body, key: form(path)}
                    if place is not None:
                        changed[key] = [*body["data"][:place], form(path), *body["data"][place + 1 :]]
                    try:
                        send(json.dumps(changed).encode())
                        answers.add("accepted")
                    except QueryError as error:
                        answers.add(str(error))
                    assert canary.touched() is None, changed
                if not (place is not None and isinstance(form(missing), str)):  # the message for different words
                    assert len(answers) == 1, (key, place, answers)


def test_uploads(server, fuzzer):
    images = [image_bytes(kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP")]
    head = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="x.png"\r\n\r\n'
    form = {"content-type": "multipart/form-data; boundary=edge"}

    def attempt(rng: random.Random) -> None:
        content = mutated(rng, rng.choice(images))
        body = head + content + b"\r\n--edge--\r\n"
        if rng.random() < 0.4:
            body = mutated(rng, body)
        name = server.ask("POST", "/gradio_api/upload", content=body, headers=form).json()[0]
        server.call("search_image", json.dumps({"data": [{"path": name}, 3]}).encode())

    fuzzer(share=0.03).run(attempt)
    assert not server.raised


def test_raw_requests(server, fuzzer, canary: Canary):
    where = urlsplit(server.url)
    lines = [f"Host: {where.netloc}", "Content-Type: application/json"]
    requests = [
        f"GET /gradio_api/file={canary.path} HTTP/1.1",
        f"GET /gradio_api/file={canary.url} HTTP/1.1",
        "GET /gradio_api/queue/data?session_hash=s HTTP/1.1",
        "GET /gradio_api/upload_progress?upload_id=x HTTP/1.1",
        "GET /gradio_api/info?all_endpoints=True HTTP/1.1",
        "GET /assets/index.js HTTP/1.1",
        "GET /config HTTP/1.1",
        'POST /gradio_api/call/search_text HTTP/1.1\r\nContent-Length: 18\r\n\r\n{"data": ["x", 3]}',
        "POST /gradio_api/upload HTTP/1.1",
        "OPTIONS /gradio_api/queue/join HTTP/1.1\r\nAccess-Control-Request-Method: POST\r\nOrigin: http://localhost",
    ]

    def attempt(rng: random.Random) -> None:
        first, _, body = rng.choice(requests).partition("\r\n\r\n")
        content = ("\r\n".join([first, *lines, "Connection: close"]) + "\r\n\r\n" + body).encode()
        with socket.create_connection((where.hostname, where.port), 8) as connection:
            connection.sendall(mutated(rng, content))
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while part := connection.recv(65_536):
                answer += part
        assert not answer.startswith(b"HTTP/1.1 5"), answer[:300]
        assert not server.raised, server.raised.pop()

    fuzzer(share=0.04).run(attempt)
