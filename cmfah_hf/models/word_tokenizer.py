"""The word-level tokenizer of a vocabulary in the form of `transformers`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from .tokenization_cmfah import PAD_TOKEN, UNKNOWN_TOKEN, word_level_tokenizer
from .tokenizer_files import read_word_tokenizer


def build_word_tokenizer(vocabulary: Sequence[str]) -> PreTrainedTokenizerFast:
    """A fast tokenizer with the ids 0 for `[PAD]`, 1 for `[UNK]`, and `i + 2` for `vocabulary[i]`.

    Raises:
        ValueError: If the vocabulary holds a word twice or a special token.
    """
    return _wrapped(word_level_tokenizer(vocabulary))


def load_word_tokenizer(path: Path, settings: dict[str, Any]) -> PreTrainedTokenizerFast:
    """The tokenizer in a file, as `read_word_tokenizer` reads it, whose errors it has."""
    saved = read_word_tokenizer(path, settings)
    tokenizer = _wrapped(saved.backend)
    tokenizer.padding_side = saved.padding_side
    return tokenizer


def _wrapped(backend: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD_TOKEN,
        unk_token=UNKNOWN_TOKEN,
        model_input_names=["input_ids", "attention_mask"],
        split_special_tokens=True,  # "[PAD]" in a text is the word "pad"
        clean_up_tokenization_spaces=False,
    )
