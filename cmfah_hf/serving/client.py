"""A client of `cmfah serve`, without any library for models."""

import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn
from urllib.parse import urlsplit

import httpx
from PIL import Image

from cmfah_hf.errors import ImageError, QueryError, SearchServerError
from cmfah_hf.retrieval.terms import Term
from cmfah_hf.serving.limits import ServiceLimits
from cmfah_hf.serving.protocol import API_HEADER, API_VERSION
from cmfah_hf.space.hosts import is_loopback
from cmfah_hf.space.uploads import FORMATS, open_upload

# Seconds until a connection, and until a reply.
_CONNECT_SECONDS, _REPLY_SECONDS = 10.0, 90.0
_MOST_BYTES = 64 * 2**20
# Pixels whose PNG is never larger than a server takes, of 3 bytes each before they are compressed.
_LIMITS = ServiceLimits()
_PNG_PIXELS = _LIMITS.image_bytes * 97 // 100 // 3


class SearchClient:
    """Sends requests to a server of `cmfah serve`.

    Args:
        url: Its address, such as `http://127.0.0.1:8008`.
        token: Its token.

    Raises:
        SearchServerError: If the address is none.

    Example:

    ```python
    >>> with SearchClient("http://127.0.0.1:8008") as client:
    ...     client.search("a dog on the beach", k=1)["answers"]
    [[{'id': 'beach.jpg', 'score': 31.5, 'metadata': {}}]]
    ```"""

    def __init__(self, url: str, token: str | None = None):
        self.url = url.rstrip("/")
        host = _host_of(self.url)
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        try:
            self._client = httpx.Client(
                base_url=self.url,
                headers=headers,
                timeout=httpx.Timeout(_REPLY_SECONDS, connect=_CONNECT_SECONDS),
                trust_env=not is_loopback(host),  # no proxy reaches this machine
            )
        except httpx.InvalidURL as error:
            raise _no_address(url) from error

    def __enter__(self) -> "SearchClient":
        return self

    def __exit__(self, *_: Any) -> None:
        self._client.close()

    def search(
        self,
        text: str | Sequence[str] | None = None,
        k: int = 10,
        target: str | None = None,
        metric: str = "aqd",
        where: Sequence[str] = (),
        exact: bool = True,
        image_weight: float = 0.5,
        terms: Sequence[Term] | None = None,
        unique: int | None = None,
        min_score: float | None = None,
        paths: bool = False,
    ) -> dict[str, Any]:
        """The reply to a search: `answers`, a list of rows for each query, `columns`, `ignored_words`, `similar_words`.

        Args:
            where: Conditions as the command line writes them, such as `year=2024`.
            terms: In place of `text`, weighted terms of one query. Their images are paths, bytes or open files. Those
                of formats that a server does not read, or of more bytes than it takes, are decoded here and sent as
                PNG, of at most 2.7 megapixels.
            paths: Whether each answer has the `path` of its image on the server.

        The other arguments are those of `CrossMediaRetriever.search`.

        Raises:
            QueryError: If there is no answer to such a request.
            ImageError: If an image cannot be read.
            SearchServerError: If the server does not answer, refuses the request, or is of another version.
        """
        asked: dict[str, Any] = {
            "k": k, "target": target, "metric": metric, "where": list(where), "exact": exact,
            "image_weight": image_weight, "unique": unique, "min_score": min_score, "paths": paths,
        }  # fmt: skip
        images: list[bytes] = []
        if text is not None:
            asked["text"] = text if isinstance(text, str) else list(text)
        if terms is not None:
            asked["terms"] = [_described(term, images) for term in terms]
        reply = self._post("/search", asked, images)
        answers = reply.get("answers")
        if not (isinstance(answers, list) and answers and all(map(_are_hits, answers))):
            self._not_understood("its answers have another form")
        for name in ("columns", "ignored_words"):
            if not _are_texts(reply.get(name)):
                self._not_understood(f"its {name} have another form")
        similar = reply.get("similar_words")
        if not isinstance(similar, dict) or not all(map(_are_texts, similar.values())):
            self._not_understood("its similar_words have another form")
        return reply

    def _post(self, path: str, asked: Mapping[str, Any], images: Sequence[bytes]) -> dict[str, Any]:
        given: dict[str, Any] = {"json": asked}
        if images:
            given = {"data": {"query": json.dumps(asked)}, "files": [("image", content) for content in images]}
        try:
            with self._client.stream("POST", path, **given) as response:
                content = self._read(response)
        except httpx.TimeoutException as error:
            raise SearchServerError(f"{self.url}: there was no answer in time; try again later.") from error
        except httpx.RequestError as error:
            reason = str(error) or type(error).__name__
            raise SearchServerError(
                f"{self.url}: no connection ({reason}); start a server with `cmfah serve`, or check the address."
            ) from error
        return self._checked(response, content)

    def _read(self, response: httpx.Response) -> bytes:
        content = bytearray()
        for part in response.iter_bytes():
            content += part
            if len(content) > _MOST_BYTES:
                self._not_understood(f"its reply has more than {_MOST_BYTES:,} bytes")
        return bytes(content)

    def _checked(self, response: httpx.Response, content: bytes) -> dict[str, Any]:
        version = response.headers.get(API_HEADER)
        if version is None:
            self._not_understood(f"HTTP {response.status_code} without the header {API_HEADER}")
        if version != str(API_VERSION):
            raise SearchServerError(
                f"{self.url}: the server has version {version!r:.20} of the interface, and this program version "
                f"{API_VERSION}; install the same release on both sides."
            )
        try:
            reply = json.loads(content)
        except (ValueError, RecursionError):
            self._not_understood("its reply is no JSON")
        if not isinstance(reply, dict):
            self._not_understood("its reply is no JSON object")
        if response.status_code == 200:
            return reply
        detail = str(reply.get("detail", f"HTTP {response.status_code}"))
        if response.status_code == 422:
            raise QueryError(detail)
        if response.status_code == 401:
            detail = "the token is missing or wrong; set CMFAH_TOKEN, or pass --token-file."
        raise SearchServerError(f"{self.url}: {detail}")

    def _not_understood(self, reason: str) -> NoReturn:
        raise SearchServerError(f"{self.url}: this is no server of `cmfah serve` ({reason}); check the address.")


