"""A client of the Model Context Protocol, as agents have one, over streamable HTTP."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx
from anyio.from_thread import BlockingPortal, start_blocking_portal
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult, Tool


@dataclass
class Agent:
    """A session with a server."""

    portal: BlockingPortal
    session: ClientSession

    def tools(self) -> dict[str, Tool]:
        """The tools of the server by their names."""
        return {tool.name: tool for tool in self.portal.call(self.session.list_tools).tools}

    def call(self, tool: str, **arguments: Any) -> CallToolResult:
        """The result of a tool, which may be an error."""
        return self.portal.call(self.session.call_tool, tool, arguments)

    def answer(self, tool: str, **arguments: Any) -> Any:
        """The JSON that a tool answers with."""
        result = self.call(tool, **arguments)
        assert not result.isError, result.content
        return json.loads(result.content[0].text)

    def refusal(self, tool: str, **arguments: Any) -> str:
        """The line that a tool refuses a call with."""
        result = self.call(tool, **arguments)
        assert result.isError, result.content
        (content,) = result.content
        assert content.text.isprintable()
        return content.text


@contextmanager
def agent(url: str, token: str | None = None) -> Iterator[Agent]:
    """A client of the server at a URL."""
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(_session(url, token)) as session:
        yield Agent(portal, session)


@asynccontextmanager
async def _session(url: str, token: str | None) -> AsyncIterator[ClientSession]:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with (
        httpx.AsyncClient(headers=headers, timeout=60) as http,
        streamable_http_client(url, http_client=http) as (reading, writing, _),
        ClientSession(reading, writing, read_timeout_seconds=timedelta(seconds=60)) as session,
    ):
        await session.initialize()
        yield session
