"""Limits on the requests of `huggingface_hub`: how long a reply may take, how large it may be, and which shape it has.

The client waits without limit for most replies, sleeps as long as a `Retry-After` says, and takes the values of a reply
for what they should be. Within `limited(...)` each of its requests is watched; outside of it nothing changes.
"""

import json
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin, urlsplit

from huggingface_hub import constants, set_client_factory
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import _http

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


class BadReplyError(HTTPError):
    """A reply that is not what the Hub answers to such a request."""


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
            _check_error(response)
        if response.status_code in BUSY_STATUSES:
            said = f"HTTP {response.status_code} {response.reason_phrase}"
            self._failed(BusyError(said), self.limits.patience_s, _wait_asked_for(response), response)
            return response
        with self.lock:
            self.failing_since = None
            self.pages += "/tree/" in request.url.path
        if self.pages > _MOST_PAGES:
            raise BadReplyError("its listing of files does not end")
        _check(request, response, options.get("stream", False))
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
    """What went wrong, without addresses: those of uploads are signed, and as good as a password for a while."""
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
        _require(response.headers.get(name), (re.compile(pattern), None), f"the header {name}")
    is_download = response.request.method == "GET" and response.is_success and not _is_api(response.request)
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


# Shapes

_COMMIT = re.compile(r"[0-9a-f]{40}")
_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z")
_ETAG = re.compile(r"(W/)?\"?[\w+=-][\w.+=-]{0,127}\"?")
_SIZE = range(2**63)
_HUB = "https://huggingface.co"
# Pages of a listing, of 1000 files each, that are read.
_MOST_PAGES = 1000
_REPOSITORY = {
    "id": str,
    "sha?": (_COMMIT, None),
    "private": bool,
    "lastModified?": (_DATE, None),
    "createdAt?": (_DATE, None),
    "siblings?": ([{"rfilename": str, "lfs?": ({"size": _SIZE, "sha256": str, "pointerSize": _SIZE}, None)}], None),
    "cardData?": (dict, None),
    "tags?": ([str], None),
}
_LFS = {"oid": str, "size": _SIZE, "pointerSize": _SIZE}
_TREE = [{"type": str, "path": str, "oid": str, "size?": _SIZE, "lfs?": (_LFS, None)}]
_URL = re.compile(r"https?://\S+")
_OBJECT = {
    "oid": str,
    "size": _SIZE,
    "actions?": ({"upload": {"href": _URL, "header?": dict}, "verify?": ({"href": _URL, "header?": dict}, None)}, None),
    "error?": {"code": int, "message": str},
}
_ID = r"/api/(?:models|datasets|spaces)/[^/]+/[^/]+"
# By method and path, what the Hub answers; the client reads such a reply without looking.
_SHAPES: list[tuple[str, re.Pattern[str], Any]] = [
    ("POST", re.compile(r"/api/repos/create"), {"url": re.compile(r"https?://\S+/[^/\s]+/[^/\s]+")}),
    ("POST", re.compile(r"/api/validate-yaml"), {"errors?": [{"message": str}], "warnings?": [{"message": str}]}),
    ("GET", re.compile(rf"{_ID}(?:/revision/[^/]+)?"), _REPOSITORY),
    ("GET", re.compile(rf"{_ID}/tree/.+"), _TREE),
    ("POST", re.compile(rf"{_ID}/paths-info/.+"), _TREE),
    (
        "POST",
        re.compile(rf"{_ID}/preupload/.+"),
        {"files": [{"path": str, "uploadMode": re.compile("lfs|regular"), "shouldIgnore": bool, "oid?": (str, None)}]},
    ),
    ("POST", re.compile(r"/.+\.git/info/lfs/objects/batch"), {"objects": [_OBJECT], "transfer?": (str, None)}),
    ("POST", re.compile(rf"{_ID}/commit/.+"), {"commitOid": _COMMIT, "commitUrl": _URL}),
]
# Of these the client reads the replies with some error statuses too.
_READ_IN_ERRORS = {"/api/validate-yaml": 400, "/api/repos/create": 409}


def _is_api(request: Any) -> bool:
    return "/api/" in request.url.path or ".git/info/lfs/" in request.url.path


