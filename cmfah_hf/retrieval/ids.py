"""The ids of an index's rows: integers or strings, compact, and found again by value.

A column only ever grows. What it hands out are views of the rows so far, which stay as they are while it grows, so that
a search needs no lock.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from cmfah_hf.errors import HashIndexError
from cmfah_hf.retrieval.codes import as_array, shortened


@dataclass(frozen=True, eq=False)
class GrowingArray:
    """The first rows of a buffer that has room for more, and doubles when it is full.

    It never changes itself: the longer array that `extended` returns shares the buffer where there is room. What the
    buffer holds behind `filled` means nothing, so a change that is given up has left nothing behind.
    """

    buffer: np.ndarray
    filled: int

    @classmethod
    def of(cls, rows: np.ndarray) -> "GrowingArray":
        """All of these rows. They are full, so they are never written to: they may be a mapped file."""
        return cls(rows, len(rows))

    def __len__(self) -> int:
        return self.filled

    def extended(self, rows: np.ndarray) -> "GrowingArray":
        """These rows behind the others. Of one array, only the last extension may be used."""
        if not len(rows):
            return self
        needed, buffer = self.filled + len(rows), self.buffer
        if needed > len(buffer):
            buffer = np.empty((max(needed, 2 * len(buffer)), *buffer.shape[1:]), buffer.dtype)
            buffer[: self.filled] = self.buffer[: self.filled]
        buffer[self.filled : needed] = rows
        return GrowingArray(buffer, needed)

    def view(self) -> np.ndarray:
        view = self.buffer[: self.filled]
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


@dataclass(frozen=True, eq=False)
class IdColumn:
    """The ids of all rows, of one kind, with room for more.

    Attributes:
        parts: The integers; or the strings' bytes, and where each ends.
        bounds: On integers; (0, 0) for strings.
    """

    parts: tuple[GrowingArray, ...]
    bounds: tuple[int, int]

    @classmethod
    def of(cls, ids: Ids) -> "IdColumn":
        """A column of these ids."""
        if isinstance(ids, StringIds):
            return cls((GrowingArray.of(ids.text), GrowingArray.of(ids.ends)), (0, 0))
        return cls((GrowingArray.of(ids.values),), (ids.least, ids.largest))

    def extended(self, new_ids: np.ndarray) -> "IdColumn":
        """These ids behind the others, as `GrowingArray.extended` has it."""
        if len(self.parts) == 1:
            new = IntegerIds.of(new_ids)
            bounds = min(self.bounds[0], new.least), max(self.bounds[1], new.largest)
            return IdColumn((self.parts[0].extended(new_ids),), bounds)
        text, ends = self.parts
        encoded = [item_id.encode("utf-8", "surrogatepass") for item_id in new_ids]
        new_ends = len(text) + np.cumsum([len(item_id) for item_id in encoded], dtype=np.int64)
        new_text = np.frombuffer(b"".join(encoded), np.uint8)
        return IdColumn((text.extended(new_text), ends.extended(new_ends)), (0, 0))

    def view(self) -> Ids:
        views = [part.view() for part in self.parts]
        return IntegerIds(*views, *self.bounds) if len(views) == 1 else StringIds(*views)


class IdLookup:
    """From ids to rows, brought up to date by the lookup that needs it: integer ids that rise are never looked up.

    Most rows stand in an array sorted by key (the integer, or the string's hash), 16 bytes a row; the newest ones stand
    in a dictionary.
    """

    _FEW = 4096

    def __init__(self):
        nothing = np.empty(0, np.int64)
        # Keys in ascending order, the row of each, the newest rows by id, how many rows are covered.
        self._found: tuple[np.ndarray, np.ndarray, dict[int | str, int], int] = nothing, nothing, {}, 0

    def rows_of(self, wanted: np.ndarray, ids: Ids, alive: np.ndarray | None) -> np.ndarray:
        """The living row of each id, -1 where there is none. `alive` says it of all rows; None where all live."""
        self._cover(ids, alive)
        sorted_keys, sorted_rows, newest_rows, _ = self._found
        keys = keys_of(wanted)
        first = np.searchsorted(sorted_keys, keys)
        found = np.full(len(wanted), -1, np.int64)
        if isinstance(ids, IntegerIds):
            inside = np.flatnonzero(first < len(sorted_keys))
            same = inside[sorted_keys[first[inside]] == keys[inside]]
            found[same] = sorted_rows[first[same]]
        else:
            for position, (key, at) in enumerate(zip(keys.tolist(), first.tolist(), strict=True)):
                while at < len(sorted_keys) and sorted_keys[at] == key and found[position] < 0:
                    row = sorted_rows[at]
                    found[position] = row if ids.take(row) == wanted[position] else -1
                    at += 1
        if newest_rows:
            newest = [newest_rows.get(item_id, -1) for item_id in wanted.tolist()]
            found = np.where(np.array(newest) >= 0, newest, found)
        if alive is not None:
            found[(found >= 0) & ~alive[found]] = -1
        return found

    def _cover(self, ids: Ids, alive: np.ndarray | None) -> None:
        """Takes in the rows that have come; in one step, so that an error on the way changes nothing."""
        sorted_keys, sorted_rows, newest, start = self._found
        end = len(ids)
        if end - start + len(newest) <= max(self._FEW, len(sorted_keys) // 4):
            if end > start:
                new = np.arange(start, end)
                # Into the same dictionary, whose other entries stay as they are.
                newest.update(zip(ids.take(new).tolist(), new.tolist(), strict=True))
        else:
            keys, rows = ids.keys(start), np.arange(start, end)
            if newest:
                kept = np.fromiter(newest.values(), np.int64)
                keys = np.concatenate([keys_of(ids.take(kept)), keys])
                rows = np.concatenate([kept, rows])
            keys, rows = np.concatenate([sorted_keys, keys]), np.concatenate([sorted_rows, rows])
            if alive is not None:  # an id that was removed and added again has more than one row
                keys, rows = keys[alive[rows]], rows[alive[rows]]
            order = np.argsort(keys, kind="stable")
            sorted_keys, sorted_rows, newest = keys[order], rows[order], {}
        self._found = sorted_keys, sorted_rows, newest, end


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
    if hasattr(ids, "detach"):
        ids = as_array(ids)
    if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable) or getattr(ids, "ndim", 1) == 0:
        raise HashIndexError(f"Ids come as a list, not as {shortened(ids)} alone.")
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
    raise HashIndexError(f"An id is an integer or a string, not {shortened(wrong)}.")
