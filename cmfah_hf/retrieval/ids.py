"""The ids of an index's rows: integers or strings, compact, and found again by value.

A column only ever grows. What it hands out are views of the rows so far, which stay as they are while it grows, so that
a search needs no lock.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from cmfah_hf.errors import HashIndexError


class GrowingArray:
    """Rows in a buffer that doubles when it is full. Views of earlier lengths stay valid, also behind the doubling."""

    def __init__(self, rows: np.ndarray):
        self._buffer, self._filled = rows, len(rows)

    def __len__(self) -> int:
        return self._filled

    def append(self, rows: np.ndarray) -> None:
        needed = self._filled + len(rows)
        # What came from elsewhere, a mapped file perhaps, is full, so it is never written to.
        if needed > len(self._buffer):
            grown = np.empty((max(needed, 2 * len(self._buffer)), *self._buffer.shape[1:]), self._buffer.dtype)
            grown[: self._filled] = self._buffer[: self._filled]
            self._buffer = grown
        self._buffer[self._filled : needed] = rows
        self._filled = needed

    def view(self) -> np.ndarray:
        view = self._buffer[: self._filled]
        view.flags.writeable = False
        return view


@dataclass(frozen=True, eq=False)
class IntegerIds:
    """`(N,)` int64, and bounds on them."""

    values: np.ndarray
    least: int
    largest: int

    @classmethod
    def of(cls, values: np.ndarray) -> "IntegerIds":
        """These ids with their bounds."""
        return cls(values, int(values.min(initial=0)), int(values.max(initial=0)))

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: np.ndarray) -> np.ndarray:
        return self.values[rows]

    def keys(self, start: int = 0) -> np.ndarray:
        return self.values[start:]


@dataclass(frozen=True, eq=False)
class StringIds:
    """UTF-8 one after another, `(bytes,)` uint8, and where each ends, `(N,)` int64.

    Lone surrogates stand in file names that are no UTF-8; they come back as they were.
    """

    text: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def take(self, rows: np.ndarray) -> np.ndarray:
        rows = np.asarray(rows)
        starts = np.where(rows > 0, self.ends[rows - 1], 0) if len(self.ends) else rows
        taken = np.empty(rows.size, object)
        spans = zip(starts.ravel().tolist(), self.ends[rows].ravel().tolist(), strict=True)
        for position, (start, end) in enumerate(spans):
            taken[position] = self.text[start:end].tobytes().decode("utf-8", "surrogatepass")
        return taken.reshape(rows.shape)

    def keys(self, start: int = 0) -> np.ndarray:
        return keys_of(self.take(np.arange(start, len(self))))


Ids = IntegerIds | StringIds


class IdColumn:
    """The ids of all rows, of one kind.

    Args:
        ids: Those to begin with.
    """

    def __init__(self, ids: Ids):
        self.strings = isinstance(ids, StringIds)
        self._bounds = (0, 0) if isinstance(ids, StringIds) else (ids.least, ids.largest)
        parts = (ids.text, ids.ends) if isinstance(ids, StringIds) else (ids.values,)
        self._parts = tuple(GrowingArray(part) for part in parts)

    def append(self, new_ids: np.ndarray) -> None:
        if not self.strings:
            self._parts[0].append(new_ids)
            new = IntegerIds.of(new_ids)
            self._bounds = min(self._bounds[0], new.least), max(self._bounds[1], new.largest)
            return
        encoded = [item_id.encode("utf-8", "surrogatepass") for item_id in new_ids]
        text, ends = self._parts
        ends.append(len(text) + np.cumsum([len(item_id) for item_id in encoded], dtype=np.int64))
        text.append(np.frombuffer(b"".join(encoded), np.uint8))

    def view(self) -> Ids:
        views = (part.view() for part in self._parts)
        return StringIds(*views) if self.strings else IntegerIds(*views, *self._bounds)


class IdLookup:
    """From ids to rows, brought up to date by the lookup that needs it: integer ids that rise are never looked up.

    Most rows stand in an array sorted by key (the integer, or the string's hash), 16 bytes a row; the newest ones stand
    in a dictionary.
    """

    _FEW = 4096

    def __init__(self):
        self._keys, self._rows = np.empty(0, np.int64), np.empty(0, np.int64)
        self._newest: dict[int | str, int] = {}
        self._covered = 0

    def rows_of(self, wanted: np.ndarray, ids: Ids, alive: np.ndarray | None) -> np.ndarray:
        """The living row of each id, -1 where there is none. `alive` says it of all rows; None where all live."""
        self._cover(ids, alive)
        keys = keys_of(wanted)
        first = np.searchsorted(self._keys, keys)
        found = np.full(len(wanted), -1, np.int64)
        if isinstance(ids, IntegerIds):
            inside = np.flatnonzero(first < len(self._keys))
            same = inside[self._keys[first[inside]] == keys[inside]]
            found[same] = self._rows[first[same]]
        else:
            for position, (key, at) in enumerate(zip(keys.tolist(), first.tolist(), strict=True)):
                while at < len(self._keys) and self._keys[at] == key and found[position] < 0:
                    row = self._rows[at]
                    found[position] = row if ids.take(row) == wanted[position] else -1
                    at += 1
        if self._newest:
            newest = [self._newest.get(item_id, -1) for item_id in wanted.tolist()]
            found = np.where(np.array(newest) >= 0, newest, found)
        if alive is not None:
            found[(found >= 0) & ~alive[found]] = -1
        return found

    def _cover(self, ids: Ids, alive: np.ndarray | None) -> None:
        start, end = self._covered, len(ids)
        if end - start + len(self._newest) <= max(self._FEW, len(self._keys) // 4):
            new = np.arange(start, end)
            self._newest.update(zip(ids.take(new).tolist(), new.tolist(), strict=True))
        else:
            keys = ids.keys(start)
            rows = np.arange(start, end)
            if self._newest:
                kept = np.fromiter(self._newest.values(), np.int64)
                keys = np.concatenate([keys_of(ids.take(kept)), keys])
                rows = np.concatenate([kept, rows])
            keys, rows = np.concatenate([self._keys, keys]), np.concatenate([self._rows, rows])
            if alive is not None:  # an id that was removed and added again has more than one row
                keys, rows = keys[alive[rows]], rows[alive[rows]]
            order = np.argsort(keys, kind="stable")
            self._keys, self._rows, self._newest = keys[order], rows[order], {}
        self._covered = end


def keys_of(ids: np.ndarray) -> np.ndarray:
    """What ids are sorted by, `(N,)` int64: integers themselves, strings by their hash in this process."""
    if ids.dtype == object:
        return np.fromiter((hash(item_id) for item_id in ids.tolist()), np.int64, len(ids))
    return ids


def id_array(ids: Iterable) -> np.ndarray:
    """Ids as a fresh int64 array, or as an object array of str.

    Raises:
        HashIndexError: On a lone id, on ids of two kinds, or on what is neither an integer of 64 bits nor a string.
    """
    if isinstance(ids, (str, bytes, int)):
        raise HashIndexError(f"Ids come as a list, not as {ids!r} alone.")
    if isinstance(ids, np.ndarray) and ids.dtype.kind == "i":
        return ids.astype(np.int64).ravel()
    items = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    items = [item_id.item() if isinstance(item_id, np.generic) else item_id for item_id in items]
    kinds = {type(item_id) for item_id in items}
    if kinds <= {int}:
        try:
            return np.array(items, dtype=np.int64)
        except OverflowError:
            raise HashIndexError("An integer id needs more than 64 bits; give it as a string.") from None
    if kinds == {str}:
        strings = np.empty(len(items), object)
        strings[:] = items
        return strings
    if kinds == {int, str}:
        raise HashIndexError("Some ids are integers and some are strings; an index holds one kind.")
    wrong = next(item_id for item_id in items if type(item_id) not in (int, str))
    raise HashIndexError(f"An id is an integer or a string, not {wrong!r}.")
