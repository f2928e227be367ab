"""Counts of words that occur near each other, in one pass and bounded memory, and their mutual information.

See docs/method.md, [knowledge].

Shapes: V words of the vocabulary, W counted words, of which the vocabulary comes first.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
from scipy import sparse

# Number of words that are counted together, and of pairs that are summed together: at most about 100 MB.
_BUFFER_WORDS = 1 << 18
_GAP = -1
# Scores that are equal when rounded to this many decimals are equal, so that the order does not depend on the machine.
DECIMALS = 12


class WindowCounts:
    """Co-occurrence counts of the words of a vocabulary with all words, within a window.

    `near[a, b]` counts the pairs of an occurrence of `a` and one of `b` in one text that are at most `window` words
    apart, in both orders; `totals[b]` all such pairs whose second word is `b`. Stop words are removed first, so they do
    not count in a window.

    Two limits bound the memory for a stream of any length (lossy counting, Manku and Motwani 2002):
    - `max_words`: beyond this number of distinct words, the rarer half of those outside the vocabulary is dropped.
      A word's count is too low by at most `lost_occurrences`, and a word that is rarer than that may be missing.
    - `max_pairs`: beyond this number of pairs in `near`, the rarer half is dropped; a pair's count is too low by at
      most `lost_pairs`.
    As long as no limit is reached, both are 0 and all counts exact.

    Args:
        vocabulary: V distinct words, the rows of `near`.
        window: Number of words on either side.
        stop_words: Words to ignore.
        within_vocabulary: Whether the columns of `near` are restricted to the vocabulary.
        max_words: Maximum number of distinct words.
        max_pairs: Maximum number of pairs in `near`, about 40 bytes each while they are counted.
    """

    def __init__(
        self,
        vocabulary: Sequence[str],
        window: int,
        stop_words: Collection[str],
        within_vocabulary: bool,
        max_words: int,
        max_pairs: int,
    ):
        self._numbers = {word: number for number, word in enumerate(vocabulary)}
        self._size = len(vocabulary)
        self._window = window
        self._stop_words = stop_words
        self._within = within_vocabulary
        self._max_words = max(max_words, len(vocabulary))
        self._max_pairs = max_pairs
        self._texts: list[np.ndarray] = []
        self._buffered = 0
        self._seconds: list[tuple[np.ndarray, np.ndarray]] = []
        self._waiting: list[sparse.csr_array] = []
        self._near = sparse.csr_array((self._size, self._size), dtype=np.int64)
        self._totals = np.zeros(self._size, dtype=np.int64)
        self._occurrences = np.zeros(self._size, dtype=np.int64)
        self.num_words = 0
        self.lost_occurrences = 0
        self.lost_pairs = 0

    def add(self, words: Iterable[str], title: Sequence[str] = (), opening: int = 0, links: Iterable[str] = ()) -> None:
        """Counts one text.

        If its title is a single word of the vocabulary, this word is also near each distinct word among the first
        `opening` words of the text and among the links, once in both orders.
        """
        numbers = self._numbers
        known = [numbers.setdefault(word, len(numbers)) for word in words if word not in self._stop_words]
        self.num_words += len(known)
        gap = np.full(self._window, _GAP, dtype=np.int64)
        self._texts += [np.array(known, dtype=np.int64), gap]
        self._buffered += len(known) + self._window
        about = numbers.get(title[0]) if len(title) == 1 and title[0] not in self._stop_words else None
        if about is not None and about < self._size:
            linked = [numbers.setdefault(word, len(numbers)) for word in links if word not in self._stop_words]
            related = np.array(sorted({*known[:opening], *linked} - {about}), dtype=np.int64)
            self._seconds.append((np.full(len(related), about), related))
            self._buffered += len(related)
        if self._buffered >= _BUFFER_WORDS:
            self._count()

    def totals(self) -> tuple[list[str], np.ndarray, np.ndarray, sparse.csr_array]:
        """The words, `(W,)` their occurrences, `(W,)` their totals, and `near`, `(V, W)`, all int64."""
        self._count()
        self._merge()
        self._near.resize((self._size, len(self._numbers)))
        return list(self._numbers), self._occurrences, self._totals, self._near

    def _count(self) -> None:
        num_words = len(self._numbers)
        text = np.concatenate([*self._texts, np.zeros(0, dtype=np.int64)])
        occurrences = np.bincount(text[text != _GAP], minlength=num_words)
        totals = np.zeros(num_words, dtype=np.int64)
        pairs = [(text[:-apart], text[apart:]) for apart in range(1, self._window + 1)] + self._seconds
        rows, columns = [], []
        for first, second in pairs:
            both = (first != _GAP) & (second != _GAP)
            first, second = first[both], second[both]
            for a, b in ((first, second), (second, first)):
                totals += np.bincount(b, minlength=num_words)
                wanted = (a < self._size) & (b < self._size) if self._within else a < self._size
                rows.append(a[wanted].astype(np.int32))
                columns.append(b[wanted].astype(np.int32))
        shape = (self._size, self._size if self._within else num_words)
        row, column = np.concatenate(rows), np.concatenate(columns)
        self._waiting.append(sparse.csr_array((np.ones(len(row), dtype=np.int64), (row, column)), shape=shape))
        for name, counted in (("_occurrences", occurrences), ("_totals", totals)):
            counted[: len(getattr(self, name))] += getattr(self, name)
            setattr(self, name, counted)
        self._texts, self._seconds, self._buffered = [], [], 0
        # Sums are merged once they are as large as the total, so that each pair is copied a constant number of times.
        if sum(waiting.nnz for waiting in self._waiting) >= min(max(_BUFFER_WORDS, self._near.nnz), self._max_pairs):
            self._merge()
            self._drop_rare_pairs()
        if len(self._numbers) > self._max_words:
            self._merge()
            self._drop_rare_words()

    def _merge(self) -> None:
        shape = (self._size, self._size if self._within else len(self._numbers))
        self._near.resize(shape)
        for waiting in self._waiting:
            waiting.resize(shape)
            self._near = self._near + waiting
        self._waiting = []

    def _drop_rare_pairs(self) -> None:
        counts = self._near.data
        if len(counts) <= self._max_pairs:
            return
        rarer = len(counts) - self._max_pairs // 2
        highest = int(np.partition(counts, rarer - 1)[rarer - 1])
        self._near.data[counts <= highest] = 0
        self._near.eliminate_zeros()
        self.lost_pairs += highest

    def _drop_rare_words(self) -> None:
        outside = self._occurrences[self._size :]
        rarer = max(1, len(outside) - max(0, self._max_words - self._size) // 2)
        highest = int(np.partition(outside, rarer - 1)[rarer - 1])
        kept = np.concatenate([np.arange(self._size), self._size + np.flatnonzero(outside > highest)])
        names = list(self._numbers)
        self._numbers = {names[number]: place for place, number in enumerate(kept.tolist())}
        self._occurrences, self._totals = self._occurrences[kept], self._totals[kept]
        if not self._within:
            self._near = self._near[:, kept]
        self.lost_occurrences += highest


def positive_pmi(
    near_VW: sparse.csr_array, totals_W: np.ndarray, occurrences_W: np.ndarray, settings: dict[str, Any]
) -> sparse.csr_array:
    """`log(near[a, b] / totals[a] / (totals[b]^s / sum of totals^s))` where it is positive and the counts suffice."""
    pairs = near_VW.tocoo()
    a, b = pairs.row, pairs.col
    smoothed_W = totals_W.astype(np.float64) ** settings["smoothing"] * (totals_W > 0)
    sufficient = (pairs.data >= settings["min_pair_count"]) & (occurrences_W[b] >= settings["min_count"]) & (a != b)
    a, b, count = a[sufficient], b[sufficient], pairs.data[sufficient]
    scores = np.log(count / totals_W[a]) - np.log(smoothed_W[b] / smoothed_W.sum())
    positive = np.round(scores, DECIMALS) > 0
    return sparse.csr_array((scores[positive], (a[positive], b[positive])), shape=near_VW.shape)


def largest_scores(scores_VW: sparse.csr_array, words: list[str], k: int) -> sparse.csr_array:
    """The `k` largest scores of each row; ties in alphabetical order."""
    alphabet_W = np.empty(len(words), dtype=np.int64)
    alphabet_W[sorted(range(len(words)), key=words.__getitem__)] = np.arange(len(words))
    rows = np.repeat(np.arange(scores_VW.shape[0]), np.diff(scores_VW.indptr))
    order = np.lexsort((alphabet_W[scores_VW.indices], -np.round(scores_VW.data, DECIMALS), rows))
    place_in_row = np.arange(len(order)) - scores_VW.indptr[rows]
    kept = order[place_in_row < k]
    return sparse.csr_array((scores_VW.data[kept], (rows[kept], scores_VW.indices[kept])), shape=scores_VW.shape)
