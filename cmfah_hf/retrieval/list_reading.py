"""The loop that reads lists of codes, compiled by numba: `[groups]` in docs/method.md, one query after the other.

Costs are whole numbers here, sums of the weights of those bits in which a code differs from the query. The nearest list
is read first. What is found is counted in buckets by its cost, and as soon as the first buckets hold enough, what can
only fall into later ones is neither kept nor read: of a list only its first codes, those far from its centre, are left.

Shapes: `Q` queries, `N` codes and `L` centres of `K` bits, in `W` words of 64; `O` octets of 256 values `V`; `P` planes
of weights; `R` distances from a centre; `B` codes of a block; `D` places for what a query finds.
"""

from collections.abc import Callable

import numba
import numpy as np

# Costs are counted in so many buckets of equal width. Of Hamming distances up to 1,023 each has its own.
_BUCKETS = 1024
# Codes whose costs are bounded at once.
_BLOCK = 256
# A weight is bounded by its eight highest bits, or by the first four of them. Those of all weights at one place are a
# plane.
_PLANES = 8
# Of so many codes or fewer it is quicker to read them than to look closer whether they have to be.
_QUICKLY_READ = 48

_ONE, _OCTET = np.uint64(1), np.uint64(255)


@numba.njit(inline="always")
def _ones(x: np.uint64) -> np.uint64:
    """How many bits are set. The compiler knows this for what processors have an instruction for."""
    x -= (x >> np.uint64(1)) & np.uint64(0x5555555555555555)
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (x * np.uint64(0x0101010101010101)) >> np.uint64(56)


@numba.njit
def _query_of(values_K: np.ndarray, unit: float, words: int) -> tuple[np.ndarray, np.ndarray]:
    """The packed signs of a query, `(W,)`, and what its bits weigh, `(64 W,)`, zero behind the last."""
    query_W = np.zeros(words, np.uint64)
    weights_K = np.zeros(64 * words, np.int64)
    for bit in range(len(values_K)):
        if values_K[bit] >= 0:
            query_W[bit >> 6] |= _ONE << np.uint64(bit & 63)
        weights_K[bit] = np.int64(abs(values_K[bit]) * unit) if unit else 1
    return query_W, weights_K


@numba.njit
def _planes_of(weights_K: np.ndarray) -> tuple[np.ndarray, int]:
    """`(P, W)` the highest bits of the weights, the lowest of them first, and how far they are shifted down."""
    largest, shift = weights_K.max(), 0
    while (largest >> shift) >= 1 << _PLANES:
        shift += 1
    planes_PW = np.zeros((_PLANES, len(weights_K) >> 6), np.uint64)
    for bit in range(len(weights_K)):
        for plane in range(_PLANES):
            if (weights_K[bit] >> shift >> plane) & 1:
                planes_PW[plane, bit >> 6] |= _ONE << np.uint64(bit & 63)
    return planes_PW, shift


@numba.njit
def _tables_of(weights_K: np.ndarray) -> np.ndarray:
    """`(O, V)`: what the set bits of each value of each octet weigh."""
    tables_OV = np.zeros((len(weights_K) >> 3, 256), np.int64)
    for octet in range(len(tables_OV)):
        for bit in range(8):
            for value in range(1 << bit):
                tables_OV[octet, value + (1 << bit)] = tables_OV[octet, value] + weights_K[8 * octet + bit]
    return tables_OV


@numba.njit
def _cost(tables_OV: np.ndarray, query_W: np.ndarray, codes_WN: np.ndarray, item: int) -> int:
    cost = np.int64(0)
    for word in range(len(query_W)):
        differing = codes_WN[word, item] ^ query_W[word]
        for octet in range(8):
            cost += tables_OV[8 * word + octet, (differing >> np.uint64(8 * octet)) & _OCTET]
    return cost


