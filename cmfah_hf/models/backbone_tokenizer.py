"""Tokenizers of text backbones in the form of `transformers`, with the length limit of their model."""

import importlib
import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from .model_files import ModelFileError, find_file, split_revision
from .remote_code import is_remote
from .sentence_files import PLAIN, SentenceSettings
from .tokenizer_files import (
    BACKBONE_TOKENS,
    MOST_POSITIONS,
    SavedTokenizer,
    backbone_tokenizer,
    read_backbone_tokenizer,
)

# Functions of the models of `transformers` that number positions from behind the id of the padding token.
_SHIFTS = ("create_position_ids_from_input_ids", "create_position_ids_from_inputs_embeds")


def tokenizer_of_backbone(
    backbone: PreTrainedConfig, sentence: SentenceSettings = PLAIN, dual: bool = False
) -> PreTrainedTokenizerFast:
    """The tokenizer of a text backbone or dual encoder, from the place of its configuration. It truncates long texts.

    It pads on the right, whatever it was saved with: then the tokens of a text have the positions that they have
    without padding. Only a dual encoder with code of its own (`dual`) keeps its side, since its vector may be read at
    the last position.

    Raises:
        ValueError: If the source of the configuration is unknown.
        ModelFileError: If the tokenizer cannot be used, or needs a library that is not installed.
        OSError: If there is no tokenizer, or the Hub cannot be reached.
    """
    place = backbone.name_or_path
    if not place:
        raise ValueError("The text encoder's configuration names no source of a tokenizer; give a folder or Hub id.")
    found = _saved_tokenizer(place, is_remote(backbone), sentence.location)
    side = found.padding_side if dual and is_remote(backbone) else "right"
    length = min(int(found.model_max_length), _most_tokens(backbone.get_text_config()))
    settings = {"padding_side": side, "model_max_length": min(length, sentence.max_length or length)}
    settings |= {name: str(token) for name in BACKBONE_TOKENS if (token := getattr(found, name)) is not None}
    content = json.loads(found.backend_tokenizer.to_str())
    if sentence.lowercase:
        own = content.get("normalizer")
        parts = [{"type": "Lowercase"}, *([own] if own else [])]
        content["normalizer"] = {"type": "Sequence", "normalizers": parts}
    return _wrapped(backbone_tokenizer(content, settings, place))


def _saved_tokenizer(place: str, remote: bool, location: dict[str, str]) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder or repository.

    Some classes of `transformers`, such as SigLIP's, read models of sentencepiece; a `tokenizer.json` needs none.
    """
    from transformers import AutoTokenizer

    lacking, (name, revision) = None, split_revision(place)
    at: dict[str, Any] = {**revision, **location}
    try:
        found = AutoTokenizer.from_pretrained(name, trust_remote_code=remote, **at)
    except ImportError as error:
        found, lacking = None, error
    if isinstance(found, PreTrainedTokenizerFast):
        return found
    if find_file(place, "tokenizer.json", location) is not None:
        return PreTrainedTokenizerFast.from_pretrained(name, **at)
    if lacking is not None:
        reason = " ".join(str(lacking).split())[:200]
        raise ModelFileError(
            f"{place}: its tokenizer has no tokenizer.json, and needs a library that is not installed ({reason}); "
            "install that library and convert the tokenizer to a fast one, or give an encoder with a tokenizer.json."
        ) from lacking
    raise ModelFileError(f"{place}: its tokenizer has no tokenizer.json; convert it to a fast one.")


def _most_tokens(text: PreTrainedConfig) -> int:
    """The most tokens of a text that a model has positions for."""
    positions = getattr(text, "max_position_embeddings", None) or 0
    if positions < 1:  # relative positions, which XLNet states as -1
        return MOST_POSITIONS
    # RoBERTa and its kin number positions from behind the padding token's id.
    return positions - (text.pad_token_id or 0) - 1 if _shifts_positions(type(text)) else positions


def _shifts_positions(config_class: type[PreTrainedConfig]) -> bool:
    """Whether the text model of a configuration numbers positions from behind the id of the padding token."""
    folder, _, name = config_class.__module__.rpartition(".")
    module = f"{folder}.{name.replace('configuration_', 'modeling_', 1)}"
    try:
        found = importlib.import_module(module)
    except ImportError:  # code of a repository with other names of files: as if they were shifted, which is safe
        return True
    kinds = [kind for kind in vars(found).values() if getattr(kind, "__module__", None) == module]
    return any(name in vars(kind) for kind in (found, *kinds) if hasattr(kind, "__dict__") for name in _SHIFTS)


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
