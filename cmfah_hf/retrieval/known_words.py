"""Unknown words of texts: outside the model's vocabulary and the expander's word graph."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cmfah_hf.models.text_reading import TextReader

if TYPE_CHECKING:
    from cmfah_hf.expansion import GraphExpander


def unknown_words(text: str, reader: TextReader, expander: "GraphExpander | None" = None) -> list[str]:
    """The words of a text that neither the vocabulary nor the expander contains, in order, with repetitions."""
    known = set(reader.known_words(text))
    if expander is not None:  # one of its words may be several of the model's, as in Chinese
        known |= {part for word in expander.graph.split(text) if expander.knows(word) for part in reader.words(word)}
    return [word for word in reader.words(text) if word not in known]


def similar_words(texts: Iterable[str], reader: TextReader) -> dict[str, list[str]]:
    """The words of texts that are read as similar words of the vocabulary, each with these, in order.

    Empty unless the reader's `unknown_words` is "similar".
    """
    return {word: read for text in texts for word, read in reader.readings(text) if read not in ([], [word])}


@dataclass
class WordCoverage:
    """Counts of the words of texts, and of those that the model does not know.

    Attributes:
        texts: Texts.
        words: Words of all texts, with repetitions.
        unknown: Words that neither the vocabulary nor the expander contains, with repetitions.
        without: Texts without any word that the model knows. They all get the same code.
    """

    texts: int = 0
    words: int = 0
    unknown: int = 0
    without: int = 0

    def count(self, text: str, expanded: str, reader: TextReader, expander: "GraphExpander | None" = None) -> None:
        """Counts one text; `expanded` is the same text as the model reads it."""
        self.texts += 1
        self.words += len(reader.words(text))
        self.unknown += len(unknown_words(text, reader, expander))
        self.without += not reader.has_known_tokens(expanded)

    def figures(self, side: str) -> dict[str, float]:
        """The counts and shares by name, such as `queries_unknown_words_share` for the side `queries`."""
        return {
            f"{side}_words": float(self.words),
            f"{side}_unknown_words": float(self.unknown),
            f"{side}_unknown_words_share": self.unknown / max(self.words, 1),
            f"{side}_without_known_words": float(self.without),
            f"{side}_without_known_words_share": self.without / max(self.texts, 1),
        }
