"""All pairs of codes within a Hamming distance, exactly, as connected components (`[near-pairs]` in docs/method.md).

The bits are cut into parts. Two codes within `r` bits of each other agree in all but at most `r` parts. So for each
choice of `parts - r` parts, the codes are sorted by these parts, and those that agree are compared with each other.

Shapes: `N` codes of `K` bits, in `W` words of 64.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations, islice
from math import comb

import numba
import numpy as np

from cmfah_hf.retrieval.searchers.popcount import ones

# Numbers of parts to try, from the distance on (one list of all codes), and the most sorts that one may take.
_TRIED, _MOST_SORTS = 8, 1000
# Codes that estimate the number of comparisons, and sorts of them for each number of parts.
_SAMPLE, _SAMPLED_SORTS = 2**16, 4
# Sorting a code, in comparisons.
_SORT_COST = 100
# Comparisons between two reports of progress.
_COMPARED_AT_ONCE = 2**28


@dataclass(frozen=True)
class Plan:
    """The parts of codes that are compared to find pairs.

    Attributes:
        parts: The number of parts of a code.
        sorts: The number of choices of parts that agree.
        comparisons: The estimated number of comparisons.
    """

    parts: int
    sorts: int
    comparisons: float


def connected(codes: np.ndarray, radius: int, advance: Callable[[float], None] | None = None) -> np.ndarray:
    """The component of each code, `(N,)` int64: the least row among all that chains of near pairs lead to.

    Args:
        codes: `(N, K / 8)` uint8, packed. Equal codes should be given once: each pair of them is compared.
        radius: The distance up to which two codes are a pair.
        advance: Called with the share of the work that has been done since the last call.
    """
    words_NW, bits = words_of(codes), codes.shape[1] * 8
    roots_N = np.arange(len(words_NW))
    if radius >= bits:
        return np.zeros_like(roots_N)
    plan = choose_plan(words_NW, radius, bits)
    for mask_W in _masks(plan.parts, radius, bits):
        keys_N = _keys(words_NW, mask_W)
        order_N = np.argsort(keys_N, kind="stable")
        keys_N = keys_N[order_N]
        ends_N = _ends_of_runs(keys_N)
        sorted_NW, row = words_NW[order_N], 0
        while row < len(order_N):
            before = row
            row = compare(sorted_NW, order_N, ends_N, radius, row, _COMPARED_AT_ONCE, roots_N)
            if advance is not None:
                advance((row - before) / len(order_N) / plan.sorts)
    while not np.array_equal(roots_N, further_N := roots_N[roots_N]):
        roots_N = further_N
    return roots_N


def choose_plan(words_NW: np.ndarray, radius: int, bits: int) -> Plan:
    """The number of parts with the least estimated time, by the codes of a sample that agree."""
    count = len(words_NW)
    rng = np.random.default_rng(0)
    sample_SW = words_NW if count <= _SAMPLE else words_NW[rng.choice(count, _SAMPLE, replace=False)]
    pairs_of_sample = max(1, len(sample_SW) * (len(sample_SW) - 1) // 2)
    plans = []
    for parts in range(max(1, radius), min(radius + _TRIED, bits + 1)):
        sorts = comb(parts, radius)
        if parts > radius and sorts > _MOST_SORTS:
            break
        shares = [
            _agreeing_pairs(_keys(sample_SW, mask_W)) / pairs_of_sample
            for mask_W in islice(_masks(parts, radius, bits), None, None, max(1, sorts // _SAMPLED_SORTS))
        ]
        plans.append(Plan(parts, sorts, sorts * float(np.mean(shares)) * count * (count - 1) / 2))
    return min(plans, key=lambda plan: plan.comparisons + plan.sorts * _SORT_COST * count)


def words_of(codes: np.ndarray) -> np.ndarray:
    """`(N, K / 8)` packed codes as `(N, W)` words of 64 bits, padded with zero bits."""
    padded = np.zeros((len(codes), -(-codes.shape[1] // 8) * 8), np.uint8)
    padded[:, : codes.shape[1]] = codes
    return padded.view("<u8")


def _masks(parts: int, radius: int, bits: int) -> Iterator[np.ndarray]:
    """The bits of each choice of `parts - radius` parts, `(W,)`."""
    own = np.array_split(np.arange(bits), parts)
    for chosen in combinations(range(parts), parts - radius):
        set_K = np.zeros(-(-bits // 64) * 64, np.uint8)
        for part in chosen:
            set_K[own[part]] = 1
        yield np.packbits(set_K, bitorder="little").view("<u8")


def _keys(words_NW: np.ndarray, mask_W: np.ndarray) -> np.ndarray:
    """One number `(N,)` for the masked bits of each code. If there are several words, others may have it too."""
    keys_N = words_NW[:, 0] & mask_W[0]
    for word in range(1, len(mask_W)):
        # An odd factor loses nothing of the words before; the shift moves high bits down.
        keys_N = (keys_N ^ (keys_N >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        keys_N ^= words_NW[:, word] & mask_W[word]
    return keys_N


def _agreeing_pairs(keys_S: np.ndarray) -> int:
    counts = np.unique(keys_S, return_counts=True)[1]
    return int((counts * (counts - 1) // 2).sum())


def _ends_of_runs(keys_N: np.ndarray) -> np.ndarray:
    """The end of the run of equal keys that each position belongs to, `(N,)`."""
    ends = np.append(np.flatnonzero(keys_N[1:] != keys_N[:-1]) + 1, len(keys_N))
    return np.repeat(ends, np.diff(ends, prepend=0))


@numba.njit
def _root(roots_N: np.ndarray, row: int) -> int:
    while roots_N[row] != row:
        roots_N[row] = roots_N[roots_N[row]]
        row = roots_N[row]
    return row


@numba.njit
def _join(roots_N: np.ndarray, row: int, other: int) -> None:
    first, second = _root(roots_N, row), _root(roots_N, other)
    if first != second:
        roots_N[max(first, second)] = min(first, second)


def _compare(
    words_NW: np.ndarray,
    order_N: np.ndarray,
    ends_N: np.ndarray,
    radius: int,
    start: int,
    most: int,
    roots_N: np.ndarray,
) -> int:
    """Joins near codes of each run from `start` on, up to about `most` comparisons. Returns where it ended."""
    compared, words = 0, words_NW.shape[1]
    limit = np.uint64(radius)  # of one type with distances: otherwise both would become floats
    for place in range(start, len(order_N)):
        if compared > most:
            return place
        compared += ends_N[place] - place - 1
        code_W = words_NW[place]
        for other in range(place + 1, ends_N[place]):
            distance = ones(code_W[0] ^ words_NW[other, 0])
            word = 1
            while word < words and distance <= limit:
                distance += ones(code_W[word] ^ words_NW[other, word])
                word += 1
            if distance <= limit:
                _join(roots_N, order_N[place], order_N[other])
    return len(order_N)


def _compiled(cache: bool) -> Callable[..., int]:
    whole = numba.int64[::1]
    signature = numba.int64(numba.uint64[:, ::1], whole, whole, numba.int64, numba.int64, numba.int64, whole)
    return numba.njit(signature, nogil=True, cache=cache)(_compare)


try:
    compare = _compiled(cache=True)
except (RuntimeError, OSError):  # no folder for the compiled code, or no room in it
    compare = _compiled(cache=False)
