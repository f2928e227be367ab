"""Exact search over packed hash codes: add, remove, update, search, save, load.

Shapes: `N` items, `Q` queries, `K` bits, `k` answers a query.
"""

import logging
import os
import threading
from collections.abc import Sequence
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
    check_width,
    packed_codes,
    round_for_aqd,
    shortened,
    signs_of,
)
from cmfah_hf.retrieval.forks import renew_in_children
from cmfah_hf.retrieval.ids import IntegerIds, id_array, no_ids_left, refuse_repeated
from cmfah_hf.retrieval.index_file import read_index, write_index
from cmfah_hf.retrieval.metadata import as_table, rows_allowed
from cmfah_hf.retrieval.ranking import nearest
from cmfah_hf.retrieval.results import SearchResults
from cmfah_hf.retrieval.rows import Rows
from cmfah_hf.retrieval.scan import Queries

logger = logging.getLogger(__name__)


class HashIndex(BaseHashIndex):
    """An exact index over hash codes, ranked by Hamming distance or by `<z_q, B_x>` (`[aqd]`, see docs/method.md).

    Codes are real hash values, of which the signs are kept, or packed bytes; codes of 0 and 1 are refused.

    The order of the answers is canonical, also where the cut at `k` goes through a tie: by score, then by id, integers
    by value and strings by their characters' code points. AQD takes the query's values rounded to multiples of 2^-14,
    which makes its scores exact and the same on every machine (see `round_for_aqd`).

    Threads may search while others change the index: a search sees every change whole or not at all.

    Args:
        bits: `K`, a multiple of 8 from 8 to 1024.
        model: Fingerprint of the model that makes the codes; `save` stores it. None for codes made elsewhere.

    Attributes:
        model: The fingerprint, or None.

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
        self.renew_locks()
        renew_in_children(self)
        self._saved_as: tuple[Path, str] | None = None
        self._rows = Rows(np.empty((0, self._bits // 8), np.uint8), IntegerIds.of(np.empty(0, np.int64)), None)

    def renew_locks(self) -> None:
        """For `forks.py`: in a child, a thread of its parent may hold the lock for ever."""
        self._changing = threading.RLock()

    @property
    def bits(self) -> int:
        """`K`, the number of bits of a code."""
        return self._bits

    @property
    def ids(self) -> np.ndarray:
        """The ids in the order of insertion: `(N,)`, int64 or an object array of str. Read-only."""
        _, ids, _ = self._rows.now.living()
        return _read_only(ids.values if isinstance(ids, IntegerIds) else ids.take(np.arange(len(ids))))

    @property
    def next_id(self) -> int:
        """The integer id that an item gets that is added without one."""
        return self._rows.now.next_id

    @property
    def id_type(self) -> Literal["int", "str"] | None:
        """The kind of the ids. None without items, when either kind can be added."""
        now = self._rows.now
        return ("str" if now.strings else "int") if now.count else None

    @property
    def codes(self) -> np.ndarray:
        """The packed codes in the order of `ids`: `(N, K / 8)` uint8. Read-only."""
        return _read_only(self._rows.now.living()[0])

    @property
    def metadata(self) -> pa.Table | None:
        """The metadata in the order of `ids`. None where no item came with any."""
        return self._rows.now.living()[2]

    def __len__(self) -> int:
        return self._rows.now.count

    def holds(self, ids: Sequence[int] | Sequence[str] | np.ndarray) -> np.ndarray:
        """Which of these ids are there: `(N,)` bool.

        Raises:
            HashIndexError: On what cannot be an id.
        """
        wanted = id_array(ids)
        with self._changing:
            return self._rows.rows_of(wanted) >= 0

    def __repr__(self) -> str:
        return f"HashIndex(bits={self._bits}, items={len(self)})"

    def add(
        self, codes: Any, ids: Sequence[int] | Sequence[str] | np.ndarray | None = None, metadata: Any = None
    ) -> None:
        """Adds items; either all of them or, on an error, none.

        Args:
            codes: `(N, K)` real hash values (or +-1), or `(N, K / 8)` uint8 packed codes; NumPy, PyTorch or lists.
            ids: `N` distinct integers or strings; an index holds one kind. By default, integers that go on from the
                largest one that was ever added.
            metadata: Columns of `N` values: a mapping from names to lists, a data set or an Arrow table.

        Raises:
            HashIndexError: On codes of another width, codes of 0 and 1, a NaN or an infinity, an id that is there
                already or comes twice, another kind of id than the index holds, or metadata that does not fit.
        """
        packed = packed_codes(codes, self._bits, "The codes")
        table = None if metadata is None else as_table(metadata, len(packed))
        given = None if ids is None else id_array(ids)
        with self._changing:
            new_ids = self._new_ids(len(packed), given)
            if not len(packed):
                return
            self._refuse_duplicates(new_ids)
            self._rows.append(packed, new_ids, table)

    def remove(self, ids: Sequence[int] | Sequence[str] | np.ndarray) -> None:
        """Removes the items with these ids; either all of them or, on an error, none.

        Raises:
            HashIndexError: On an id that the index does not hold, or one that is given twice.
        """
        wanted = id_array(ids)
        with self._changing:
            if len(wanted):
                self._rows.drop(self._held_rows(wanted, "removed"))

    def update(self, ids: Sequence[int] | Sequence[str] | np.ndarray, codes: Any = None, metadata: Any = None) -> None:
        """Gives items other codes or other metadata, or both; all of them or, on an error, none.

        What is not given stays: the codes, and the columns that `metadata` does not name. In the order of `ids`, the
        items move to the end.

        Args:
            ids: `N` ids that are there.
            codes: `(N, K)` real hash values (or +-1), or `(N, K / 8)` uint8 packed codes.
            metadata: Columns of `N` values, some or all of those that the index has.

        Raises:
            HashIndexError: On an id that the index does not hold, or as `add` does.
        """
        wanted = id_array(ids)
        packed = None if codes is None else packed_codes(codes, self._bits, "The codes")
        table = None if metadata is None else as_table(metadata, len(wanted))
        if packed is not None and len(packed) != len(wanted):
            raise HashIndexError(f"{len(packed)} codes came with {len(wanted)} ids; give one code an id.")
        with self._changing:
            if len(wanted):
                self._rows.replace(self._held_rows(wanted, "updated"), wanted, packed, table)

    def upsert(self, codes: Any, ids: Sequence[int] | Sequence[str] | np.ndarray, metadata: Any = None) -> None:
        """Adds items, or replaces those that have their ids; all of them or, on an error, none.

        The arguments are those of `add`, with `ids` always given.

        Raises:
            HashIndexError: As `add` does, but for ids that are there.
        """
        packed = packed_codes(codes, self._bits, "The codes")
        wanted = id_array(ids)
        table = None if metadata is None else as_table(metadata, len(packed))
        with self._changing:
            self._new_ids(len(packed), wanted)
            if not len(wanted):
                return
            refuse_repeated(wanted)
            held = self._rows.rows_of(wanted)
            self._rows.append(packed, wanted, table, instead_of=held[held >= 0])

    def search(
        self,
        hash_values: Any,
        k: int = 10,
        metric: Metric = "hamming",
        where: Any = None,
        exact: bool = True,
        probes: int = 32,
    ) -> SearchResults:
        """The `k` nearest items of each query, in the canonical order.

        Args:
            hash_values: `(Q, K)` real hash values, or `(K,)` for one query (the answer has `Q = 1`). For `"hamming"`,
                `(Q, K / 8)` uint8 packed codes will do.
            k: How many answers; all items, with a logged warning, where the index holds fewer.
            metric: `"hamming"` or `"aqd"`.
            where: A condition on the metadata: `{"column": value, "other": [values]}`, all of which have to hold, or a
                `pyarrow.compute.Expression`. There are fewer than `k` answers where fewer items fulfil it.
            exact: False: search only the codes near the query, through inverted lists that the first such search
                builds; `measure_recall` says what is missed.
            probes: How many lists, with `exact=False`.

        Raises:
            HashIndexError: On queries of another width or unreal values, or an empty index.
            QueryError: On an unknown metric, a `k` or `probes` below 1, or a condition without meaning.
        """
        if metric not in METRICS:
            raise QueryError(f"There is no ranking {shortened(metric)}; take one of {', '.join(METRICS)}.")
        for name, number in (("k", k), ("probes", probes)):
            if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or number < 1:
                raise QueryError(f"{name} must be a whole number of at least 1, not {shortened(number)}.")
        if exact:
            now = self._rows.now
            scans = now.segments
        else:
            with self._changing:
                now, scans = self._rows.approximate(int(probes))
        if not now.count:
            raise HashIndexError("The index is empty; add items before searching it.")
        queries = self._queries(hash_values, metric)
        allowed, count = now.alive, now.count
        if where is not None:
            allowed = rows_allowed(now.table, where)
            allowed = allowed if now.alive is None else allowed & now.alive
            count = int(np.count_nonzero(allowed))
        elif k > count:
            logger.warning("k = %s was asked of an index of %d items; all of them are returned.", shortened(k), count)
        k = min(int(k), count)
        if k and len(queries):
            costs, rows = nearest(queries, k, now.codes, now.ids, scans, allowed, count)
        else:
            costs, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        scores = costs.astype(np.int32) if metric == "hamming" else 0.0 - costs
        return SearchResults(now.ids.take(rows), scores, None if now.table is None else now.table.take(rows.ravel()))

    def optimize(self) -> None:
        """Makes now what an index makes by itself after some thousand searches: lists of the codes that lie together.

        With them exact search reads few codes (`[groups]` in docs/method.md), and its answers are the same. It takes
        some seconds for a million codes, and nothing is made of few codes or of such as lie anywhere. What is added
        later is searched beside the lists. They live in memory alone; `save` does not write them.
        """
        for segment in self._rows.now.segments:
            segment.group()

    def save(self, path: str | os.PathLike, overwrite: bool = False) -> None:
        """Writes the index into one safetensors file, whole or not at all (a reader never sees half of one).

        While it is written, a hidden lock lies next to the file, by which two processes write one after the other.
        Links are followed: what they point to is replaced.

        Args:
            path: The file.
            overwrite: Replace the file also where somebody else has saved it since this index was loaded from it.

        Raises:
            HashIndexError: If something other than a file lies at `path`, the disk is full, or somebody else has saved
                the file in between.
        """
        target = regular_target(path, HashIndexError)
        with self._changing:
            now, model = self._rows.now, self.model
            known = self._saved_as[1] if self._saved_as and self._saved_as[0] == target else None
        stamp = write_index(Path(path), *now.living(), now.next_id, None if overwrite else known, model)
        with self._changing:
            self._saved_as = target, stamp

    @classmethod
    def load(cls, path: str | os.PathLike, mmap: bool = False, bits: int | None = None) -> "HashIndex":
        """Reads an index that `save` wrote.

        Args:
            path: The file.
            mmap: Map codes, ids and metadata from the file instead of copying them to memory. The file can be replaced,
                as `save` does, but must not be changed in place. Either way it is read through once, to check it.
            bits: `K`, where the caller expects one.

        Raises:
            HashIndexError: If the file is missing, damaged, of another kind or version, or holds codes of another width
                than `bits`.
        """
        path = Path(path)
        header, codes, ids, table = read_index(path, mmap)
        index = cls(int(header["bits"]), model=header.get("model"))
        if bits is not None and bits != index._bits:
            raise HashIndexError(f"{path} holds codes of {index._bits} bits, where {bits} were expected.")
        index._rows = Rows(codes, ids, table, int(header["next_id"]))
        index._saved_as = regular_target(path, HashIndexError), header.get("stamp", "")
        return index

    def _new_ids(self, items: int, ids: np.ndarray | None) -> np.ndarray:
        """The ids of new items, of the kind that the index holds, one an item."""
        now = self._rows.now
        strings = now.strings and bool(now.count)
        if ids is None:
            if strings:
                raise HashIndexError("The index holds string ids, which cannot be made up; give `ids`.")
            if now.next_id + items > 2**63:
                raise HashIndexError(no_ids_left(items, now.next_id))
            return np.arange(now.next_id, now.next_id + items, dtype=np.int64)
        if len(ids) != items:
            raise HashIndexError(f"{items} codes came with {len(ids)} ids; give one id a code.")
        if items and now.count and (ids.dtype == object) != strings:
            held = "strings" if strings else "integers"
            raise HashIndexError(
                f"The ids of this index are {held}, id {shortened(ids.tolist()[0])} is not; do not mix them."
            )
        return ids

    def _refuse_duplicates(self, ids: np.ndarray) -> None:
        if ids.dtype != object and ids[0] >= self._rows.now.next_id and (np.diff(ids) > 0).all():
            return
        held = np.flatnonzero(self._rows.rows_of(ids) >= 0)
        if held.size:
            item_id = ids[held[0] : held[0] + 1].tolist()[0]
            raise HashIndexError(
                f"The index holds id {shortened(item_id)} already; remove it first, or give another id."
            )
        refuse_repeated(ids)

    def _held_rows(self, ids: np.ndarray, done: str) -> np.ndarray:
        """The rows of ids all of which have to be there."""
        rows = self._rows.rows_of(ids)
        absent = np.flatnonzero(rows < 0)
        if absent.size:
            item_id = ids[absent[0] : absent[0] + 1].tolist()[0]
            raise HashIndexError(f"The index holds no id {shortened(item_id)}, so it cannot be {done}.")
        refuse_repeated(ids)
        return rows

    def _queries(self, hash_values: Any, metric: Metric) -> Queries:
        values = as_array(hash_values)
        values = values[None] if values.ndim == 1 else values
        if values.ndim != 2:
            raise HashIndexError(f"Queries are one row a query, not an array of shape {values.shape}.")
        if metric == "hamming":
            return Queries(signs_of(packed_codes(values, self._bits, "The queries")), hamming=True)
        if values.dtype == np.uint8:
            raise HashIndexError("AQD ranks by the query's real hash values, not by packed codes; give the values.")
        check_width(values, self._bits, "The queries")
        return Queries(round_for_aqd(values), hamming=False)


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view
