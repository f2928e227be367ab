"""Folders of sentence-transformers: what a model of this package writes into its own, and what is read of encoders.

Of a text encoder, pooling and what follows it are not read, because the towers use tokens and not the vector of a text.
Of a dual encoder, the vectors are used, so nothing but a normalization may follow the transformer.
"""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .model_files import ModelFileError, find_file, pinned, read_list, read_object

if TYPE_CHECKING:  # so that `transformers` saves this file with the code of a model
    from .sentence_module import CMFAHSentenceModule  # noqa: F401

MOST_PROMPT = 1_000

_MODULES, _MODEL_SETTINGS = "modules.json", "config_sentence_transformers.json"
_SETTINGS = (
    *("sentence_bert_config.json", "sentence_roberta_config.json", "sentence_distilbert_config.json"),
    *("sentence_camembert_config.json", "sentence_albert_config.json", "sentence_xlm-roberta_config.json"),
    "sentence_xlnet_config.json",
)


@dataclass(frozen=True)
class SentenceSettings:
    """The settings of an encoder; the defaults are those of a folder that is not of sentence-transformers.

    Attributes:
        subfolder: The folder of the transformer within that of the model.
        max_length: Maximum tokens of a text. None: that of the tokenizer.
        lowercase: Whether texts are converted to lower case first.
        prompt: Begins each text: the one named by `default_prompt_name`.
    """

    subfolder: str = ""
    max_length: int | None = None
    lowercase: bool = False
    prompt: str = ""

    @property
    def location(self) -> dict[str, str]:
        """The arguments of `from_pretrained` that locate the transformer."""
        return {"subfolder": self.subfolder} if self.subfolder else {}


PLAIN = SentenceSettings()
# Modules that can hold a dual encoder.
_DUAL_KINDS = ("Transformer", "CLIPModel")


def sentence_settings(source: str | None, dual: bool = False) -> SentenceSettings:
    """The settings of the text model or dual encoder in a folder or on the Hub; `PLAIN` if there is no such place.

    Raises:
        ModelFileError: If a file is damaged, or modules other than a transformer compute what is used.
        OSError: If the Hub cannot be reached.
    """
    found = find_file(source, _MODULES, {}) if source else None
    if not source or found is None:
        return PLAIN
    hub = pinned(source, found, {})
    subfolder = _transformer_folder(read_list(found), found, dual)
    settings: dict[str, Any] = {}
    inner = {**hub, "subfolder": subfolder} if subfolder else hub
    for name in _SETTINGS:  # earlier versions named the file by the architecture
        path = find_file(source, name, inner)
        if path is not None:
            settings = read_object(path)
            break
    if dual and path is not None:
        _check_modalities(settings.get("modality_config"), path)
    length, lowercase = settings.get("max_seq_length"), settings.get("do_lower_case", False)
    if not (length is None or (type(length) is int and length > 0)) or not isinstance(lowercase, bool):
        raise ModelFileError(
            f"{path}: max_seq_length is {str(length)[:40]} and do_lower_case {str(lowercase)[:40]}; give a positive "
            "number, and true or false."
        )
    return SentenceSettings(subfolder, length, lowercase, _prompt(source, hub))


def write_sentence_files(folder: str | os.PathLike) -> None:
    """Writes the files by which `SentenceTransformer` loads the model of a folder, with the code that is there."""
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_module.CMFAHSentenceModule"}]
    settings = {
        "model_type": "SentenceTransformer",
        "similarity_fn_name": "dot",
        "prompts": {"query": "", "document": ""},  # the processor begins texts with the prompt of the encoder
        "default_prompt_name": None,
        "requirements": {"sentence-transformers": ">=6"},
    }
    for name, content in ((_MODULES, modules), (_MODEL_SETTINGS, settings)):
        Path(folder, name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def check_prompt(prompt: Any, where: str | Path) -> str:
    """A prompt that a file holds. Raises a `ModelFileError` if it is no text, or longer than `MOST_PROMPT`."""
    if not isinstance(prompt, str) or len(prompt) > MOST_PROMPT:
        raise ModelFileError(f"{where}: a prompt is {str(prompt)[:40]!r}; give a text of at most {MOST_PROMPT:,}.")
    return prompt


def _transformer_folder(modules: list[Any], path: Path, dual: bool) -> str:
    """The folder of the transformer, if no other module changes its tokens before they are pooled, or its vectors."""
    kinds = []
    for module in modules:
        kind, folder = (module.get(name) if isinstance(module, dict) else None for name in ("type", "path"))
        if not isinstance(kind, str) or not isinstance(folder, str) or not re.fullmatch(r"(?!\.)[\w.-]*", folder):
            raise ModelFileError(f"{path}: {str(module)[:60]} is no module with a type and a folder of its own.")
        kinds.append(kind.rpartition(".")[2])
    if dual:
        if kinds not in [[kind, *end] for kind in _DUAL_KINDS for end in ([], ["Normalize"])]:
            raise ModelFileError(
                f"{path}: its modules are {', '.join(kinds)[:100] or 'none'}, and vectors of images and texts are only "
                "those of a single Transformer or CLIPModel, with or without Normalize."
            )
        return modules[0]["path"]
    of_tokens = kinds[: kinds.index("Pooling")] if "Pooling" in kinds else [k for k in kinds if k != "Normalize"]
    if of_tokens != ["Transformer"]:
        raise ModelFileError(
            f"{path}: tokens come from {', '.join(of_tokens)[:100] or 'no module'}, and only those of a single "
            "Transformer can be used."
        )
    return modules[0]["path"]


def _check_modalities(modalities: Any, path: Path) -> None:
    """Rejects transformers whose vectors are not those of `get_text_features` and `get_image_features`."""
    if modalities is None:  # of earlier versions, which did not write them
        return
    for side in ("text", "image"):
        settings = modalities.get(side) if isinstance(modalities, dict) else None
        if not isinstance(settings, dict) or settings.get("method") != f"get_{side}_features":
            raise ModelFileError(
                f"{path}: its {side}s have no vectors by get_{side}_features; give a dual encoder, such as a CLIP."
            )


def _prompt(source: str, hub: dict[str, Any]) -> str:
    path = find_file(source, _MODEL_SETTINGS, hub)
    settings = read_object(path) if path is not None else {}
    name, prompts = settings.get("default_prompt_name"), settings.get("prompts") or {}
    if name is None:
        return ""
    if not isinstance(prompts, dict) or name not in prompts:
        raise ModelFileError(f"{path}: default_prompt_name is {str(name)[:40]!r}, which is none of its prompts.")
    return check_prompt(prompts[name], str(path))
