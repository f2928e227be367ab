"""The ids of an index's rows: integers or strings, compact, and found again by value.

A column only ever grows. What it hands out are views of the rows so far, which stay as they are while it grows, so that
a search needs no lock.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cmfah_hf.errors import HashIndexError
from cmfah_hf.retrieval.codes import as_array, shortened

# Strings are hashed by so many of their first bytes, in blocks of so many, with this odd base.
_HASHED_BYTES, _BLOCK_BYTES, _BASE = 2**10, 2**15, np.uint64(0x9E3779B97F4A7C15)


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


def is_text(ids: StringIds) -> bool:
    """Whether the ends are in order and within the text, and cut it into pieces of UTF-8 (with lone surrogates)."""
    text, ends = ids.text, ids.ends
    if len(ends) == 0:
        return not text.size
    if ends[0] < 0 or ends[-1] != text.size or (ends[1:] < ends[:-1]).any():
        return False
    starts_N = np.concatenate([[0], ends])
    strings = pa.Array.from_buffers(pa.large_string(), len(ends), [None, pa.py_buffer(starts_N), pa.py_buffer(text)])
    try:
        strings.validate(full=True)
        return True
    except pa.ArrowInvalid:  # perhaps of lone surrogates alone
        pass
    inner = ends[ends < text.size]
    if ((text[inner] & 0xC0) == 0x80).any():  # an end within a character
        return False
    try:
        text.tobytes().decode("utf-8", "surrogatepass")
        return True
    except UnicodeDecodeError:
        return False


def first_repeated(ids: Ids) -> int | str | None:
    """An id that more than one row has, or None."""
    if isinstance(ids, IntegerIds):
        values = ids.values
        if (values[1:] > values[:-1]).all():
            return None
        values = np.sort(values)
        same = np.flatnonzero(values[1:] == values[:-1])
        return int(values[same[0]]) if same.size else None
    hashes_N = _hashes(ids)
    sorted_N = np.sort(hashes_N)
    shared = sorted_N[1:][sorted_N[1:] == sorted_N[:-1]]
    seen = set()
    for row in np.flatnonzero(np.isin(hashes_N, shared)).tolist() if shared.size else ():
        item_id = ids.take(np.array([row]))[0]
        if item_id in seen:
            return item_id
        seen.add(item_id)
    return None


def _hashes(ids: StringIds) -> np.ndarray:
    """`(N,)` uint64, of the first bytes of each string and its length: polynomials modulo 2^64, many at once."""
    starts_N = np.concatenate([[0], ids.ends])[:-1]
    hashed_N = np.minimum(ids.ends - starts_N, _HASHED_BYTES)
    hashes_N = np.empty(len(starts_N), np.uint64)
    powers = np.cumprod(np.full(_BLOCK_BYTES + _HASHED_BYTES, _BASE), dtype=np.uint64)
    inverses = np.cumprod(np.full(_BLOCK_BYTES, pow(int(_BASE), -1, 2**64), np.uint64), dtype=np.uint64)
    sums = np.zeros(len(powers) + 1, np.uint64)
    row = 0
    while row < len(starts_N):
        base = starts_N[row]
        after = int(np.searchsorted(starts_N, base + _BLOCK_BYTES))
        block = ids.text[base : base + _BLOCK_BYTES + _HASHED_BYTES]
        sums[1 : len(block) + 1] = block
        sums[1 : len(block) + 1] *= powers[: len(block)]
        np.cumsum(sums[: len(block) + 1], out=sums[: len(block) + 1])
        firsts = starts_N[row:after] - base
        hashes_N[row:after] = (sums[firsts + hashed_N[row:after]] - sums[firsts]) * inverses[firsts]
        row = after
    return hashes_N


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


def no_ids_left(items: int, next_id: int) -> str:
    """The error of adding this many items without ids where integers of 64 bits end."""
    return f"{items} items came without ids, and from {next_id} on 64 bits hold no more of them; give `ids`."


def refuse_repeated(ids: np.ndarray) -> None:
    """Sees to it that every id is given once.

    Raises:
        HashIndexError: If one is given twice.
    """
    seen = set()
    if len(ids) == len(np.unique(ids)):
        return
    for item_id in ids.tolist():
        if item_id in seen:
            raise HashIndexError(f"Id {shortened(item_id)} comes twice among the ids; every item needs its own.")
        seen.add(item_id)
