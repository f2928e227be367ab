"""The known words of a text: those of a model's vocabulary, and those that its expander expands."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cmfah_hf.models import CMFAHProcessor
from cmfah_hf.models.tokenization_cmfah import split_words

if TYPE_CHECKING:
    from cmfah_hf.expansion import GraphExpander


def is_known(text: str, processor: CMFAHProcessor, expander: "GraphExpander | None" = None) -> list[tuple[str, bool]]:
    """Each word of a text, in order, and whether the vocabulary or the expander knows it."""
    known = set(processor.known_words(text))
    if expander is not None:  # whose words may be several of the model's, as in Chinese
        known |= {part for word in expander.graph.split(text) if expander.knows(word) for part in split_words(word)}
    return [(word, word in known) for word in split_words(text)]


@dataclass
class WordCoverage:
    """Counts of the words of some texts, and of those that a model does not know.

    Attributes:
        texts: Texts.
        words: Words of all texts, repeated ones counted each time.
        unknown: Those of them that neither the vocabulary nor the expander knows.
        without: Texts without a word that the model knows. They all get the same code.
    """

    texts: int = 0
    words: int = 0
    unknown: int = 0
    without: int = 0

    def count(
        self, text: str, expanded: str, processor: CMFAHProcessor, expander: "GraphExpander | None" = None
    ) -> None:
        """Counts one text; `expanded` is the same text as the model reads it."""
        known = [is_word_known for _, is_word_known in is_known(text, processor, expander)]
        self.texts += 1
        self.words += len(known)
        self.unknown += known.count(False)
        self.without += not processor.has_known_tokens(expanded)

    def figures(self, side: str) -> dict[str, float]:
        """The counts and shares by name, such as `queries_unknown_words_share`, for `side` of `queries`."""
        return {
            f"{side}_words": float(self.words),
            f"{side}_unknown_words": float(self.unknown),
            f"{side}_unknown_words_share": self.unknown / max(self.words, 1),
            f"{side}_without_known_words": float(self.without),
            f"{side}_without_known_words_share": self.without / max(self.texts, 1),
        }
