"""Random walks on the image-word graph with the images summed out (see docs/method.md, [graph]).

Shapes: N texts, V words, H hops of word -> image -> word, S sampled walks. A walk of length 2H + 1 stands on a word at
its steps 1, 3, 5, ...: H + 1 words.
"""

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from cmfah_hf.errors import CMFAHError

# Up to this many words, the row of the sum of the powers of M is kept of each word that a text has had (512 MiB if that
# is every word of 8,192), which makes a text cost a handful of row additions. Beyond it, dense blocks of texts are
# carried through M, which stays sparse.
_KEPT_WORDS = 8_192
_BLOCK_ELEMENTS = 1 << 22
_LONGEST_WALK = 1_001


class RandomWalk:
    """Walks whose step from word to word is drawn from the rows of one matrix.

    Args:
        transitions_VV: Row-stochastic matrix `M = P_wi P_iw`.
        walk_length: Steps from the image on, odd: a walk of length 5 stands on words at steps 1, 3 and 5.

    Raises:
        CMFAHError: If `walk_length` is even or below 1.
    """

    def __init__(self, transitions_VV: sparse.csr_array, walk_length: int = 5):
        self.num_hops = num_hops(walk_length)
        self.transitions_VV = transitions_VV
        self._visits_VV: np.ndarray | None = None
        self._kept_V: np.ndarray | None = None
        self._cumulative: np.ndarray | None = None

    def expected_visits(self, start_NV: sparse.csr_array) -> np.ndarray:
        """`x1 + x1 M + x1 M^2 + ...` for every row x1, one term for each word on the walk.

        A row's result does not depend on the rows beside it.

        Args:
            start_NV: Where step 1 stands: each row a distribution over the words, or empty.

        Returns:
            `(N, V)` float64. A row sums to H + 1, the number of words on a walk, or to 0 if it started empty.
        """
        num_words = self.transitions_VV.shape[0]
        if num_words <= _KEPT_WORDS:
            self._keep_visits(np.unique(start_NV.indices))
            return np.asarray(start_NV @ self._visits_VV)
        visits_NV = np.empty(start_NV.shape)
        block = max(1, _BLOCK_ELEMENTS // num_words)
        for first in range(0, start_NV.shape[0], block):
            start = start_NV[first : first + block]
            # A start row is nearly empty, so the first hop is sparse; after it hardly an element is zero.
            visits = (start + start @ self.transitions_VV).toarray() if self.num_hops else start.toarray()
            for _ in range(self.num_hops - 1):
                visits = visits @ self.transitions_VV
                visits[coordinates(start)] += start.data
            visits_NV[first : first + block] = visits
        return visits_NV

    def _keep_visits(self, words: np.ndarray) -> None:
        """The visits of walks that start on each of these words, computed once; what one gets hangs on no other."""
        num_words = self.transitions_VV.shape[0]
        if self._visits_VV is None:
            # The system gives memory to those rows alone that are written.
            self._visits_VV = np.empty((num_words, num_words))
            self._kept_V = np.zeros(num_words, dtype=bool)
        missing = words[~self._kept_V[words]]
        block = max(1, _BLOCK_ELEMENTS // num_words)
        for first in range(0, len(missing), block):
            rows = missing[first : first + block]
            ones = np.ones(len(rows))
            start = sparse.csr_array((ones, rows, np.arange(len(rows) + 1)), shape=(len(rows), num_words))
            visits = start
            for _ in range(self.num_hops):
                visits = start + visits @ self.transitions_VV
            self._visits_VV[rows] = visits.toarray()
            self._kept_V[rows] = True

    def sample(
        self, start_NV: sparse.csr_array, num_walks: int, generators: Sequence[np.random.Generator]
    ) -> np.ndarray:
        """Walks drawn step by step.

        One hop word -> image -> word is exactly one draw from the word's row of M: the row is the sum over the images
        of "go to this image" times "go to that word", so the image on the way does not have to be known.

        Args:
            start_NV: Where step 1 stands: each row a distribution over the words, or empty.
            num_walks: S, walks from each row.
            generators: One for each row, so that a row's walks do not depend on the rows beside it.

        Returns:
            `(N, S, H + 1)` int64, the words' numbers along each walk; -1 throughout where a start row is empty.
        """
        num_rows = start_NV.shape[0]
        walks = np.full((num_rows, num_walks, self.num_hops + 1), -1, dtype=np.int64)
        rows = np.flatnonzero(np.diff(start_NV.indptr))
        if not len(rows):
            return walks
        uniform = np.stack([generators[row].random((num_walks, self.num_hops + 1)) for row in rows])
        words = np.stack([_first_words(start_NV, row, u[:, 0]) for row, u in zip(rows, uniform, strict=True)])
        walks[rows, :, 0] = words
        for hop in range(1, self.num_hops + 1):
            words = self._next_words(words, uniform[..., hop])
            walks[rows, :, hop] = words
        return walks

    def _next_words(self, words: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """One draw from the row of M of each word, the whole array in one search."""
        m = self.transitions_VV
        if self._cumulative is None:
            # Row number plus the running share within the row: it rises over all the data of M.
            running = np.cumsum(m.data)
            before = np.concatenate([[0.0], running])[m.indptr]
            rows, _ = coordinates(m)
            self._cumulative = rows + (running - before[rows]) / (before[rows + 1] - before[rows])
        position = np.searchsorted(self._cumulative, words + uniform, side="right")
        # Rounding may carry a draw over either end of its row.
        return m.indices[np.clip(position, m.indptr[words], m.indptr[words + 1] - 1)].astype(np.int64)


def num_hops(walk_length: int) -> int:
    """H of a walk of that length: word -> image -> word moves after its first word."""
    if walk_length < 1 or walk_length % 2 == 0:
        raise CMFAHError(f"walk_length={walk_length} is not odd; words stand at steps 1, 3, 5, ... of a walk.")
    if walk_length > _LONGEST_WALK:
        raise CMFAHError(f"walk_length={walk_length} is beyond {_LONGEST_WALK}, where it has long settled; give less.")
    return (walk_length - 1) // 2


def largest_shares(
    shares_NV: np.ndarray, alphabet_V: np.ndarray, top_k: int | None, min_share: float, decimals: int
) -> list[np.ndarray]:
    """For each text the numbers of the words of the largest shares, equal ones by word.

    Args:
        shares_NV: The shares; 0 for words that are not to be taken.
        alphabet_V: Each word's place in the alphabet.
        top_k: At most so many words; `None` for no limit.
        min_share: Only words of at least this share, once it is rounded, and of more than 0.
        decimals: Shares that are equal once they are rounded to these are equal.
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
    """Row and column of every element, in the order of its data."""
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr)), matrix.indices


def _first_words(start_NV: sparse.csr_array, row: int, uniform: np.ndarray) -> np.ndarray:
    """Draws from one start row. Row by row, so that not even its rounding depends on the rows beside it."""
    first, end = start_NV.indptr[row : row + 2]
    cumulative = np.cumsum(start_NV.data[first:end])
    position = np.searchsorted(cumulative / cumulative[-1], uniform, side="right")
    return start_NV.indices[first + np.minimum(position, end - first - 1)].astype(np.int64)
