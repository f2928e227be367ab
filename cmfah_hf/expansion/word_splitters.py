"""How a text becomes words for the graph and for knowledge: by name, or by a function of one's own.

`split_words` takes Han characters singly, because nothing in the text separates words there; what the model reads is
split that way always. Graph and knowledge may take whole Chinese words instead: related are "海滩" and "日落", and not
"海" and "落".
"""

from collections.abc import Callable
from functools import cache

from cmfah_hf.errors import CMFAHError
from cmfah_hf.models.tokenization_cmfah import split_words

Splitter = Callable[[str], list[str]]
Tokenizer = str | Splitter

TOKENIZERS = ("words", "chinese")
# What a saved state says of a function, which no file can hold.
CUSTOM = "custom"


def word_splitter(tokenizer: Tokenizer) -> Splitter:
    """The function from a text to its words.

    Args:
        tokenizer: `"words"`: `split_words`, Han characters singly. `"chinese"`: the same, but runs of Han characters
            are cut into words by rjieba. Or a function from a text to a list of words that hold no blanks.

    Raises:
        CMFAHError: If there is no such tokenizer, or rjieba is not installed.
    """
    if callable(tokenizer):
        return _Checked(tokenizer)
    if tokenizer == "words":
        return split_words
    if tokenizer == "chinese":
        _rjieba()
        return split_chinese
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


def tokenizer_name(tokenizer: Tokenizer) -> str:
    """What a saved state says of a tokenizer."""
    return CUSTOM if callable(tokenizer) else tokenizer


class _Checked:
    """A user's tokenizer whose answers are looked at: its words are joined by blanks later, and split there again."""

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
            f"The tokenizer gives {str(words)[:60]!r} for {text[:40]!r}; it has to give a list of words without blanks."
        )


@cache
def _han():
    from tokenizers import Regex, normalizers, pre_tokenizers

    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    return normalizer, pre_tokenizers.Split(Regex(r"\p{Han}+"), behavior="removed", invert=True)


@cache
def _rjieba():
    try:
        import rjieba
    except ImportError:
        raise CMFAHError("tokenizer='chinese' needs rjieba; pip install 'cmfah-hf[chinese]'.") from None
    return rjieba
