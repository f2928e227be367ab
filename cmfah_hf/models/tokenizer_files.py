"""Tokenizers from the files of a model, checked before they are used. Without `transformers`."""

import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from .model_files import ModelFileError, read_object
from .tokenization_cmfah import PAD_TOKEN, SPECIAL_TOKENS, UNKNOWN_TOKEN, word_level_tokenizer

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
BACKBONE_TOKENS = ("unk_token", "pad_token", "cls_token", "sep_token", "mask_token", "bos_token", "eos_token")
_MOST_ADDED_CHARACTERS, _MOST_ADDED_TOKENS, _MOST_PATTERN, _MOST_REPEATS = 8, 8, 400, 3
MOST_POSITIONS = 2**17


@dataclass(frozen=True)
class SavedTokenizer:
    """A tokenizer with the settings that `tokenizer.json` does not hold.

    Attributes:
        backend: The tokenizer, without truncation and padding. A special token in a text is split like other words.
        tokens: The special tokens by their names in `tokenizer_config.json`.
        max_length: Maximum tokens of a text; None for a word-level tokenizer, which has none.
        padding_side: "right" or "left".
    """

    backend: Tokenizer
    tokens: dict[str, str] = field(default_factory=dict)
    max_length: int | None = None
    padding_side: str = "right"

    @property
    def pad_token_id(self) -> int:
        """The id of the padding token."""
        found = self.backend.token_to_id(self.tokens["pad_token"])
        assert found is not None  # the readers check it
        return found

    @property
    def digest(self) -> str:
        """A digest of the tokenizer, 32 hexadecimal digits, equal for all files that hold it."""
        return hashlib.blake2b(self.backend.to_str().encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def read_word_tokenizer(path: Path, settings: dict[str, Any]) -> SavedTokenizer:
    """A word-level tokenizer of this package, built again from the vocabulary in its file.

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
    tokens = {"pad_token": PAD_TOKEN, "unk_token": UNKNOWN_TOKEN}
    return SavedTokenizer(word_level_tokenizer(words[len(SPECIAL_TOKENS) :]), tokens, None, side)


def read_backbone_tokenizer(path: Path, settings: dict[str, Any]) -> SavedTokenizer:
    """The tokenizer in a file, if it consists of known parts, with the settings of a `tokenizer_config.json`.

    Raises:
        ModelFileError: If the file is damaged, or the tokenizer has parts of an unknown type.
    """
    return backbone_tokenizer(read_object(path), settings, path)


def backbone_tokenizer(content: dict[str, Any], settings: dict[str, Any], where: str | Path) -> SavedTokenizer:
    """The same from the content of a file; `where` names it in errors."""
    content = {**content, "truncation": None, "padding": None}
    for part, kinds in _KINDS.items():
        _check_part(content.get(part), part, kinds, where)
    length, side = settings.get("model_max_length"), settings.get("padding_side", "right")
    if type(length) is not int or not _MOST_ADDED_TOKENS < length <= MOST_POSITIONS:
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
    backend.encode_special_tokens = True  # "[SEP]" in a text is a word, not a separator
    return SavedTokenizer(backend, tokens, length, side)


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
    written = json.loads(word_level_tokenizer([]).to_str())
    return {
        name: written[name] for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder", "added_tokens")
    }


def _other_kind(path: Path, part: str) -> ModelFileError:
    return ModelFileError(
        f"{path}: its {part} is not that of a word tokenizer of this package; no other tokenizer is supported here."
    )


def _special_tokens(backend: Tokenizer, settings: dict[str, Any], where: str | Path) -> dict[str, str]:
    """The special tokens, all of which must be in the vocabulary. Padding is masked, so it can be any token."""
    tokens = {}
    for name in BACKBONE_TOKENS:
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
