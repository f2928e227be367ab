"""The MCP endpoint of the search service: tools for agents that search, explain and describe, and change nothing."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from mcp import types
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from PIL import Image
from pydantic import AnyUrl, BaseModel, ValidationError
from starlette.routing import Route

import cmfah_hf
from cmfah_hf.documents import parse_json
from cmfah_hf.errors import CMFAHError, ImageError
from cmfah_hf.serving.agent_schemas import Explain, ExplainReply, ImageSearch, Info, TextSearch
from cmfah_hf.serving.bodies import first_fault, open_image
from cmfah_hf.serving.endpoints import Endpoints
from cmfah_hf.serving.explaining import explain_answer
from cmfah_hf.serving.schemas import InfoReply, SearchReply, SearchRequest
from cmfah_hf.space.images import small_jpeg
from cmfah_hf.space.requests import Message, Receive, RefusedError, Send, replay
from cmfah_hf.space.uploads import decode_base64

logger = logging.getLogger(__name__)

ENDPOINT = "/mcp"

_INSTRUCTIONS = (
    "Search of a collection of images, or texts, by words or by an image. Call index_info for what the collection has, "
    "search_by_text or search_by_image for the nearest items, and explain_answer for why one of them is near."
)
_READS = types.ToolAnnotations(readOnlyHint=True, destructiveHint=False, idempotentHint=True, openWorldHint=False)
_KINDS = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp", ".gif": "image/gif"}
# Fields of the searches that are those of `SearchRequest`.
_OF_A_SEARCH = {"k", "where", "target", "metric", "min_score", "unique"}

Content = types.ContentBlock


class AgentEndpoint:
    """The endpoint over the service's endpoints, with their limits and threads.

    Every message is answered by itself, in JSON: there are no sessions and no streams.
    """

    def __init__(self, endpoints: Endpoints):
        self._endpoints, self._limits = endpoints, endpoints.limits
        self._tools = _Tools(endpoints)
        self._sessions = StreamableHTTPSessionManager(
            self._tools.server, json_response=True, stateless=True, max_request_body_size=self._limits.body_bytes
        )

    def routes(self) -> list[Route]:
        """The routes of the endpoint, for messages sent by POST."""
        return [Route(path, self, methods=["POST"]) for path in (ENDPOINT, f"{ENDPOINT}/")]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The time in which messages are answered."""
        async with self._sessions.run():
            yield

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        body = (await receive())["body"]  # whole, as the guard of the service passes it on
        try:
            await asyncio.to_thread(parse_json, body, "The message")
        except CMFAHError as error:  # such as one that is nested too deep
            raise RefusedError(400, str(error)) from None
        await self._sessions.handle_request(scope, replay(body, receive), send)


