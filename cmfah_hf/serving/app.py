"""The search service as an ASGI application: routes, errors, OpenAPI, life of its threads."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

import cmfah_hf
from cmfah_hf.errors import CMFAHError
from cmfah_hf.serving.bodies import add_schemas, describe_body
from cmfah_hf.serving.endpoints import Endpoints
from cmfah_hf.serving.guard import OPEN_PATHS, Guard
from cmfah_hf.serving.limits import ServiceLimits
from cmfah_hf.serving.protocol import API_VERSION
from cmfah_hf.serving.schemas import (
    AddRequest,
    ChangeReply,
    ErrorReply,
    HealthReply,
    InfoReply,
    RemoveRequest,
    SearchReply,
    SearchRequest,
    SyncReply,
    SyncRequest,
)
from cmfah_hf.serving.served import BusyError, ServedRetriever
from cmfah_hf.serving.tokens import TokenCheck
from cmfah_hf.space.agents import require_mcp
from cmfah_hf.space.hosts import AllowedHosts
from cmfah_hf.space.requests import RefusedError

if TYPE_CHECKING:
    from cmfah_hf.serving.agents import AgentEndpoint

logger = logging.getLogger(__name__)

_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorReply, "description": "The request is malformed."},
    401: {"model": ErrorReply, "description": "The token is missing or wrong."},
    403: {"model": ErrorReply, "description": "The host is not allowed."},
    408: {"model": ErrorReply, "description": "The request took too long to arrive."},
    413: {"model": ErrorReply, "description": "The request is too large."},
    422: {"model": ErrorReply, "description": "The request cannot be answered; the detail says why."},
    503: {"model": ErrorReply, "description": "The server is busy."},
}
_METRICS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "The metrics."},
    501: {"model": ErrorReply, "description": "The server has no library for metrics."},
}
_RUNNING: dict[int | str, dict[str, Any]] = {202: {"model": SyncReply, "description": "The update is still running."}}


def build_service(
    served: ServedRetriever, token: str | None, hosts: AllowedHosts, limits: ServiceLimits, mcp: bool = False
) -> Guard:
    """The search service.

    Args:
        served: The retriever, inside its `with`.
        token: The token that clients have to send, or None.
        hosts: The allowed hosts.
        limits: The limits.
        mcp: Whether there is an endpoint for agents, by the Model Context Protocol.

    Raises:
        CMFAHError: If the library of the protocol is missing.
    """
    endpoints = Endpoints(served, limits)
    agents = _agent_endpoint(endpoints) if mcp else None
    api = FastAPI(
        title="cmfah serve",
        summary="Search of images and texts by their codes.",
        version=cmfah_hf.__version__,
        docs_url=None,  # its page would load scripts from another server
        redoc_url=None,
        lifespan=_lifespan(endpoints, agents),
        responses=_ERRORS,
        exception_handlers={RefusedError: _refused, CMFAHError: _unusable, HTTPException: _unknown, Exception: _failed},
    )
    api.get("/health", response_model=HealthReply)(endpoints.health)
    api.get("/info", response_model=InfoReply)(endpoints.info)
    api.get("/metrics", response_class=Response, responses=_METRICS)(endpoints.show_metrics)
    api.post("/search", response_model=SearchReply, openapi_extra=describe_body(SearchRequest, True))(endpoints.search)
    api.post("/add", response_model=ChangeReply, openapi_extra=describe_body(AddRequest, True))(endpoints.add)
    api.post("/remove", response_model=ChangeReply, openapi_extra=describe_body(RemoveRequest))(endpoints.remove)
    api.get("/sync", response_model=SyncReply)(endpoints.last_sync)
    sync = describe_body(SyncRequest)
    api.post("/sync", response_model=SyncReply, responses=_RUNNING, openapi_extra=sync)(endpoints.sync)
    _complete(api.openapi(), token is not None)
    paths = ["/openapi.json", *api.openapi()["paths"]]
    if agents is not None:
        api.router.routes += agents.routes()
        paths += [route.path for route in agents.routes()]
    return Guard(api, hosts, TokenCheck(token), limits, endpoints.metrics, paths)


def _complete(document: dict[str, Any], has_token: bool) -> None:
    """Adds to the OpenAPI document, which FastAPI keeps, what it does not see in the functions."""
    add_schemas(document, [SearchRequest, AddRequest, RemoveRequest, SyncRequest])
    document["info"]["x-api-version"] = API_VERSION
    if has_token:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
        for path in OPEN_PATHS:
            document["paths"][path]["get"]["security"] = []


def _agent_endpoint(endpoints: Endpoints) -> "AgentEndpoint":
    require_mcp()
    from cmfah_hf.serving.agents import AgentEndpoint

    return AgentEndpoint(endpoints)


def _lifespan(endpoints: Endpoints, agents: "AgentEndpoint | None") -> Callable[[FastAPI], Any]:
    """Saves changes regularly, and at the end waits for the threads. The caller of the server saves what is left."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        saving = asyncio.create_task(_save_regularly(endpoints))
        try:
            async with contextlib.nullcontext() if agents is None else agents.running():
                yield
        finally:
            saving.cancel()
            endpoints.served.stop()
            await asyncio.to_thread(endpoints.close)

    return lifespan


async def _save_regularly(endpoints: Endpoints) -> None:
    while True:
        await asyncio.sleep(endpoints.limits.save_seconds)
        try:
            await asyncio.to_thread(endpoints.served.save)
        except (CMFAHError, OSError) as error:  # tried again, and at the end it is an error
            logger.warning("The index could not be saved: %s", error)


def _error(status: int, detail: str) -> JSONResponse:
    return JSONResponse({"detail": detail}, status, {"Retry-After": "1"} if status == 503 else None)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return _error(error.status, error.detail)


async def _unusable(_: Request, error: Exception) -> Response:
    return _error(503 if isinstance(error, BusyError) else 422, str(error))


async def _unknown(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    details = {404: "There is nothing at this address; see /openapi.json.", 405: "This method is not allowed here."}
    return _error(error.status_code, details.get(error.status_code, str(error.detail)))


async def _failed(_: Request, error: Exception) -> Response:
    return _error(500, "An internal error; the log of the server has it.")
