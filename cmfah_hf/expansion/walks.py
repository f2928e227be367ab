"""Random walks on the image-word graph with the images summed out (see docs/method.md, [graph]).

Shapes: N texts, V words, H hops word -> image -> word, S sampled walks. A walk of length 2H + 1 visits H + 1 words, at
its steps 1, 3, 5, ...
"""

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from cmfah_hf.errors import CMFAHError

# Up to this number of words, the row of the sum of powers of M is cached for each word that occurred in a text (512 MiB
# for all of 8,192 words), so that a text takes a few row additions. Beyond it, dense blocks of texts are multiplied by
# the sparse M.
_KEPT_WORDS = 8_192
_BLOCK_ELEMENTS = 1 << 22
_LONGEST_WALK = 1_001


class RandomWalk:
    """Random walks by a row-stochastic matrix `M = P_wi P_iw`, with an odd number of steps from the image."""

    def __init__(self, transitions_VV: sparse.csr_array, walk_length: int = 5):
        self.num_hops = num_hops(walk_length)
        self.transitions_VV = transitions_VV
        self._cached: tuple[np.ndarray, np.ndarray] | None = None
        self._cumulative: np.ndarray | None = None

    def expected_visits(self, start_NV: sparse.csr_array) -> np.ndarray:
        """`x1 + x1 M + x1 M^2 + ...` for every row x1, one term for each word on the walk: `(N, V)` float64.

        A row sums to H + 1, the number of words on a walk, or to 0 if its start is empty. It does not depend on other
        rows.
        """
        num_words = self.transitions_VV.shape[0]
        if num_words <= _KEPT_WORDS:
            return np.asarray(start_NV @ self._visits_from(np.unique(start_NV.indices)))
        visits_NV = np.empty(start_NV.shape)
        block = max(1, _BLOCK_ELEMENTS // num_words)
        for first in range(0, start_NV.shape[0], block):
            start = start_NV[first : first + block]
            # A start row has few elements, so the first hop is sparse; after it hardly any element is zero.
            visits = (start + start @ self.transitions_VV).toarray() if self.num_hops else start.toarray()
            for _ in range(self.num_hops - 1):
                visits = visits @ self.transitions_VV
                visits[coordinates(start)] += start.data
            visits_NV[first : first + block] = visits
        return visits_NV

    def _visits_from(self, words: np.ndarray) -> np.ndarray:
        """`(V, V)`, whose rows `words` are the expected visits of walks from each of them; these rows are cached."""
        num_words = self.transitions_VV.shape[0]
        if self._cached is None:
            # Rows take memory once they are written.
            self._cached = np.empty((num_words, num_words)), np.zeros(num_words, dtype=bool)
        visits_VV, is_cached_V = self._cached
        missing = words[~is_cached_V[words]]
        block = max(1, _BLOCK_ELEMENTS // num_words)
        for first in range(0, len(missing), block):
            rows = missing[first : first + block]
            ones = np.ones(len(rows))
            start = sparse.csr_array((ones, rows, np.arange(len(rows) + 1)), shape=(len(rows), num_words))
            visits = start
            for _ in range(self.num_hops):
                visits = start + visits @ self.transitions_VV
            visits_VV[rows] = visits.toarray()
            is_cached_V[rows] = True
        return visits_VV

    def sample(
        self, start_NV: sparse.csr_array, num_walks: int, generators: Sequence[np.random.Generator]
    ) -> np.ndarray:
        """Samples S walks from each row, step by step: `(N, S, H + 1)` int64 word indices, -1 for an empty start row.

        One hop word -> image -> word is one draw from the word's row of M, which sums over the images. Each row has its
        own generator, so that its walks do not depend on the other rows.
        """
        num_rows = start_NV.shape[0]
        walks = np.full((num_rows, num_walks, self.num_hops + 1), -1, dtype=np.int64)
        rows = np.flatnonzero(np.diff(start_NV.indptr)).tolist()
        if not rows:
            return walks
        uniform = np.stack([generators[row].random((num_walks, self.num_hops + 1)) for row in rows])
        words = np.stack([_first_words(start_NV, row, u[:, 0]) for row, u in zip(rows, uniform, strict=True)])
        walks[rows, :, 0] = words
        for hop in range(1, self.num_hops + 1):
            words = self._next_words(words, uniform[..., hop])
            walks[rows, :, hop] = words
        return walks

    def _next_words(self, words: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """One draw from the row of M for each word, vectorized."""
        m = self.transitions_VV
        if self._cumulative is None:
            # Row index plus cumulative share within the row, which increases over all the data of M.
            running = np.cumsum(m.data)
            before = np.concatenate([[0.0], running])[m.indptr]
            rows, _ = coordinates(m)
            self._cumulative = rows + (running - before[rows]) / (before[rows + 1] - before[rows])
        position = np.searchsorted(self._cumulative, words + uniform, side="right")
        # Rounding may move a draw beyond its row.
        return m.indices[np.clip(position, m.indptr[words], m.indptr[words + 1] - 1)].astype(np.int64)


def num_hops(walk_length: int) -> int:
    """H of a walk of this length: the number of hops word -> image -> word after its first word."""
    if walk_length < 1 or walk_length % 2 == 0:
        raise CMFAHError(f"walk_length={walk_length} is not odd; a walk visits words at steps 1, 3, 5, ...")
    if walk_length > _LONGEST_WALK:
        raise CMFAHError(
            f"walk_length={walk_length} is beyond {_LONGEST_WALK}, where walks have long converged; give less."
        )
    return (walk_length - 1) // 2


def largest_shares(
    shares_NV: np.ndarray, alphabet_V: np.ndarray, top_k: int | None, min_share: float, decimals: int
) -> list[np.ndarray]:
    """For each text the indices of the words with the largest rounded shares, ties alphabetically.

    Words of share 0 are never taken; `alphabet_V` are the alphabetical ranks, and `top_k` may be `None` for no limit.
    """
    num_words = shares_NV.shape[1]
    k = num_words if top_k is None else min(top_k, num_words)
    if k == 0:
        return [np.empty(0, dtype=np.int64)] * len(shares_NV)
    # All that may tie with the k-th once they are rounded stay for the sort, which alone knows the words.
    kth_N = np.partition(shares_NV, num_words - k, axis=1)[:, num_words - k] if k < num_words else 0.0
    floor_N = np.maximum(kth_N - 2 * 10.0**-decimals, 10.0**-decimals / 2)
    rows, numbers = np.nonzero(shares_NV >= np.broadcast_to(floor_N, len(shares_NV))[:, None])
    shares = np.round(shares_NV[rows, numbers], decimals)
    wanted = (shares > 0) & (shares >= min_share)
    rows, numbers, shares = rows[wanted], numbers[wanted], shares[wanted]
    order = np.lexsort((alphabet_V[numbers], -shares, rows))
    ends = np.cumsum(np.bincount(rows, minlength=len(shares_NV)))
    return [row[:k] for row in np.split(numbers[order], ends[:-1])]


def coordinates(matrix: sparse.csr_array) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of every element, in the order of the data."""
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr)), matrix.indices


def _first_words(start_NV: sparse.csr_array, row: int, uniform: np.ndarray) -> np.ndarray:
    """Draws from one start row; row by row, so that rounding does not depend on the other rows."""
    first, end = start_NV.indptr[row : row + 2]
    cumulative = np.cumsum(start_NV.data[first:end])
    position = np.searchsorted(cumulative / cumulative[-1], uniform, side="right")
    return start_NV.indices[first + np.minimum(position, end - first - 1)].astype(np.int64)
