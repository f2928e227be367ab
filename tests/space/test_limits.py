"""The outermost ASGI layer, called as a server calls it."""

import asyncio
import json
from types import SimpleNamespace

import gradio as gr
import pytest

from cmfah_hf.space import limits
from cmfah_hf.space.bodies import Bodies
from cmfah_hf.space.hosts import AllowedHosts
from cmfah_hf.space.limits import MAX_BODY, Limits
from cmfah_hf.space.serving import UnreadAnswers
from cmfah_hf.space.uploads import Uploads

FORM = (
    b'--x\r\nContent-Disposition: form-data; name="files"; filename="../../a.png"\r\n'
    b"Content-Type: text/html\r\n\r\n%b\r\n--x--\r\n"
)
IS_FORM = (b"content-type", b"multipart/form-data; boundary=x")
CALL = "/gradio_api/call/find"


async def echo(scope, receive, send) -> None:
    """An application that tells what reached it."""
    body, more = b"", scope["method"] == "POST"
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    names = sorted(name.decode() for name, _ in scope["headers"])
    answer = {"query": scope["query_string"].decode(), "body": body.decode(), "headers": names}
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(answer).encode()})


@pytest.fixture(scope="module")
def app():
    def find(text: str, k: int = 3) -> str:
        return text * k

    with gr.Blocks() as app:
        gr.api(find, api_name="find")
    return app


@pytest.fixture
def uploads(tmp_path) -> Uploads:
    return Uploads(tmp_path / "uploads")


@pytest.fixture
def limits_app(app, uploads) -> Limits:
    return Limits(echo, AllowedHosts("127.0.0.1"), Bodies(app, uploads), uploads, lambda name: name == "known")


@pytest.fixture
def ask(limits_app):
    """A function that returns the status and the body of the response to one request."""

    def asked(
        path="/", method="GET", chunks=(b"",), headers=(), host=b"localhost:7860", query=b""
    ) -> tuple[int, bytes]:
        sent, left = [], list(chunks)

        async def receive():
            if not left:
                await asyncio.sleep(60)
            return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

        async def send(message):
            sent.append(message)

        every = [(b"host", host), *headers] if host is not None else list(headers)
        scope = {"type": "http", "method": method, "path": path, "query_string": query, "headers": every}
        asyncio.run(limits_app(scope, receive, send))
        assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
        return sent[0]["status"], sent[1]["body"]

    return asked


def call_of(size: int) -> bytes:
    body = b'{"data": ["x", 3]}'
    return body + b" " * (size - len(body))


def test_a_body_passes_up_to_the_limit_and_is_rewritten(ask):
    whole = call_of(MAX_BODY)
    status, answer = ask(CALL, "POST", (whole[:60], whole[60:]), [(b"content-length", str(MAX_BODY).encode())])
    assert status == 200
    assert json.loads(answer)["body"] == '{"data": ["x", 3]}'


@pytest.mark.parametrize(
    "request_of",
    [
        {"headers": [(b"content-length", str(MAX_BODY + 1).encode())]},
        {"chunks": (call_of(MAX_BODY), b" ")},  # no content length
        {"chunks": (call_of(MAX_BODY), b" "), "headers": [(b"content-length", b"10")]},  # a false content length
        {"headers": [(b"content-length", b"-1")]},
        {"headers": [(b"content-length", b"9" * 5000)]},
        {"headers": [(b"content-length", "²".encode("latin-1"))]},
    ],
    ids=["announced", "chunked", "lying", "no number", "long number", "no digit"],
)
def test_a_longer_body_is_refused(ask, request_of):
    status, body = ask(CALL, "POST", **request_of)
    assert status == 413
    assert json.loads(body) == {"detail": "A request has at most 65,536 bytes here."}


def test_a_stalled_body_times_out(ask, limits_app, monkeypatch):
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.05)

    async def stalled():
        await asyncio.sleep(60)

    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": CALL, "query_string": b"", "headers": [(b"host", b"localhost")]}
    asyncio.run(limits_app(scope, stalled, send))
    assert sent[0]["status"] == 408


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=http://169.254.169.254/latest",
        "/gradio_api/file=https://example.com/x",
        "/gradio_api/FILE=HTTPS://example.com/x",
        "/gradio_api/file=%68ttp://example.com",
        "/gradio_api/file%253Dhttp%253A//example.com",
        "/gradio_api/proxy=https://example.com/x",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=" + "0" * 64,
        "/gradio_api/file/etc/passwd",
    ],
)
def test_foreign_files_and_addresses_are_refused(ask, path):
    assert ask(path) == (403, b'{"detail":"Only uploads can be requested."}')


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/gradio_api/openapi.json"),
        ("GET", "/openapi.json"),
        ("GET", "/docs"),
        ("GET", "/redoc"),
        ("GET", "/monitoring"),
        ("GET", "/monitoring/summary"),
        ("GET", "/assets/../../x"),
        ("GET", "/assets/x\0.js"),
        ("GET", "/static/.hidden"),
        ("GET", "/gradio_api/custom_component/1/client/component/style.css"),
        ("GET", "/gradio_api/queue/data"),
        ("GET", "/gradio_api/call/find/unknown"),
        ("GET", "/gradio_api/deep_link"),
        ("GET", "/" + "x" * 10_000),
        ("POST", "/gradio_api/run/find"),
        ("POST", "/gradio_api/api/find"),
        ("POST", "/gradio_api/call/v2/find"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/gradio_api/process_recording"),
        ("POST", "/gradio_api/vibe-edit"),
        ("POST", "/gradio_api/stream/x"),
        ("POST", "/login"),
    ],
)
def test_addresses_not_used_by_the_page_are_not_found(ask, method, path):
    assert ask(path, method, (call_of(30),))[0] == 404


