"""Encoders with code of their own on the Hub, which runs only by permission (`trust_remote_code`), from one commit.

The permission holds within a block, for all that is loaded there. A saved model names the code by repository and
commit.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from transformers import PreTrainedConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from .model_files import ModelFileError


class RemoteCodeError(ModelFileError):
    """Code of a repository that is not allowed to run, or cannot be named by a saved model."""


_allowed: ContextVar[bool] = ContextVar("trust_remote_code", default=False)
# A class in a module of a repository, as `transformers` writes it into `auto_map`.
_REFERENCE = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}--\w+(\.\w+)+")
_COMMIT = re.compile(r"(?<![0-9a-f])[0-9a-f]{40}(?![0-9a-f])")


@contextmanager
def remote_code(allowed: bool | None = True) -> Iterator[None]:
    """Allows code of encoders to run in the block; None changes nothing."""
    if allowed is None:
        yield
        return
    token = _allowed.set(allowed)
    try:
        yield
    finally:
        _allowed.reset(token)


def is_allowed() -> bool:
    """Whether code of encoders may run."""
    return _allowed.get()


def is_remote(config: PreTrainedConfig) -> bool:
    """Whether the class of a configuration is code of a repository, which has then been allowed."""
    return type(config).__module__.startswith("transformers_modules.")


def has_code(settings: Any) -> bool:
    """Whether settings name code of a configuration."""
    return isinstance(settings, dict) and isinstance(settings.get("auto_map"), dict)


def pin_code(config: PreTrainedConfig, name: str) -> PreTrainedConfig:
    """The configuration of an encoder, with the commit of its code if it has any, for the file of a saved model.

    Raises:
        RemoteCodeError: If the code is in a folder, which a saved model could not name.
    """
    if not is_remote(config):
        vars(config).pop("auto_map", None)  # code of further classes, which is not used
        return config
    commit = _COMMIT.search(type(config).__module__)
    if commit is None:
        raise RemoteCodeError(f"{name} is a folder with code of its own, which no saved model can name; give a Hub id.")
    references = {purpose: _reference(value) for purpose, value in (config.auto_map or {}).items()}
    config.auto_map = {
        purpose: reference if "--" in reference else f"{name}--{reference}"
        for purpose, reference in references.items()
        if purpose in ("AutoConfig", "AutoModel")
    }
    config.code_revision = commit[0]
    return config


def remote_class(config: PreTrainedConfig) -> type:
    """The class of the model of a configuration that is code of a repository; `ValueError` if there is none."""
    reference = _reference((config.auto_map or {}).get("AutoModel"))
    if not reference:
        raise ValueError(f"a {config.model_type} model names no code for AutoModel; give another encoder")
    return get_class_from_dynamic_module(reference, "", code_revision=config.code_revision)


def remote_config(settings: dict[str, Any], part: str, where: Any) -> PreTrainedConfig:
    """The configuration of an encoder from the file of a saved model, by the code that the file names.

    Raises:
        ModelFileError: If code is not allowed to run, or not named by a repository and a commit.
    """
    named = settings["auto_map"].get("AutoConfig"), settings["auto_map"].get("AutoModel")
    revision = str(settings.get("code_revision"))
    if not all(isinstance(each, str) and _REFERENCE.fullmatch(each) and ".." not in each for each in named) or not (
        _COMMIT.fullmatch(revision)
    ):
        raise ModelFileError(f"{where}: its {part} does not name its code by a repository and a commit on the Hub.")
    reference = str(named[0])
    if not is_allowed():
        raise refused(f"{where}: its {part}", f"{reference.partition('--')[0]} at {revision[:8]}")
    kept = {name: value for name, value in settings.items() if not str(name).startswith("_")}
    config_class: Any = get_class_from_dynamic_module(reference, "", code_revision=revision)
    return config_class.from_dict(kept)


def refused(what: str, place: str) -> RemoteCodeError:
    """The error that code is not allowed to run."""
    return RemoteCodeError(
        f"{what} needs code of {place}, which runs only with permission; read that code, then allow it with "
        "trust_remote_code=True (--trust_remote_code)."
    )


def _reference(value: Any) -> str:
    value = value[-1] if isinstance(value, (list, tuple)) and value else value
    return value if isinstance(value, str) else ""
