"""The rows of an index: packed codes, ids and metadata side by side, changed one change at a time.

Rows are only ever appended and marked as gone, and a change ends with a new `Snapshot` in place of the old one. Whoever
searches takes the snapshot of that moment and needs no lock; whoever changes rows has to hold one.
"""

from dataclasses import dataclass
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


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The rows as they stand between two changes.

    Attributes:
        codes: `(N, K / 8)` uint8, those of rows that are gone as well.
        ids: `N` of them.
        alive: `(N,)` bool; None where no row is gone.
        segments: Which together scan all rows.
        table: The metadata, `N` rows, or None.
    """

    codes: np.ndarray
    ids: Ids
    alive: np.ndarray | None
    segments: tuple[Segment, ...]
    table: pa.Table | None

    @cached_property
    def count(self) -> int:
        """How many rows live."""
        return len(self.codes) if self.alive is None else int(np.count_nonzero(self.alive))

    @property
    def strings(self) -> bool:
        """Whether the ids are strings."""
        return isinstance(self.ids, StringIds)

    def living(self) -> tuple[np.ndarray, Ids, pa.Table | None]:
        """Codes, ids and metadata of the rows that live."""
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
    """

    def __init__(self, codes: np.ndarray, ids: Ids, table: pa.Table | None):
        self._start(codes, ids, table)

    def rows_of(self, ids: np.ndarray) -> np.ndarray:
        """The living row of each id, -1 where there is none."""
        if not self.now.count or self.now.strings != (ids.dtype == object):
            return np.full(len(ids), -1)
        return self._lookup.rows_of(ids, self.now.ids, self.now.alive)

    def append(
        self, codes: np.ndarray, ids: np.ndarray, table: pa.Table | None, instead_of: np.ndarray | None = None
    ) -> None:
        """New rows behind all others, and those of `instead_of` gone, in one change.

        Raises:
            HashIndexError: If the metadata does not fit; then nothing has changed.
        """
        now = self.now
        if not now.count and now.strings != (ids.dtype == object):  # without items, the other kind of id is taken
            self._start(codes[:0], _ids_of(ids[:0], ids.dtype == object), None)
            now, instead_of = self.now, None
        joined = appended(now.table, len(now.codes), table, len(codes))
        self._codes.append(codes)
        self._ids.append(ids)
        alive = now.alive if instead_of is None or not len(instead_of) else _without(now, instead_of)
        if alive is not None:
            alive = np.concatenate([alive, np.ones(len(codes), bool)])
        held = self._codes.view()
        self.now = Snapshot(held, self._ids.view(), alive, _extended(now.segments, held), joined)
        self._tidy()

    def drop(self, rows: np.ndarray) -> None:
        """These rows gone."""
        now = self.now
        self.now = Snapshot(now.codes, now.ids, _without(now, rows), now.segments, now.table)
        self._tidy()

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
        lists, newer = self._inverted or (None, ())
        if lists is None or len(codes) - len(lists.codes) > max(_FEW_CHANGED, len(lists.codes) // 4):
            lists, newer = InvertedLists(codes), ()
        self._inverted = lists, _extended(newer, codes, len(lists.codes))
        return self.now, [ProbedLists(lists, probes), *self._inverted[1]]

    def _start(self, codes: np.ndarray, ids: Ids, table: pa.Table | None) -> None:
        self._codes, self._ids, self._lookup = GrowingArray(codes), IdColumn(ids), IdLookup()
        self._inverted: tuple[InvertedLists, tuple[Segment, ...]] | None = None
        held = self._codes.view()
        self.now = Snapshot(held, self._ids.view(), None, _extended((), held), table)

    def _tidy(self) -> None:
        """Writes the living rows anew once many are gone."""
        now = self.now
        if len(now.codes) - now.count > max(_FEW_CHANGED, len(now.codes) // 4) or not now.count:
            codes, ids, table = now.living()
            self._start(codes, ids, table if len(codes) else None)


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
    column = IdColumn(StringIds(np.empty(0, np.uint8), np.empty(0, np.int64)))
    column.append(ids)
    return column.view()
