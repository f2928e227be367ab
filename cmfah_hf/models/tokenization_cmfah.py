"""Word splitting, shared by word graph, word vectors and models, and the word-level tokenizer of a vocabulary."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from .model_files import ModelFileError, read_object

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


def build_word_tokenizer(vocabulary: Sequence[str]) -> PreTrainedTokenizerFast:
    """A fast tokenizer with the ids 0 for `[PAD]`, 1 for `[UNK]`, and `i + 2` for `vocabulary[i]`.

    Raises:
        ValueError: If the vocabulary holds a word twice or a special token.
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
        split_special_tokens=True,  # "[PAD]" in a text is the word "pad"
        clean_up_tokenization_spaces=False,
    )


def load_word_tokenizer(path: Path, settings: dict[str, Any]) -> PreTrainedTokenizerFast:
    """A tokenizer of `build_word_tokenizer`, built again from the vocabulary in its file.

    Other parts of the file are not used: a pattern could take exponential time, and a replacement could turn a word
    into ten million. Of the settings of a `tokenizer_config.json`, only the padding side is.

    Raises:
        ModelFileError: If the file is damaged, or holds another type of tokenizer.
    """
    content = read_object(path)
    for part, expected in _parts().items():
        if content.get(part) not in (expected, None if part == "post_processor" else expected):
            raise _other_kind(path, part)
    model = content.get("model")
    model = model if isinstance(model, dict) else {}
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict) or (model.get("type"), model.get("unk_token")) != ("WordLevel", UNKNOWN_TOKEN):
        raise _other_kind(path, "model")
    words = _in_order(vocabulary, path)
    if tuple(words[: len(SPECIAL_TOKENS)]) != SPECIAL_TOKENS:
        raise _other_kind(path, "model")
    side = settings.get("padding_side", "right")
    if side not in ("left", "right"):
        raise ModelFileError(f"{path}: padding_side is {str(side)[:40]!r}; give left or right.")
    for name, token in (("pad_token", PAD_TOKEN), ("unk_token", UNKNOWN_TOKEN)):
        if settings.get(name, token) != token:
            raise _other_kind(path, name)
    tokenizer = build_word_tokenizer(words[len(SPECIAL_TOKENS) :])
    tokenizer.padding_side = side
    return tokenizer


def _in_order(vocabulary: dict[str, Any], path: Path) -> list[str]:
    """The words of a vocabulary, ordered by their ids."""
    words: dict[int, str] = {}
    for word, number in vocabulary.items():
        if type(number) is not int or not 0 <= number < len(vocabulary) or number in words:
            raise ModelFileError(
                f"{path}: the number of {word[:40]!r} is {str(number)[:40]}; {len(vocabulary)} words have the numbers "
                f"from 0 to {len(vocabulary) - 1}, each once. Save the model again."
            )
        words[number] = word
    return [words[number] for number in range(len(words))]


@cache
def _parts() -> dict[str, Any]:
    """The parts of a tokenizer file that do not depend on the vocabulary."""
    written = json.loads(build_word_tokenizer([]).backend_tokenizer.to_str())
    return {
        name: written[name] for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder", "added_tokens")
    }


def _other_kind(path: Path, part: str) -> ModelFileError:
    return ModelFileError(
        f"{path}: its {part} is not that of a word tokenizer of this package; no other tokenizer is supported here."
    )
