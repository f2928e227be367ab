"""The parts of a trained model, from a folder or from the Hub: located, checked against each other, loaded."""

import json
import logging
import time
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from transformers.utils import CONFIG_NAME, cached_file
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import extract_commit_hash, is_offline_mode

from cmfah_hf.errors import CheckpointError
from cmfah_hf.expansion import GraphExpander
from cmfah_hf.models import METHODS, CMFAHModel, CMFAHProcessor

logger = logging.getLogger(__name__)

# Seconds before each further attempt where the Hub is there but busy.
_WAITS = (1, 2)
_BUSY = (429, 500, 502, 503, 504)


def load_parts(
    source: str, kwargs: dict[str, Any]
) -> tuple[CMFAHModel, CMFAHProcessor, GraphExpander | None, dict[str, Any]]:
    """The towers, their processor and their expander, all of one commit where they come from the Hub.

    Args:
        source: A folder or a Hub id.
        kwargs: Those of `from_pretrained`.

    Returns:
        The three, and the arguments by which further files of the same commit are found.

    Raises:
        CheckpointError: If there is no model, or it lacks a part, or the Hub cannot be reached.
    """
    kwargs = {"trust_remote_code": False, **check_source(source, kwargs)}
    config_file = find_file(source, CONFIG_NAME, kwargs)
    if config_file is None:
        where = "a folder" if Path(source).is_dir() else "a repository"
        raise CheckpointError(f"{source}: {where} without a {CONFIG_NAME}; give one that a training run has left.")
    kwargs["revision"] = extract_commit_hash(config_file, None) or kwargs.get("revision")
    model, report = _load(_towers_class(config_file), source, {**kwargs, "output_loading_info": True})
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise CheckpointError(
            f"{source}: {len(missing)} of the model's tensors are missing, {missing[0]!r} first; save it again."
        )
    processor = _load(CMFAHProcessor, source, kwargs)
    tokenizer = processor.tokenizer
    if len(tokenizer) != model.config.vocab_size or tokenizer.pad_token_id != model.config.pad_token_id:
        raise CheckpointError(
            f"{source}: its tokenizer is not the one that its model was trained with; save both again."
        )
    found = [find_file(source, f"expander.{end}", kwargs) for end in ("json", "safetensors")]
    if any(found):  # what the Hub has of its knowledge has to be here as well when it is read
        for end in ("json", "safetensors"):
            find_file(source, f"knowledge.{end}", kwargs)
    folder = next((Path(path).parent for path in found if path is not None), None)
    return model, processor, GraphExpander.load(folder) if folder is not None else None, kwargs


def check_source(source: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Refuse what is neither a folder nor a model on the Hub, with one request and without a long wait.

    The client takes an unreachable Hub for a missing file, after half a minute of attempts for each file.

    Returns:
        The arguments, with `local_files_only` where the Hub cannot be reached and the cache has the model.

    Raises:
        CheckpointError: If there is no such folder and no such model, or the Hub cannot be asked.
    """
    if Path(source).is_dir():
        return kwargs
    _require_hub_id(source)
    hub = {name: kwargs.get(name) for name in ("revision", "subfolder")}
    name = f"{hub['subfolder']}/{CONFIG_NAME}" if hub["subfolder"] else CONFIG_NAME
    cached = try_to_load_from_cache(source, name, cache_dir=kwargs.get("cache_dir"), revision=hub["revision"])
    if is_offline_mode() or kwargs.get("local_files_only"):
        if isinstance(cached, str):
            return kwargs
        raise CheckpointError(
            f"{source}: there is no such folder, nor a copy of such a model in the cache, and offline the Hub is not "
            "asked; check the name, or go online."
        )
    try:
        _ask_hub(hf_hub_url(source, CONFIG_NAME, **hub), kwargs.get("token"))
    except GatedRepoError as error:
        raise CheckpointError(
            f"{source}: this model's owner grants access on request; ask for it on the Hub, then `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{source}: no folder here, nor a model on the Hub that you may see; check the name, and for a private one "
            "the token (`hf auth login`)."
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(
            f"{source}: no revision {hub['revision']!r} on the Hub; give a branch, a tag or a commit of it."
        ) from error
    except RemoteEntryNotFoundError as error:
        raise CheckpointError(
            f"{source}: a repository without a {CONFIG_NAME}; give one that a training run has left."
        ) from error
    except (HTTPError, OSError) as error:
        reason = _http_reason(error)
        if isinstance(cached, str):
            logger.warning("%s: the Hub cannot be reached (%s); the copy in the cache is used.", source, reason)
            return {**kwargs, "local_files_only": True}
        raise CheckpointError(
            f"{source}: no folder here, and the Hub cannot be asked for such a model ({reason}); check the name and "
            "the connection, and try again."
        ) from error
    return kwargs


def find_file(source: str, name: str, kwargs: dict[str, Any]) -> str | None:
    """The path of one file of a model, downloaded if need be; None where the model has no such file.

    Raises:
        CheckpointError: If it cannot be downloaded.
    """
    try:
        return cached_file(source, name, _raise_exceptions_for_missing_entries=False, **_of_files(kwargs))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{source}: {name} cannot be had from the Hub ({_reason(error)}); try again.") from error


def _require_hub_id(source: str) -> None:
    looks_like_path = source.startswith((".", "/", "~")) or "\\" in source or source.count("/") != 1
    try:
        validate_repo_id(source)
    except HFValidationError:
        looks_like_path = True
    if not looks_like_path:
        return
    if Path(source).is_file():
        raise CheckpointError(f"{source}: this is a file; give the folder that a training run has left.")
    raise CheckpointError(
        f"{source}: neither a folder nor the id of a model on the Hub, which is 'owner/name'; check the path."
    )


def _ask_hub(url: str, token: str | bool | None) -> None:
    for wait in _WAITS:
        try:
            get_hf_file_metadata(url, token=token, timeout=constants.HF_HUB_ETAG_TIMEOUT)
            return
        except HfHubHTTPError as error:
            if error.response.status_code not in _BUSY:
                raise
        time.sleep(wait)
    get_hf_file_metadata(url, token=token, timeout=constants.HF_HUB_ETAG_TIMEOUT)


def _of_files(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name != "trust_remote_code"}


def _towers_class(config_file: str) -> type[CMFAHModel]:
    """The towers of the method that a configuration names; of another one, or a broken one, CMFAH's, which say so."""
    try:
        found = json.loads(Path(config_file).read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        found = None
    return METHODS[found if found in METHODS else "cmfah"].model


def _load(part: type, source: str, kwargs: dict[str, Any]) -> Any:
    # A bar for reading a few dozen tensors from a file is noise, above all around an error's one line.
    hook = transformers_logging.set_tqdm_hook(lambda bar, args, options: bar(*args, **{**options, "disable": True}))
    try:
        return part.from_pretrained(source, **kwargs)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        reason = _reason(error)
        raise CheckpointError(f"{source}: no {part.__name__} can be loaded from there ({reason}).") from error
    except RuntimeError as error:
        raise CheckpointError(f"{source}: the shapes of its tensors are not those of its {CONFIG_NAME}.") from error
    finally:
        transformers_logging.set_tqdm_hook(hook)


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _http_reason(error: Exception) -> str:
    if isinstance(error, HfHubHTTPError):
        return f"it answers {error.response.status_code}"
    return f"{type(error).__name__}: {_reason(error)}"
