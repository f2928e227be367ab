"""The server: limits, start order, expiry of uploads and unread answers."""

import asyncio
import contextlib
import logging
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cmfah_hf.errors import CMFAHError
from cmfah_hf.space.agents import AgentGate, keep_tools, require_mcp
from cmfah_hf.space.hosts import AllowedHosts
from cmfah_hf.space.loading import EngineLoader
from cmfah_hf.space.settings import SpaceSettings
from cmfah_hf.space.uploads import MAX_BYTES, Uploads

if TYPE_CHECKING:
    import gradio as gr

logger = logging.getLogger(__name__)

# Length of the queue, beyond which the page reports that it is full, and number of concurrent answers. Room for many
# simultaneous users and for programs that never read their answers, with bodies of at most 64 kB each.
QUEUE_SIZE = 256
AT_ONCE = 2
_THREADS = 8
# Sessions whose state is kept in memory; the oldest are dropped first.
_SESSIONS = 500
# Sessions with unread answers, of up to 1 MB each.
_UNREAD_SESSIONS = 256
# Calls in Gradio's statistics, which are not used, and the interval of their aggregation.
_MEASURED_CALLS, _NEVER = 32, 2**62
_TIDY_SECONDS = 30.0
_THIS_MACHINE = "127.0.0.1"
_FIRST_PORT = 7860


class UnreadAnswers(OrderedDict[str, "asyncio.Queue[Any]"]):
    """The unread answers of each session. Beyond `most` sessions, the oldest is dropped.

    A session may be dropped while its request waits or its answer is sent. Gradio looks it up once more, and this
    answer is then discarded.
    """

    def __init__(self, most: int):
        super().__init__()
        self.most = most

    def __setitem__(self, session: str, answers: "asyncio.Queue[Any]") -> None:
        super().__setitem__(session, answers)
        self.move_to_end(session)
        if len(self) > self.most:
            self.popitem(last=False)

    def __missing__(self, session: str) -> "asyncio.Queue[Any]":
        return asyncio.Queue()

    def __delitem__(self, session: str) -> None:
        if session in self:
            super().__delitem__(session)


def serve(
    settings: SpaceSettings,
    folder: Path,
    host: str | None = None,
    port: int | None = None,
    keep_on_error: bool = False,
    problem: CMFAHError | None = None,
    block: bool = True,
    announce: Callable[[str], None] = logger.warning,
) -> Any:
    """Serves a Space: the page first, then its model.

    Args:
        settings: The settings of the Space.
        folder: Of the Space; relative models are looked for below it.
        host: The address to listen on. None: `GRADIO_SERVER_NAME`, else localhost.
        port: None: that of `GRADIO_SERVER_PORT`, else the first free one from 7860.
        keep_on_error: If the model or the data cannot be used, keep serving a page that reports it.
        problem: A known error of the settings.
        block: Whether to serve until the process is interrupted.
        announce: Takes a line that says at once where the page will be, one with the address, as soon as the page
            answers, and one when searches do.

    Returns:
        The Gradio app.

    Raises:
        CMFAHError: If the model or the data cannot be used, or the port is taken.
    """
    bound = host or os.environ.get("GRADIO_SERVER_NAME") or _THIS_MACHINE
    announce(_start_of(bound, port))
    import gradio as gr  # takes many seconds

    from cmfah_hf.space.app import build_app

    has_agents = settings.mcp and problem is None
    if has_agents:
        require_mcp()
    hosts = AllowedHosts(bound, settings.hosts)
    uploads = Uploads(Path(gr.utils.get_upload_folder()).absolute() / "cmfah-space")
    loader = EngineLoader(settings, folder, problem)
    app = build_app(loader, uploads, has_agents)
    app.queue(max_size=QUEUE_SIZE, default_concurrency_limit=AT_ONCE)
    # System fonts: the page makes no requests to third parties. White on this blue is readable at any size; orange is
    # reserved for attention.
    fill = "*primary_600"
    theme = gr.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    ).set(button_primary_background_fill=fill, button_primary_background_fill_dark=fill)
    try:
        app.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            show_error=False,
            max_threads=_THREADS,
            max_file_size=MAX_BYTES,
            allowed_paths=[],
            blocked_paths=[str(folder.absolute()), str(Path(__file__).parents[1])],
            state_session_capacity=_SESSIONS,
            enable_monitoring=False,
            run_history=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=has_agents,
            footer_links=["api", "settings"],
            app_kwargs={"lifespan": _guarding(app, hosts, uploads)},
            theme=theme,
            css=(files("cmfah_hf.space") / "page.css").read_text(encoding="utf-8"),
        )
    except OSError as error:
        where = port or os.environ.get("GRADIO_SERVER_PORT") or f"{_FIRST_PORT} and those after it"
        raise CMFAHError(f"Cannot listen on port {where} ({error}); choose another with --port.") from error
    if has_agents and not app.mcp_server:
        app.close(verbose=False)
        raise CMFAHError(f"The server for agents cannot start ({app.mcp_error}); leave out mcp.")
    announce(f"The page is at {app.local_url} and waits for the model.")
    try:
        loader.load()
        announce(f"Serving at {app.local_url}")
    except (ValueError, OSError) as error:
        if not keep_on_error:
            app.close(verbose=False)
            raise
        logger.error("Search is unavailable, as the page reports: %s", error)
    if block:
        app.block_thread()
    return app


