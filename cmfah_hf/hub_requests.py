"""Limits on time, size and shape of the replies to `huggingface_hub`.

The client waits without limit for most replies, sleeps as long as a `Retry-After` demands, and does not validate
replies. Within `limited(...)` each request is bounded and each reply validated; outside of it nothing changes.
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

# The HTTP library of this version of `huggingface_hub`: httpx, or its successor.
_httpx: Any = sys.modules[HTTPError.__module__]
# A request without a reply: no connection, a broken one, or a timeout.
TransportError: type[Exception] = _httpx.TransportError

BUSY_STATUSES = (408, 429, 500, 502, 503, 504)
# Seconds until a wait for a reply, or for a connection, is logged.
_NOTICE_S = 10.0
# Factor on the time limit for the reply to an upload.
_UPLOAD_FACTOR = 5
# Maximum bytes of an API reply, and of a file without an announced size.
_LARGEST_REPLY = 32 * 2**20
_LARGEST_UNSIZED = 256 * 2**20
# Maximum pages of a listing, of 1000 files each.
_MOST_PAGES = 1000
# Minimum bytes per time limit of a reply.
_FEWEST_BYTES = 1000


@dataclass(frozen=True)
class Limits:
    """Args:
    answer_s: Seconds without a reply or without progress of a transfer. Whole transfers are not limited.
    patience_s: Seconds of consecutive failures, including a requested `Retry-After`, before giving up.
    """

    answer_s: float
    patience_s: float


READING, WRITING = Limits(20, 20), Limits(60, 60)


class UnreachableError(HTTPError):
    """The Hub could not be reached, or did not reply in time."""


class BusyError(HTTPError):
    """The Hub failed for too long, or requests too long a wait."""


@contextmanager
def limited(limits: Limits) -> Iterator["_Watch"]:
    """Applies the limits to all requests of `huggingface_hub` in this process, in all threads, within the context.

    Yields an object whose `given_up` is the error after which no more requests were sent, or None.
    """
    _install()
    watch = _Watch(limits)
    _active.append(watch)
    # The client's own warnings contain signed upload URLs; ours do not.
    client_log = logging.getLogger(_http.__name__)
    client_log.addFilter(_hide_warnings)
    try:
        yield watch
    finally:
        _active.remove(watch)
        client_log.removeFilter(_hide_warnings)


def _hide_warnings(record: logging.LogRecord) -> bool:
    return record.levelno != logging.WARNING


_active: list["_Watch"] = []
_install_lock = threading.Lock()


def _install() -> None:
    """Wraps the client factory of `huggingface_hub`, also a custom one."""
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
        if request.method == "PUT":  # the upload may still be in transit
            longest["read"] = _UPLOAD_FACTOR * self.limits.answer_s
        request.extensions["timeout"] = {
            name: min(asked.get(name) or float("inf"), longest.get(name, self.limits.answer_s))
            for name in ("connect", "read", "write", "pool")
        }
        # So that announced sizes are true, and small replies do not decompress to large ones.
        request.headers["Accept-Encoding"] = "identity"
        notice = threading.Timer(_NOTICE_S, logger.warning, ("Waiting for a reply of the Hub.",))
        notice.daemon = True
        if request.method != "PUT":  # uploads have a progress bar
            notice.start()
        try:
            response = send(request, **options)
        except TransportError as error:
            # Without a connection, waiting is of little use.
            patience = self.limits.patience_s / (4 if isinstance(error, _httpx.ConnectError) else 1)
            self._failed(UnreachableError(reason_of(error)), patience, cause=error)
            raise
        finally:
            notice.cancel()
        if response.is_error:
            check_error(response)
        if response.status_code in BUSY_STATUSES:
            reason = f"HTTP {response.status_code} {response.reason_phrase}"
            self._failed(BusyError(reason), self.limits.patience_s, _wait_asked_for(response), response)
            return response
        with self.lock:
            self.failing_since = None
            self.pages += "/tree/" in request.url.path
        if self.pages > _MOST_PAGES:
            raise BadReplyError("its file listing is endless")
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
                # Without a connection it soon ends in an error that says so.
                is_new = isinstance(cause, _httpx.ConnectError) and now - self.failing_since < _NOTICE_S
                logger.log(logging.DEBUG if is_new else logging.WARNING, "The Hub is failing (%s).", error)
                return
            if wait:
                error = type(error)(f"{error}; it requests a wait of {wait:,.0f} s")
            self.given_up = error
        if response is not None:
            response.close()
        raise error from cause


def _wait_asked_for(response: Any) -> float:
    """Seconds that the client would sleep."""
    is_plain = re.search(r"\d{10}", response.headers.get("ratelimit", "")) is None  # without huge numbers
    limit = _http.parse_ratelimit_headers(response.headers) if is_plain else None
    if response.status_code == 429 and limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds
    asked = response.headers.get("Retry-After", "").strip()
    if not asked.isdigit():
        return 0.0
    return float(asked) if re.fullmatch(r"[0-9]{1,9}", asked) else 1e9


def reason_of(error: BaseException) -> str:
    """The reason of a failure, without URLs, since signed upload URLs are credentials."""
    response = getattr(error, "response", None)
    if response is not None:
        reason = getattr(error, "server_message", None)
        return " ".join(
            f"HTTP {response.status_code} {response.reason_phrase}{f': {reason}' if reason else ''}".split()
        )
    reason = " ".join(str(error).split())
    if isinstance(error, (UnreachableError, BusyError, BadReplyError)):
        return reason
    return f"{type(error).__name__}: {reason}" if reason and "://" not in reason else type(error).__name__


# Bodies


def _bound(response: Any) -> None:
    """Limits the size and the minimum speed of a reply's body."""
    if not _active:
        return
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise BadReplyError("its reply is compressed, which was not requested")
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
                raise BadReplyError(f"its reply has more than {self.most:,} bytes")
            now = time.monotonic()
            if now - start > self.window_s:
                if in_window < _FEWEST_BYTES:
                    raise UnreachableError(f"{in_window} bytes in {now - start:.0f} s")
                start, in_window = now, 0
            yield part
            start = max(start, start + time.monotonic() - now)  # excludes the time of the reader

    def close(self) -> None:
        self.stream.close()