def test_requests_of_the_page_pass_without_unused_query_parameters(ask):
    for path in ("/", "/config", "/assets/index-Ab_1.js", "/gradio_api/heartbeat/abc", "/gradio_api/info"):
        status, answer = ask(path, query=b"deep_link=x&session_hash=y")
        assert status == 200, path
        assert json.loads(answer)["query"] == ""
    status, answer = ask("/gradio_api/info", query=b"serialize=False&x=1")
    assert json.loads(answer)["query"] == "serialize=False"
    status, answer = ask("/gradio_api/queue/data", query=b"session_hash=known&x=1")
    assert json.loads(answer)["query"] == "session_hash=known"
    assert ask("/gradio_api/queue/data", query=b"session_hash=unknown")[0] == 404
    assert ask("/", "DELETE")[0] == 405


def test_other_hosts_and_origins_are_refused_for_every_request(ask):
    evil = b"evil.example:7860"
    for request in (
        {"host": evil},
        {"host": evil, "headers": [(b"origin", b"http://evil.example:7860")]},
        {"headers": [(b"origin", b"http://evil.example")]},
        {"headers": [(b"host", evil)]},
        {"host": None},
    ):
        for method, path in (("GET", "/"), ("POST", CALL), ("POST", "/gradio_api/upload"), ("GET", "/nowhere")):
            status, answer = ask(path, method, **request)
            assert status == 403
            assert b"--allow-host" in answer
    preflight = [(b"origin", b"http://evil.example"), (b"access-control-request-method", b"POST")]
    assert ask(CALL, "OPTIONS", headers=preflight)[0] == 403


def test_a_client_cannot_override_the_address_of_the_server(ask):
    headers = [(b"X-Forwarded-Host", b"evil.example"), (b"x-gradio-server", b"http://evil.example")]
    assert json.loads(ask(headers=headers)[1])["headers"] == ["host"]
    proxied = [(b"x-forwarded-host", b"localhost")]
    assert json.loads(ask(headers=proxied)[1])["headers"] == ["host", "x-forwarded-host"]


def test_an_upload_is_stored_and_served_under_a_random_name(ask, uploads):
    names = set()
    for content in (b"\x89PNG one", b"<script>", b""):
        status, answer = ask("/gradio_api/upload", "POST", (FORM % content,), [IS_FORM])
        assert status == 200
        (name,) = json.loads(answer)
        names.add(name)
        assert ask(f"/gradio_api/file={name}") == (200, content)
    assert {path.name for path in uploads.folder.iterdir()} == names
    assert ask("/gradio_api/upload_progress", query=b"upload_id=x")[1] == b'data: {"msg": "done"}\n\n'


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", IS_FORM[1]),
        (FORM % b"x", b"multipart/form-data"),
        (FORM % b"x", b"application/json"),
        (FORM % b"x", b"multipart/form-data; boundary=y"),
        (FORM[:40], IS_FORM[1]),
        (FORM.replace(b"files", b"other") % b"x", IS_FORM[1]),
        (FORM.replace(b"; filename", b"; x") % b"x", IS_FORM[1]),
        (FORM.replace(b"--x--\r\n", b"") % b"x" + FORM % b"x", IS_FORM[1]),
    ],
    ids=["empty", "no boundary", "no form", "other boundary", "cut", "other field", "no file", "two files"],
)
def test_malformed_uploads_are_refused_and_leave_no_files(ask, uploads, body, kind):
    status, answer = ask("/gradio_api/upload", "POST", (body,), [(b"content-type", kind)])
    assert status == 400
    assert "\n" not in json.loads(answer)["detail"]
    assert not uploads.folder.exists()


def test_a_too_large_upload_leaves_no_files(ask, uploads):
    large = FORM % (b"x" * (8 * 2**20 + 1))
    assert ask("/gradio_api/upload", "POST", (large,), [IS_FORM])[0] == 413
    assert not uploads.folder.exists()


def test_number_of_open_requests_is_limited(ask, monkeypatch):
    monkeypatch.setattr(limits, "MOST_OPEN", 0)
    assert ask()[0] == 503


def test_other_protocols():
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["type"])

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        seen.append(message)

    limits_app = Limits(app, AllowedHosts(""), None, None, bool)
    asyncio.run(limits_app({"type": "lifespan"}, None, None))
    asyncio.run(limits_app({"type": "websocket"}, receive, send))
    assert seen == ["lifespan", {"type": "websocket.close", "code": 1008}]


def test_answers_to_dropped_sessions_are_discarded():
    with gr.Blocks() as app:
        pass
    queue = app._queue
    queue.pending_messages_per_session = unread = UnreadAnswers(2)
    for session in ("first", "second", "third"):
        unread[session] = asyncio.Queue()
    assert list(unread) == ["second", "third"]
    for session in ("first", "third"):  # the request of the first session was waiting when others pushed it out
        queue.send_message(SimpleNamespace(alive=True, _id="1", session_hash=session), SimpleNamespace())
    assert list(unread) == ["second", "third"]
    assert unread["third"].qsize() == 1
    del unread["first"], unread["third"]  # the streams of both end
    assert list(unread) == ["second"]
