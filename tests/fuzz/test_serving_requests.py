"""Requests to the search service: JSON bodies, forms, and raw HTTP, against the served embedded model."""

import base64
import json
import random
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from serving.servers import Running, running

from cmfah_hf.data.scenes import draw_scene
from cmfah_hf.errors import QueryError
from cmfah_hf.retrieval import CrossMediaRetriever
from cmfah_hf.serving import ServedRetriever
from cmfah_hf.space.settings import bundled_space
from fuzz.harness import ODD_VALUES, mutated, mutated_json
from fuzz.test_space_requests import image_bytes

BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/search", {"text": "boat sun", "k": 3, "metric": "aqd", "where": ["year=2020"], "paths": True}),
    ("/search", {"text": ["boat", "sun"], "target": "images", "exact": False, "unique": 3}),
    ("/search", {"terms": [{"text": "boat", "weight": 1.5}, {"text": "sun", "weight": -0.5}], "min_score": 0.1}),
    ("/search", {"terms": [{"image": 0}, {"text": "sun"}], "image_weight": 0.3}),
    ("/add", {"ids": ["a", "b"], "texts": ["boat", "sun"], "metadata": {"year": [1, 2]}, "replace": True}),
    ("/remove", {"ids": ["a"], "target": "texts"}),
    ("/sync", {"dry_run": True, "wait": 1.5}),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("served")
    retriever = CrossMediaRetriever.from_pretrained(bundled_space() / "model", device="cpu")
    images = [draw_scene(number).image for number in range(8)]
    retriever.add_images(images, [f"{n}.png" for n in range(8)], metadata={"year": [2020] * 8})
    with running(ServedRetriever(retriever, {"texts": folder / "texts.index"}), mcp=True) as own:
        yield own


def _checked(answer: Any) -> None:
    """A reply of the service is an answer, or one line; never an internal error."""
    assert answer.status_code < 500, answer.text[:300]
    if answer.status_code >= 400:
        detail = answer.json()["detail"]
        assert detail.isprintable()
        raise QueryError(detail)


def test_bodies(server, fuzzer, canary):
    odd = (*ODD_VALUES, *canary.names(), "\ud800", 2**70, {"image": canary.names()[0]})

    def attempt(rng: random.Random) -> None:
        path, body = rng.choice(BODIES)
        content = json.dumps(mutated_json(rng, body, odd)).encode()
        content = mutated(rng, content) if rng.random() < 0.25 else content
        if rng.random() < 0.3:
            _checked(server.http.post(path, data={"query": content}, files=[("image", image_bytes())]))
        else:
            _checked(server.http.post(path, content=content))

    fuzzer(share=0.05).run(attempt)


def test_images_and_forms(server, fuzzer):
    images = [image_bytes(kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP")]
    head = b'--edge\r\nContent-Disposition: form-data; name="image"; filename="x.png"\r\n\r\n'
    query = b'\r\n--edge\r\nContent-Disposition: form-data; name="query"\r\n\r\n{"k": 2}\r\n--edge--\r\n'
    form = {"content-type": "multipart/form-data; boundary=edge"}

    def attempt(rng: random.Random) -> None:
        body = head + mutated(rng, rng.choice(images)) + query
        _checked(server.http.post("/search", content=mutated(rng, body) if rng.random() < 0.4 else body, headers=form))

    fuzzer(share=0.03).run(attempt)


CALLS: list[tuple[str, dict[str, Any]]] = [
    ("search_by_text", {"text": "boat sun", "k": 3, "metric": "aqd", "where": ["year=2020"], "thumbnails": 1}),
    ("search_by_text", {"terms": [{"text": "boat", "weight": 1.5}, {"text": "sun", "weight": -0.5}], "unique": 2}),
    ("search_by_image", {"image_base64": base64.b64encode(image_bytes()).decode(), "text": "sun", "image_weight": 0.3}),
    ("explain_answer", {"id": "3.png", "text": "boat sun", "target": "images"}),
    ("index_info", {}),
]


def test_messages_of_agents(server, fuzzer, canary):
    odd = (*ODD_VALUES, *canary.names(), "\ud800", 2**70, {"path": canary.names()[0]})
    headers = {"Accept": "application/json", "Content-Type": "application/json"}

    def attempt(rng: random.Random) -> None:
        name, arguments = rng.choice(CALLS)
        params: Any = {"name": name, "arguments": mutated_json(rng, arguments, odd)}
        message: Any = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        content = json.dumps(mutated_json(rng, message, odd) if rng.random() < 0.3 else message).encode()
        answer = server.http.post(
            "/mcp", content=mutated(rng, content) if rng.random() < 0.2 else content, headers=headers
        )
        assert answer.status_code < 500, answer.text[:300]
        reply = answer.json() if answer.content else {}
        if answer.status_code >= 400 or "error" in reply:
            raise QueryError(answer.text)
        result = reply.get("result", {})
        if result.get("isError"):
            assert result["content"][0]["text"] != "An internal error; the log of the server has it.", content
            raise QueryError(result["content"][0]["text"])

    fuzzer(share=0.05).run(attempt)


def test_raw_requests(server, fuzzer):
    where = urlsplit(server.url)
    body = '{"text": "boat"}'
    request = (
        f"POST /search HTTP/1.1\r\nHost: {where.netloc}\r\nAuthorization: Bearer x\r\n"
        "Content-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()

    def attempt(rng: random.Random) -> None:
        with socket.create_connection((where.hostname, where.port), 8) as connection:
            connection.sendall(mutated(rng, request))
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while part := connection.recv(65_536):
                answer += part
        assert not answer.startswith(b"HTTP/1.1 5"), answer[:300]

    fuzzer(share=0.02).run(attempt)
    assert server.search(text="boat")["answers"]
