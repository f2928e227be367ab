"""The endpoints of the search service: requests in, replies out."""

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from PIL import Image

import cmfah_hf
from cmfah_hf.errors import QueryError
from cmfah_hf.retrieval.terms import Term
from cmfah_hf.serving.bodies import read_body
from cmfah_hf.serving.limits import ServiceLimits
from cmfah_hf.serving.metrics import Metrics
from cmfah_hf.serving.schemas import AddRequest, RemoveRequest, SearchRequest, SyncRequest, WeightedTerm
from cmfah_hf.serving.served import MODALITIES, Found, ServedRetriever
from cmfah_hf.serving.syncs import FolderSyncs
from cmfah_hf.serving.workers import Workers
from cmfah_hf.space.requests import RefusedError


class JsonReply(Response):
    """A reply in ASCII, which has every string, also the names of files that are no valid Unicode."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


class Endpoints:
    """The endpoints over a served retriever; their docstrings are their descriptions in OpenAPI."""

    def __init__(self, served: ServedRetriever, limits: ServiceLimits):
        self.served, self.limits = served, limits
        self.workers = Workers(limits.at_once, limits.waiting, limits.answer_seconds)
        self.syncs, self.metrics = FolderSyncs(served), Metrics(served, self.workers)

    def close(self) -> None:
        """Waits for what is running; an update of folders ends at its next batch."""
        self.workers.close()
        self.syncs.close()

    async def health(self) -> Response:
        """Whether the server answers. It needs no token."""
        return JsonReply({"status": "ok", "version": cmfah_hf.__version__})

    async def info(self) -> Response:
        """The model and the indexes."""
        indexes = {}
        for target in MODALITIES:
            index = self.served.index(target)
            indexes[target] = {
                "items": len(index),
                "id_type": index.id_type,
                "columns": [] if index.metadata is None else index.metadata.column_names,
                "folders": [] if index.folders is None else [root.name for root in index.folders.roots],
                "is_writable": target in self.served.files,
                "is_saved": self.served.is_saved(target),
            }
        retriever = self.served.retriever
        facts = {"version": cmfah_hf.__version__, "model": retriever.fingerprint}
        return JsonReply({**facts, "bits": retriever.hash_bits, "indexes": indexes})

    async def show_metrics(self) -> Response:
        """Counts and times of requests, and sizes of indexes, in Prometheus' text format."""
        text = self.metrics.text()
        if text is None:
            raise RefusedError(501, "Metrics need prometheus_client on the server: pip install 'cmfah-hf[serve]'.")
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def search(self, request: Request) -> Response:
        """The nearest items of a text, of uploaded images, of both, or of weighted terms."""
        body = await read_body(request, SearchRequest, self.limits)
        asked, images, limits = body.asked, body.images, self.limits
        texts = [] if asked.text is None else [asked.text] if isinstance(asked.text, str) else asked.text
        words = [*texts, *(term.text for term in asked.terms or () if term.text is not None), *asked.where]
        _check_count("k", asked.k, limits.k)
        _check_count("The number of texts", len(texts), limits.texts)
        _check_count("The number of terms", len(asked.terms or ()), limits.texts)
        _check_count("The number of conditions", len(asked.where), limits.conditions)
        _check_lengths(words, limits)
        _check_count("The number of pixels of all images", sum(map(_pixels, images)), limits.image_pixels)
        terms = None
        if asked.terms is not None:
            terms, images = [_term(term, images) for term in asked.terms], []
        found = await self.workers.run(
            self.served.search, asked.text, images, asked.k, asked.target, asked.metric, asked.where, asked.exact,
            asked.image_weight, terms, asked.unique, asked.min_score,
        )  # fmt: skip
        return JsonReply(_reply(found, asked.metric, asked.paths))

    async def add(self, request: Request) -> Response:
        """Adds texts, or uploaded images: all, or on an error none. Codes are stored; texts and images are not."""
        body = await read_body(request, AddRequest, self.limits)
        asked, texts, images = body.asked, body.asked.texts, body.images
        if (texts is None) == (not images):
            raise QueryError("Give either texts, or images as files of a form.")
        count = len(images) if texts is None else len(texts)
        if len(asked.ids) != count:
            raise QueryError(f"{count} items came with {len(asked.ids)} ids; give one id for each item.")
        _check_ids(asked.ids, self.limits)
        if texts is None:
            items = await self.workers.run(self.served.add_images, images, asked.ids, asked.metadata, asked.replace)
        else:
            _check_count("The number of texts", len(texts), self.limits.texts)
            _check_lengths(texts, self.limits)
            items = await self.workers.run(self.served.add_texts, texts, asked.ids, asked.metadata, asked.replace)
        return JsonReply({"changed": count, "items": items})

    async def remove(self, request: Request) -> Response:
        """Removes items by their ids: all, or on an error none."""
        asked = (await read_body(request, RemoveRequest, self.limits)).asked
        _check_count("The number of ids", len(asked.ids), self.limits.ids)
        _check_ids(asked.ids, self.limits)
        removed = await self.workers.run(self.served.remove, asked.ids, asked.target)
        return JsonReply({"changed": removed, "items": len(self.served.index(asked.target))})

    async def last_sync(self) -> Response:
        """The state of the last update of the folders."""
        return JsonReply(self.syncs.describe())

    async def sync(self, request: Request) -> Response:
        """Brings the index of images up to date with the folders that the server was started with."""
        asked = (await read_body(request, SyncRequest, self.limits)).asked
        ended = self.syncs.start(asked.dry_run)
        await asyncio.wait([asyncio.wrap_future(ended)], timeout=asked.wait)
        state = self.syncs.describe()
        return JsonReply(state, {"running": 202, "failed": 422}.get(state["state"], 200))


def _reply(found: Found, metric: str, with_paths: bool) -> dict[str, Any]:
    table = found.results.metadata
    fields = {"id", "score", "metadata", "probability", "folded"} | ({"path"} if with_paths else set())
    answers = [[{name: hit[name] for name in hit if name in fields} for hit in own.hits()] for own in found.results]
    return {
        "metric": metric,
        "target": found.target,
        "ignored_words": found.ignored_words,
        "similar_words": found.similar_words,
        "columns": [] if table is None else table.column_names,
        "answers": _plain(answers),
    }


def _term(asked: WeightedTerm, images: Sequence[Image.Image]) -> Term:
    if asked.image is None:
        return Term(asked.text, weight=asked.weight)
    if asked.image >= len(images):
        raise QueryError(f"A term names image {asked.image}, and {len(images)} images were uploaded; count from 0.")
    return Term(asked.text, images[asked.image], asked.weight)


def _pixels(image: Image.Image) -> int:
    return image.width * image.height


def _plain(value: Any) -> Any:
    """A value of metadata as JSON has it: dates and the like as texts, and no value for NaN and infinities."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int)) else str(value)


def _check_count(name: str, count: int, most: int) -> None:
    if count > most:
        raise QueryError(f"{name} is {count:,}, and at most {most:,} here.")


def _check_lengths(texts: Sequence[str], limits: ServiceLimits) -> None:
    for text in texts:
        _check_count("The number of characters of a text", len(text), limits.text_characters)


def _check_ids(ids: Sequence[Any], limits: ServiceLimits) -> None:
    """One type of ids, of bounded lengths."""
    if len({type(item_id) for item_id in ids}) > 1:
        raise QueryError("Some ids are texts and some are numbers; give ids of one type.")
    _check_lengths([item_id for item_id in ids if isinstance(item_id, str)], limits)
