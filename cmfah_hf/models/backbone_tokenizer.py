"""Tokenizers of text backbones in the form of `transformers`, with the length limit of their model."""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from .remote_code import is_remote
from .sentence_files import PLAIN, SentenceSettings
from .tokenizer_files import (
    BACKBONE_TOKENS,
    MOST_POSITIONS,
    SavedTokenizer,
    backbone_tokenizer,
    read_backbone_tokenizer,
)


def tokenizer_of_backbone(backbone: PreTrainedConfig, sentence: SentenceSettings = PLAIN) -> PreTrainedTokenizerFast:
    """The tokenizer of a text backbone or dual encoder, from the place of its configuration. It truncates long texts.

    Raises:
        ValueError: If the source of the configuration is unknown, or the tokenizer cannot be used.
        OSError: If there is no tokenizer, or the Hub cannot be reached.
    """
    from transformers import AutoTokenizer

    place = backbone.name_or_path
    if not place:
        raise ValueError("The text encoder's configuration names no source of a tokenizer; give a folder or Hub id.")
    found = AutoTokenizer.from_pretrained(place, trust_remote_code=is_remote(backbone), **sentence.location)
    if not isinstance(found, PreTrainedTokenizerFast):
        raise ValueError(f"{place}: its tokenizer has no tokenizer.json; convert it to a fast one.")
    text = backbone.get_text_config()
    positions = getattr(text, "max_position_embeddings", None) or MOST_POSITIONS
    length = int(found.model_max_length)
    if length > positions:  # unknown; some models reserve the first positions for padding
        length = positions - (text.pad_token_id or 0) - 2
    length = min(length, sentence.max_length or length)
    settings = {"padding_side": found.padding_side, "model_max_length": length}
    settings |= {name: str(token) for name in BACKBONE_TOKENS if (token := getattr(found, name)) is not None}
    content = json.loads(found.backend_tokenizer.to_str())
    if sentence.lowercase:
        own = content.get("normalizer")
        parts = [{"type": "Lowercase"}, *([own] if own else [])]
        content["normalizer"] = {"type": "Sequence", "normalizers": parts}
    return _wrapped(backbone_tokenizer(content, settings, place))


def load_backbone_tokenizer(path: Path, settings: dict[str, Any]) -> PreTrainedTokenizerFast:
    """The tokenizer in a file, as `read_backbone_tokenizer` reads it, whose errors it has."""
    return _wrapped(read_backbone_tokenizer(path, settings))


def _wrapped(saved: SavedTokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=saved.backend,
        **saved.tokens,
        model_max_length=saved.max_length,
        padding_side=saved.padding_side,
        model_input_names=["input_ids", "attention_mask"],
        split_special_tokens=True,  # "[SEP]" in a text is a word, not a separator
        clean_up_tokenization_spaces=False,
    )
