"""`HashIndex`: exact search over packed hash codes on one machine, in one file.

Shapes: `N` items, `Q` queries, `K` bits, `k` answers a query.
"""

import logging
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from cmfah_hf.atomic import regular_target
from cmfah_hf.errors import HashIndexError, QueryError
from cmfah_hf.retrieval.base import METRICS, BaseHashIndex, Metric
from cmfah_hf.retrieval.codes import (
    as_array,
    check_bits,
    check_count,
    check_distance,
    check_width,
    packed_codes,
    round_for_aqd,
    shortened,
)
from cmfah_hf.retrieval.condition_texts import UnknownColumnError
from cmfah_hf.retrieval.conditions import rows_allowed
from cmfah_hf.retrieval.duplicates import duplicate_groups
from cmfah_hf.retrieval.forks import renew_in_children
from cmfah_hf.retrieval.radius import within_radius
from cmfah_hf.retrieval.ranking import nearest
from cmfah_hf.retrieval.results import QueryResults, SearchResults
from cmfah_hf.retrieval.searchers.base import Queries, Searcher
from cmfah_hf.retrieval.storage.folder_records import FolderRecords
from cmfah_hf.retrieval.storage.ids import IntegerIds, id_array, no_ids_left, reject_repeated
from cmfah_hf.retrieval.storage.index_file import read_index, write_index
from cmfah_hf.retrieval.storage.metadata import as_table, taken
from cmfah_hf.retrieval.storage.rows import Rows, Snapshot

logger = logging.getLogger(__name__)


