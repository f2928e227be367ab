"""Search results: ids, scores, metadata and, of a calibrated model, probabilities of the nearest items.

Shapes: `Q` queries, `k` answers a query.
"""

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from cmfah_hf.errors import HashIndexError
from cmfah_hf.retrieval.storage.folder_records import FolderRecords


@dataclass(frozen=True, eq=False)
class QueryResults:
    """The nearest items of one query, nearest first. Iterating over it gives the rows of `hits`.

    Attributes:
        ids: `(k,)`, int64 or an object array of str, as they were added.
        scores: `(k,)`. Hamming: int32 distances, smaller is nearer. AQD: float32 scores, larger is nearer.
        metadata: An Arrow table of `k` rows. None where the index holds none.
        folders: The folders that the index follows, or None.
        folded: For each item the ids of its near-duplicates, nearest to the query first. None if none were folded.
        probabilities: `(k,)` float64, that an answer is relevant. None without a calibration (see calibration.py).
    """

    ids: np.ndarray
    scores: np.ndarray
    metadata: pa.Table | None = None
    folders: FolderRecords | None = field(default=None, repr=False)
    folded: list[np.ndarray] | None = None
    probabilities: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.hits())

    @property
    def paths(self) -> np.ndarray | None:
        """The paths of the images, `(k,)`, an object array of str, with None for items that are of no folder.

        They are those of the last update of the index. None if the index follows no folder.
        """
        if self.folders is None:
            return None
        paths = np.empty(len(self), object)
        paths[:] = self.folders.paths_of(self.ids.tolist())
        return paths

    def hits(self) -> list[dict[str, Any]]:
        """The items as `{"id": ..., "score": ..., "metadata": {...}}`, nearest first.

        If the index follows folders, they have a `"path"` too, a string or None; with `unique`, the ids that are
        `"folded"` into them; with a calibration, a `"probability"`.

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
        paths = self.paths
        if paths is not None:
            hits = [{**hit, "path": path} for hit, path in zip(hits, paths, strict=True)]
        if self.folded is not None:
            hits = [{**hit, "folded": ids.tolist()} for hit, ids in zip(hits, self.folded, strict=True)]
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
        folders: The folders that the index follows, or None. `results[i].paths` gives the paths of images in them.
        counts: `(Q,)`, the number of answers of each query after `unique` and `min_score`, the first ones of its row;
            `results[i]` has only these. None: all rows have `k`.
        folded: After `unique`, for each query those of `QueryResults`.
        codes: `(Q, k, K / 8)` uint8, the packed codes of the items, where a caller within the package needs them.
        probabilities: `(Q, k)` float64, that an answer is relevant. None without a calibration (see calibration.py).

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
    folders: FolderRecords | None = field(default=None, repr=False)
    counts: np.ndarray | None = None
    folded: list[list[np.ndarray]] | None = None
    codes: np.ndarray | None = None
    probabilities: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, query: int) -> QueryResults:
        number, queries = operator.index(query), len(self)
        if not -queries <= number < queries:
            raise IndexError(f"There is no query {number} among the results of {queries}.")
        number, k = number % queries, self.ids.shape[1]
        count = k if self.counts is None else int(self.counts[number])
        metadata = None if self.metadata is None else self.metadata.slice(number * k, count)
        folded = None if self.folded is None else self.folded[number][:count]
        probabilities = None if self.probabilities is None else self.probabilities[number, :count]
        ids, scores = self.ids[number, :count], self.scores[number, :count]
        return QueryResults(ids, scores, metadata, self.folders, folded, probabilities)

    def __iter__(self) -> Iterator[QueryResults]:
        return (self[query] for query in range(len(self)))

    def hits(self, query: int = 0) -> list[dict[str, Any]]:
        """`results[query].hits()`, by default of the first query."""
        return self[query].hits()
