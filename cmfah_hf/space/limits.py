"""ASGI middleware in front of Gradio: refuses foreign hosts, unused endpoints and malformed bodies.

Uploads are received and served here as well, so that no request makes Gradio itself read or write a file.
"""

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, Iterator
from urllib.parse import parse_qs, unquote

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response

from cmfah_hf.errors import ImageError, QueryError
from cmfah_hf.space import agents
from cmfah_hf.space.bodies import SESSION, Bodies
from cmfah_hf.space.hosts import AllowedHosts
from cmfah_hf.space.requests import (
    DisconnectedError,
    Message,
    Receive,
    RefusedError,
    Send,
    parse_form,
    receive_body,
    replay,
)
from cmfah_hf.space.uploads import MAX_BYTES, Uploads, too_large

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
_OF_AGENTS = {*(("POST", path) for path in agents.PATHS), ("GET", agents.SCHEMA_PATH)}
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

    Args:
        app: What gets the requests that pass.
        hosts: The allowed hosts.
        bodies: The checks of bodies.
        uploads: The store of uploads.
        is_awaited: Whether somebody may wait for the events of a session, or for an event by its id.
        has_agents: Whether the app checks messages of agents, as `AgentGate` does.
    """

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        hosts: AllowedHosts,
        bodies: Bodies,
        uploads: Uploads,
        is_awaited: Callable[[str], bool],
        has_agents: bool = False,
    ):
        self.app, self._hosts, self._bodies, self._uploads = app, hosts, bodies, uploads
        self._is_awaited, self._has_agents = is_awaited, has_agents
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
        with contextlib.suppress(DisconnectedError):
            try:
                with self._counted():
                    answer = await self._answer(scope, receive)
                    if isinstance(answer, Response):
                        await answer(scope, receive, send)
                    else:
                        await self.app(*answer, send)
            except RefusedError as refused:
                await JSONResponse({"detail": refused.detail}, refused.status)(scope, receive, send)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        if self._open >= MOST_OPEN:
            raise RefusedError(503, "The server is busy; come back in a minute.")
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
        if self._has_agents and path in agents.PATHS and method != "POST":
            raise RefusedError(405, "Send messages by POST; there are no streams and no sessions here.")
        if self._has_agents and (method, path) in _OF_AGENTS:
            return _asked(scope, ""), receive
        if _fetches(path):
            return await self._file(method, path)
        if method == "POST":
            return await self._post(scope, headers, receive)
        if method not in ("GET", "HEAD"):
            raise RefusedError(405, "This method is not allowed here.")
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
            raise RefusedError(404, "There is nothing at this address.")
        known = [f"{key}={value}" for key, value in _INFO_QUERY.items() if query.get(key) == [value]]
        return _asked(scope, "&".join(known) if path == f"{_API}/info" else ""), receive

    def _check_host(self, headers: Headers) -> None:
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or len(origins) > 1 or not self._hosts.answers(hosts[0], *origins):
            raise RefusedError(
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
            raise RefusedError(404, "There is no call of this name.")

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
            raise RefusedError(404, "There is nothing at this address.")
        try:
            body = checks[path](await receive_body(headers, receive, MAX_BODY, BODY_SECONDS))
        except QueryError as error:
            raise RefusedError(400, str(error)) from error
        return _asked(scope, "", body), replay(body, receive)

    async def _upload(self, headers: Headers, receive: Receive) -> Response:
        try:
            await asyncio.wait_for(self._turns.acquire(), TURN_SECONDS)
        except asyncio.TimeoutError:
            raise RefusedError(503, "Too many files are being uploaded; come back in a minute.") from None
        try:
            body = await receive_body(headers, receive, MAX_UPLOAD_BODY, BODY_SECONDS)
            name = await asyncio.to_thread(self._uploads.keep, await _file_of(headers, body))
        except OSError as error:
            raise RefusedError(507, "There is no room for this file; come back later.") from error
        finally:
            self._turns.release()
        return JSONResponse([name])

    async def _file(self, method: str, path: str) -> Response:
        """An upload, by its random name."""
        found = _FILE.fullmatch(path)
        try:
            if found is None or method not in ("GET", "HEAD"):
                raise RefusedError(403, "Only uploads can be requested.")
            content = await asyncio.to_thread(self._uploads.read, self._uploads.path_of(found["name"]))
        except ImageError as error:
            raise RefusedError(403, "Only uploads can be requested.") from error
        kinds = (kind for start, kind in _KINDS.items() if content.startswith(start))
        headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, max-age=600"}
        return Response(content, media_type=next(kinds, "application/octet-stream"), headers=headers)


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


async def _file_of(headers: Headers, body: bytes) -> bytes:
    """The only file of a form."""
    files = (await parse_form(headers, body, most_files=1)).files.get("files")
    if not files:
        raise RefusedError(400, "This form has no file under the name files; send one.")
    if len(files[0]) > MAX_BYTES:
        raise RefusedError(413, too_large(MAX_BYTES))
    return files[0]
