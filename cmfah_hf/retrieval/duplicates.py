"""Groups of near-duplicates among the items of an index.

Shapes: `N` items of `K` bits.
"""

from collections.abc import Callable

import numpy as np

from cmfah_hf.retrieval.codes import check_distance
from cmfah_hf.retrieval.storage.ids import Ids


def duplicate_groups(
    codes: np.ndarray, ids: Ids, bits: int, advance: Callable[[float], None] | None = None
) -> list[np.ndarray]:
    """The groups of two and more items that chains of near pairs connect, the largest first.

    Equal codes become one before codes are compared, so a hundred thousand equal ones take no longer than one.

    Args:
        codes: `(N, K / 8)` uint8, packed.
        ids: Their ids.
        bits: The Hamming distance up to which two items are a pair.
        advance: Called with the share of the work that has been done since the last call.

    Returns:
        The ids of each group in ascending order. Groups of one size are ordered by their first id.

    Raises:
        QueryError: If `bits` is not a whole number from 0 to K.
    """
    bits = check_distance("bits", bits, codes.shape[1] * 8)
    if len(codes) < 2:
        return []
    from cmfah_hf.retrieval.near_pairs import connected, words_of  # numba takes time to load

    words_NW = words_of(codes)
    order_N = np.lexsort(words_NW.T)
    is_new_N = np.ones(len(codes), bool)
    is_new_N[1:] = (words_NW[order_N[1:]] != words_NW[order_N[:-1]]).any(axis=1)
    distinct_N = np.cumsum(is_new_N) - 1  # the number of the distinct code of each row of `order_N`
    group_N = np.empty(len(codes), np.int64)
    group_N[order_N] = connected(codes[order_N[is_new_N]], bits, advance)[distinct_N]
    rows = np.flatnonzero(np.bincount(group_N)[group_N] > 1)
    rows = rows[np.argsort(group_N[rows], kind="stable")]
    starts = np.flatnonzero(np.diff(group_N[rows], prepend=-1))
    groups = [np.sort(own) for own in np.split(ids.take(rows), starts[1:])] if len(rows) else []
    return sorted(groups, key=lambda own: (-len(own), own[0]))
