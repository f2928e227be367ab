"""The engine of a Space, without the page: timed searches, attention, pairs of codes.

Shapes: N images, K bits, R regions, W words.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
from PIL import Image
from transformers.utils import cached_file

from cmfah_hf.documents import read_json
from cmfah_hf.errors import CheckpointError, DataError, QueryError
from cmfah_hf.evaluation.attention import attention_of_words
from cmfah_hf.evaluation.pointing import region_weights
from cmfah_hf.retrieval import CrossMediaRetriever
from cmfah_hf.retrieval.base import Metric
from cmfah_hf.retrieval.codes import sign, unpack
from cmfah_hf.retrieval.index import METRICS
from cmfah_hf.retrieval.probabilities import calibration_of, with_probabilities
from cmfah_hf.retrieval.queries import combined_values
from cmfah_hf.retrieval.terms import WEIGHT_TO_AVOID, Term
from cmfah_hf.space.code_map import CodeMap
from cmfah_hf.space.examples import example_queries
from cmfah_hf.space.images import Images
from cmfah_hf.space.settings import LONGEST_QUERY, MOST_RESULTS, SpaceSettings
from cmfah_hf.space.sources import index_of, indexed_images, read_pairs

# Images decoded at full size at the same time.
_BATCH = 32
# A search is timed as the median of this many runs. One run alone would show what a thread pays once, tens of
# milliseconds for half of one.
TIMED_RUNS = 5
_METRICS_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Ranking:
    """One answer.

    Attributes:
        rows: The rows of the images, nearest first.
        scores: Their scores.
        milliseconds: The median time of the search.
        probabilities: That they are relevant; None if the model has no calibration of this direction.
    """

    rows: list[int]
    scores: list[float]
    milliseconds: float
    probabilities: list[float] | None = None


@dataclass(frozen=True, eq=False)
class Query:
    """An encoded query, which can be answered again with other settings.

    Attributes:
        values: Its continuous code `(1, K)`.
        text: Its text; empty for an image.
        targets: What is searched: `images`, and for an image also `texts` if there are any.
        ignored_words: Words that neither the vocabulary nor the word graph holds.
        encoding: Milliseconds that encoding took.
    """

    values: np.ndarray
    text: str
    targets: tuple[str, ...]
    ignored_words: list[str]
    encoding: float


@dataclass(frozen=True)
class Answer:
    """A query's answer.

    Attributes:
        query: The query.
        rankings: By target (`images`, `texts`) and metric.
        ignored_words: Words of the query, and of what answers should not show, that the model does not know.
    """

    query: Query
    rankings: dict[str, dict[str, Ranking]]
    ignored_words: list[str]


@dataclass(frozen=True)
class Attention:
    """Weights `(R, W)` of an image's regions and a text's words, and the place of the regions.

    Attributes:
        grid: Rows and columns of the regions.
        seen: Left, top, right and bottom of the part of the image that they cover, as shares of width and height.
    """

    words: list[str]
    weights: np.ndarray
    grid: tuple[int, int]
    seen: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)


class Engine:
    """A model and its images, with everything that the page shows of them.

    Args:
        settings: The model and the data to load.
        folder: Of the Space; relative models are looked for below it.

    Raises:
        CMFAHError: If the model or the data cannot be used.
    """

    def __init__(self, settings: SpaceSettings, folder: Path):
        self.settings, self.source = settings, settings.model_source(folder)
        self.retriever = CrossMediaRetriever.from_pretrained(self.source)
        self.images = Images()
        self._row_of: dict[str, int] = {}
        index = index_of(settings)
        if index is None:
            self._encode_sources()
        else:
            self._open_index(index)
        self._row_of = {item_id: row for row, item_id in enumerate(self.images.ids)}
        self._warm_up()

    def _encode_sources(self) -> None:
        codes_NK = self.retriever.encode_images(self._keep_pairs(), _BATCH)
        if not len(self.images):
            shown = ", ".join(self.settings.sources)
            raise DataError(f"{shown}: not one of its images can be read; see the warnings above.")
        self.retriever.images.add(codes_NK, ids=range(len(self.images)))
        if any(self.images.texts):
            self.retriever.add_texts(self.images.texts, ids=range(len(self.images)))

    def _keep_pairs(self) -> Iterator[Image.Image]:
        """Keeps a thumbnail and the text of each pair, and yields the image at full size."""
        for pair in read_pairs(self.settings):
            self.images.add(pair.item_id, pair.image, pair.text, pair.file, pair.place)
            yield pair.image

    def _open_index(self, path: Path) -> None:
        """Takes the codes of an index; its images are read from their files when they are shown."""
        index = self.retriever.load_index(path, mmap=True)
        items = indexed_images(index, path)
        for item in items:
            self.images.add_file(item.item_id, item.file, item.text, item.place)
        self.retriever.images.add(index.codes[[item.row for item in items]], ids=range(len(items)))

    def _warm_up(self) -> None:
        """Builds lazy structures before the first user, by a query of each kind and both rankings."""
        self.search(image=self.images.image(0), k=MOST_RESULTS)
        self.retriever.encode_texts([self.examples()[0]])

    @property
    def bits(self) -> int:
        """`K`."""
        return self.retriever.hash_bits

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The metrics of the run; empty if there are none.

        Raises:
            CheckpointError: If the file is damaged.
        """
        quietly = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        path = cached_file(self.source, "metrics.json", **quietly)
        found = read_json(path, CheckpointError, _METRICS_BYTES) if path is not None else {}
        if not isinstance(found, dict):
            raise CheckpointError(f"{path} is not a JSON object; train again, or delete it.")
        return found

    def examples(self, count: int = 6) -> list[str]:
        """Example queries: those of the settings, else two known words of some images' texts, or of any images."""
        if self.settings.examples:
            return list(self.settings.examples[:count])
        return example_queries(self.retriever.reader, self.images.texts, count)

    def row(self, item_id: str) -> int:
        """The row of an image.

        Raises:
            QueryError: If the id is unknown.
        """
        if not isinstance(item_id, str) or item_id not in self._row_of:
            raise QueryError(f"Unknown image {item_id!r:.80}; choose one of the list.")
        return self._row_of[item_id]

    def search(
        self,
        text: str | None = None,
        image: Image.Image | None = None,
        k: int = 12,
        avoid: str | None = None,
        least: float = 0,
    ) -> Answer:
        """The nearest images of a text; of an image the nearest images and texts. By both metrics, timed.

        Args:
            text: The words; or
            image: The image.
            k: The number of answers.
            avoid: As for `answer`.
            least: As for `answer`.

        Raises:
            QueryError: If there is nothing to search with, a text is too long, or no word of it is known; and as
                `answer`.
        """
        _check_k(k)
        return self.answer(self.query(text, image), k, avoid, least)

    def query(self, text: str | None = None, image: Image.Image | None = None) -> Query:
        """An encoded query: the image if one is given, else the text.

        Raises:
            QueryError: As `search`.
        """
        start = time.perf_counter()
        values = self._values(text, image)
        encoding = 1000 * (time.perf_counter() - start)
        if image is None:
            return Query(values, str(text), ("images",), self.ignored_words(text), encoding)
        targets = ("images", "texts") if len(self.retriever.texts) else ("images",)
        return Query(values, "", targets, [], encoding)

    def answer(self, query: Query, k: int, avoid: str | None = None, least: float = 0) -> Answer:
        """The `k` nearest of an encoded query by both metrics, timed.

        Args:
            query: The query.
            k: The number of answers.
            avoid: Words for what the answers should not show; a negative term of `[terms]`. Unknown words are ignored.
            least: The smallest probability of an answer, where the model has a calibration of the direction.

        Raises:
            QueryError: If `k` is not in 1..24, the words are too long, or cancel out with the query, `least` is not in
                0..1, or it is above 0 and the model has no calibration.
        """
        _check_k(k)
        if isinstance(least, bool) or not isinstance(least, (int, float)) or not 0 <= least <= 1:
            raise QueryError(f"The threshold {least!r:.20} is not a probability; give a number from 0 to 1.")
        if least and not self.is_calibrated:
            raise QueryError("The model has no calibration, so answers have no probabilities; leave the threshold out.")
        avoid = _checked_text(avoid).strip()
        values = query.values
        if avoid and self._is_known(avoid):
            terms = [Term(text=query.text or "the image"), Term(text=avoid, weight=-WEIGHT_TO_AVOID)]
            values = combined_values([values[0], self.retriever.encode_texts([avoid])[0]], terms, 0.5)[None]
        rankings = {
            target: {metric: self._rank(query, values, target, int(k), metric, least) for metric in METRICS}
            for target in query.targets
        }
        return Answer(query, rankings, list(dict.fromkeys([*query.ignored_words, *self.ignored_words(avoid)])))

    def _rank(self, query: Query, values: np.ndarray, target: str, k: int, metric: str, least: float) -> Ranking:
        index = self.retriever.images if target == "images" else self.retriever.texts
        times = []
        for _ in range(TIMED_RUNS):
            start = time.perf_counter()
            found = index.search(values, k=min(k, len(index)), metric=cast(Metric, metric))
            times.append(1000 * (time.perf_counter() - start))
        way = f"{'t' if query.text else 'i'}2{target[0]}"
        found = with_probabilities(self.retriever, found, values, metric, way, len(index), least or None)
        probabilities = None if found.probabilities is None else found.probabilities[0].tolist()
        return Ranking(found.ids[0].tolist(), found.scores[0].tolist(), median(times), probabilities)

    @property
    def is_calibrated(self) -> bool:
        """Whether the model has probabilities of answers."""
        return calibration_of(self.retriever) is not None

    def _is_known(self, text: str) -> bool:
        return self.retriever.reader.has_known_tokens(self.retriever.expand([text])[0])

    def _values(self, text: str | None, image: Image.Image | None) -> np.ndarray:
        if image is not None:
            return self.retriever.encode_images([image])
        text = _checked_text(text).strip()
        if not text:
            raise QueryError("The query is empty; type some words.")
        if not self._is_known(text):
            known = ", ".join(self.examples(3))
            raise QueryError(f"The model knows none of these words; try for example: {known}.")
        return self.retriever.encode_texts([text])

    def ignored_words(self, text: str | None) -> list[str]:
        """The distinct words of a text that neither the vocabulary nor the expander has, in order."""
        return self.retriever.ignored_words(text or "")

    def code(self, text: str) -> np.ndarray:
        """`(K,)` int8 of +-1: the code of a text.

        Raises:
            QueryError: As `search`.
        """
        return sign(self._values(text, None))[0]

    def code_of_image(self, item_id: str) -> np.ndarray:
        """`(K,)` int8 of +-1: the code of an image.

        Raises:
            QueryError: If the id is unknown.
        """
        row = self.row(item_id)
        return unpack(self.retriever.images.codes[row : row + 1])[0]

    def attention(self, text: str, item_id: str) -> Attention:
        """Attention between regions of an image and words of a text.

        Raises:
            QueryError: If the id is unknown, no word is known, or the model has no attention.
        """
        image = self.images.image(self.row(item_id))
        text = _checked_text(text)
        found = attention_of_words(self.retriever.model, self.retriever.processor, image, text)
        weights_RW, grid = region_weights(found.weights, found.words, found.grid)
        (left, top, right, bottom), (width, height) = found.seen, image.size
        seen = left / width, top / height, right / width, bottom / height
        return Attention(found.words, weights_RW, grid, seen)

    @cached_property
    def map(self) -> CodeMap:
        """The map of the images' codes."""
        return CodeMap(self.retriever.images.codes)

    def info(self) -> dict[str, Any]:
        """The index and the model as plain values for the API."""
        return {
            "title": self.settings.title,
            "images": len(self.images),
            "texts": len(self.retriever.texts),
            "bits": self.bits,
            "has_probabilities": self.is_calibrated,
            "has_attention": self.retriever.model.config.attention != "none",
            "examples": self.examples(),
            "most_results": MOST_RESULTS,
            "longest_query": LONGEST_QUERY,
        }

    def document(self, answer: Answer) -> dict[str, Any]:
        """An answer as plain values for the API, without URLs and paths."""

        def hits(ranking: Ranking) -> list[dict[str, Any]]:
            found = zip(ranking.rows, ranking.scores, strict=True)
            rows: list[dict[str, Any]] = [
                {"id": self.images.ids[row], "score": round(score, 4), "text": self.images.texts[row]}
                for row, score in found
            ]
            for hit, probability in zip(rows, ranking.probabilities or (), strict=False):  # none without a calibration
                hit["probability"] = round(probability, 4)
            return rows

        document: dict[str, Any] = {"bits": self.bits, "encoding_ms": round(answer.query.encoding, 3)}
        document["ignored_words"] = answer.ignored_words
        for target, by_metric in answer.rankings.items():
            document[target] = {
                metric: {"ms": round(ranking.milliseconds, 3), "hits": hits(ranking)}
                for metric, ranking in by_metric.items()
            }
        return document


def _check_k(k: Any) -> None:
    if isinstance(k, bool) or not isinstance(k, (int, float)) or k not in range(1, MOST_RESULTS + 1):
        raise QueryError(f"k={k!r:.20}: must be between 1 and {MOST_RESULTS}.")


def _checked_text(text: Any) -> str:
    """Checks type and length of a query text; None becomes empty."""
    text = "" if text is None else text
    if not isinstance(text, str):
        raise QueryError("The query is not a string; send a string.")
    if len(text) > LONGEST_QUERY:
        raise QueryError(f"The query has {len(text):,} characters; write at most {LONGEST_QUERY}.")
    return text
