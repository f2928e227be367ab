"""ASGI middleware in front of Gradio: refuses foreign hosts, unused endpoints and malformed bodies.

Uploads are received and served here as well, so that no request makes Gradio itself read or write a file.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, MutableMapping
from typing import Any
from urllib.parse import parse_qs, unquote

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.responses import JSONResponse, Response

from cmfah_hf.errors import ImageError, QueryError
from cmfah_hf.space.bodies import SESSION, Bodies
from cmfah_hf.space.hosts import AllowedHosts
from cmfah_hf.space.uploads import MAX_BYTES, Uploads

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# Bytes of an upload's form in addition to the image.
MAX_UPLOAD_BODY = MAX_BYTES + 2**16
MAX_BODY = 2**16
# Seconds until a body must be complete, and until an upload must start.
BODY_SECONDS, TURN_SECONDS = 60.0, 30.0
# Maximum open requests, most of them streams, and concurrent uploads.
MOST_OPEN, MOST_UPLOADS = 800, 8

_API = "/gradio_api"
# Every path that the page and API clients read. All others are 404, including OpenAPI.
_PLAIN = re.compile(
    rf"/|/config|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|{_API}/(info|startup-events|theme\.css|app_id)"
    rf"|/(assets|static)(/[\w@+-][\w@+.-]*)+|{_API}/heartbeat/{SESSION.pattern}"
)
_CALL = re.compile(rf"{_API}/call/(?P<name>[A-Za-z0-9_]{{1,64}})(/(?P<event>{SESSION.pattern}))?")
# Queries of clients for the description of the endpoints.
_INFO_QUERY = {"all_endpoints": "True", "serialize": "False"}
_FILE = re.compile(rf"{_API}/file=(?P<name>[0-9a-f]{{64}})")
# Endpoints by which Gradio reads its own disk or fetches URLs.
_FETCHING = ("file=", "file/", "proxy=")
_LONGEST_ADDRESS = 500
# Headers by which a client could make Gradio assume another server address.
_ADDRESS_HEADERS = (b"x-forwarded-host", b"x-gradio-server")
_KINDS = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"BM": "image/bmp",
    b"RIFF": "image/webp",
}


class Limits:
    """ASGI middleware, outside of all of Gradio's.

    `is_awaited`: whether somebody may wait for the events of a session, or for an event by its id.
    """

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        hosts: AllowedHosts,
        bodies: Bodies,
        uploads: Uploads,
        is_awaited: Callable[[str], bool],
    ):
        self.app, self._hosts, self._bodies, self._uploads = app, hosts, bodies, uploads
        self._is_awaited = is_awaited
        self._open = 0
        self._turns = asyncio.Semaphore(MOST_UPLOADS)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})  # not used
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        with contextlib.suppress(_DisconnectedError):
            try:
                with self._counted():
                    answer = await self._answer(scope, receive)
                    if isinstance(answer, Response):
                        await answer(scope, receive, send)
                    else:
                        await self.app(*answer, send)
            except _RefusedError as refused:
                await JSONResponse({"detail": refused.detail}, refused.status)(scope, receive, send)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        if self._open >= MOST_OPEN:
            raise _RefusedError(503, "The server is busy; come back in a minute.")
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    async def _answer(self, scope: Message, receive: Receive) -> Response | tuple[Message, Receive]:
        """The reply to a request, or the request that Gradio receives."""
        headers = Headers(scope=scope)
        self._check_host(headers)
        scope = self._with_known_headers(scope)
        method, path = scope["method"], scope["path"]
        query = parse_qs(scope["query_string"][:_LONGEST_ADDRESS].decode("latin-1"))
        if method == "OPTIONS" and "access-control-request-method" in headers:
            return _asked(scope, ""), receive
        if _fetches(path):
            return await self._file(method, path)
        if method == "POST":
            return await self._post(scope, headers, receive)
        if method not in ("GET", "HEAD"):
            raise _RefusedError(405, "This method is not allowed here.")
        if path == f"{_API}/upload_progress":
            return Response('data: {"msg": "done"}\n\n', media_type="text/event-stream")
        if path == f"{_API}/queue/data":
            session = query.get("session_hash", [""])[0]
            self._check_awaited(session)
            return _asked(scope, f"session_hash={session}"), receive
        if (call := _CALL.fullmatch(path)) and call["event"]:
            self._check_awaited(call["event"])
            return _asked(scope, ""), receive
        if len(path) > _LONGEST_ADDRESS or _PLAIN.fullmatch(path) is None:
            raise _RefusedError(404, "There is nothing at this address.")
        known = [f"{key}={value}" for key, value in _INFO_QUERY.items() if query.get(key) == [value]]
        return _asked(scope, "&".join(known) if path == f"{_API}/info" else ""), receive

    def _check_host(self, headers: Headers) -> None:
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or len(origins) > 1 or not self._hosts.answers(hosts[0], *origins):
            raise _RefusedError(
                403,
                "This host is not allowed. The owner of this page can allow it with --allow-host, or as "
                "hosts in space.json.",
            )

    def _with_known_headers(self, scope: Message) -> Message:
        headers = [
            (name, value)
            for name, value in scope["headers"]
            if name.lower() not in _ADDRESS_HEADERS
            or (name.lower() == b"x-forwarded-host" and self._hosts.answers(value.decode("latin-1")))
        ]
        return {**scope, "headers": headers}

    def _check_awaited(self, name: str) -> None:
        if SESSION.fullmatch(name) is None or not self._is_awaited(name):
            raise _RefusedError(404, "There is no call of this name.")

    async def _post(self, scope: Message, headers: Headers, receive: Receive) -> Response | tuple[Message, Receive]:
        path = scope["path"]
        if path == f"{_API}/upload":
            return await self._upload(headers, receive)
        call = _CALL.fullmatch(path)
        checks: dict[str, Callable[[bytes], bytes]] = {
            f"{_API}/queue/join": self._bodies.join,
            f"{_API}/cancel": self._bodies.cancel,
            f"{_API}/reset": self._bodies.reset,
        }
        if call and not call["event"]:
            checks[path] = lambda body: self._bodies.call(call["name"], body)
        if path not in checks:
            raise _RefusedError(404, "There is nothing at this address.")
        try:
            body = checks[path](await _body(headers, receive, MAX_BODY))
        except QueryError as error:
            raise _RefusedError(400, str(error)) from error
        return _asked(scope, "", body), _of(body, receive)

    async def _upload(self, headers: Headers, receive: Receive) -> Response:
        try:
            await asyncio.wait_for(self._turns.acquire(), TURN_SECONDS)
        except asyncio.TimeoutError:
            raise _RefusedError(503, "Too many files are being uploaded; come back in a minute.") from None
        try:
            body = await _body(headers, receive, MAX_UPLOAD_BODY)
            name = await asyncio.to_thread(self._uploads.keep, await _file_of(headers, body))
        except OSError as error:
            raise _RefusedError(507, "There is no room for this file; come back later.") from error
        finally:
            self._turns.release()
        return JSONResponse([name])

    async def _file(self, method: str, path: str) -> Response:
        """An upload, by its random name."""
        found = _FILE.fullmatch(path)
        try:
            if found is None or method not in ("GET", "HEAD"):
                raise _RefusedError(403, "Only uploads can be requested.")
            content = await asyncio.to_thread(self._uploads.read, self._uploads.path_of(found["name"]))
        except ImageError as error:
            raise _RefusedError(403, "Only uploads can be requested.") from error
        kinds = (kind for start, kind in _KINDS.items() if content.startswith(start))
        headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, max-age=600"}
        return Response(content, media_type=next(kinds, "application/octet-stream"), headers=headers)


class _RefusedError(Exception):
    def __init__(self, status: int, detail: str):
        super().__init__(detail)
        self.status, self.detail = status, detail


class _DisconnectedError(Exception):
    """The client disconnected before its body was complete."""


def _fetches(path: str) -> bool:
    # Proxies and browsers may have encoded it more than once.
    for _ in range(3):
        path = unquote(path)
    path = path.lower().replace("\\", "/")
    return any(f"/{what}" in path for what in _FETCHING)


def _asked(scope: Message, query: str, body: bytes | None = None) -> Message:
    """A request with a validated query and body."""
    headers = scope["headers"]
    if body is not None:
        headers = [pair for pair in headers if pair[0].lower() not in (b"content-length", b"content-type")]
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    return {**scope, "query_string": query.encode(), "headers": headers}


def _of(body: bytes, receive: Receive) -> Receive:
    left = [body]

    async def replaced() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        return await receive()  # reports a disconnect

    return replaced


async def _body(headers: Headers, receive: Receive, most: int) -> bytes:
    announced = headers.get("content-length", "0")
    if not (announced.isascii() and announced.isdigit()) or len(announced) > 12 or int(announced) > most:
        raise _RefusedError(413, f"A request has at most {most:,} bytes here.")

    async def read() -> bytes:
        content, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _DisconnectedError
            content += message.get("body", b"")
            more = message.get("more_body", False)
            if len(content) > most:  # Content-Length missing or wrong
                raise _RefusedError(413, f"A request has at most {most:,} bytes here.")
        return bytes(content)

    try:
        return await asyncio.wait_for(read(), BODY_SECONDS)
    except asyncio.TimeoutError:
        raise _RefusedError(408, "The request took too long to arrive; send it again.") from None


async def _file_of(headers: Headers, body: bytes) -> bytes:
    """The only file of a form."""
    kind = headers.get("content-type", "")
    boundary = re.search(r";\s*boundary=\"?([\w'()+,./:=?-]{1,70})", kind)
    if not kind.lower().startswith("multipart/form-data") or boundary is None:
        raise _RefusedError(400, "An upload is a form (multipart/form-data) with one file; send one.")

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    plain = Headers({"content-type": f"multipart/form-data; boundary={boundary[1]}"})
    try:
        form = await MultiPartParser(plain, stream(), max_files=1, max_fields=4, max_part_size=1024).parse()
    except MultiPartException:
        raise _RefusedError(400, "This form is malformed, or has more than one file; send one file.") from None
    try:
        file = form.get("files")
        if not isinstance(file, UploadFile):
            raise _RefusedError(400, "This form has no file under the name files; send one.")
        content = await file.read()
    finally:
        await form.close()
    if len(content) > MAX_BYTES:
        raise _RefusedError(413, f"The image is larger than {MAX_BYTES // 2**20} MB; send a smaller one.")
    return content
