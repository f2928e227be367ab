"""Tokenizers of the graph and the knowledge: three by name, or any function.

A model takes each Han character as a word, because Chinese text does not separate words. Graph and knowledge can take
whole Chinese words instead, to relate "海滩" and "日落" rather than "海" and "落".
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from cmfah_hf.errors import CheckpointError, CMFAHError
from cmfah_hf.models.tokenization_cmfah import normalize_text, split_words
from cmfah_hf.models.word_rules import WordRules, fold, segment

Splitter = Callable[[str], list[str]]
Tokenizer = str | Splitter

TOKENIZERS = ("words", "chinese", "icu")
# The name of any function in a saved state, which cannot hold the function itself.
CUSTOM = "custom"


def word_splitter(tokenizer: Tokenizer) -> Splitter:
    """The function from a text to its words: `split_words`, `split_chinese`, or the given one, checked."""
    if callable(tokenizer):
        return _Checked(tokenizer)
    if tokenizer == "words":
        return split_words
    if tokenizer == "chinese":
        _rjieba()
        return split_chinese
    if tokenizer == "icu":
        try:
            WordRules("icu").require()
        except ImportError as error:
            raise CMFAHError(f"tokenizer='icu': {error}") from None
        return split_with_icu
    raise CMFAHError(f"tokenizer={tokenizer!r} is not known; give {' or '.join(map(repr, TOKENIZERS))} or a function.")


def split_chinese(text: str) -> list[str]:
    """The words of `text`: runs of Han characters cut by rjieba, the rest by `split_words`.

    >>> split_chinese("一只狗在海滩上 Sunset!")
    ['一只', '狗', '在', '海滩', '上', 'sunset']
    """
    normalizer, han_runs = _han()
    text = normalizer.normalize_str(text)
    words: list[str] = []
    end = 0
    for run, (first, last) in han_runs.pre_tokenize_str(text):
        words += split_words(text[end:first])
        words += _rjieba().cut(run)
        end = last
    return words + split_words(text[end:])


def split_with_icu(text: str) -> list[str]:
    """The words of `text`, folded as by `WordRules(fold_marks=True)`; ICU cuts scripts without spaces, and Chinese.

    >>> split_with_icu("犬が海岸で遊ぶ")
    ['犬', 'が', '海岸', 'で', '遊ぶ']
    """
    parts = segment(fold(text), han=True).split()  # Han characters are in parts of letters alone
    return [word for part in parts for word in ([normalize_text(part)] if part.isalpha() else split_words(part))]


def tokenizer_name(tokenizer: Tokenizer) -> str:
    """The name of a tokenizer in a saved state."""
    return CUSTOM if callable(tokenizer) else tokenizer


def saved_tokenizer(name: str, given: Tokenizer | None, folder: str | Path, kind: str) -> Tokenizer:
    """The tokenizer of a saved state: the one of that name, or `given` if it was a function."""
    if name != CUSTOM:
        return name
    if given is None:
        raise CheckpointError(
            f"{folder} was fitted with a custom tokenizer; give the same one, {kind}.load(folder, tokenizer=...)."
        )
    return given


class _Checked:
    """A user's tokenizer with a check of its words, which are later joined by spaces and split there again."""

    def __init__(self, tokenizer: Splitter):
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[str]:
        words = self._tokenizer(text)
        if (
            isinstance(words, list)
            and all(isinstance(word, str) for word in words)
            and " ".join(words).split() == words
        ):
            return words
        raise CMFAHError(
            f"The tokenizer returns {str(words)[:60]!r} for {text[:40]!r}; return words without spaces in a list."
        )


@cache
def _han() -> tuple[Any, Any]:
    from tokenizers import Regex, normalizers, pre_tokenizers

    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    return normalizer, pre_tokenizers.Split(Regex(r"\p{Han}+"), behavior="removed", invert=True)


@cache
def _rjieba() -> Any:
    try:
        import rjieba
    except ImportError:
        raise CMFAHError("tokenizer='chinese' needs rjieba; pip install 'cmfah-hf[chinese]'.") from None
    return rjieba
