"""Words, and the word-level tokenizer over a fitted vocabulary.

The one place that decides what a word is: the graph, the word vectors and the model all split text here.
"""

from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD_TOKEN, UNKNOWN_TOKEN = "[PAD]", "[UNK]"
SPECIAL_TOKENS = (PAD_TOKEN, UNKNOWN_TOKEN)

# Letters carry their combining marks (Devanagari vowels, Arabic points), an apostrophe may stand inside a word, Han
# characters are words of their own because nothing separates them, and so are pictographs. The rest separates.
_WORD = (
    r"\p{Han}"
    r"|(?:(?!\p{Han})[\p{L}\p{N}])(?:(?!\p{Han})[\p{L}\p{M}\p{N}])*(?:['’](?:(?!\p{Han})[\p{L}\p{M}\p{N}])+)*"
    r"|(?!\x{FFFD})\p{So}"  # U+FFFD stands where a decoder found no character
)

_NORMALIZER = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
_PRE_TOKENIZER = pre_tokenizers.Split(Regex(_WORD), behavior="removed", invert=True)


def split_words(text: str) -> list[str]:
    """The words of `text` in their order: NFKC, lower case, punctuation dropped, any script.

    >>> split_words("New-York's café, #Sunset!")
    ['new', "york's", 'café', 'sunset']
    """
    return [word for word, _ in _PRE_TOKENIZER.pre_tokenize_str(_NORMALIZER.normalize_str(text))]


def build_word_tokenizer(vocabulary: Sequence[str]) -> PreTrainedTokenizerFast:
    """A fast tokenizer that gives `[PAD]` the id 0, `[UNK]` the id 1, and `vocabulary` the ids from 2 on, in its order.

    Row `i + 2` of the model's embedding table therefore belongs to `vocabulary[i]`.

    Raises:
        ValueError: If a word stands in the vocabulary twice or is a special token.
    """
    ids = {word: i for i, word in enumerate([*SPECIAL_TOKENS, *vocabulary])}
    if len(ids) != len(vocabulary) + len(SPECIAL_TOKENS):
        raise ValueError("The vocabulary holds a word twice (or a special token); give every word once.")
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN_TOKEN))
    tokenizer.normalizer = _NORMALIZER
    tokenizer.pre_tokenizer = _PRE_TOKENIZER
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD_TOKEN,
        unk_token=UNKNOWN_TOKEN,
        model_input_names=["input_ids", "attention_mask"],
        split_special_tokens=True,  # "[PAD]" in somebody's text is the word "pad"
        clean_up_tokenization_spaces=False,
    )
