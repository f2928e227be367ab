"""The numba-compiled loop that reads inverted lists (`[groups]` in docs/method.md), one query after the other.

Distances are whole numbers here: the summed weights of the bits in which a code differs from the query. The nearest
list is read first. Candidates are counted in buckets by distance. Once the first buckets hold enough, whatever can only
fall into later ones is neither kept nor read: of each list only the first codes, far from its center, remain.

Shapes: `Q` queries, `N` codes and `L` centers of `K` bits, in `W` words of 64; `O` octets of 256 values `V`; `P` planes
of weights; `R` radii (distances from a center); `B` codes of a block; `D` places for candidates.
"""

from collections.abc import Callable

import numba
import numpy as np

from cmfah_hf.retrieval.searchers.popcount import ones

# Buckets of equal width that count distances. Each Hamming distance up to 1,023 has its own.
_BUCKETS = 1024
# Codes whose distances are bounded at once.
_BLOCK = 256
# A weight is bounded by its eight highest bits, or by the first four of these. One such bit of all weights is a plane.
_PLANES = 8
# Up to this many codes, reading them is faster than a closer look at whether they have to be read.
_QUICKLY_READ = 48

_ONE, _OCTET = np.uint64(1), np.uint64(255)


@numba.njit
def _query_of(values_K: np.ndarray, unit: float, words: int) -> tuple[np.ndarray, np.ndarray]:
    """The packed signs of a query, `(W,)`, and the weights of its bits, `(64 W,)`, padded with zeros."""
    query_W = np.zeros(words, np.uint64)
    weights_K = np.zeros(64 * words, np.int64)
    for bit in range(len(values_K)):
        if values_K[bit] >= 0:
            query_W[bit >> 6] |= _ONE << np.uint64(bit & 63)
        weights_K[bit] = np.int64(abs(values_K[bit]) * unit) if unit else 1
    return query_W, weights_K


@numba.njit
def _planes_of(weights_K: np.ndarray) -> tuple[np.ndarray, int]:
    """The highest bits of the weights, `(P, W)`, lowest plane first, and by how many bits they are shifted down."""
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
    """`(O, V)`: the summed weights of the set bits, for each value of each octet."""
    tables_OV = np.zeros((len(weights_K) >> 3, 256), np.int64)
    for octet in range(len(tables_OV)):
        for bit in range(8):
            for value in range(1 << bit):
                tables_OV[octet, value + (1 << bit)] = tables_OV[octet, value] + weights_K[8 * octet + bit]
    return tables_OV


@numba.njit
def _distance(tables_OV: np.ndarray, query_W: np.ndarray, codes_WN: np.ndarray, item: int) -> int:
    distance = np.int64(0)
    for word in range(len(query_W)):
        differing = codes_WN[word, item] ^ query_W[word]
        for octet in range(8):
            distance += tables_OV[8 * word + octet, (differing >> np.uint64(8 * octet)) & _OCTET]
    return distance


@numba.njit
def _bound_distances(
    codes_WN: np.ndarray,
    start: int,
    size: int,
    query_W: np.ndarray,
    planes_PW: np.ndarray,
    fours: int,
    bounds_B: np.ndarray,
) -> None:
    """Lower bounds on the distances of a block's codes, by the `fours` highest groups of four planes.

    With `fours == 0`, by the lowest plane alone. The compiler vectorizes this over codes.
    """
    bounds_B[:size] = 0
    for word in range(len(query_W)):
        own, query = codes_WN[word, start : start + size], query_W[word]
        if fours == 0:
            plane = planes_PW[0, word]
            for item in range(size):
                bounds_B[item] += ones((own[item] ^ query) & plane)
        for four in range(fours):
            first = _PLANES - 4 * (fours - four)
            plane, second = planes_PW[first, word], planes_PW[first + 1, word]
            third, fourth = planes_PW[first + 2, word], planes_PW[first + 3, word]
            for item in range(size):
                x = own[item] ^ query
                low = ones(x & plane) + (ones(x & second) << np.uint64(1))
                high = ones(x & third) + (ones(x & fourth) << np.uint64(1))
                bounds_B[item] += (low + (high << np.uint64(2))) << np.uint64(4 * four)


@numba.njit
def _by_distance(distances_L: np.ndarray, shift: int) -> np.ndarray:
    """The cells in ascending order of their buckets, `(L,)`."""
    ends = np.zeros(_BUCKETS + 1, np.int64)
    for distance in distances_L:
        ends[(distance >> shift) + 1] += 1
    for bucket in range(_BUCKETS):
        ends[bucket + 1] += ends[bucket]
    order_L = np.empty(len(distances_L), np.int64)
    for center in range(len(distances_L)):
        bucket = distances_L[center] >> shift
        order_L[ends[bucket]] = center
        ends[bucket] += 1
    return order_L


@numba.njit
def _fewest_flips(
    centers_WL: np.ndarray,
    center: int,
    distance: int,
    limit: int,
    query_W: np.ndarray,
    weights_K: np.ndarray,
    heaviest_K: np.ndarray,
) -> int:
    """The fewest bit flips that bring a center's distance below the limit: only differing bits can gain."""
    flips = 0
    for bit in heaviest_K:
        differs = np.int64(((centers_WL[bit >> 6, center] ^ query_W[bit >> 6]) >> np.uint64(bit & 63)) & _ONE)
        distance -= weights_K[bit] * differs
        flips += differs
        if distance < limit:
            break
    return flips