@numba.njit
def _bound_costs(
    codes_WN: np.ndarray,
    start: int,
    size: int,
    query_W: np.ndarray,
    planes_PW: np.ndarray,
    fours: int,
    bounds_B: np.ndarray,
) -> None:
    """What each code of a block costs at least, by so many groups of four planes, the highest; 0: by the lowest alone.

    The compiler makes instructions of it that take several codes at once.
    """
    bounds_B[:size] = 0
    for word in range(len(query_W)):
        own, query = codes_WN[word, start : start + size], query_W[word]
        if fours == 0:
            plane = planes_PW[0, word]
            for item in range(size):
                bounds_B[item] += _ones((own[item] ^ query) & plane)
        for four in range(fours):
            first = _PLANES - 4 * (fours - four)
            plane, second = planes_PW[first, word], planes_PW[first + 1, word]
            third, fourth = planes_PW[first + 2, word], planes_PW[first + 3, word]
            for item in range(size):
                x = own[item] ^ query
                low = _ones(x & plane) + (_ones(x & second) << np.uint64(1))
                high = _ones(x & third) + (_ones(x & fourth) << np.uint64(1))
                bounds_B[item] += (low + (high << np.uint64(2))) << np.uint64(4 * four)


@numba.njit
def _by_cost(costs_L: np.ndarray, shift: int) -> np.ndarray:
    """`(L,)` in ascending order of their buckets."""
    ends = np.zeros(_BUCKETS + 1, np.int64)
    for cost in costs_L:
        ends[(cost >> shift) + 1] += 1
    for bucket in range(_BUCKETS):
        ends[bucket + 1] += ends[bucket]
    order_L = np.empty(len(costs_L), np.int64)
    for centre in range(len(costs_L)):
        bucket = costs_L[centre] >> shift
        order_L[ends[bucket]] = centre
        ends[bucket] += 1
    return order_L


@numba.njit
def _fewest_flips(
    centres_WL: np.ndarray,
    centre: int,
    cost: int,
    limit: int,
    query_W: np.ndarray,
    weights_K: np.ndarray,
    heaviest_K: np.ndarray,
) -> int:
    """How many bits have to flip before a centre's cost is below the limit: only those that differ can gain."""
    flips = 0
    for bit in heaviest_K:
        differs = np.int64(((centres_WL[bit >> 6, centre] ^ query_W[bit >> 6]) >> np.uint64(bit & 63)) & _ONE)
        cost -= weights_K[bit] * differs
        flips += differs
        if cost < limit:
            break
    return flips


@numba.njit
def _kept(costs_D: np.ndarray, places_D: np.ndarray, found: int, limit: int) -> int:
    """Closes the gaps of those at or above the limit; how many are left."""
    left = 0
    for place in range(found):
        if costs_D[place] < limit:
            costs_D[left], places_D[left] = costs_D[place], places_D[place]
            left += 1
    return left


@numba.njit
def _read_for_one(
    query_W: np.ndarray,
    weights_K: np.ndarray,
    centres_WL: np.ndarray,
    starts_L: np.ndarray,
    tails_RL: np.ndarray,
    codes_WN: np.ndarray,
    wanted: int,
    costs_D: np.ndarray,
    places_D: np.ndarray,
) -> tuple[int, int, int]:
    """Fills costs and places among the codes; how many these are or -1, the limit, and how many codes were read."""
    planes_PW, plane_shift = _planes_of(weights_K)
    tables_OV = _tables_of(weights_K)
    heaviest_K = np.argsort(-weights_K)
    fours = 1 if weights_K.max() > 1 else 0
    total, shift = weights_K.sum(), 0
    while (total >> shift) >= _BUCKETS:
        shift += 1
    bounds_L = np.empty(len(starts_L), np.uint64)
    _bound_costs(centres_WL, 0, len(starts_L), query_W, planes_PW, 2 * fours, bounds_L)
    costs_L = bounds_L.astype(np.int64) << plane_shift  # at least
    plane_shift += 4 * fours

    counts, bounds_B = np.zeros(_BUCKETS, np.int64), np.empty(_BLOCK, np.uint64)
    last, below, found, read = _BUCKETS - 1, 0, 0, 0  # up to which bucket is kept, and how many were found up to it
    limit = _BUCKETS << shift
    limit_of_planes = np.uint64(limit >> plane_shift)
    flips, gain = 0, np.int64(0)  # how many bits have to flip for any list from here on, and what they gain at most
    for centre in _by_cost(costs_L, shift):
        least = costs_L[centre] >> shift << shift
        while flips < len(tails_RL) - 1 and least - gain >= limit:
            gain += weights_K[heaviest_K[flips]]
            flips += 1
        size = tails_RL[flips, centre]
        if flips and fours and size > _QUICKLY_READ:
            own = _fewest_flips(centres_WL, centre, costs_L[centre], limit, query_W, weights_K, heaviest_K)
            size = tails_RL[own, centre] if own < len(tails_RL) else 0
        read += size
        start, end = starts_L[centre], starts_L[centre] + size
        for block in range(start, end, _BLOCK):
            items = min(_BLOCK, end - block)
            _bound_costs(codes_WN, block, items, query_W, planes_PW, fours, bounds_B)
            for item in range(items):
                if bounds_B[item] > limit_of_planes:
                    continue
                cost = _cost(tables_OV, query_W, codes_WN, block + item)
                if cost >= limit:
                    continue
                if found == len(costs_D):
                    found = _kept(costs_D, places_D, found, limit)
                    if found == len(costs_D):
                        return -1, 0, read
                costs_D[found], places_D[found] = cost, block + item
                found += 1
                counts[cost >> shift] += 1
                below += 1
                while below - counts[last] >= wanted:
                    below -= counts[last]
                    last -= 1
                limit = (last + 1) << shift
                limit_of_planes = np.uint64(limit >> plane_shift)
    return _kept(costs_D, places_D, found, limit), limit, read


