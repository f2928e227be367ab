"""Word splitting, shared by word graph, word vectors and models, and the word-level tokenizer of a vocabulary.

This file does without `transformers`; `word_tokenizer.py` has the tokenizer in its form.
"""

from collections.abc import Sequence

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

PAD_TOKEN, UNKNOWN_TOKEN = "[PAD]", "[UNK]"
SPECIAL_TOKENS = (PAD_TOKEN, UNKNOWN_TOKEN)

# Combining marks belong to their letters (Devanagari vowels, Arabic points), and apostrophes may be inside a word. Each
# Han character is a word, because nothing separates them, and so is each pictograph. All other characters separate.
_WORD = (
    r"\p{Han}"
    r"|(?:(?!\p{Han})[\p{L}\p{N}])(?:(?!\p{Han})[\p{L}\p{M}\p{N}])*(?:['’](?:(?!\p{Han})[\p{L}\p{M}\p{N}])+)*"
    r"|(?!\x{FFFD})\p{So}"  # U+FFFD replaces invalid bytes
)

_NORMALIZER = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
_PRE_TOKENIZER = pre_tokenizers.Split(Regex(_WORD), behavior="removed", invert=True)


def split_words(text: str) -> list[str]:
    """The words of `text` of any script, in their order: NFKC, lower case, without punctuation.

    >>> split_words("New-York's café, #Sunset!")
    ['new', "york's", 'café', 'sunset']
    """
    return [word for word, _ in _PRE_TOKENIZER.pre_tokenize_str(normalize_text(text))]


def normalize_text(text: str) -> str:
    """The text in NFKC and lower case."""
    return _NORMALIZER.normalize_str(text)


def word_offsets(text: str) -> list[tuple[str, int, int]]:
    """The words of `text`, each with its start and end position in `text`.

    >>> word_offsets("New-York's")
    [('new', 0, 3), ("york's", 4, 10)]
    """
    found = _PRE_TOKENIZER.pre_tokenize_str(text)
    return [(word, start, end) for part, (start, end) in found for word in split_words(part)]


def word_level_tokenizer(vocabulary: Sequence[str]) -> Tokenizer:
    """A tokenizer with the ids 0 for `[PAD]`, 1 for `[UNK]`, and `i + 2` for `vocabulary[i]`.

    Raises:
        ValueError: If the vocabulary holds a word twice or a special token.
    """
    ids = {word: i for i, word in enumerate([*SPECIAL_TOKENS, *vocabulary])}
    if len(ids) != len(vocabulary) + len(SPECIAL_TOKENS):
        raise ValueError("The vocabulary holds a word twice (or a special token); give every word once.")
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN_TOKEN))
    tokenizer.normalizer = _NORMALIZER
    tokenizer.pre_tokenizer = _PRE_TOKENIZER
    tokenizer.post_processor = processors.TemplateProcessing(single="$A:0", pair="$A:0 $B:1")
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    tokenizer.encode_special_tokens = True  # "[PAD]" in a text is the word "pad"
    return tokenizer