def _start_of(bound: str, port: int | None) -> str:
    """The line on where the page will be, before the port is checked."""
    name = f"[{bound}]" if ":" in bound else bound
    if port is not None:
        return f"The page starts at http://{name}:{port}/ and loads its libraries."
    first = os.environ.get("GRADIO_SERVER_PORT") or _FIRST_PORT
    return f"The page starts on {name}, at the first free port from {first}, and loads its libraries."


def _guarding(app: "gr.Blocks", hosts: AllowedHosts, uploads: Uploads) -> Callable[[Any], Any]:
    """The lifespan of Gradio's server: installs `Limits`, and expires uploads and unread answers."""
    from cmfah_hf.space.bodies import Bodies
    from cmfah_hf.space.limits import Limits

    queue = app._queue
    queue.pending_messages_per_session = cast(Any, UnreadAnswers(_UNREAD_SESSIONS))
    queue.ANALYTICS_MAX_EVENTS, queue.ANAYLTICS_CACHE_FREQUENCY = _MEASURED_CALLS, _NEVER

    def is_awaited(name: str) -> bool:
        pending = queue.pending_event_ids_session
        session = next((session for session, events in pending.items() if name in events), name)
        return bool(pending.get(session)) and session in queue.pending_messages_per_session

    async def forget() -> None:
        while True:
            await asyncio.sleep(_TIDY_SECONDS)
            await asyncio.to_thread(uploads.trim)
            for session in set(queue.pending_event_ids_session) - set(queue.pending_messages_per_session):
                del queue.pending_event_ids_session[session]

    @contextlib.asynccontextmanager
    async def lifespan(server: Any) -> AsyncIterator[None]:
        # Gradio adds its own middleware last, and its CORS middleware would reply before the given ones.
        inner = server.middleware_stack
        if app.mcp_server:
            keep_tools(app)
            inner = AgentGate.of(inner, app, uploads)
        server.middleware_stack = Limits(inner, hosts, Bodies(app, uploads), uploads, is_awaited, app.mcp_server)
        task = asyncio.create_task(forget())
        try:
            yield
        finally:
            task.cancel()

    return lifespan


def serve_folder(folder: str | os.PathLike) -> None:
    """Serves the Space in a folder as its `space.json` defines, until the process ends.

    Errors of settings, model or data appear on the page, without paths, and in the log.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    folder = Path(folder).absolute()
    settings, problem = SpaceSettings(), None
    try:
        settings = SpaceSettings.load(folder)
    except CMFAHError as error:
        problem = error
    serve(settings, folder, keep_on_error=True, problem=problem)
