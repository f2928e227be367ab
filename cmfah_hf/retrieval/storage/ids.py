"""The ids of an index's rows: compact columns of integers or strings that only grow.

A column never changes. `extended` returns a longer one that shares the buffer where there is room, so a search can read
its column without a lock while another thread adds rows.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cmfah_hf.errors import HashIndexError
from cmfah_hf.retrieval.codes import as_array, shortened


@dataclass(frozen=True, eq=False)
class GrowingArray:
    """The first rows of a buffer that has room for more, and doubles when it is full.

    The buffer's content behind `filled` has no meaning, so an abandoned change leaves nothing behind.
    """

    buffer: np.ndarray
    filled: int

    @classmethod
    def of(cls, rows: np.ndarray) -> "GrowingArray":
        """All of these rows. The buffer is full, so it is never written to and may be a mapped file."""
        return cls(rows, len(rows))

    def __len__(self) -> int:
        return self.filled

    def extended(self, rows: np.ndarray) -> "GrowingArray":
        """The array with more rows. Of several extensions of one array, only the last may be used."""
        if not len(rows):
            return self
        needed, buffer = self.filled + len(rows), self.buffer
        if needed > len(buffer):
            buffer = np.empty((max(needed, 2 * len(buffer)), *buffer.shape[1:]), buffer.dtype)
            buffer[: self.filled] = self.buffer[: self.filled]
        buffer[self.filled : needed] = rows
        return GrowingArray(buffer, needed)

    def view(self) -> np.ndarray:
        """The rows, read-only."""
        view = self.buffer[: self.filled]
        view.flags.writeable = False
        return view


@dataclass(frozen=True, eq=False)
class IntegerIds:
    """Integer ids, and bounds on them."""

    buffer: GrowingArray
    least: int
    largest: int

    @classmethod
    def of(cls, values: np.ndarray) -> "IntegerIds":
        """A column of these `(N,)` int64 ids."""
        return cls(GrowingArray.of(values), int(values.min(initial=0)), int(values.max(initial=0)))

    @cached_property
    def values(self) -> np.ndarray:
        """`(N,)` int64."""
        return self.buffer.view()

    def __len__(self) -> int:
        return len(self.buffer)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The ids of these rows, in the shape of `rows`."""
        return self.values[rows]

    def array(self) -> np.ndarray:
        """All ids."""
        return self.values

    def extended(self, ids: np.ndarray) -> "IntegerIds":
        """The column with more ids, as `GrowingArray.extended`."""
        least, largest = int(ids.min(initial=self.least)), int(ids.max(initial=self.largest))
        return IntegerIds(self.buffer.extended(ids), least, largest)


@dataclass(frozen=True, eq=False)
class StringIds:
    """String ids as concatenated UTF-8 and the end of each; lone surrogates, as in some file names, are kept."""

    text_buffer: GrowingArray
    ends_buffer: GrowingArray

    @classmethod
    def of(cls, text: np.ndarray, ends: np.ndarray) -> "StringIds":
        """A column of the ids in `(bytes,)` uint8 text, with their `(N,)` int64 ends."""
        return cls(GrowingArray.of(text), GrowingArray.of(ends))

    @cached_property
    def text(self) -> np.ndarray:
        """`(bytes,)` uint8."""
        return self.text_buffer.view()

    @cached_property
    def ends(self) -> np.ndarray:
        """`(N,)` int64."""
        return self.ends_buffer.view()

    def __len__(self) -> int:
        return len(self.ends_buffer)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The ids of these rows, objects of str in the shape of `rows`."""
        rows = np.asarray(rows)
        starts = np.where(rows > 0, self.ends[rows - 1], 0) if len(self) else rows
        taken = np.empty(rows.size, object)
        spans = zip(starts.ravel().tolist(), self.ends[rows].ravel().tolist(), strict=True)
        for position, (start, end) in enumerate(spans):
            taken[position] = self.text[start:end].tobytes().decode("utf-8", "surrogatepass")
        return taken.reshape(rows.shape)

    def array(self) -> np.ndarray:
        """All ids."""
        return self.take(np.arange(len(self)))

    def extended(self, ids: np.ndarray) -> "StringIds":
        """The column with more ids, as `GrowingArray.extended`."""
        encoded = [item_id.encode("utf-8", "surrogatepass") for item_id in ids]
        ends = len(self.text_buffer) + np.cumsum([len(item_id) for item_id in encoded], dtype=np.int64)
        text = np.frombuffer(b"".join(encoded), np.uint8)
        return StringIds(self.text_buffer.extended(text), self.ends_buffer.extended(ends))


Ids = IntegerIds | StringIds


def ids_of(ids: np.ndarray) -> Ids:
    """A column of ids as `id_array` returns them."""
    if ids.dtype != object:
        return IntegerIds.of(ids)
    return StringIds.of(np.empty(0, np.uint8), np.empty(0, np.int64)).extended(ids)


def id_array(ids: Iterable) -> np.ndarray:
    """Ids as a new int64 array or object array of str: `(N,)`.

    Raises:
        HashIndexError: If `ids` is a single id, mixes both types, or holds anything but 64-bit integers and strings.
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
    """The error message for more items without ids than 64-bit integers are left."""
    return f"{items} items came without ids, and from {next_id} on 64 bits hold no more of them; give `ids`."


def reject_repeated(ids: np.ndarray) -> None:
    """Raises a `HashIndexError` if an id is repeated."""
    if len(ids) == len(np.unique(ids)):
        return
    seen = set()
    for item_id in ids.tolist():
        if item_id in seen:
            raise HashIndexError(f"Id {shortened(item_id)} comes twice among the ids; every item needs its own.")
        seen.add(item_id)
