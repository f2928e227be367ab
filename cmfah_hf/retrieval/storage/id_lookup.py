"""The lookup from ids to rows."""

import numpy as np

from cmfah_hf.retrieval.storage.ids import Ids, IntegerIds


class IdLookup:
    """Finds rows by id, and brings itself up to date when it is asked.

    So additions of ascending integer ids, which need no lookup, cost nothing here. Most rows are in an array sorted by
    key (the integer, or the string's hash), 16 bytes a row; the newest are in a dictionary.
    """

    _FEW = 4096

    def __init__(self) -> None:
        nothing = np.empty(0, np.int64)
        # Ascending keys, the row of each, the newest rows by id, the number of rows covered.
        self._state: tuple[np.ndarray, np.ndarray, dict[int | str, int], int] = nothing, nothing, {}, 0

    def rows_of(self, wanted: np.ndarray, ids: Ids, live: np.ndarray | None) -> np.ndarray:
        """The live row of each wanted id: `(N,)` int64, -1 for unknown ids; `live` is None if all rows are."""
        self._cover(ids, live)
        sorted_keys, sorted_rows, newest_rows, _ = self._state
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
            newest = np.array([newest_rows.get(item_id, -1) for item_id in wanted.tolist()])
            found = np.where(newest >= 0, newest, found)
        if live is not None:
            found[(found >= 0) & ~live[found]] = -1
        return found

    def _cover(self, ids: Ids, live: np.ndarray | None) -> None:
        """Takes in the newest rows, in one step, so that an error on the way changes nothing."""
        sorted_keys, sorted_rows, newest, start = self._state
        end = len(ids)
        if end - start + len(newest) <= max(self._FEW, len(sorted_keys) // 4):
            if end > start:
                new = np.arange(start, end)
                # The dictionary is shared with the previous state; its other entries stay as they are.
                newest.update(zip(ids.take(new).tolist(), new.tolist(), strict=True))
        else:
            rows = np.concatenate([np.fromiter(newest.values(), np.int64), np.arange(start, end)])
            keys = np.concatenate([sorted_keys, keys_of(ids.take(rows))])
            rows = np.concatenate([sorted_rows, rows])
            if live is not None:  # an id that was removed and added again has several rows
                keys, rows = keys[live[rows]], rows[live[rows]]
            order = np.argsort(keys, kind="stable")
            sorted_keys, sorted_rows, newest = keys[order], rows[order], {}
        self._state = sorted_keys, sorted_rows, newest, end


def keys_of(ids: np.ndarray) -> np.ndarray:
    """Sort keys of ids, `(N,)` int64: integers themselves, strings by their hash in this process."""
    if ids.dtype == object:
        return np.fromiter((hash(item_id) for item_id in ids.tolist()), np.int64, len(ids))
    return ids
