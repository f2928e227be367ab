"""The MCP endpoint of the page for agents: Gradio's, with four tools, behind checks of every message."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from importlib.util import find_spec
from types import MethodType
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response

from cmfah_hf.documents import parse_json
from cmfah_hf.errors import CMFAHError, ImageError, QueryError
from cmfah_hf.space.requests import Message, Receive, RefusedError, Send, receive_body, replay
from cmfah_hf.space.uploads import MAX_BYTES, Uploads, decode_base64, is_upload_name

if TYPE_CHECKING:
    import gradio as gr

ENDPOINT = "/gradio_api/mcp"
PATHS = frozenset({ENDPOINT, f"{ENDPOINT}/"})
# The description of the tools, which the Hub and the page read.
SCHEMA_PATH = f"{ENDPOINT}/schema"
# The tools, and the API's endpoints behind them.
TOOLS = {
    "search_by_text": "search_text",
    "search_by_image": "search_encoded_image",
    "explain_answer": "explain",
    "index_info": "index_info",
}
# Bytes of a message without an image, and of one with an image in base64.
MAX_MESSAGE, MAX_MESSAGE_WITH_IMAGE = 2**16, MAX_BYTES * 3 // 2
# Seconds until a message must be complete, and until it is its turn.
MESSAGE_SECONDS, TURN_SECONDS = 60.0, 30.0
# Messages that are received, and answered, at the same time. Gradio keeps a thread for each that is answered.
MOST_MESSAGES = 8

# The parameter that has a file.
_IMAGE = "image_base64"
_LONGEST_NAME = 128
# Methods whose parameters Gradio does not need. Of resources and prompts there are none.
_LISTING = ("ping", "tools/list", "resources/list", "resources/templates/list", "prompts/list")
# Headers that Gradio reads, or sends on to the page's own endpoints.
_HEADERS = frozenset({b"host", b"accept", b"authorization", b"mcp-protocol-version"})
_METHOD_NOT_FOUND = -32601


def require_mcp() -> None:
    """Checks that the library of the protocol is installed.

    Raises:
        CMFAHError: If it is not.
    """
    if find_spec("mcp") is None:
        raise CMFAHError("A server for agents needs mcp; install it: pip install 'cmfah-hf[mcp]'.")


def keep_tools(app: "gr.Blocks") -> None:
    """Leaves the four tools of an app's MCP server, which Gradio would make of every endpoint, with answers in JSON.

    On the Hub, names begin with that of the Space, as Gradio makes them.
    """
    server = app.mcp_server_obj
    assert server is not None
    taken: set[str] = set()
    tools = {}
    for tool, endpoint in TOOLS.items():
        name = server.valid_and_unique_tool_name(server.tool_prefix + tool, taken)
        taken.add(name)
        tools[name] = f"/{endpoint}"
    server.tool_to_endpoint = tools

    def as_json(self: Any, data: list[Any], root_url: str) -> list[Any]:
        """Gradio would write a dictionary as Python does."""
        return [self.types.TextContent(type="text", text=json.dumps(value, ensure_ascii=False)) for value in data]

    server.postprocess_output_data = MethodType(as_json, server)  # type: ignore[method-assign]


class AgentGate:
    """ASGI middleware: receives the messages of agents, and passes checked ones on to Gradio.

    Images in base64 are stored as uploads, so that Gradio gets their names. Everything is answered in one message:
    there are no sessions and no streams.

    Args:
        app: Gradio's application.
        tools: The parameters of each tool.
        uploads: The store of uploaded images.
    """

    def __init__(
        self, app: Callable[..., Awaitable[None]], tools: Mapping[str, frozenset[str]], uploads: Uploads
    ) -> None:
        self.app, self._messages = app, AgentMessages(tools, uploads)
        self._receiving = asyncio.Semaphore(MOST_MESSAGES)
        self._answering = asyncio.Semaphore(MOST_MESSAGES)

    @classmethod
    def of(cls, app: Callable[..., Awaitable[None]], blocks: "gr.Blocks", uploads: Uploads) -> "AgentGate":
        """The gate of an app whose tools are those of `keep_tools`."""
        server = blocks.mcp_server_obj
        assert server is not None
        schemas = {name: server.get_input_schema(name)[0] for name in server.tool_to_endpoint}
        return cls(app, {name: frozenset(schema["properties"]) for name, schema in schemas.items()}, uploads)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in PATHS:
            await self.app(scope, receive, send)
            return
        async with _turn(self._receiving):
            body = await receive_body(Headers(scope=scope), receive, MAX_MESSAGE_WITH_IMAGE, MESSAGE_SECONDS)
            try:
                answer = await asyncio.to_thread(self._messages.check, body)
            except QueryError as error:
                raise RefusedError(400, str(error)) from error
            except OSError as error:
                raise RefusedError(507, "There is no room for this image; come back later.") from error
            del body
        if isinstance(answer, bytes):
            async with _turn(self._answering):
                await self.app(_rewritten(scope, answer), replay(answer, receive), send)
        elif answer is None:
            await Response(status_code=202)(scope, receive, send)
        else:
            await JSONResponse(answer)(scope, receive, send)


class AgentMessages:
    """Checks and rewrites messages of the protocol, which are JSON-RPC."""

    def __init__(self, tools: Mapping[str, frozenset[str]], uploads: Uploads):
        self._tools, self._uploads = tools, uploads

    def check(self, body: bytes) -> bytes | dict[str, Any] | None:
        """The message that Gradio gets, or the reply that it need not give; None for a notification.

        Raises:
            QueryError: If the body is no message.
        """
        given = parse_json(body, "The message", QueryError)
        if not isinstance(given, dict) or not isinstance(given.get("method"), str):
            raise QueryError("The body is not one message of JSON-RPC with a method; send one.")
        method, number, params = given["method"], given.get("id"), given.get("params")
        params = params if isinstance(params, dict) else {}
        if number is None:
            return None
        if isinstance(number, bool) or not isinstance(number, (int, str)) or len(str(number)) > _LONGEST_NAME:
            raise QueryError(f"The id of a message is a number or a text of at most {_LONGEST_NAME} characters.")
        message: dict[str, Any] = {"jsonrpc": "2.0", "id": number}
        if method == "tools/call":
            try:
                call = self._call(params)
            except (QueryError, ImageError) as error:
                return message | {"result": _failed(str(error))}
            return json.dumps(message | {"method": method, "params": call}).encode()
        if method == "initialize":
            return json.dumps(message | {"method": method, "params": _introduction(params)}).encode()
        if method in _LISTING:
            return json.dumps(message | {"method": method}).encode()
        return message | {"error": {"code": _METHOD_NOT_FOUND, "message": "There is no such method here."}}

    def _call(self, params: dict[str, Any]) -> dict[str, Any]:
        name, given = params.get("name"), params.get("arguments") or {}
        if not isinstance(name, str) or name not in self._tools:
            raise QueryError(f"There is no tool {name!r:.80}; the tools are {', '.join(self._tools)}.")
        if not isinstance(given, dict):
            raise QueryError("The arguments are not a JSON object; send one.")
        known, arguments = self._tools[name], {}
        for key, value in given.items():
            if key not in known:
                raise QueryError(f"The tool {name} has no parameter {key!r:.80}; it has {', '.join(sorted(known))}.")
            if isinstance(value, (dict, list)):
                raise QueryError(f"{key} is a list or an object; give a text or a number.")
            arguments[key] = self._name_of(value) if key == _IMAGE else value
        if len(json.dumps(arguments)) > MAX_MESSAGE:
            raise QueryError(f"The arguments have more than {MAX_MESSAGE:,} characters; send fewer.")
        return {"name": name, "arguments": arguments}

    def _name_of(self, value: Any) -> str:
        """The name of an upload: that of the image in base64, or the given one."""
        if not isinstance(value, str):
            raise QueryError("The image is not a text; send its file as base64.")
        return value if is_upload_name(value) else self._uploads.keep(decode_base64(value))


@contextlib.asynccontextmanager
async def _turn(turns: asyncio.Semaphore) -> AsyncIterator[None]:
    try:
        await asyncio.wait_for(turns.acquire(), TURN_SECONDS)
    except asyncio.TimeoutError:
        raise RefusedError(503, "The server is busy; come back in a minute.") from None
    try:
        yield
    finally:
        turns.release()


def _introduction(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters of `initialize`: name and version of the client, without its capabilities, which are not used."""
    client = params.get("clientInfo")
    client = client if isinstance(client, dict) else {}
    told = {key: str(client.get(key) or "unknown")[:_LONGEST_NAME] for key in ("name", "version")}
    version = str(params.get("protocolVersion") or "")[:_LONGEST_NAME]
    return {"protocolVersion": version, "capabilities": {}, "clientInfo": told}


def _failed(line: str) -> dict[str, Any]:
    """The result of a tool that could not answer; the agent reads the line."""
    return {"content": [{"type": "text", "text": line}], "isError": True}


def _rewritten(scope: Message, body: bytes) -> Message:
    headers = [(name, value) for name, value in scope["headers"] if name.lower() in _HEADERS]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    path = f"{ENDPOINT}/"  # without a redirect
    return {**scope, "path": path, "raw_path": path.encode(), "query_string": b"", "headers": headers}
