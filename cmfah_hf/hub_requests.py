"""Limits on the requests of `huggingface_hub`: how long a reply may take, how large it may be, and which shape it has.

The client waits without limit for most replies, sleeps as long as a `Retry-After` says, and takes the values of a reply
for what they should be. Within `limited(...)` each of its requests is watched; outside of it nothing changes.
"""

import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import set_client_factory
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import _http

from cmfah_hf.hub_replies import BadReplyError, check_error, check_reply, is_api, require

logger = logging.getLogger(__name__)

# The HTTP library that this version of `huggingface_hub` is built on: httpx, or its successor.
_httpx: Any = sys.modules[HTTPError.__module__]
# A request that was not answered: no connection, a broken one, no answer in time.
TransportError: type[Exception] = _httpx.TransportError

BUSY_STATUSES = (408, 429, 500, 502, 503, 504)
# Seconds after which a wait for a reply is reported.
_NOTICE_S = 10.0
# How much longer the answer to an upload may take.
_UPLOAD_FACTOR = 5
# Bytes of a reply of the API, and of a file whose size was not announced.
_LARGEST_REPLY = 32 * 2**20
_LARGEST_UNSIZED = 256 * 2**20
# Pages of a listing, of 1000 files each, that are read.
_MOST_PAGES = 1000
# Bytes that have to arrive in the time that one reply may take.
_FEWEST_BYTES = 1000


@dataclass(frozen=True)
class Limits:
    """Args:
    answer_s: Seconds without a reply, or without progress of a transfer. There is no limit on a whole transfer.
    patience_s: Seconds of failed attempts in a row, and of what a `Retry-After` asks for, before it is given up.
    """

    answer_s: float
    patience_s: float


READING, WRITING = Limits(20, 20), Limits(60, 60)


class UnreachableError(HTTPError):
    """The Hub was not reached, or did not answer, within the limits."""


class BusyError(HTTPError):
    """The Hub has answered with errors for too long, or asks to wait for too long."""


@contextmanager
def limited(limits: Limits) -> Iterator[None]:
    """Watches all requests of `huggingface_hub` in this process, of other threads too, while the context lasts."""
    _install()
    watch = _Watch(limits)
    _active.append(watch)
    # The client's own warnings hold the addresses of uploads, which are signed; the watch reports the same without.
    client_log = logging.getLogger(_http.__name__)
    client_log.addFilter(_hide_warnings)
    try:
        yield
    finally:
        _active.remove(watch)
        client_log.removeFilter(_hide_warnings)


def _hide_warnings(record: logging.LogRecord) -> bool:
    return record.levelno != logging.WARNING


_active: list["_Watch"] = []
_install_lock = threading.Lock()


def _install() -> None:
    """Has every client of `huggingface_hub` watched, those of a factory that somebody else has set too."""
    with _install_lock:
        if not isinstance(_http._GLOBAL_CLIENT_FACTORY, _WatchedFactory):
            set_client_factory(_WatchedFactory(_http._GLOBAL_CLIENT_FACTORY))


class _WatchedFactory:
    def __init__(self, factory: Callable[[], Any]):
        self.factory = factory

    def __call__(self) -> Any:
        client = self.factory()
        send = client.send

        def watched(request: Any, **options: Any) -> Any:
            return _active[-1].send(send, request, **options) if _active else send(request, **options)

        client.send = watched
        client.event_hooks["response"].append(_bound)
        return client


