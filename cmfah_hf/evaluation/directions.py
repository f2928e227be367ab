"""Directions of a retrieval task, from images to texts and back: checked codes, and the relevance of items to queries.

Shapes: `Q` queries, `N` database items, `K` bits, `C` classes, `L` levels of a ranking (see levels.py).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from cmfah_hf.errors import HashIndexError, QueryError
from cmfah_hf.evaluation.labels import encode_keys, encode_labels
from cmfah_hf.evaluation.levels import count_relevant, hamming_levels, iterate_levels, unit_rows
from cmfah_hf.retrieval.codes import as_array, pack, round_for_aqd, sign

DIRECTIONS = ("i2t", "t2i")


@dataclass(frozen=True)
class Codes:
    """Continuous codes `(N, K)` and the name of the argument that gave them, for errors."""

    name: str
    values: np.ndarray

    def for_queries(self, ranking: str) -> np.ndarray:
        """The form in which queries are ranked: packed, rounded, or of length 1."""
        convert = {"hamming": pack, "aqd": round_for_aqd, "cosine": unit_rows}[ranking]
        return self.converted(convert)

    def for_database(self, ranking: str) -> np.ndarray:
        """The form in which items are searched: packed, or of length 1."""
        return self.converted(unit_rows if ranking == "cosine" else pack)

    def converted(self, convert: Callable[[Any], np.ndarray]) -> np.ndarray:
        return _naming(self.name, convert, self.values)


@dataclass(frozen=True)
class Direction:
    """One direction of retrieval.

    Attributes:
        queries, database: The codes of `Q` queries and `N` items.
        relevance_q, relevance_db: Multi-hot labels `(Q, C)` and `(N, C)`, or keys `(Q,)` and `(N,)`.
    """

    queries: Codes
    database: Codes
    relevance_q: np.ndarray
    relevance_db: np.ndarray

    def count_relevant(self) -> np.ndarray:
        """The number of relevant items of each query, `(Q,)`."""
        return count_relevant(self.relevance_q, self.relevance_db)

    def levels(self, ranking: str, ties: str = "expected") -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """As `iterate_levels`."""
        queries, database = self.queries.for_queries(ranking), self.database.for_database(ranking)
        return iterate_levels(ranking, queries, database, self.relevance_q, self.relevance_db, ties)

    def constant_levels(self) -> tuple[np.ndarray, np.ndarray]:
        """Counts per Hamming distance, `(Q, K + 1)` each, if all queries had the code of their mean."""
        mean_K = self.queries.values.mean(axis=0, dtype=np.float64)
        codes_q = np.repeat(pack(np.where(mean_K >= 0, 1.0, -1.0)[None]), len(self.queries.values), axis=0)
        return hamming_levels(codes_q, self.database.for_database("hamming"), self.relevance_q, self.relevance_db)


def labeled_directions(
    image_hash_q: Any, text_hash_q: Any, image_hash_db: Any, text_hash_db: Any, labels_q: Any, labels_db: Any
) -> dict[str, Direction]:
    """The directions between queries and a database with labels: arguments and errors of `RetrievalEvaluator`."""
    labels_q, labels_db = encode_labels(labels_q, labels_db)
    image_q, text_q, image_db, text_db = _checked(
        ("image_hash_q", image_hash_q, "labels_q", labels_q),
        ("text_hash_q", text_hash_q, "labels_q", labels_q),
        ("image_hash_db", image_hash_db, "labels_db", labels_db),
        ("text_hash_db", text_hash_db, "labels_db", labels_db),
    )
    return {
        "i2t": Direction(image_q, text_db, labels_q, labels_db),
        "t2i": Direction(text_q, image_db, labels_q, labels_db),
    }


def paired_directions(image_hash: Any, text_hash: Any, image_pairs: Any, text_pairs: Any) -> dict[str, Direction]:
    """The directions between images and texts that are pairs: arguments and errors of `RetrievalEvaluator.pairs`."""
    rows = [_naming(name, as_array, values) for name, values in (("image_hash", image_hash), ("text_hash", text_hash))]
    if image_pairs is None and text_pairs is None:
        image_pairs, text_pairs = (np.arange(len(np.atleast_1d(values))) for values in rows)
    keys_image, keys_text = encode_keys(image_pairs, text_pairs)
    images, texts = _checked(
        ("image_hash", rows[0], "image_pairs", keys_image), ("text_hash", rows[1], "text_pairs", keys_text)
    )
    if not np.isin(keys_image, keys_text).any():
        raise QueryError("image_pairs and text_pairs have no key in common; give a pair's image and texts the same.")
    return {
        "i2t": _from_partnered(images, texts, keys_image, keys_text),
        "t2i": _from_partnered(texts, images, keys_text, keys_image),
    }


def _from_partnered(queries: Codes, database: Codes, keys_q: np.ndarray, keys_db: np.ndarray) -> Direction:
    """The direction from the items that have a partner in the database."""
    partnered = np.isin(keys_q, keys_db)
    return Direction(Codes(queries.name, queries.values[partnered]), database, keys_q[partnered], keys_db)


def _checked(*given: tuple[str, Any, str, np.ndarray]) -> list[Codes]:
    """Codes of one row per item and equal bits, of triples of name, values, and name and rows of their relevance."""
    checked: list[Codes] = []
    for name, values, rows_name, rows in given:
        codes = Codes(name, _naming(name, as_array, values))
        if codes.values.ndim != 2 or not codes.values.size:
            raise QueryError(f"{name} has the shape {codes.values.shape}; give one row of codes an item.")
        if len(codes.values) != len(rows):
            raise QueryError(f"{name} has the shape {codes.values.shape}, but {rows_name} has {len(rows)} rows.")
        bits = (checked or [codes])[0].values.shape[1]
        if codes.values.shape[1] != bits:
            raise QueryError(f"{name} has the shape {codes.values.shape}, but {checked[0].name} has {bits} bits.")
        checked.append(codes)
    for codes in checked:
        codes.converted(sign)  # raises for values that are no codes
    return checked


def _naming(name: str, convert: Callable[[Any], np.ndarray], values: Any) -> np.ndarray:
    try:
        return convert(values)
    except HashIndexError as error:
        raise QueryError(f"{name}: {error}") from error
