"""Validation of Hub replies, whose values the client uses in paths and URLs without checks."""

import json
import re
import sys
from typing import Any
from urllib.parse import urljoin, urlsplit

from huggingface_hub import constants
from huggingface_hub.errors import HTTPError

_httpx: Any = sys.modules[HTTPError.__module__]


class BadReplyError(HTTPError):
    """An invalid reply of the Hub."""


_COMMIT = re.compile(r"[0-9a-f]{40}")
_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z")
_ETAG = re.compile(r"(W/)?\"?[\w+=-][\w.+=-]{0,127}\"?")
_SIZE = range(2**63)
_HUB = "https://huggingface.co"
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
# Shapes of replies by method and path.
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
# Error statuses whose replies the client reads as well.
_READ_IN_ERRORS = {"/api/validate-yaml": 400, "/api/repos/create": 409}


def is_api(request: Any) -> bool:
    return "/api/" in request.url.path or ".git/info/lfs/" in request.url.path


def check_reply(request: Any, response: Any, is_stream: bool) -> None:
    """Validates a successful reply."""
    path = request.url.path
    if response.is_error and _READ_IN_ERRORS.get(path) != response.status_code:
        return
    if "/resolve/" in path:
        _check_file(request, response)
        return
    shape = next((s for method, pattern, s in _SHAPES if method == request.method and pattern.fullmatch(path)), None)
    if shape is None or is_stream or response.is_redirect:
        return
    try:
        content = json.loads(response.content)
    except (ValueError, RecursionError) as error:
        raise BadReplyError("its reply is not JSON") from error
    require(content, shape, "its reply")
    if "/tree/" in path:
        _check_next(request, response)
    elif "/preupload/" in path:
        _check_named(
            {file["path"] for file in json.loads(request.content)["files"]} - {f["path"] for f in content["files"]}
        )
    elif path.endswith("/objects/batch"):
        requested = {item["oid"] for item in json.loads(request.content)["objects"]}
        _check_named({item["oid"] for item in content["objects"]} - requested)
        for item in content["objects"]:
            _check_actions(request, item.get("actions") or {})


def _check_named(unexpected: set[str]) -> None:
    if unexpected:
        raise BadReplyError("its reply names files that were not requested")


def _check_file(request: Any, response: Any) -> None:
    """The headers of a file, or of a redirect to it."""
    shapes = {
        "ETag": (_ETAG, None),
        constants.HUGGINGFACE_HEADER_X_LINKED_ETAG: (_ETAG, None),
        constants.HUGGINGFACE_HEADER_X_REPO_COMMIT: (_COMMIT, None),
        constants.HUGGINGFACE_HEADER_X_LINKED_SIZE: (re.compile("[0-9]{1,18}"), None),
    }
    for name, shape in shapes.items():
        require(response.headers.get(name), shape, f"the header {name}")
    _check_location(request, response)
    if constants.HUGGINGFACE_HEADER_X_XET_HASH in response.headers:
        _check_xet(request, response)


def check_error(response: Any) -> None:
    """Validates the body of an error reply, which may be other than JSON."""
    try:
        fits = _fits(json.loads(response.read()), {"errors?": ([dict], None)})
    except json.JSONDecodeError:
        return
    except (ValueError, RecursionError):
        fits = False
    if not fits:
        raise BadReplyError(f"HTTP {response.status_code} with an invalid body")


def _check_location(request: Any, response: Any) -> None:
    try:
        there = urlsplit(urljoin(str(request.url), response.headers.get("Location", "")))
    except ValueError as error:
        raise BadReplyError("the header Location is not a URL") from error
    if there.scheme not in ("http", "https") or not there.hostname:
        raise BadReplyError("the header Location is not a URL")


def _check_xet(request: Any, response: Any) -> None:
    """The client sends the token to this URL to get one for Xet, the Hub's storage."""
    link = response.links.get(constants.HUGGINGFACE_HEADER_LINK_XET_AUTH_KEY, {})
    route = link.get("url") or response.headers.get(constants.HUGGINGFACE_HEADER_X_XET_REFRESH_ROUTE)
    if route is not None and not _is_hub(request, route):
        raise BadReplyError("it requests the token for another server")


def _check_next(request: Any, response: Any) -> None:
    """The client sends the token to the URL of the next page."""
    link = response.links.get("next")
    if link is not None and not _is_hub(request, link.get("url", "")):
        raise BadReplyError("its next page is on another server")


def _check_actions(request: Any, actions: dict[str, Any]) -> None:
    header = actions.get("upload", {}).get("header", {})
    require(header.get("chunk_size", "1"), re.compile("[1-9][0-9]{0,17}"), "its reply")
    require(list(header.values()), [str], "its reply")
    if actions.get("verify") and not _is_hub(request, actions["verify"]["href"]):
        raise BadReplyError("it requests the token for another server")


def _is_hub(request: Any, url: str) -> bool:
    try:
        there = _httpx.URL(url)
    except (_httpx.InvalidURL, ValueError):
        return False
    origins = [(each.scheme, each.host, each.port) for each in (there, request.url, _httpx.URL(_HUB))]
    return origins[0] in origins[1:]


def require(value: Any, shape: Any, what: str) -> None:
    if not _fits(value, shape):
        raise BadReplyError(f"{what} is invalid")


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