@dataclass
class _Watch:
    limits: Limits
    failing_since: float | None = None
    pages: int = 0
    given_up: HTTPError | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, send: Callable[..., Any], request: Any, **options: Any) -> Any:
        if self.given_up is not None:
            raise type(self.given_up)(str(self.given_up))
        asked = request.extensions.get("timeout") or {}
        longest = {"connect": min(10.0, self.limits.answer_s)}
        if request.method == "PUT":  # what was sent may be on its way still
            longest["read"] = _UPLOAD_FACTOR * self.limits.answer_s
        request.extensions["timeout"] = {
            name: min(asked.get(name) or float("inf"), longest.get(name, self.limits.answer_s))
            for name in ("connect", "read", "write", "pool")
        }
        # Sizes are those that are announced, and no small reply unpacks to a large one.
        request.headers["Accept-Encoding"] = "identity"
        notice = threading.Timer(_NOTICE_S, logger.warning, ("Waiting for an answer of the Hub.",))
        notice.daemon = True
        if request.method != "PUT":  # an upload has a bar
            notice.start()
        try:
            response = send(request, **options)
        except TransportError as error:
            # Without a connection there is nothing to wait for.
            patience = self.limits.patience_s / (4 if isinstance(error, _httpx.ConnectError) else 1)
            self._failed(UnreachableError(reason_of(error)), patience, cause=error)
            raise
        finally:
            notice.cancel()
        if response.is_error:
            check_error(response)
        if response.status_code in BUSY_STATUSES:
            said = f"HTTP {response.status_code} {response.reason_phrase}"
            self._failed(BusyError(said), self.limits.patience_s, _wait_asked_for(response), response)
            return response
        with self.lock:
            self.failing_since = None
            self.pages += "/tree/" in request.url.path
        if self.pages > _MOST_PAGES:
            raise BadReplyError("its listing of files does not end")
        check_reply(request, response, options.get("stream", False))
        return response

    def _failed(
        self,
        error: HTTPError,
        patience: float,
        wait: float = 0.0,
        response: Any = None,
        cause: BaseException | None = None,
    ) -> None:
        with self.lock:
            now = time.monotonic()
            self.failing_since = now if self.failing_since is None else self.failing_since
            if now + wait - self.failing_since < patience:
                logger.warning("The Hub does not answer as it should (%s).", error)
                return
            if wait:
                error = type(error)(f"{error}; it asks to wait for {wait:,.0f} s")
            self.given_up = error
        if response is not None:
            response.close()
        raise error from cause


def _wait_asked_for(response: Any) -> float:
    """The seconds that the client would sleep for."""
    limit = _http.parse_ratelimit_headers(response.headers) if _is_plain(response.headers.get("ratelimit")) else None
    if response.status_code == 429 and limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds
    asked = response.headers.get("Retry-After", "").strip()
    if not asked.isdigit():
        return 0.0
    return float(asked) if re.fullmatch(r"[0-9]{1,9}", asked) else 1e9


def _is_plain(header: str | None) -> bool:
    return header is not None and re.search(r"\d{10}", header) is None


def reason_of(error: BaseException) -> str:
    """The reason of a failure, without addresses: those of uploads are signed, as good as a password for a while."""
    response = getattr(error, "response", None)
    if response is not None:
        said = getattr(error, "server_message", None)
        return " ".join(f"HTTP {response.status_code} {response.reason_phrase}{f': {said}' if said else ''}".split())
    said = " ".join(str(error).split())
    if isinstance(error, (UnreachableError, BusyError, BadReplyError)):
        return said
    return f"{type(error).__name__}: {said}" if said and "://" not in said else type(error).__name__


# Bodies


def _bound(response: Any) -> None:
    """Lets no more of a body be read than a reply of its kind has, nor more slowly than anybody would wait for."""
    if not _active:
        return
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise BadReplyError("its reply is packed, which was not asked for")
    for name, pattern in (
        ("Content-Length", "[0-9]{1,18}"),
        ("Content-Range", r"bytes ([0-9]{1,18}-[0-9]{1,18}|\*)/[0-9]{1,18}"),
    ):
        require(response.headers.get(name), (re.compile(pattern), None), f"the header {name}")
    is_download = response.request.method == "GET" and response.is_success and not is_api(response.request)
    size = response.headers.get("Content-Length", "")
    most = _LARGEST_REPLY if not is_download else None if size.isdigit() else _LARGEST_UNSIZED
    response.stream = _BoundedStream(response.stream, most, _active[-1].limits.answer_s)


class _BoundedStream(_httpx.SyncByteStream):
    def __init__(self, stream: Any, most: int | None, window_s: float):
        self.stream, self.most, self.window_s = stream, most, window_s

    def __iter__(self) -> Iterator[bytes]:
        total = in_window = 0
        start = time.monotonic()
        for part in self.stream:
            total += len(part)
            in_window += len(part)
            if self.most is not None and total > self.most:
                raise BadReplyError(f"its reply does not end after {self.most:,} bytes")
            now = time.monotonic()
            if now - start > self.window_s:
                if in_window < _FEWEST_BYTES:
                    raise UnreachableError(f"{in_window} bytes in {now - start:.0f} s")
                start, in_window = now, 0
            yield part
            start = max(start, start + time.monotonic() - now)  # what the reader takes is not the sender's

    def close(self) -> None:
        self.stream.close()
