"""The rows of an index: packed codes, ids and metadata side by side, changed one change at a time.

Rows are only ever appended and marked as deleted. A change makes a new `Snapshot` and puts it in place of the old one
as its last step, so an error on the way changes nothing. Whoever searches takes the snapshot of that moment and needs
no lock; whoever changes rows has to hold one.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pyarrow as pa

from cmfah_hf.retrieval.ids import GrowingArray, IdColumn, IdLookup, Ids, IntegerIds, StringIds
from cmfah_hf.retrieval.metadata import appended
from cmfah_hf.retrieval.scan import InvertedLists, ProbedLists, Scan
from cmfah_hf.retrieval.segments import Segment

# A segment is merged with the one behind it unless it has so many times its codes, so there are never many of them.
_GROWTH = 4
# A larger one is not made: several can be scanned side by side, and building one takes a copy. Nor are smaller ones:
# with lists around centres, a query opens as many of a small segment as of a large one.
_LARGEST_SEGMENT = 2**23
# So many rows that are gone, or a quarter of all, are kept before the rows are written anew. The same is true of the
# rows that have come since inverted lists were made.
_FEW_CHANGED = 1024


class Caches:
    """Structures derived from rows for searches and look-ups; they can be made again.

    Attributes:
        lookup: From ids to rows.
        inverted: Inverted lists, and scans of the rows that came later. None until they are needed.
    """

    def __init__(self):
        self.lookup = IdLookup()
        self.inverted: tuple[InvertedLists, tuple[Segment, ...]] | None = None


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The rows as they are between two changes.

    Attributes:
        code_rows: The codes with room for more, those of deleted rows among them.
        id_column: The ids likewise.
        alive: `(N,)` bool; None where no row is deleted.
        segments: Which together scan all rows.
        table: The metadata, `N` rows, or None.
        next_id: The integer id that the next item gets.
        caches: Shared by all snapshots that number their rows alike.
    """

    code_rows: GrowingArray
    id_column: IdColumn
    alive: np.ndarray | None
    segments: tuple[Segment, ...]
    table: pa.Table | None
    next_id: int
    caches: Caches = field(default_factory=Caches)

    @classmethod
    def of(cls, codes: np.ndarray, ids: Ids, table: pa.Table | None, next_id: int) -> "Snapshot":
        """A snapshot of these rows, none of them deleted."""
        rows = GrowingArray.of(codes)
        return cls(rows, IdColumn.of(ids), None, _extended((), rows.view()), table, next_id)

    @cached_property
    def codes(self) -> np.ndarray:
        """`(N, K / 8)` uint8."""
        return self.code_rows.view()

    @cached_property
    def ids(self) -> Ids:
        """`N` of them."""
        return self.id_column.view()

    @cached_property
    def count(self) -> int:
        """The number of live rows."""
        return len(self.codes) if self.alive is None else int(np.count_nonzero(self.alive))

    @property
    def strings(self) -> bool:
        """Whether the ids are strings."""
        return isinstance(self.ids, StringIds)

    def living(self) -> tuple[np.ndarray, Ids, pa.Table | None]:
        """Codes, ids and metadata of the live rows."""
        if self.alive is None:
            return self.codes, self.ids, self.table
        rows = np.flatnonzero(self.alive)
        table = None if self.table is None else self.table.take(rows)
        return self.codes[rows], _ids_of(self.ids.take(rows), self.strings), table