class _Tools:
    """The tools, and their server."""

    def __init__(self, endpoints: Endpoints):
        self._endpoints = endpoints
        self._handlers: dict[str, tuple[type[BaseModel], Callable[[Any], Awaitable[types.CallToolResult]]]] = {
            "search_by_text": (TextSearch, self._search_by_text),
            "search_by_image": (ImageSearch, self._search_by_image),
            "explain_answer": (Explain, self._explain),
            "index_info": (Info, self._info),
        }
        self._list = [
            _tool(
                "search_by_text",
                "Finds the images (or texts) nearest to words, nearest first.",
                TextSearch,
                SearchReply,
            ),
            _tool(
                "search_by_image",
                "Finds the images (or texts) nearest to an image, and to words if some are given, nearest first.",
                ImageSearch,
                SearchReply,
            ),
            _tool(
                "explain_answer",
                "Explains why an item is near to words or an image: bits that differ, the part of each word, and the "
                "regions of the image that words attend to.",
                Explain,
                ExplainReply,
            ),
            _tool(
                "index_info",
                "Describes what is searched: numbers of images and texts, columns, folders.",
                Info,
                InfoReply,
            ),
        ]
        self.server: Server = Server("cmfah", cmfah_hf.__version__, _INSTRUCTIONS)
        self.server.list_tools()(self._listed)
        self.server.call_tool(validate_input=False)(self._call)

    async def _listed(self) -> list[types.Tool]:
        return self._list

    async def _call(self, name: str, arguments: dict[str, Any]) -> types.CallToolResult:
        """The result of a tool. Errors of users are a line for the agent; of others, the log has all."""
        begin, status = time.perf_counter(), 200
        try:
            result = await self._answer(name, arguments)
        except (CMFAHError, RefusedError) as error:
            result, status = _failed(str(error)), getattr(error, "status", 422)
        except Exception:
            logger.exception("The tool %s failed.", name[:80])
            result, status = _failed("An internal error; the log of the server has it."), 500
        where = f"{ENDPOINT}/{name}" if name in self._handlers else "other"
        self._endpoints.metrics.count(where, status, time.perf_counter() - begin)
        return result

    async def _answer(self, name: str, arguments: dict[str, Any]) -> types.CallToolResult:
        if name not in self._handlers:
            return _failed(f"There is no tool {name!r:.80}; the tools are {', '.join(self._handlers)}.")
        model, handler = self._handlers[name]
        try:
            asked = model.model_validate(arguments)
        except ValidationError as error:
            return _failed(first_fault(error))
        return await handler(asked)

    async def _search_by_text(self, asked: TextSearch) -> types.CallToolResult:
        terms = None if asked.terms is None else [term.model_dump() for term in asked.terms]
        return await self._search(asked, [], {"text": asked.text, "terms": terms})

    async def _search_by_image(self, asked: ImageSearch) -> types.CallToolResult:
        image = await self._image(asked.image_base64)
        return await self._search(asked, [image], {"text": asked.text, "image_weight": asked.image_weight})

    async def _search(
        self, asked: TextSearch | ImageSearch, images: list[Image.Image], query: dict[str, Any]
    ) -> types.CallToolResult:
        with_files = asked.paths or asked.thumbnails > 0
        request = SearchRequest(**asked.model_dump(include=_OF_A_SEARCH), **query, paths=with_files)
        document = await self._endpoints.find(request, images)
        content: list[Content] = []
        for place, hit in enumerate(document["answers"][0]):
            path = hit.get("path") if asked.paths else hit.pop("path", None)
            if asked.paths and path is not None:
                content.append(_link(path, str(hit["id"])))
            if place < asked.thumbnails and path is not None:
                content += await self._endpoints.workers.run(_thumbnail, path, str(hit["id"]))
        return _found(document, content)

    async def _explain(self, asked: Explain) -> types.CallToolResult:
        self._endpoints.check_lengths([asked.id, asked.text])
        image = None if asked.image_base64 is None else await self._image(asked.image_base64)
        served, workers = self._endpoints.served, self._endpoints.workers
        return _found(await workers.run(explain_answer, served, asked.id, asked.text, image, asked.target))

    async def _info(self, _: Info) -> types.CallToolResult:
        return _found(self._endpoints.describe())

    async def _image(self, text: str) -> Image.Image:
        limits = self._endpoints.limits
        content = await asyncio.to_thread(decode_base64, text, limits.image_bytes)
        return open_image("The image", content, limits)


def _tool(name: str, description: str, asked: type[BaseModel], answer: type[BaseModel]) -> types.Tool:
    return types.Tool(
        name=name,
        description=description,
        inputSchema=asked.model_json_schema(),
        outputSchema=answer.model_json_schema(),
        annotations=_READS,
    )


def _found(document: dict[str, Any], more: list[Content] | None = None) -> types.CallToolResult:
    """An answer as JSON for agents, and as a structure for programs."""
    text = json.dumps(document, allow_nan=False, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
    content: list[Content] = [types.TextContent(type="text", text=text), *(more or [])]
    # Names of files may be no valid Unicode, which the protocol cannot send.
    return types.CallToolResult(content=content, structuredContent=json.loads(text))


def _failed(line: str) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(type="text", text=_sendable(line))], isError=True)


def _link(path: str, name: str) -> types.ResourceLink:
    kind = _KINDS.get(Path(path).suffix.lower())
    return types.ResourceLink(
        type="resource_link", uri=AnyUrl(Path(path).as_uri()), name=_sendable(name), mimeType=kind
    )


def _thumbnail(path: str, name: str) -> list[Content]:
    """A small image of a file; none if the file is gone or damaged."""
    try:
        content = small_jpeg(path, name)
    except ImageError as error:
        logger.info("No thumbnail: %s", error)
        return []
    return [types.ImageContent(type="image", data=content, mimeType="image/jpeg")]


def _sendable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
