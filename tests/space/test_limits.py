"""The server's outermost layer, called as a server calls it."""

import asyncio
import json

import pytest

from cmfah_hf.space.limits import Limits


async def echo(scope, receive, send) -> None:
    """An application that reads the whole body and says how long it was."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message["body"]), message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


def ask(path: str = "/", chunks: tuple[bytes, ...] = (b"",), length: bytes | None = None) -> tuple[int, bytes]:
    """The status and the body of an answer to one request."""
    sent = []
    left = list(chunks)

    async def receive():
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message):
        sent.append(message)

    headers = [] if length is None else [(b"Content-Length", length)]
    asyncio.run(Limits(echo, 100)({"type": "http", "path": path, "headers": headers}, receive, send))
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    return sent[0]["status"], sent[1]["body"]


def test_a_body_passes_up_to_the_limit():
    assert ask(chunks=(b"x" * 60, b"x" * 40), length=b"100") == (200, b"100")


@pytest.mark.parametrize(
    "request_of",
    [
        {"chunks": (b"x",), "length": b"101"},
        {"chunks": (b"x" * 60, b"x" * 41)},  # it does not say how long it is
        {"chunks": (b"x" * 60, b"x" * 41), "length": b"10"},  # it lies
        {"chunks": (b"x",), "length": b"-1"},
    ],
    ids=["announced", "chunked", "lying", "no number"],
)
def test_a_longer_body_is_refused(request_of):
    status, body = ask(**request_of)
    assert status == 413
    assert json.loads(body) == {"detail": "A request has at most 100 bytes."}


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=http://169.254.169.254/latest",
        "/gradio_api/file=https://example.com/x",
        "/gradio_api/FILE=HTTPS://example.com/x",
        "/gradio_api/file=%68ttp://example.com",
        "/gradio_api/file%253Dhttp%253A//example.com",
        "/gradio_api/proxy=https://example.com/x",
    ],
)
def test_addresses_of_elsewhere_are_refused(path):
    assert ask(path)[0] == 403


def test_other_addresses_and_other_protocols_pass():
    assert ask("/gradio_api/file=/tmp/x.png")[0] == 200
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["type"])

    asyncio.run(Limits(app, 100)({"type": "lifespan"}, None, None))
    assert seen == ["lifespan"]
