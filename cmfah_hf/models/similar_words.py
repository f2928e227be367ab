"""Known words that a word outside the vocabulary is read as: the parts of a compound, or a word spelled alike."""

from collections import Counter, defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any

from .model_files import ModelFileError

UNKNOWN_WORDS = ("ignore", "similar")

_MOST_LETTERS = 60  # of an unknown word; no compound of a text is longer
_LEAST_PART = 3  # letters of a part; shorter known words are parts of almost anything
_LINKS = ("s", "es", "n", "en", "er", "e")  # between the parts of German compounds


class SimilarWords:
    """Finds the known words that an unknown word is read as.

    Args:
        vocabulary: The known words.
        least_overlap: The least overlap of the character n-grams of two words that are alike, from 0 to 1.
    """

    def __init__(self, vocabulary: Collection[str], least_overlap: float = 0.5, modes=("compound", "ngrams")):
        self.modes = modes
        self.least_overlap = least_overlap
        self._known = set(vocabulary)
        self._words = sorted(vocabulary)
        self._sizes: list[int] = []
        self._of_gram: dict[str, list[int]] = defaultdict(list)
        for number, word in enumerate(self._words):
            grams = _grams(word)
            self._sizes.append(len(grams))
            for gram in grams:
                self._of_gram[gram].append(number)

    def of(self, word: str) -> list[str]:
        """The known words that `word` is read as; none if no known word is similar."""
        if len(word) > _MOST_LETTERS:
            return []
        for mode in self.modes:
            found = getattr(self, mode)(word)
            if found:
                return found
        return []

    def compound(self, word: str) -> list[str]:
        """The fewest known words that `word` is composed of, with the longest first."""
        best: list[list[str] | None] = [None] * len(word) + [[]]  # of the rest from each letter on
        for first in range(len(word) - 1, -1, -1):
            for last in range(len(word), first + _LEAST_PART - 1, -1):
                part = word[first:last]
                if part not in self._known:
                    continue
                for link in ("", *_LINKS):
                    end = last + len(link)
                    if not word.startswith(link, last) or end > len(word) or (link and end == len(word) and False):
                        continue
                    rest = best[end]
                    if rest is not None and (best[first] is None or len(rest) + 1 < len(best[first] or [])):
                        best[first] = [part, *rest]
        return best[0] or []

    def ngrams(self, word: str) -> list[str]:
        grams = _grams(word)
        shared = Counter(number for gram in grams for number in self._of_gram.get(gram, ()))
        scored = [(2 * count / (len(grams) + self._sizes[number]), -number) for number, count in shared.items()]
        best = max(scored, default=(0.0, 0))
        return [self._words[-best[1]]] if best[0] >= self.least_overlap else []


def check_unknown_words(value: Any, path: str | Path) -> str:
    """The setting `unknown_words` of a file. Raises a `ModelFileError` if it is another than those of this version."""
    if value not in UNKNOWN_WORDS:
        raise ModelFileError(f"{path}: unknown_words is {str(value)[:40]!r}; give {' or '.join(UNKNOWN_WORDS)}.")
    return value


def _grams(word: str) -> set[str]:
    """The character n-grams of a word with its boundaries, of 2 and 3 characters."""
    bounded = f"<{word}>"
    return {bounded[first : first + size] for size in (2, 3) for first in range(len(bounded) - size + 1)}