@numba.njit
def _kept(distances_D: np.ndarray, places_D: np.ndarray, found: int, limit: int) -> int:
    """Drops the candidates at or above the limit, in place. Returns how many are left."""
    left = 0
    for place in range(found):
        if distances_D[place] < limit:
            distances_D[left], places_D[left] = distances_D[place], places_D[place]
            left += 1
    return left


@numba.njit
def _read_for_one(
    query_W: np.ndarray,
    weights_K: np.ndarray,
    centers_WL: np.ndarray,
    starts_L: np.ndarray,
    tails_RL: np.ndarray,
    codes_WN: np.ndarray,
    wanted: int,
    distances_D: np.ndarray,
    places_D: np.ndarray,
) -> tuple[int, int, int]:
    """Fills in candidates. Returns their number (-1 if there are too many), the limit, and the number of codes read."""
    planes_PW, plane_shift = _planes_of(weights_K)
    tables_OV = _tables_of(weights_K)
    heaviest_K = np.argsort(-weights_K)
    fours = 1 if weights_K.max() > 1 else 0
    total, shift = weights_K.sum(), 0
    while (total >> shift) >= _BUCKETS:
        shift += 1
    bounds_L = np.empty(len(starts_L), np.uint64)
    _bound_distances(centers_WL, 0, len(starts_L), query_W, planes_PW, 2 * fours, bounds_L)
    distances_L = bounds_L.astype(np.int64) << plane_shift  # lower bounds
    plane_shift += 4 * fours

    counts, bounds_B = np.zeros(_BUCKETS, np.int64), np.empty(_BLOCK, np.uint64)
    last, below, found, read = _BUCKETS - 1, 0, 0, 0  # the last bucket kept, and the candidates up to it
    limit = _BUCKETS << shift
    limit_of_planes = np.uint64(limit >> plane_shift)
    flips, gain = 0, np.int64(0)  # bit flips that any list from here on needs, and their largest gain
    for center in _by_distance(distances_L, shift):
        least = distances_L[center] >> shift << shift
        while flips < len(tails_RL) - 1 and least - gain >= limit:
            gain += weights_K[heaviest_K[flips]]
            flips += 1
        size = tails_RL[flips, center]
        if flips and fours and size > _QUICKLY_READ:
            own = _fewest_flips(centers_WL, center, distances_L[center], limit, query_W, weights_K, heaviest_K)
            size = tails_RL[own, center] if own < len(tails_RL) else 0
        read += size
        start, end = starts_L[center], starts_L[center] + size
        for block in range(start, end, _BLOCK):
            items = min(_BLOCK, end - block)
            _bound_distances(codes_WN, block, items, query_W, planes_PW, fours, bounds_B)
            for item in range(items):
                if bounds_B[item] > limit_of_planes:
                    continue
                distance = _distance(tables_OV, query_W, codes_WN, block + item)
                if distance >= limit:
                    continue
                if found == len(distances_D):
                    found = _kept(distances_D, places_D, found, limit)
                    if found == len(distances_D):
                        return -1, 0, read
                distances_D[found], places_D[found] = distance, block + item
                found += 1
                counts[distance >> shift] += 1
                below += 1
                while below - counts[last] >= wanted:
                    below -= counts[last]
                    last -= 1
                limit = (last + 1) << shift
                limit_of_planes = np.uint64(limit >> plane_shift)
    return _kept(distances_D, places_D, found, limit), limit, read


def _read_lists(
    values_QK: np.ndarray,
    unit: float,
    centers_WL: np.ndarray,
    starts_L: np.ndarray,
    tails_RL: np.ndarray,
    codes_WN: np.ndarray,
    rows_N: np.ndarray,
    wanted: int,
    distances_QD: np.ndarray,
    rows_QD: np.ndarray,
    bounds_Q: np.ndarray,
    found_Q: np.ndarray,
    read_Q: np.ndarray,
) -> None:
    """Fills in all codes nearer than a limit that lets through at least `wanted` of them, and few others except ties.

    Args:
        values_QK: Float32, whole numbers of units.
        unit: Units per 1.0; 0 for Hamming distances, where each bit weighs one.
        centers_WL: The packed centers.
        starts_L: The place of the first code of each list.
        tails_RL: The number of codes of each list with at least each radius, which are its first; the last row is 0.
        codes_WN: The packed codes, list after list.
        rows_N: Their rows.
        wanted: The number of answers.
        distances_QD: Filled with the candidates' distances: Hamming distances, or negated AQD scores.
        rows_QD: Filled with their rows.
        bounds_Q: Filled with the limits as such distances.
        found_Q: Filled with the numbers of candidates; -1 if there are more than `D`.
        read_Q: Filled with the numbers of codes read.
    """
    distances_D, places_D = np.empty(distances_QD.shape[1], np.int64), np.empty(distances_QD.shape[1], np.int64)
    for query in range(len(values_QK)):
        query_W, weights_K = _query_of(values_QK[query], unit, len(codes_WN))
        found, limit, read = _read_for_one(
            query_W, weights_K, centers_WL, starts_L, tails_RL, codes_WN, wanted, distances_D, places_D
        )
        # <q, B> is the sum of all weights, less twice those of the bits that differ.
        scale, total = (2 / unit, weights_K.sum() / unit) if unit else (1.0, 0.0)
        for place in range(found):
            distances_QD[query, place] = distances_D[place] * scale - total
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
except (RuntimeError, OSError):  # no folder for the compiled code, or no room in it
    read_lists = _compiled(cache=False)