def _read_lists(
    values_QK: np.ndarray,
    unit: float,
    centres_WL: np.ndarray,
    starts_L: np.ndarray,
    tails_RL: np.ndarray,
    codes_WN: np.ndarray,
    rows_N: np.ndarray,
    wanted: int,
    costs_QD: np.ndarray,
    rows_QD: np.ndarray,
    bounds_Q: np.ndarray,
    found_Q: np.ndarray,
    read_Q: np.ndarray,
) -> None:
    """All codes that cost less than a limit, which lies above at least `wanted` of them and above few that are no ties.

    Args:
        values_QK: Float32, whole numbers of units.
        unit: How many units one is; 0 for Hamming distances, where each bit weighs one.
        centres_WL: The packed centres.
        starts_L: Where the codes of each list begin.
        tails_RL: How many codes, the first ones, of each list lie at least so far from its centre; in the end none.
        codes_WN: The packed codes, list after list.
        rows_N: Their rows.
        wanted: How many are looked for.
        costs_QD: Filled with the costs of what was found: Hamming distances, or AQD scores negated.
        rows_QD: Filled with their rows.
        bounds_Q: Filled with the limits as such costs.
        found_Q: Filled with how many were found; -1 where there are more than `D`.
        read_Q: Filled with how many codes were read.
    """
    costs_D, places_D = np.empty(costs_QD.shape[1], np.int64), np.empty(costs_QD.shape[1], np.int64)
    for query in range(len(values_QK)):
        query_W, weights_K = _query_of(values_QK[query], unit, len(codes_WN))
        found, limit, read = _read_for_one(
            query_W, weights_K, centres_WL, starts_L, tails_RL, codes_WN, wanted, costs_D, places_D
        )
        # <q, B> is the sum of all weights, less twice those of the bits that differ.
        scale, total = (2 / unit, weights_K.sum() / unit) if unit else (1.0, 0.0)
        for place in range(found):
            costs_QD[query, place] = costs_D[place] * scale - total
            rows_QD[query, place] = rows_N[places_D[place]]
        bounds_Q[query] = limit * scale - total if found >= 0 else -np.inf
        found_Q[query], read_Q[query] = found, read


def _compiled(cache: bool) -> Callable[..., None]:
    words, whole, real = numba.uint64[:, ::1], numba.int64[::1], numba.float32[:, ::1]
    queries, lists = [real, numba.float64], [words, whole, numba.int32[:, ::1], words, numba.int32[::1], numba.int64]
    filled = [real, numba.int64[:, ::1], numba.float32[::1], whole, whole]
    return numba.njit(numba.void(*queries, *lists, *filled), nogil=True, cache=cache)(_read_lists)


try:
    read_lists = _compiled(cache=True)
except (RuntimeError, OSError):  # there is no folder where the compiled code may be kept, or no room in it
    read_lists = _compiled(cache=False)