def _check(request: Any, response: Any, is_stream: bool) -> None:
    """Refuses a successful reply whose values the client would stumble over, or build paths of.

    Raises:
        BadReplyError: If it is no reply to this request.
    """
    path = request.url.path
    if response.is_error and _READ_IN_ERRORS.get(path) != response.status_code:
        return
    if "/resolve/" in path:
        for name in ("ETag", constants.HUGGINGFACE_HEADER_X_LINKED_ETAG):
            _require(response.headers.get(name), (_ETAG, None), f"the header {name}")
        name = constants.HUGGINGFACE_HEADER_X_REPO_COMMIT
        _require(response.headers.get(name), (_COMMIT, None), f"the header {name}")
        name = constants.HUGGINGFACE_HEADER_X_LINKED_SIZE
        _require(response.headers.get(name), (re.compile("[0-9]{1,18}"), None), f"the header {name}")
        _check_location(request, response)
        if constants.HUGGINGFACE_HEADER_X_XET_HASH in response.headers:
            _check_xet(request, response)
        return
    shape = next((s for method, pattern, s in _SHAPES if method == request.method and pattern.fullmatch(path)), None)
    if shape is None or is_stream or response.is_redirect:
        return
    try:
        content = json.loads(response.content)
    except (ValueError, RecursionError) as error:
        raise BadReplyError("its reply is no JSON") from error
    _require(content, shape, "its reply")
    if "/tree/" in path:
        _check_next(request, response)
    elif "/preupload/" in path:
        named = {file["path"] for file in content["files"]}
        if not all(file["path"] in named for file in json.loads(request.content)["files"]):
            raise BadReplyError("its reply names other files than were asked for")
    elif path.endswith("/objects/batch"):
        asked = {item["oid"] for item in json.loads(request.content)["objects"]}
        for item in content["objects"]:
            if item["oid"] not in asked:
                raise BadReplyError("its reply names other files than were asked for")
            _check_actions(request, item.get("actions") or {})


def _check_error(response: Any) -> None:
    """Refuses the body of an error that the client would stumble over; it takes one that is no JSON."""
    try:
        fits = _fits(json.loads(response.read()), {"errors?": ([dict], None)})
    except json.JSONDecodeError:
        return
    except (ValueError, RecursionError):
        fits = False
    if not fits:
        raise BadReplyError(f"HTTP {response.status_code}, and its reply is not what the Hub answers")


def _check_location(request: Any, response: Any) -> None:
    try:
        there = urlsplit(urljoin(str(request.url), response.headers.get("Location", "")))
    except ValueError as error:
        raise BadReplyError("the header Location is no address") from error
    if there.scheme not in ("http", "https") or not there.hostname:
        raise BadReplyError("the header Location is no address")


def _check_xet(request: Any, response: Any) -> None:
    """The token goes to where Xet, the Hub's storage, is said to give one of its own."""
    link = response.links.get(constants.HUGGINGFACE_HEADER_LINK_XET_AUTH_KEY, {})
    route = link.get("url") or response.headers.get(constants.HUGGINGFACE_HEADER_X_XET_REFRESH_ROUTE)
    if route is not None and not _is_hub(request, route):
        raise BadReplyError("it wants the token to be sent elsewhere")


def _check_next(request: Any, response: Any) -> None:
    """The token goes to wherever the next page is said to be."""
    link = response.links.get("next")
    if link is not None and not _is_hub(request, link.get("url", "")):
        raise BadReplyError("it names a next page elsewhere")


def _check_actions(request: Any, actions: dict[str, Any]) -> None:
    header = actions.get("upload", {}).get("header", {})
    _require(header.get("chunk_size", "1"), re.compile("[1-9][0-9]{0,17}"), "its reply")
    _require(list(header.values()), [str], "its reply")
    if actions.get("verify") and not _is_hub(request, actions["verify"]["href"]):
        raise BadReplyError("it wants the token to be sent elsewhere")


def _is_hub(request: Any, url: str) -> bool:
    try:
        there = _httpx.URL(url)
    except (_httpx.InvalidURL, ValueError):
        return False
    origins = [(each.scheme, each.host, each.port) for each in (there, request.url, _httpx.URL(_HUB))]
    return origins[0] in origins[1:]


def _require(value: Any, shape: Any, what: str) -> None:
    if not _fits(value, shape):
        raise BadReplyError(f"{what} is not what the Hub answers")


def _fits(value: Any, shape: Any) -> bool:
    if isinstance(shape, tuple):
        return any(_fits(value, option) for option in shape)
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(
            _fits(value[name.rstrip("?")], inner) if name.rstrip("?") in value else name.endswith("?")
            for name, inner in shape.items()
        )
    if isinstance(shape, list):
        return isinstance(value, list) and all(_fits(item, shape[0]) for item in value)
    if isinstance(shape, re.Pattern):
        return isinstance(value, str) and shape.fullmatch(value) is not None
    if isinstance(shape, range):
        return type(value) is int and value in shape
    return value is None if shape is None else type(value) is shape