class Rows:
    """The rows, changed by whoever holds the index's lock.

    Args:
        codes: `(N, K / 8)` uint8.
        ids: `N` of them.
        table: Metadata of `N` rows, or None.
        next_id: The integer id that the next item gets.

    Attributes:
        now: The rows as they are. The only thing that a change replaces.
    """

    def __init__(self, codes: np.ndarray, ids: Ids, table: pa.Table | None, next_id: int = 0):
        self.now = Snapshot.of(codes, ids, table, next_id)

    def rows_of(self, ids: np.ndarray) -> np.ndarray:
        """The live row of each id, -1 where there is none."""
        now = self.now
        if not now.count or now.strings != (ids.dtype == object):
            return np.full(len(ids), -1)
        return now.caches.lookup.rows_of(ids, now.ids, now.alive)

    def append(
        self, codes: np.ndarray, ids: np.ndarray, table: pa.Table | None, instead_of: np.ndarray | None = None
    ) -> None:
        """New rows behind all others, and those of `instead_of` deleted, in one change.

        Raises:
            HashIndexError: If the metadata does not fit.
        """
        now, strings = self.now, ids.dtype == object
        if not now.count and now.strings != strings:  # without items, the other kind of id is taken
            now, instead_of = Snapshot.of(now.codes[:0], _ids_of(ids[:0], strings), None, now.next_id), None
        joined = appended(now.table, len(now.codes), table, len(codes))
        code_rows = now.code_rows.extended(codes)
        alive = now.alive if instead_of is None or not len(instead_of) else _without(now, instead_of)
        if alive is not None:
            alive = np.concatenate([alive, np.ones(len(codes), bool)])
        changed = Snapshot(
            code_rows,
            now.id_column.extended(ids),
            alive,
            _extended(now.segments, code_rows.view()),
            joined,
            now.next_id if strings else max(now.next_id, int(ids.max(initial=-1)) + 1),
            now.caches,
        )
        self.now = _tidied(changed)

    def drop(self, rows: np.ndarray) -> None:
        """These rows deleted."""
        self.now = _tidied(replace(self.now, alive=_without(self.now, rows)))

    def replace(self, rows: np.ndarray, ids: np.ndarray, codes: np.ndarray | None, table: pa.Table | None) -> None:
        """Other codes or columns for these rows; what is not given stays."""
        held = None if self.now.table is None else self.now.table.take(rows)
        if table is None or held is None:
            table = held if table is None else table
        else:
            for name in held.column_names:
                if name not in table.column_names:
                    table = table.append_column(name, held[name])
        self.append(self.now.codes[rows] if codes is None else codes, ids, table, instead_of=rows)

    def approximate(self, probes: int) -> tuple[Snapshot, list[Scan]]:
        """The rows as they stand, and scans of the `probes` nearest lists of them and of what has come since."""
        codes = self.now.codes
        if not len(codes):
            return self.now, []
        caches = self.now.caches
        lists, newer = caches.inverted or (None, ())
        if lists is None or len(codes) - len(lists.codes) > max(_FEW_CHANGED, len(lists.codes) // 4):
            lists, newer = InvertedLists(codes), ()
        caches.inverted = lists, _extended(newer, codes, len(lists.codes))
        return self.now, [ProbedLists(lists, probes), *caches.inverted[1]]


def _tidied(now: Snapshot) -> Snapshot:
    """The live rows alone once many are deleted, else the same."""
    if len(now.codes) - now.count <= max(_FEW_CHANGED, len(now.codes) // 4) and now.count:
        return now
    codes, ids, table = now.living()
    return Snapshot.of(codes, ids, table if len(codes) else None, now.next_id)


def _without(now: Snapshot, rows: np.ndarray) -> np.ndarray:
    alive = np.ones(len(now.codes), bool) if now.alive is None else now.alive.copy()
    alive[rows] = False
    return alive


def _extended(segments: tuple[Segment, ...], codes: np.ndarray, first: int = 0) -> tuple[Segment, ...]:
    """Segments over all rows from `first` on; the last ones are merged where they have grown alike."""
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


def _ids_of(ids: np.ndarray, strings: bool) -> Ids:
    if not strings:
        return IntegerIds.of(ids.astype(np.int64))
    return IdColumn.of(StringIds(np.empty(0, np.uint8), np.empty(0, np.int64))).extended(ids).view()
