"""The rows of an index: codes, ids and metadata as immutable snapshots, replaced change by change.

Rows are only appended and marked as deleted. A change builds a new `Snapshot` and puts it in place as its last step, so
an error on the way changes nothing. A search uses the snapshot of that moment and needs no lock; a change needs one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pyarrow as pa

from cmfah_hf.retrieval.searchers.base import Searcher
from cmfah_hf.retrieval.searchers.inverted_lists import InvertedLists, ProbedLists
from cmfah_hf.retrieval.storage.id_lookup import IdLookup
from cmfah_hf.retrieval.storage.ids import GrowingArray, Ids, StringIds, ids_of
from cmfah_hf.retrieval.storage.metadata import appended, taken
from cmfah_hf.retrieval.storage.segments import Segment

# A segment is merged with the next one unless it has at least this many times its rows, so there are never many.
_GROWTH = 4
# The largest segment: building one takes a copy of it, and several can be searched side by side. Much smaller ones
# would cost: with exact IVF, a query probes as many lists of a small segment as of a large one.
_LARGEST_SEGMENT = 2**23
# Deleted rows are dropped, and inverted lists built again for new rows, beyond this many or a quarter of all rows.
_FEW_CHANGED = 1024


class Caches:
    """Structures derived from the rows, which can be built again."""

    def __init__(self) -> None:
        self.lookup = IdLookup()
        self.inverted: tuple[InvertedLists, tuple[Segment, ...]] | None = None


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The rows between two changes, deleted ones included."""

    code_rows: GrowingArray
    ids: Ids
    live: np.ndarray | None  # `(N,)` bool; None if no row is deleted
    segments: tuple[Segment, ...]  # cover all rows
    table: pa.Table | None
    next_id: int  # the integer id of the next item that comes without one
    caches: Caches = field(default_factory=Caches)  # shared by all snapshots with the same row numbers

    @classmethod
    def of(cls, codes: np.ndarray, ids: Ids, table: pa.Table | None, next_id: int) -> "Snapshot":
        """A snapshot of these rows, all of them live."""
        return cls(GrowingArray.of(codes), ids, None, _extended((), codes), table, next_id)

    @cached_property
    def codes(self) -> np.ndarray:
        """`(N, K / 8)` uint8."""
        return self.code_rows.view()

    @cached_property
    def count(self) -> int:
        """The number of live rows."""
        return len(self.codes) if self.live is None else int(np.count_nonzero(self.live))

    @property
    def has_strings(self) -> bool:
        """Whether the ids are strings."""
        return isinstance(self.ids, StringIds)

    def live_rows(self) -> tuple[np.ndarray, Ids, pa.Table | None]:
        """Codes, ids and metadata of the live rows."""
        if self.live is None:
            return self.codes, self.ids, self.table
        rows = np.flatnonzero(self.live)
        table = None if self.table is None else taken(self.table, rows)
        return self.codes[rows], ids_of(self.ids.take(rows)), table


class Rows:
    """The current snapshot `now` and the changes, which replace nothing else. The caller holds the index's lock."""

    def __init__(self, codes: np.ndarray, ids: Ids, table: pa.Table | None, next_id: int = 0):
        self.now = Snapshot.of(codes, ids, table, next_id)

    def rows_of(self, ids: np.ndarray) -> np.ndarray:
        """The live row of each id, -1 for unknown ids."""
        now = self.now
        if not now.count or now.has_strings != (ids.dtype == object):
            return np.full(len(ids), -1)
        return now.caches.lookup.rows_of(ids, now.ids, now.live)

    def append(
        self, codes: np.ndarray, ids: np.ndarray, table: pa.Table | None, instead_of: np.ndarray | None = None
    ) -> None:
        """Appends rows and deletes those of `instead_of`, in one change."""
        now, strings = self.now, ids.dtype == object
        if not now.count and now.has_strings != strings:  # an empty index takes the other type of id
            now, instead_of = Snapshot.of(now.codes[:0], ids_of(ids[:0]), None, now.next_id), None
        joined = appended(now.table, len(now.codes), table, len(codes))
        code_rows = now.code_rows.extended(codes)
        live = now.live if instead_of is None or not len(instead_of) else _without(now, instead_of)
        if live is not None:
            live = np.concatenate([live, np.ones(len(codes), bool)])
        changed = Snapshot(
            code_rows,
            now.ids.extended(ids),
            live,
            _extended(now.segments, code_rows.view()),
            joined,
            now.next_id if strings else max(now.next_id, int(ids.max(initial=-1)) + 1),
            now.caches,
        )
        self.now = _compacted(changed)

    def drop(self, rows: np.ndarray) -> None:
        """Deletes rows."""
        self.now = _compacted(replace(self.now, live=_without(self.now, rows)))

    def replace(self, rows: np.ndarray, ids: np.ndarray, codes: np.ndarray | None, table: pa.Table | None) -> None:
        """Replaces the codes or columns of rows; what is not given stays."""
        held = None if self.now.table is None else taken(self.now.table, rows)
        if table is None or held is None:
            table = held if table is None else table
        else:
            for name in held.column_names:
                if name not in table.column_names:
                    table = table.append_column(name, held[name])
        self.append(self.now.codes[rows] if codes is None else codes, ids, table, instead_of=rows)

    def approximate(self, probes: int) -> tuple[Snapshot, Sequence[Searcher]]:
        """The snapshot, and searchers over the `probes` nearest inverted lists and the rows added since."""
        codes = self.now.codes
        if not len(codes):
            return self.now, []
        caches = self.now.caches
        lists, newer = caches.inverted or (None, ())
        if lists is None or len(codes) - len(lists.codes) > max(_FEW_CHANGED, len(lists.codes) // 4):
            lists, newer = InvertedLists(codes), ()
        newer = _extended(newer, codes, len(lists.codes))
        caches.inverted = lists, newer
        return self.now, [ProbedLists(lists, probes), *newer]


def _compacted(now: Snapshot) -> Snapshot:
    """The live rows alone if many are deleted, else the same snapshot."""
    if len(now.codes) - now.count <= max(_FEW_CHANGED, len(now.codes) // 4) and now.count:
        return now
    codes, ids, table = now.live_rows()
    return Snapshot.of(codes, ids, table if len(codes) else None, now.next_id)


def _without(now: Snapshot, rows: np.ndarray) -> np.ndarray:
    """The mask of live rows after the deletion of `rows`."""
    live = np.ones(len(now.codes), bool) if now.live is None else now.live.copy()
    live[rows] = False
    return live


def _extended(segments: tuple[Segment, ...], codes: np.ndarray, first: int = 0) -> tuple[Segment, ...]:
    """Segments that cover all rows from `first` on; the last ones are merged when their sizes come close."""
    bounds = [(segment.start, segment.end) for segment in segments]
    start = bounds[-1][1] if bounds else first
    bounds += [(at, min(at + _LARGEST_SEGMENT, len(codes))) for at in range(start, len(codes), _LARGEST_SEGMENT)]
    while len(bounds) > 1:
        (start, middle), (_, end) = bounds[-2:]
        if middle - start >= _GROWTH * (end - middle) or end - start > _LARGEST_SEGMENT:
            break
        bounds[-2:] = [(start, end)]
    kept = {(segment.start, segment.end): segment for segment in segments}
    return tuple(kept.get(bound) or Segment(codes, *bound) for bound in bounds)