def _described(term: Term, images: list[bytes]) -> dict[str, Any]:
    """A term as `WeightedTerm`; the content of its image is appended to `images`."""
    if term.image is None:
        return {"text": term.text, "weight": term.weight}
    from cmfah_hf.data.images.decoding import read_image_bytes

    content = read_image_bytes(term.image, term.name)
    images.append(content if _is_taken(content) else _as_png(content, term.name))
    return {"image": len(images) - 1, "weight": term.weight}


def _is_taken(content: bytes) -> bool:
    """Whether servers with the default limits read an image file."""
    try:
        open_upload(content, _LIMITS.image_pixels, FORMATS)
    except ImageError:
        return False
    return len(content) <= _LIMITS.image_bytes


def _as_png(content: bytes, name: str) -> bytes:
    """An image file of any installed format as PNG, without loss, and made smaller only beyond a server's limit.

    Raises:
        ImageError: If it cannot be decoded.
    """
    from cmfah_hf.data.images.decoding import decode_image
    from cmfah_hf.models.image_modes import to_rgb

    image = to_rgb(decode_image(io.BytesIO(content), name))
    share = math.sqrt(_PNG_PIXELS / (image.width * image.height))
    if share < 1:
        width = min(max(1, int(image.width * share)), _PNG_PIXELS)
        height = min(max(1, int(image.height * share)), _PNG_PIXELS // width)
        image = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3)
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _are_hits(hits: Any) -> bool:
    return isinstance(hits, list) and all(
        isinstance(hit, dict)
        and isinstance(hit.get("id"), (str, int))
        and isinstance(hit.get("score"), (int, float))
        and isinstance(hit.get("metadata"), dict)
        and isinstance(hit.get("folded", []), list)
        and isinstance(hit.get("probability", 0.0), (int, float))
        for hit in hits
    )


def _are_texts(texts: Any) -> bool:
    return isinstance(texts, list) and all(isinstance(text, str) for text in texts)


def _host_of(url: str) -> str:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:  # brackets that hold no address, or a port that is no number
        host = None
    if not host or parts.scheme not in ("http", "https") or parts.query or parts.fragment or parts.username:
        raise _no_address(url)
    return host


def _no_address(url: str) -> SearchServerError:
    return SearchServerError(f"{url:.200}: give the address of a server, such as http://127.0.0.1:8008.")
