"""What the server refuses before Gradio sees it: large bodies, and addresses that lead out of the uploads."""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# Gradio would fetch any address of the web for whoever asks, and the Space needs none of that.
_FETCHING = ("file=http:", "file=https:", "file/http:", "file/https:", "proxy=")


class Limits:
    """ASGI middleware that answers 413 to bodies over `max_bytes`, and 403 to addresses that fetch others.

    Args:
        app: What is behind it.
        max_bytes: Of the body of one request, headers of its parts included.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], max_bytes: int):
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if _fetches_others(scope["path"]):
            await _refuse(send, 403, "Only what was uploaded here can be asked for.")
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        announced = headers.get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > self.max_bytes:
            await _refuse(send, 413, f"A request has at most {self.max_bytes:,} bytes.")
            return
        received, begun = 0, False

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:  # a body in chunks, that did not say how long it is
                raise _BodyError
            return message

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, counted, noted)
        except _BodyError:
            if not begun:
                await _refuse(send, 413, f"A request has at most {self.max_bytes:,} bytes.")


class _BodyError(Exception):
    pass


def _fetches_others(path: str) -> bool:
    # Proxies and browsers may have encoded it more than once.
    for _ in range(3):
        path = unquote(path)
    path = path.lower().replace("\\", "/")
    return any(f"/{what}" in path for what in _FETCHING)


async def _refuse(send: Send, status: int, detail: str) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
