"""The process of `cmfah serve`: loading, listening, a graceful stop."""

import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from cmfah_hf.data import resolve_data_path
from cmfah_hf.errors import CMFAHError, HashIndexError
from cmfah_hf.retrieval.folders.roots import FolderRequest
from cmfah_hf.retrieval.folders.update import folder_index_path
from cmfah_hf.retrieval.retriever import CrossMediaRetriever, Modality
from cmfah_hf.serving.app import build_service
from cmfah_hf.serving.limits import ServiceLimits
from cmfah_hf.serving.protocol import DEFAULT_PORT
from cmfah_hf.serving.served import MODALITIES, ServedRetriever
from cmfah_hf.space.agents import require_mcp
from cmfah_hf.space.hosts import AllowedHosts, is_loopback

logger = logging.getLogger(__name__)

_THIS_MACHINE = "127.0.0.1"
# Seconds until an idle connection is closed.
_IDLE_SECONDS = 75


@dataclass(frozen=True)
class ServedSources:
    """The model and the indexes of a server.

    Attributes:
        model: A folder or a Hub id.
        index: The index file of images. None: that of the only folder in the Hub's cache, or without a folder the
            indexes that were pushed with the model, which do not change.
        texts: The index file of texts, or None.
        folders: Folders of images that the index follows.
        read_only: The index files do not change; other programs may update them.
        batch_size: Images encoded at once by an update of folders.
    """

    model: str
    index: Path | None = None
    texts: Path | None = None
    folders: Sequence[str] = ()
    read_only: bool = False
    batch_size: int = 32

    def load(self, limits: ServiceLimits, any_model: bool = False, **options: Any) -> ServedRetriever:
        """Loads the model and what does not change. `any_model` and `options` are those of `from_pretrained`.

        Raises:
            CMFAHError: If the model or an index cannot be used, or an index file must be named.
        """
        if self.read_only and self.folders:
            raise HashIndexError("--read-only serves an index as it is; leave out the folders, or --read-only.")
        with_model = self.index is None and self.texts is None and not self.folders
        retriever = CrossMediaRetriever.from_pretrained(self.model, index=with_model, any_model=any_model, **options)
        files = self._files(retriever)
        if self.read_only:
            for modality, path in files.items():
                setattr(retriever, modality, retriever.load_index(path, mmap=True))
            files = {}
        folders = [FolderRequest(folder) for folder in self.folders]
        return ServedRetriever(retriever, files, folders, self.batch_size, limits.image_pixels)

    def _files(self, retriever: CrossMediaRetriever) -> dict[Modality, Path]:
        index = self.index
        if index is None and len(self.folders) == 1:
            index = folder_index_path(retriever.fingerprint, resolve_data_path(self.folders[0]))
        elif index is None and self.folders:
            raise HashIndexError(f"{self.folders[1]}: name an index file for several folders: cmfah serve MODEL INDEX.")
        named: dict[Modality, Path | None] = {"images": index, "texts": self.texts}
        return {modality: path for modality, path in named.items() if path is not None}


def serve(
    sources: ServedSources,
    host: str = _THIS_MACHINE,
    port: int = DEFAULT_PORT,
    token: str | None = None,
    *,
    without_token: bool = False,
    further_hosts: Sequence[str] = (),
    limits: ServiceLimits | None = None,
    mcp: bool = False,
    any_model: bool = False,
    **options: Any,
) -> None:
    """Serves searches until the process gets SIGTERM or SIGINT. Running requests are finished, and changes saved.

    Args:
        sources: The model and the indexes.
        host: The address to listen on.
        port: The port; 0 for a free one.
        token: The token that clients have to send.
        without_token: Accept all clients on an address that other machines reach.
        further_hosts: Further host names of the server.
        limits: The limits. None: the default ones.
        mcp: Whether there is an endpoint for agents, by the Model Context Protocol.
        any_model: As for `CrossMediaRetriever`.
        **options: As for `CrossMediaRetriever.from_pretrained`.

    Raises:
        CMFAHError: If the model or an index cannot be used, the port is taken, there must be a token, or the library of
            the protocol is missing.
    """
    if token is None and not without_token and not is_loopback(host):
        raise CMFAHError(
            f"{host}: other machines reach this address; set a token by --token-file or CMFAH_TOKEN, or pass "
            "--no-token."
        )
    if mcp:
        require_mcp()
    hosts, limits = AllowedHosts(host, further_hosts), limits or ServiceLimits()
    # Bound first: a taken port is reported before the model is loaded.
    with contextlib.closing(bind(host, port)) as listening, sources.load(limits, any_model, **options) as served:
        if sources.folders:
            logger.warning("%s: %s.", ", ".join(sources.folders), served.sync())
        _warm_up(served)
        server = make_server(build_service(served, token, hosts, limits, mcp), limits)
        name = f"[{host}]" if ":" in host else host
        address = f"http://{name}:{listening.getsockname()[1]}"
        items = ", ".join(f"{len(served.index(each)):,} {each}" for each in MODALITIES)
        lines = [f"Serving {items} at {address}", *([f"Agents connect to {address}/mcp"] if mcp else [])]
        server.run_and_report(listening, lambda: logger.warning("\n".join(lines)))
    logger.warning("Stopped.")


class Server(uvicorn.Server):
    """A server that returns after SIGTERM and SIGINT, so that changes are saved."""

    def run_and_report(self, listening: socket.socket, report: Callable[[], None]) -> None:
        """Serves, and calls `report` when it listens."""
        self._report = report
        self.run([listening])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._report()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        former = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        logger.warning("Stopping: running requests are finished, and changes saved.")
        super().handle_exit(sig, frame)


class _TimedProtocol(H11Protocol):
    """Closes a connection on which no complete headers arrive in time."""

    header_seconds = 20.0
    _deadline: Any = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect_request()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def _expect_request(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        seconds = self.header_seconds if self.cycle is None else max(self.header_seconds, self.timeout_keep_alive)
        self._deadline = self.loop.call_later(seconds, self._close_without_request)

    def _close_without_request(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


def make_server(app: Any, limits: ServiceLimits) -> Server:
    """The server of a service, with limits on connections and times."""
    protocol = type("TimedProtocol", (_TimedProtocol,), {"header_seconds": limits.header_seconds})
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=limits.connections,
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=max(1, round(limits.stop_seconds)),
    )
    return Server(config)


def bind(host: str, port: int) -> socket.socket:
    """A socket that is bound to the address, and does not listen yet.

    Raises:
        CMFAHError: If the address is another machine's, or the port is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        reason = error.strerror or error
        raise CMFAHError(
            f"Cannot listen on {host}:{port} ({reason}); choose another with --host and --port."
        ) from error
    return bound


def _warm_up(served: ServedRetriever) -> None:
    """Builds what the first search would build, before the first client waits for it."""
    from PIL import Image

    values = served.retriever.encode_images([Image.new("RGB", (64, 64))])
    served.retriever.encode_texts(["warm up"])
    for modality in MODALITIES:
        index = served.index(modality)
        if len(index):
            for metric in ("aqd", "hamming"):
                index.search(values, k=1, metric=metric)
