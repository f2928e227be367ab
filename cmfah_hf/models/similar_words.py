"""Known words that a word outside the vocabulary is read as: the parts of a compound, or a word spelled alike."""

from collections import Counter, defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any

from .model_files import ModelFileError

UNKNOWN_WORDS = ("ignore", "similar")

_MOST_LETTERS = 60  # of an unknown word; no compound of a text is longer
_LEAST_PART = 3  # letters of a part; shorter known words are parts of almost anything
_LINKS = ("", "s", "es", "n", "en", "er", "e")  # between the parts of German compounds, and at their end
_SIZES = (2, 3)  # characters of an n-gram


class SimilarWords:
    """Finds the known words that an unknown word is read as.

    These are the words that it is composed of. If it is no compound of known words, it is the word with the largest
    overlap of character n-grams, twice the number of common ones divided by the number of both words (Dice).

    Args:
        vocabulary: The known words.
        least_overlap: The least overlap of two words that are alike, from 0 to 1.

    Example:
        >>> similar = SimilarWords(["segel", "boot", "hund"])
        >>> similar.of("segelboot"), similar.of("hunde"), similar.of("katze")
        (['segel', 'boot'], ['hund'], [])
    """

    def __init__(self, vocabulary: Collection[str], least_overlap: float = 0.5):
        self.least_overlap = least_overlap
        self._known = set(vocabulary)
        self._words = sorted(self._known)
        self._num_grams: list[int] = []
        self._of_gram: dict[str, list[int]] = defaultdict(list)
        for number, word in enumerate(self._words):
            grams = _grams(word)
            self._num_grams.append(len(grams))
            for gram in grams:
                self._of_gram[gram].append(number)

    def of(self, word: str) -> list[str]:
        """The known words that `word` is read as; none if no known word is similar."""
        return [] if len(word) > _MOST_LETTERS else self._parts(word) or self._spelled_alike(word)

    def _parts(self, word: str) -> list[str]:
        """The fewest known words that `word` is composed of; of equally many, those with the longest first ones."""
        parts_from: list[list[str] | None] = [None] * len(word) + [[]]
        for first in range(len(word) - _LEAST_PART, -1, -1):
            found = [
                [word[first:last], *rest]
                for last in range(len(word), first + _LEAST_PART - 1, -1)
                if word[first:last] in self._known
                for link in _LINKS
                if word.startswith(link, last) and (rest := parts_from[last + len(link)]) is not None
            ]
            parts_from[first] = min(found, key=len, default=None)
        return parts_from[0] or []

    def _spelled_alike(self, word: str) -> list[str]:
        """The known word with the largest overlap, ties in alphabetical order."""
        grams = _grams(word)
        common = Counter(number for gram in grams for number in self._of_gram.get(gram, ()))
        overlaps = ((2 * count / (len(grams) + self._num_grams[number]), -number) for number, count in common.items())
        overlap, number = max(overlaps, default=(0.0, 0))
        return [self._words[-number]] if overlap and overlap >= self.least_overlap else []


def check_unknown_words(value: Any, path: str | Path) -> str:
    """The setting `unknown_words` of a file. Raises a `ModelFileError` if it is another than those of this version."""
    if value not in UNKNOWN_WORDS:
        raise ModelFileError(f"{path}: unknown_words is {str(value)[:40]!r}; give {' or '.join(UNKNOWN_WORDS)}.")
    return value


def _grams(word: str) -> set[str]:
    """The character n-grams of a word with its boundaries."""
    bounded = f"<{word}>"
    return {bounded[first : first + size] for size in _SIZES for first in range(len(bounded) - size + 1)}
