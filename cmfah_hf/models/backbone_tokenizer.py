"""Tokenizers of text backbones, with the length limit of their model, and checked when they are read from a file."""

import json
import re
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from .model_files import ModelFileError, read_object
from .remote_code import is_remote
from .sentence_files import PLAIN, SentenceSettings

# Allowed types of each part of a `tokenizer.json`. None runs code or adds more than a few characters or tokens.
_KINDS = {
    "normalizer": {
        *("BertNormalizer", "ByteLevel", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "Prepend"),
        *("Replace", "Sequence", "Strip", "StripAccents"),
    },
    "pre_tokenizer": {
        *("BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Digits", "Metaspace", "Punctuation", "Sequence"),
        *("Split", "UnicodeScripts", "Whitespace", "WhitespaceSplit"),
    },
    "model": {"BPE", "Unigram", "WordLevel", "WordPiece"},
    "post_processor": {"BertProcessing", "ByteLevel", "RobertaProcessing", "Sequence", "TemplateProcessing"},
    "decoder": {
        *("BPEDecoder", "ByteFallback", "ByteLevel", "Fuse", "Metaspace", "Replace", "Sequence", "Strip", "WordPiece")
    },
}
_SPECIAL_TOKENS = ("unk_token", "pad_token", "cls_token", "sep_token", "mask_token", "bos_token", "eos_token")
_MOST_ADDED_CHARACTERS, _MOST_ADDED_TOKENS, _MOST_PATTERN, _MOST_REPEATS = 8, 8, 400, 3
_MOST_POSITIONS = 2**17


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
    positions = getattr(text, "max_position_embeddings", None) or _MOST_POSITIONS
    length = int(found.model_max_length)
    if length > positions:  # unknown; some models reserve the first positions for padding
        length = positions - (text.pad_token_id or 0) - 2
    length = min(length, sentence.max_length or length)
    settings = {"padding_side": found.padding_side, "model_max_length": length}
    settings |= {name: str(token) for name in _SPECIAL_TOKENS if (token := getattr(found, name)) is not None}
    content = json.loads(found.backend_tokenizer.to_str())
    if sentence.lowercase:
        own = content.get("normalizer")
        parts = [{"type": "Lowercase"}, *([own] if own else [])]
        content["normalizer"] = {"type": "Sequence", "normalizers": parts}
    return _build(content, settings, place)


def load_backbone_tokenizer(path: Path, settings: dict[str, Any]) -> PreTrainedTokenizerFast:
    """The tokenizer in a file, if it consists of known parts, with the settings of a `tokenizer_config.json`.

    Raises a `ModelFileError` if the file is damaged, or the tokenizer has parts of an unknown type.
    """
    return _build(read_object(path), settings, path)


def _build(content: dict[str, Any], settings: dict[str, Any], where: str | Path) -> PreTrainedTokenizerFast:
    content = {**content, "truncation": None, "padding": None}
    for part, kinds in _KINDS.items():
        _check_part(content.get(part), part, kinds, where)
    length, side = settings.get("model_max_length"), settings.get("padding_side", "right")
    if type(length) is not int or not _MOST_ADDED_TOKENS < length <= _MOST_POSITIONS:
        raise ModelFileError(
            f"{where}: model_max_length is {str(length)[:40]}; give a number above {_MOST_ADDED_TOKENS}."
        )
    if side not in ("left", "right"):
        raise ModelFileError(f"{where}: padding_side is {str(side)[:40]!r}; give left or right.")
    try:
        backend = Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the bindings raise no other type
        reason = " ".join(str(error).split())[:200]
        raise ModelFileError(f"{where}: no tokenizer can be made of it ({reason}).") from error
    tokens = _special_tokens(backend, settings, where)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **tokens,
        model_max_length=length,
        padding_side=side,
        model_input_names=["input_ids", "attention_mask"],
        split_special_tokens=True,  # "[SEP]" in a text is a word, not a separator
        clean_up_tokenization_spaces=False,
    )


def _special_tokens(backend: Tokenizer, settings: dict[str, Any], where: str | Path) -> dict[str, str]:
    """The special tokens, all of which must be in the vocabulary. Padding is masked, so it can be any token."""
    tokens = {}
    for name in _SPECIAL_TOKENS:
        token = settings.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None:
            if not isinstance(token, str) or backend.token_to_id(token) is None:
                raise ModelFileError(f"{where}: {name} is {str(token)[:40]!r}, which is not in the vocabulary.")
            tokens[name] = token
    fallback = tokens.get("eos_token") or tokens.get("unk_token")
    if "pad_token" not in tokens and fallback is None:
        raise ModelFileError(f"{where}: there is no pad_token; name one.")
    return {"pad_token": fallback, **tokens} if fallback is not None else tokens


def _check_part(part: Any, name: str, kinds: set[str], where: str | Path) -> None:
    """Rejects unknown types, slow patterns and long insertions, anywhere within a part."""
    if part is None and name != "model":
        return
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise ModelFileError(f"{where}: its {name} is a {str(kind)[:40]!r}, which is not supported.")
    for key, inner in part.items():
        nested = inner if isinstance(inner, list) else []
        if kind == "Sequence" and key.endswith(("tokenizers", "ers", "ors")):
            for each in nested:
                _check_part(each, name, kinds, where)
        elif key in ("content", "prepend", "replacement") and len(str(inner)) > _MOST_ADDED_CHARACTERS:
            raise ModelFileError(f"{where}: its {name} inserts {str(inner)[:40]!r}, which is too long.")
        elif key == "pattern":
            _check_pattern(inner, name, where)
        elif key in ("single", "pair") and len(nested) > _MOST_ADDED_TOKENS:
            raise ModelFileError(f"{where}: its {name} adds {len(nested)} tokens to a text, which are too many.")
        elif key == "dropout" and inner:
            raise ModelFileError(f"{where}: its {name} drops merges at random; remove dropout.")


def _check_pattern(pattern: Any, name: str, where: str | Path) -> None:
    """Rejects patterns that may take exponential time: repeated groups, back references, many repetitions."""
    expression = pattern.get("Regex") if isinstance(pattern, dict) else pattern
    if expression is None:
        return
    if (
        not isinstance(expression, str)
        or len(expression) > _MOST_PATTERN
        or re.search(r"\)[*+{?]|\\[1-9kg]", expression)
        or any(len(re.findall(r"[*+]|,\}", branch)) > _MOST_REPEATS for branch in expression.split("|"))
    ):
        raise ModelFileError(f"{where}: its {name} has the pattern {str(expression)[:80]!r}, which may be slow.")