class HashIndex(BaseHashIndex):
    """An exact index over hash codes in memory, saved to one file. `BaseHashIndex` documents its methods.

    `ids`, `codes` and `metadata` are in the order of insertion; an update moves its items to the end.

    Args:
        bits: `K`, a multiple of 8 from 8 to 1024.
        model: Fingerprint of the model that made the codes; `save` stores it. None for codes made elsewhere.

    Attributes:
        model: The fingerprint, or None.
        folders: The folders that the index follows, as `cmfah_hf.retrieval.folders` records them, or None.

    Example:
        >>> index = HashIndex(bits=8)
        >>> codes = [[0.9] * 8, [-0.9] * 8, [0.9] * 4 + [-0.9] * 4]
        >>> index.add(codes, ids=["sea", "car", "dog"], metadata={"year": [2020, 2021, 2022]})
        >>> results = index.search([0.5] * 7 + [-0.1], k=2)
        >>> results.ids.tolist(), results.scores.tolist()
        ([['sea', 'dog']], [[1, 3]])
        >>> index.search([0.5] * 8, k=2, where={"year": [2021, 2022]}).hits()[0]
        {'id': 'dog', 'score': 4, 'metadata': {'year': 2022}}
    """

    def __init__(self, bits: int = 64, model: str | None = None):
        self._bits = check_bits(bits)
        self.model = model
        self.folders: FolderRecords | None = None
        self.renew_locks()
        renew_in_children(self)
        self._saved_as: tuple[Path, str] | None = None
        self._rows = Rows(np.empty((0, self._bits // 8), np.uint8), IntegerIds.of(np.empty(0, np.int64)), None)

    def renew_locks(self) -> None:
        """New locks in a forked child, see `forks.py`."""
        self._changing = threading.RLock()

    @property
    def bits(self) -> int:
        return self._bits

    @property
    def ids(self) -> np.ndarray:
        return _read_only(self._rows.now.live_rows()[1].array())

    @property
    def next_id(self) -> int:
        return self._rows.now.next_id

    @property
    def id_type(self) -> Literal["int", "str"] | None:
        now = self._rows.now
        return ("str" if now.has_strings else "int") if now.count else None

    @property
    def codes(self) -> np.ndarray:
        return _read_only(self._rows.now.live_rows()[0])

    @property
    def metadata(self) -> pa.Table | None:
        return self._rows.now.live_rows()[2]

    def __len__(self) -> int:
        return self._rows.now.count

    def __repr__(self) -> str:
        return f"HashIndex(bits={self._bits}, items={len(self)})"

    def holds(self, ids: Any) -> np.ndarray:
        wanted = id_array(ids)
        with self._changing:
            return self._rows.rows_of(wanted) >= 0

    def codes_of(self, ids: Any) -> np.ndarray:
        """`(n, K / 8)` uint8: the packed codes of `n` items, in the order of their ids.

        Raises:
            HashIndexError: If an id is unknown, or repeated.
        """
        wanted = id_array(ids)
        with self._changing:
            rows = self._held_rows(wanted, "read")
            return self._rows.now.codes[rows]

    def add(
        self, codes: Any, ids: Sequence[int] | Sequence[str] | np.ndarray | None = None, metadata: Any = None
    ) -> None:
        packed = packed_codes(codes, self._bits, "The codes")
        table = None if metadata is None else as_table(metadata, len(packed))
        given = None if ids is None else id_array(ids)
        with self._changing:
            new_ids = self._next_ids(len(packed)) if given is None else self._checked_ids(len(packed), given)
            if not len(packed):
                return
            self._reject_duplicates(new_ids)
            self._rows.append(packed, new_ids, table)

    def remove(self, ids: Sequence[int] | Sequence[str] | np.ndarray) -> None:
        wanted = id_array(ids)
        with self._changing:
            if len(wanted):
                self._rows.drop(self._held_rows(wanted, "removed"))

    def update(self, ids: Sequence[int] | Sequence[str] | np.ndarray, codes: Any = None, metadata: Any = None) -> None:
        wanted = id_array(ids)
        packed = None if codes is None else packed_codes(codes, self._bits, "The codes")
        table = None if metadata is None else as_table(metadata, len(wanted))
        if packed is not None and len(packed) != len(wanted):
            raise HashIndexError(f"{len(packed)} codes came with {len(wanted)} ids; give one code per id.")
        with self._changing:
            if len(wanted):
                self._rows.replace(self._held_rows(wanted, "updated"), wanted, packed, table)

    def upsert(self, codes: Any, ids: Sequence[int] | Sequence[str] | np.ndarray, metadata: Any = None) -> None:
        packed = packed_codes(codes, self._bits, "The codes")
        wanted = id_array(ids)
        table = None if metadata is None else as_table(metadata, len(packed))
        with self._changing:
            self._checked_ids(len(packed), wanted)
            if not len(wanted):
                return
            reject_repeated(wanted)
            held = self._rows.rows_of(wanted)
            self._rows.append(packed, wanted, table, instead_of=held[held >= 0])

    def _search(
        self, hash_values: Any, k: int, metric: Metric, where: Any, exact: bool, probes: int, with_codes: bool = False
    ) -> SearchResults:
        if metric not in METRICS:
            raise QueryError(f"There is no ranking {shortened(metric)}; take one of {', '.join(METRICS)}.")
        check_count("k", k)
        check_count("probes", probes)
        searchers: Sequence[Searcher]
        if exact:
            now = self._rows.now
            searchers = now.segments
        else:
            with self._changing:
                now, searchers = self._rows.approximate(int(probes))
        if not now.count:
            raise HashIndexError("The index is empty; add items before searching it.")
        queries = self._queries(hash_values, metric)
        allowed, count = _allowed(now, where, self.folders), now.count
        if where is not None and allowed is not None:
            count = int(np.count_nonzero(allowed))
        elif k > count:
            logger.warning("k = %s exceeds the %d items of the index; all of them are returned.", shortened(k), count)
        k = min(int(k), count)
        if k and len(queries):
            distances, rows = nearest(queries, k, now.codes, now.ids, searchers, allowed, count)
        else:
            distances, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        scores = distances.astype(np.int32) if metric == "hamming" else 0.0 - distances
        metadata = None if now.table is None else taken(now.table, rows)
        codes = now.codes[rows] if with_codes else None
        return SearchResults(now.ids.take(rows), scores, metadata, self.folders, codes=codes)

    def search_radius(
        self, hash_values: Any, radius: int, where: Any = None, limit: int = 1_000_000
    ) -> list[QueryResults]:
        radius, limit = check_distance("radius", radius, self._bits), check_count("limit", limit)
        now = self._rows.now
        if not now.count:
            raise HashIndexError("The index is empty; add items before searching it.")
        queries = self._queries(hash_values, "hamming")
        found = within_radius(queries.packed, radius, now.codes, now.ids, _allowed(now, where, self.folders), limit)
        return [
            QueryResults(
                now.ids.take(rows), distances, None if now.table is None else taken(now.table, rows), self.folders
            )
            for distances, rows in found
        ]

    def duplicates(self, bits: int = 3, advance: Callable[[float], None] | None = None) -> list[np.ndarray]:
        codes, ids, _ = self._rows.now.live_rows()
        return duplicate_groups(codes, ids, bits, advance)

    def optimize(self) -> None:
        """Builds the inverted lists for exact IVF search now (`[groups]` in docs/method.md).

        Otherwise the index builds them after some thousand searches. It takes some seconds for a million codes, and is
        skipped for few codes and for codes that do not cluster. Items added later are searched separately. The lists
        exist in memory only; `save` does not write them.
        """
        for segment in self._rows.now.segments:
            segment.optimize()

    def save(self, path: str | os.PathLike, overwrite: bool = False) -> None:
        """Writes the index to one safetensors file atomically: a reader never sees half of it.

        During the write, a hidden lock file next to the file makes other processes wait. Links are followed.

        Args:
            path: The file.
            overwrite: Whether to replace the file even if another program has saved it since this index was loaded.

        Raises:
            HashIndexError: If `path` is not a file, the disk is full, or another program has saved the file meanwhile.
        """
        target = regular_target(path, HashIndexError)
        with self._changing:
            now, model, folders = self._rows.now, self.model, self.folders
            known = self._saved_as[1] if self._saved_as and self._saved_as[0] == target else None
        stamp = write_index(Path(path), *now.live_rows(), now.next_id, None if overwrite else known, model, folders)
        with self._changing:
            self._saved_as = target, stamp

    @classmethod
    def load(cls, path: str | os.PathLike, mmap: bool = False, bits: int | None = None) -> "HashIndex":
        """Reads an index that `save` wrote.

        Args:
            path: The file.
            mmap: Whether to map codes, ids and metadata from the file instead of copying them to memory. The file may
                then be replaced, as `save` does, but must not be changed in place. Either way all of it is checked.
            bits: `K`, if a certain number is expected.

        Raises:
            HashIndexError: If the file is missing, damaged, of another format or version, or its codes do not have
                `bits` bits.
        """
        path = Path(path)
        content = read_index(path, mmap)
        header = content.header
        index = cls(int(header["bits"]), model=header.get("model"))
        if bits is not None and bits != index._bits:
            raise HashIndexError(f"{path} holds codes of {index._bits} bits, where {bits} were expected.")
        index._rows = Rows(content.codes, content.ids, content.table, int(header["next_id"]))
        index.folders = content.folders
        index._saved_as = regular_target(path, HashIndexError), header.get("stamp", "")
        return index

    def _next_ids(self, items: int) -> np.ndarray:
        """Integer ids for items that come without any."""
        now = self._rows.now
        if now.has_strings and now.count:
            raise HashIndexError("The index holds string ids, which cannot be made up; give `ids`.")
        if now.next_id + items > 2**63:
            raise HashIndexError(no_ids_left(items, now.next_id))
        return np.arange(now.next_id, now.next_id + items, dtype=np.int64)

    def _checked_ids(self, items: int, ids: np.ndarray) -> np.ndarray:
        """The given ids, if there is one per item and they are of the index's type."""
        now = self._rows.now
        if len(ids) != items:
            raise HashIndexError(f"{items} codes came with {len(ids)} ids; give one id per code.")
        if items and now.count and (ids.dtype == object) != now.has_strings:
            held = "strings" if now.has_strings else "integers"
            raise HashIndexError(
                f"The ids of this index are {held}, id {shortened(ids.tolist()[0])} is not; do not mix them."
            )
        return ids

    def _reject_duplicates(self, ids: np.ndarray) -> None:
        if ids.dtype != object and ids[0] >= self._rows.now.next_id and (np.diff(ids) > 0).all():
            return
        held = np.flatnonzero(self._rows.rows_of(ids) >= 0)
        if held.size:
            item_id = ids[held[0] : held[0] + 1].tolist()[0]
            raise HashIndexError(
                f"The index holds id {shortened(item_id)} already; remove it first, or give another id."
            )
        reject_repeated(ids)

    def _held_rows(self, ids: np.ndarray, done: str) -> np.ndarray:
        """The rows of ids that must all exist."""
        rows = self._rows.rows_of(ids)
        missing = np.flatnonzero(rows < 0)
        if missing.size:
            item_id = ids[missing[0] : missing[0] + 1].tolist()[0]
            raise HashIndexError(f"The index holds no id {shortened(item_id)}, so it cannot be {done}.")
        reject_repeated(ids)
        return rows

    def _queries(self, hash_values: Any, metric: Metric) -> Queries:
        values = as_array(hash_values)
        values = values[None] if values.ndim == 1 else values
        if values.ndim != 2:
            raise HashIndexError(f"Queries are a matrix with one row per query, not an array of shape {values.shape}.")
        if metric == "hamming":
            return Queries.for_hamming(packed_codes(values, self._bits, "The queries"))
        if values.dtype == np.uint8:
            raise HashIndexError("AQD ranks by the query's continuous codes, not by packed codes; give these.")
        check_width(values, self._bits, "The queries")
        return Queries.for_aqd(round_for_aqd(values))


def _allowed(now: Snapshot, where: Any, folders: FolderRecords | None) -> np.ndarray | None:
    """`(N,)` bool: the live rows that meet the condition. None if all rows do."""
    if where is None:
        return now.live
    try:
        allowed = rows_allowed(now.table, where)
    except UnknownColumnError as error:
        hint = None if folders is None else folders.how_to_keep(error.column)
        if hint is None:
            raise
        raise QueryError(f"{error} {hint}") from error
    return allowed if now.live is None else allowed & now.live


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view
