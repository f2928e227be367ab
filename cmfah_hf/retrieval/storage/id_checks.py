"""Checks of ids that come from a file: valid text, and no id twice."""

import numpy as np
import pyarrow as pa

from cmfah_hf.retrieval.storage.ids import Ids, IntegerIds, StringIds

# Strings are hashed by at most this many of their first bytes, in blocks of this many bytes, with this odd base.
_HASHED_BYTES, _BLOCK_BYTES, _BASE = 2**10, 2**15, np.uint64(0x9E3779B97F4A7C15)


def is_text(ids: StringIds) -> bool:
    """Whether the ends ascend within the text and split it into valid UTF-8 (lone surrogates allowed)."""
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
    except pa.ArrowInvalid:  # perhaps only because of lone surrogates
        pass
    inner = ends[ends < text.size]
    if ((text[inner] & 0xC0) == 0x80).any():  # an end inside a character
        return False
    try:
        text.tobytes().decode("utf-8", "surrogatepass")
        return True
    except UnicodeDecodeError:
        return False


def first_repeated(ids: Ids) -> int | str | None:
    """An id that several rows have, or None."""
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
    """Hashes of the first bytes of each string, `(N,)` uint64: polynomials modulo 2^64, by prefix sums of blocks."""
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
