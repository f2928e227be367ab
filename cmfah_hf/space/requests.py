"""Bodies and forms of requests, received within bounds before anything else reads them."""

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_BOUNDARY = re.compile(r";\s*boundary=\"?([\w'()+,./:=?-]{1,70})")


class RefusedError(Exception):
    """A request that is refused.

    Attributes:
        status: The HTTP status.
        detail: One line for the client.
    """

    def __init__(self, status: int, detail: str):
        super().__init__(detail)
        self.status, self.detail = status, detail


class DisconnectedError(Exception):
    """The client disconnected before its body was complete."""


async def receive_body(headers: Headers, receive: Receive, most: int, seconds: float) -> bytes:
    """The body of a request, of at most `most` bytes whatever its headers say.

    Raises:
        RefusedError: If it is larger, or not complete within `seconds`.
        DisconnectedError: If the client is gone.
    """
    announced = headers.get("content-length", "0")
    if not (announced.isascii() and announced.isdigit()) or len(announced) > 12 or int(announced) > most:
        raise RefusedError(413, f"A request has at most {most:,} bytes here.")

    async def read() -> bytes:
        content, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise DisconnectedError
            content += message.get("body", b"")
            more = message.get("more_body", False)
            if len(content) > most:  # Content-Length missing or wrong
                raise RefusedError(413, f"A request has at most {most:,} bytes here.")
        return bytes(content)

    try:
        return await asyncio.wait_for(read(), seconds)
    except asyncio.TimeoutError:
        raise RefusedError(408, "The request took too long to arrive; send it again.") from None


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body that has been received already."""
    left = [body]

    async def replaced() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        return await receive()  # reports a disconnect

    return replaced


@dataclass
class Form:
    """The parts of a form by their names, in their order: the contents of files, and texts. File names are ignored."""

    files: dict[str, list[bytes]] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)


async def parse_form(
    headers: Headers, body: bytes, most_files: int, most_texts: int = 4, most_text_bytes: int = 1024
) -> Form:
    """The parts of a form (multipart/form-data).

    Raises:
        RefusedError: If it is no such form, is malformed, or has more or longer parts.
    """
    kind = headers.get("content-type", "")
    boundary = _BOUNDARY.search(kind)
    files = "one file" if most_files == 1 else f"at most {most_files} files"
    if not kind.lower().startswith("multipart/form-data") or boundary is None:
        raise RefusedError(400, f"An upload is a form (multipart/form-data) with {files}; send one.")

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    plain = Headers({"content-type": f"multipart/form-data; boundary={boundary[1]}"})
    parser = MultiPartParser(
        plain, stream(), max_files=most_files, max_fields=most_texts, max_part_size=most_text_bytes
    )
    try:
        parsed = await parser.parse()
    except MultiPartException:
        raise RefusedError(400, f"This form is malformed, or has too many or too large parts; send {files}.") from None
    form = Form()
    try:
        for name, part in parsed.multi_items():
            if isinstance(part, UploadFile):
                form.files.setdefault(name, []).append(await part.read())
            else:
                form.texts.setdefault(name, []).append(part)
    finally:
        await parsed.close()
    return form
