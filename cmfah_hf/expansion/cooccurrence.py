"""Which words stand near which, counted in one pass and bounded memory (see docs/method.md, [knowledge]).

Shapes: V words that may be asked about, W words that are counted, the V first among them.
"""

from collections.abc import Collection, Iterable, Sequence

import numpy as np
from scipy import sparse

# Words that wait to be counted together, and pairs that are summed at a time: some 100 MB at most.
_BUFFER_WORDS = 1 << 18
_GAP = -1


class WindowCounts:
    """How often each word of a vocabulary stands at most `window` words from each other word, and how often any does.

    `near[a, b]` counts the pairs of a place of `a` and a place of `b` in one text that are at most `window` words
    apart, both orders; `totals[b]` all such pairs in which `b` is the second, whatever the first. Stop words are taken
    out before, so they take up no room in a window.

    Two numbers bound the memory, whatever the length of the stream (lossy counting, Manku and Motwani 2002):
    - `max_words`: when more different words are known, the rarer half of those outside the vocabulary is forgotten.
      What is lost of a word's count is at most `lost_occurrences`, so a word that is rarer than that may be missing.
    - `max_pairs`: when `near` holds more pairs, the rarer half is forgotten; of a pair's count at most `lost_pairs`.
    Both are 0, and all counts exact, as long as neither bound is met.

    Args:
        vocabulary: V different words, the rows of `near`.
        window: Words on either side.
        stop_words: Words that are left out.
        within_vocabulary: Whether the columns of `near` are the vocabulary alone.
        max_words: Different words.
        max_pairs: Pairs of words in `near`, some 40 bytes each while it is counted.
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
        """Counts one text. If its title is a single word of the vocabulary, that stands near each of the text's first
        `opening` words as well, and near each word of the links, once for every different one, both orders."""
        numbers = self._numbers
        known = [numbers.setdefault(word, len(numbers)) for word in words if word not in self._stop_words]
        self.num_words += len(known)
        gap = np.full(self._window, _GAP, dtype=np.int64)
        self._texts += [np.array(known, dtype=np.int64), gap]
        self._buffered += len(known) + self._window
        about = numbers.get(title[0]) if len(title) == 1 and title[0] not in self._stop_words else None
        if about is not None and about < self._size:
            linked = [numbers.setdefault(word, len(numbers)) for word in links if word not in self._stop_words]
            told = np.array(sorted({*known[:opening], *linked} - {about}), dtype=np.int64)
            self._seconds.append((np.full(len(told), about), told))
            self._buffered += len(told)
        if self._buffered >= _BUFFER_WORDS:
            self._count()

    def totals(self) -> tuple[list[str], np.ndarray, np.ndarray, sparse.csr_array]:
        """The words, `(W,)` how often each occurs, `(W,)` the pairs it is in, and `near`, `(V, W)`, all int64."""
        self._count()
        self._merge()
        self._near.resize(self._size, len(self._numbers))
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
        # Sums wait until they weigh as much as the whole, so that adding them costs a constant number of passes a pair.
        if sum(waiting.nnz for waiting in self._waiting) >= min(max(_BUFFER_WORDS, self._near.nnz), self._max_pairs):
            self._merge()
            self._forget_pairs()
        if len(self._numbers) > self._max_words:
            self._merge()
            self._forget_words()

    def _merge(self) -> None:
        shape = (self._size, self._size if self._within else len(self._numbers))
        self._near.resize(shape)
        for waiting in self._waiting:
            waiting.resize(shape)
            self._near = self._near + waiting
        self._waiting = []

    def _forget_pairs(self) -> None:
        counts = self._near.data
        if len(counts) <= self._max_pairs:
            return
        rarer = len(counts) - self._max_pairs // 2
        highest = int(np.partition(counts, rarer - 1)[rarer - 1])
        self._near.data[counts <= highest] = 0
        self._near.eliminate_zeros()
        self.lost_pairs += highest

    def _forget_words(self) -> None:
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
