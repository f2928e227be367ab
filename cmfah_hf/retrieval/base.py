"""`BaseHashIndex`: the interface that every index of hash codes implements.

Shapes: `N` items, `Q` queries, `K` bits, `k` answers a query.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from cmfah_hf.errors import HashIndexError, QueryError
from cmfah_hf.retrieval.codes import as_array, check_count, check_distance
from cmfah_hf.retrieval.results import QueryResults, SearchResults
from cmfah_hf.retrieval.unique import search_unique

METRICS = ("hamming", "aqd")
Metric = Literal["hamming", "aqd"]


class BaseHashIndex(ABC):
    """Items with an id, a hash code of `K` bits and optional metadata, ranked by Hamming distance or by AQD.

    AQD (asymmetric quantizer distance) is `<z_q, B_x>`, the query's continuous code against the item's binary code
    (`[aqd]`, see docs/method.md). The query is rounded to multiples of 2^-14, which makes scores exact and the same on
    every machine (see `round_for_aqd`).

    The order of the answers is canonical, also where the cut at `k` goes through a tie: by score, then by id, integers
    by value and strings by code points. All indexes with the same items give the same answers.

    Every change is made whole or, on an error, not at all. Threads may search while another thread changes the index; a
    search sees the index before or after a change.

    How an index is created, saved and loaded is up to the implementation. All of them pass the tests of
    `tests/retrieval/conformance.py`.

    Attributes:
        model: Fingerprint of the model that made the codes. None for codes made elsewhere.
    """

    model: str | None

    @property
    @abstractmethod
    def bits(self) -> int:
        """`K`, the number of bits of a code."""

    @property
    @abstractmethod
    def next_id(self) -> int:
        """The integer id of the next item that is added without one."""

    @property
    @abstractmethod
    def id_type(self) -> Literal["int", "str"] | None:
        """The type of the ids. None for an empty index, which accepts either type."""

    @property
    @abstractmethod
    def ids(self) -> np.ndarray:
        """All ids: `(N,)`, int64 or an object array of str. Read-only."""

    @property
    @abstractmethod
    def codes(self) -> np.ndarray:
        """The packed codes in the order of `ids`: `(N, K / 8)` uint8. Read-only."""

    @property
    @abstractmethod
    def metadata(self) -> pa.Table | None:
        """The metadata in the order of `ids`. None if no item has any."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of items."""

    def __contains__(self, item_id: object) -> bool:
        try:
            return bool(self.holds([item_id])[0])
        except HashIndexError:
            return False

    @abstractmethod
    def holds(self, ids: Any) -> np.ndarray:
        """Whether the index holds each of these ids: `(N,)` bool.

        Raises:
            HashIndexError: If a value cannot be an id.
        """

    @abstractmethod
    def add(
        self, codes: Any, ids: Sequence[int] | Sequence[str] | np.ndarray | None = None, metadata: Any = None
    ) -> None:
        """Adds items.

        Args:
            codes: `(N, K)` continuous codes (or +-1), of which the signs are kept, or `(N, K / 8)` uint8 packed codes;
                NumPy, PyTorch or lists. Codes of 0 and 1 are rejected.
            ids: `N` distinct integers or strings; an index holds one type. By default, integers counting up from
                `next_id`, one above the largest that was ever added.
            metadata: Columns of `N` values: a mapping from names to lists, a data set or an Arrow table.

        Raises:
            HashIndexError: If the codes have another width, hold only 0 and 1, a NaN or an infinity; if an id exists
                already, is repeated or has another type than those in the index; if the metadata does not fit.
        """

    @abstractmethod
    def remove(self, ids: Sequence[int] | Sequence[str] | np.ndarray) -> None:
        """Removes the items with these ids.

        Raises:
            HashIndexError: If an id is unknown or repeated.
        """

    @abstractmethod
    def update(self, ids: Sequence[int] | Sequence[str] | np.ndarray, codes: Any = None, metadata: Any = None) -> None:
        """Replaces the codes, the metadata or both of existing items.

        What is not given stays: the codes, and the columns that `metadata` does not name.

        Args:
            ids: `N` ids of the index.
            codes: As for `add`.
            metadata: Columns of `N` values, some or all of those that the index has.

        Raises:
            HashIndexError: If an id is unknown, or as `add` does.
        """

    @abstractmethod
    def upsert(self, codes: Any, ids: Sequence[int] | Sequence[str] | np.ndarray, metadata: Any = None) -> None:
        """Adds items, or replaces those that have the same ids.

        The arguments are those of `add`; `ids` is required.

        Raises:
            HashIndexError: As `add` does, except for ids that exist already.
        """

    def search(
        self,
        hash_values: Any,
        k: int = 10,
        metric: Metric = "hamming",
        where: Any = None,
        exact: bool = True,
        probes: int = 32,
        unique: int | None = None,
    ) -> SearchResults:
        """The `k` nearest items of each query, in the canonical order.

        Args:
            hash_values: `(Q, K)` continuous codes, or `(K,)` for one query (the results have `Q = 1`). `"hamming"` also
                takes `(Q, K / 8)` uint8 packed codes.
            k: The number of answers. If the index holds fewer items, all are returned and a warning is logged.
            metric: `"hamming"` or `"aqd"`.
            where: A condition on the metadata: `{"column": value, "other": [values]}`, all of which must hold; texts
                such as `["year>=2020", "labels=boat,car"]`, likewise (docs/search.md, Conditions); or a
                `pyarrow.compute.Expression`. A list meets a condition if one of its values does. If fewer than `k`
                items meet it, there are fewer answers.
            exact: False: search only the codes near the query, through inverted lists that the first such search
                builds. `measure_recall` measures how much is missed.
            probes: The number of inverted lists to search with `exact=False`.
            unique: Fold near-duplicates: an item whose code differs in at most this many bits from that of a better
                answer is not an answer of its own, but listed in `folded` of the best such one. Up to `k` answers
                remain.

        Raises:
            HashIndexError: If the queries have another width, hold a NaN or an infinity, or the index is empty.
            QueryError: If the metric is unknown, `k` or `probes` is below 1, `unique` is not in 0..K, or the condition
                does not fit the columns.
        """
        if unique is None:
            return self._search(hash_values, k, metric, where, exact, probes)
        bits, k = check_distance("unique", unique, self.bits), check_count("k", k)

        def nearest(queries: np.ndarray, depth: int) -> SearchResults:
            return self._search(queries, depth, metric, where, exact, probes, with_codes=True)

        return search_unique(nearest, as_array(hash_values), k, bits, len(self))

    @abstractmethod
    def _search(
        self, hash_values: Any, k: int, metric: Metric, where: Any, exact: bool, probes: int, with_codes: bool = False
    ) -> SearchResults:
        """As `search` without `unique`; the results have codes if asked for."""

    @abstractmethod
    def search_radius(
        self, hash_values: Any, radius: int, where: Any = None, limit: int = 1_000_000
    ) -> list[QueryResults]:
        """All items within a Hamming distance of each query, by distance and then by id. The scores are distances.

        Args:
            hash_values: As for `search` with `"hamming"`.
            radius: The largest distance, from 0 to `K` bits.
            where: As for `search`.
            limit: The largest number of answers to all queries together, which bounds the memory.

        Returns:
            For each query its answers, of which there may be none.

        Raises:
            HashIndexError: As `search` does.
            QueryError: If the radius or the limit is out of range, there are more answers than `limit`, or the
                condition does not fit the columns.
        """

    @abstractmethod
    def duplicates(self, bits: int = 3, advance: Callable[[float], None] | None = None) -> list[np.ndarray]:
        """The groups of near-duplicates: items that chains of pairs within a Hamming distance connect.

        All pairs count, without comparing all of them (`[near-pairs]` in docs/method.md). The time grows with the
        distance, see docs/benchmarks.md.

        Args:
            bits: The largest distance of a pair, from 0 to `K` bits.
            advance: Called with the share of the work, from 0 to 1, that has been done since the last call.

        Returns:
            The ids of each group, in ascending order; the largest group first, and those of one size by their first id.

        Raises:
            QueryError: If `bits` is out of range.
        """

    @abstractmethod
    def optimize(self) -> None:
        """Builds now the search structures that many searches would build. The answers stay the same."""

    def measure_recall(self, hash_values: Any, k: int = 10, metric: Metric = "hamming", probes: int = 32) -> float:
        """The recall of `search(..., exact=False)`: the share of the exact `k` nearest that it finds, averaged.

        An answer counts if its score is at least as good as that of the k-th exact answer, so a tie at the cut may be
        broken either way. The arguments are those of `search`.

        Raises:
            HashIndexError: As `search` does.
            QueryError: As `search` does, or if there is no query.
        """
        exact_scores = self.search(hash_values, k, metric).scores
        if not len(exact_scores):
            raise QueryError("Recall needs at least one query; none was given.")
        found = self.search(hash_values, k, metric, exact=False, probes=probes).scores
        worst = exact_scores[:, -1:]
        return float(np.mean(found <= worst if metric == "hamming" else found >= worst))
