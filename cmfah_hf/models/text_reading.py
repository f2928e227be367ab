"""Reading of texts by a model: words, known words, and similar words in place of unknown ones.

Without `transformers`, so that a search can do without it too.
"""

from abc import abstractmethod
from collections.abc import Collection

from .similar_words import SimilarWords
from .word_rules import WordRules


class TextReader:
    """The reading of texts that processors share; what holds the tokenizer is up to them.

    Attributes:
        word_level: Whether each word of the vocabulary is one token; else the tokens are those of a text encoder.
        word_rules: How texts become words.
        unknown_words: With a word-level tokenizer: "ignore", or "similar" for the words that `SimilarWords` finds.
    """

    word_level: bool
    word_rules: WordRules
    unknown_words: str
    _similar: SimilarWords | None = None

    @abstractmethod
    def _knows(self, word: str) -> bool:
        """Whether a word-level tokenizer has a word."""

    @abstractmethod
    def _vocabulary(self) -> Collection[str]:
        """The words of a word-level tokenizer."""

    @abstractmethod
    def _has_tokens(self, text: str) -> bool:
        """Whether the tokenizer of a text encoder makes any token of a text."""

    def words(self, text: str) -> list[str]:
        """The words of `text` in their order, by the rules of the model."""
        return self.word_rules.words(text)

    def readings(self, text: str) -> list[tuple[str, list[str]]]:
        """Each word of `text` with the words of the vocabulary that it is read as: itself, similar ones, or none.

        With a text backbone, each word is read as itself.
        """
        words = self.words(text)
        if not self.word_level:
            return [(word, [word]) for word in words]
        known = {word for word in words if self._knows(word)}
        return [(word, [word] if word in known else self._similar_words(word)) for word in words]

    def known_words(self, text: str) -> list[str]:
        """The words of `text` that the model reads, in their order; all words with a text backbone."""
        return [word for word, read in self.readings(text) if read]

    def has_known_tokens(self, text: str) -> bool:
        """Whether the model knows any token of `text`; with a text backbone, whether the text is not blank."""
        return bool(self.known_words(text)) if self.word_level else self._has_tokens(text)

    @property
    def _prepares_texts(self) -> bool:
        return self.word_level and (self.word_rules != WordRules() or self.unknown_words != "ignore")

    def _prepared(self, text: str) -> str:
        """The words that a text is read as, which the tokenizer splits at the spaces between them."""
        return " ".join(token for word, read in self.readings(text) for token in read or [word])

    def _similar_words(self, word: str) -> list[str]:
        if self.unknown_words == "ignore":
            return []
        if self._similar is None:
            self._similar = SimilarWords(self._vocabulary())
        return self._similar.of(word)
