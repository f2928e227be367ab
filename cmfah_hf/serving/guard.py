"""ASGI middleware in front of the search service: hosts, token, sizes and times of requests, metrics."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from cmfah_hf.serving.limits import ServiceLimits
from cmfah_hf.serving.metrics import Metrics
from cmfah_hf.serving.protocol import API_HEADER, API_VERSION
from cmfah_hf.serving.tokens import TokenCheck
from cmfah_hf.space.hosts import AllowedHosts
from cmfah_hf.space.requests import (
    DisconnectedError,
    Message,
    Receive,
    RefusedError,
    Send,
    receive_body,
    replay,
)

# The endpoint that needs no token, for load balancers.
OPEN_PATHS = frozenset({"/health"})
# Bytes up to which a body does not count as large.
_SMALL_BODY = 2**16
# Seconds for a client to send the rest of a refused request; else it may not see the reply.
_DRAIN_SECONDS = 1.0
_HEADERS = (
    (API_HEADER.lower().encode(), str(API_VERSION).encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
)


class Guard:
    """Checks requests before the service reads them.

    Args:
        app: The service.
        hosts: The allowed hosts.
        token: The token.
        limits: The limits.
        metrics: The metrics.
        endpoints: The paths that metrics name.
    """

    def __init__(
        self,
        app: Callable[[Message, Receive, Send], Awaitable[None]],
        hosts: AllowedHosts,
        token: TokenCheck,
        limits: ServiceLimits,
        metrics: Metrics,
        endpoints: Collection[str],
    ):
        self.app, self._hosts, self._token, self._limits, self._metrics = app, hosts, token, limits, metrics
        self._endpoints = frozenset(endpoints)
        self._large = asyncio.Semaphore(limits.large_bodies)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, status = time.perf_counter(), 0

        async def reply(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], *_HEADERS]}
            await send(message)

        try:
            await self._answer(scope, receive, reply)
        finally:
            endpoint = scope["path"] if scope["path"] in self._endpoints else "other"
            self._metrics.count(endpoint, status, time.perf_counter() - begin)

    async def _answer(self, scope: Message, receive: Receive, reply: Send) -> None:
        headers = Headers(scope=scope)
        with contextlib.suppress(DisconnectedError):
            try:
                self._check_headers(scope, headers)
                async with self._body(scope, headers, receive) as received:
                    await self.app(scope, received, reply)
            except RefusedError as refused:
                if "expect" not in headers:
                    await _drain(receive)
                more = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}.get(refused.status)
                await JSONResponse({"detail": refused.detail}, refused.status, more)(scope, receive, reply)

    def _check_headers(self, scope: Message, headers: Headers) -> None:
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or len(origins) > 1 or not self._hosts.answers(hosts[0], *origins):
            raise RefusedError(403, "This host is not allowed; the owner of the server can allow it with --allow-host.")
        tokens = headers.getlist("authorization")
        if scope["path"] not in OPEN_PATHS and not self._token.accepts(tokens[0] if len(tokens) == 1 else None):
            raise RefusedError(401, "The token is missing or wrong; send the header 'Authorization: Bearer TOKEN'.")

    @contextlib.asynccontextmanager
    async def _body(self, scope: Message, headers: Headers, receive: Receive) -> AsyncIterator[Receive]:
        """A `receive` of the whole body. Of large ones, few are in memory at the same time."""
        limits = self._limits
        if scope["method"] in ("GET", "HEAD"):
            yield replay(b"", receive)
            return
        length = headers.get("content-length", "")
        is_small = length.isascii() and length.isdigit() and len(length) < 12 and int(length) <= _SMALL_BODY
        if not is_small:
            try:
                await asyncio.wait_for(self._large.acquire(), limits.body_seconds)
            except asyncio.TimeoutError:
                raise RefusedError(503, "Too many large requests are being received; try again later.") from None
        try:
            body = await receive_body(headers, receive, limits.body_bytes, limits.body_seconds)
            yield replay(body, receive)
        finally:
            if not is_small:
                self._large.release()


async def _drain(receive: Receive) -> None:
    """Reads and discards the rest of a request: a connection that is closed before takes the reply with it."""

    async def read() -> None:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                return

    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(read(), _DRAIN_SECONDS)
