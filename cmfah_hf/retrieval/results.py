"""Search results: ids, scores, metadata and, of a calibrated model, probabilities of the nearest items.

Shapes: `Q` queries, `k` answers a query.
"""

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cmfah_hf.errors import HashIndexError


@dataclass(frozen=True, eq=False)
class QueryResults:
    """The nearest items of one query, nearest first. Iterating over it gives the rows of `hits`.

    Attributes:
        ids: `(k,)`, int64 or an object array of str, as they were added.
        scores: `(k,)`. Hamming: int32 distances, smaller is nearer. AQD: float32 scores, larger is nearer.
        metadata: An Arrow table of `k` rows. None where the index holds none.
        probabilities: `(k,)` float64, that an answer is relevant. None without a calibration (retrieval/calibration.py).
    """

    ids: np.ndarray
    scores: np.ndarray
    metadata: pa.Table | None = None
    probabilities: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.hits())

    def hits(self) -> list[dict[str, Any]]:
        """The items as rows: `{"id": ..., "score": ..., "metadata": {...}}`, nearest first.

        With a calibration, they have a `"probability"` too.

        Raises:
            HashIndexError: If a value of the metadata has no counterpart in Python, such as a date of the year 10,000.
        """
        try:
            columns = [{}] * len(self) if self.metadata is None else self.metadata.to_pylist()
        except (ValueError, OverflowError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise HashIndexError(
                f"The metadata holds a value that Python does not have ({reason}); read `metadata` as an Arrow table."
            ) from error
        rows = zip(self.ids.tolist(), self.scores.tolist(), columns, strict=True)
        hits = [{"id": item_id, "score": score, "metadata": own} for item_id, score, own in rows]
        if self.probabilities is not None:
            for hit, probability in zip(hits, self.probabilities.tolist(), strict=True):
                hit["probability"] = probability
        return hits


@dataclass(frozen=True, eq=False)
class SearchResults:
    """The `k` nearest items of each query. `results[i]` holds those of query `i`; `len(results)` is `Q`.

    Attributes:
        ids: `(Q, k)`, int64 or an object array of str, as they were added.
        scores: `(Q, k)`. Hamming: int32 distances, smaller is nearer. AQD: float32 scores, larger is nearer.
        metadata: An Arrow table of `Q k` rows, query after query. None where the index holds none.
        probabilities: `(Q, k)` float64, that an answer is relevant. None without a calibration (retrieval/calibration.py).
        kept: `(Q,)` int64, the number of answers of each query that reach `min_score`, its first ones; `results[i]` has only
            these. None without a `min_score`.

    Example:
        >>> from cmfah_hf import HashIndex
        >>> index = HashIndex(bits=8)
        >>> index.add([[0.9] * 8, [-0.9] * 8], ids=["sea", "car"])
        >>> results = index.search([[0.5] * 8, [-0.5] * 8], k=1)
        >>> [result.ids.tolist() for result in results]
        [['sea'], ['car']]
        >>> results[1].hits()
        [{'id': 'car', 'score': 0, 'metadata': {}}]
    """

    ids: np.ndarray
    scores: np.ndarray
    metadata: pa.Table | None = None
    probabilities: np.ndarray | None = None
    kept: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, query: int) -> QueryResults:
        number, queries = operator.index(query), len(self)
        if not -queries <= number < queries:
            raise IndexError(f"There is no query {number} among the results of {queries}.")
        number, k = number % queries, self.ids.shape[1]
        own = k if self.kept is None else int(self.kept[number])
        metadata = None if self.metadata is None else self.metadata.slice(number * k, own)
        probabilities = None if self.probabilities is None else self.probabilities[number, :own]
        return QueryResults(self.ids[number, :own], self.scores[number, :own], metadata, probabilities)

    def __iter__(self) -> Iterator[QueryResults]:
        return (self[query] for query in range(len(self)))

    def hits(self, query: int = 0) -> list[dict[str, Any]]:
        """`results[query].hits()`, by default of the first query."""
        return self[query].hits()
