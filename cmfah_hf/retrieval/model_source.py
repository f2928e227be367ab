"""The files of a trained model: found in a folder, or on the Hub, where they are downloaded if need be.

Without torch and transformers.
"""

import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmfah_hf.documents import file_of
from cmfah_hf.errors import CheckpointError, HashIndexError, HubConnectionError, HubError, HubServerError
from cmfah_hf.hub_access import folder_instead, hub_errors, hub_file
from cmfah_hf.models.model_files import ModelFileError, hub_arguments, is_folder, pinned
from cmfah_hf.models.model_files import find_file as model_file
from cmfah_hf.retrieval.calibration import CALIBRATION_NAME, Calibration
from cmfah_hf.retrieval.kept_fingerprints import state_of_commit, state_of_folder

if TYPE_CHECKING:
    from cmfah_hf.expansion import GraphExpander

logger = logging.getLogger(__name__)

CONFIG_NAME = "config.json"
# The index files of a model, in its folder or repository.
IMAGES_INDEX, TEXTS_INDEX = "images.index", "texts.index"
HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder")

# Seconds before each further attempt if the Hub is reachable but busy.
_WAITS = (1, 2)


def find_config(source: str, kwargs: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The configuration of a model, and the arguments that lead to further files of the same commit.

    Raises:
        CheckpointError: If there is no such model, or the Hub cannot be reached.
    """
    kwargs = check_source(source, kwargs)
    config_file = find_file(source, CONFIG_NAME, kwargs)
    if config_file is None:
        raise _without_config(source, "a folder" if is_folder(source) else "a repository")
    return config_file, kwargs | pinned(source, config_file, hub_arguments(kwargs))


def state_of_files(source: str, config_file: Path, kwargs: dict[str, Any]) -> str | None:
    """The state of the files of a model, by which its fingerprint is kept; None if it is not known."""
    if is_folder(source):
        return state_of_folder(config_file.parent.resolve())
    commit = kwargs.get("revision")
    return None if commit is None else state_of_commit(f"{source}/{kwargs.get('subfolder') or ''}", commit)


def load_expander(source: str, kwargs: dict[str, Any]) -> "GraphExpander | None":
    """The word graph of a model, if it has one; `CheckpointError` if that is damaged."""
    found = [find_file(source, f"expander.{end}", kwargs) for end in ("json", "safetensors")]
    folder = next((path.parent for path in found if path is not None), None)
    if folder is None:
        return None
    for end in ("json", "safetensors"):  # its knowledge files are read from the same folder
        find_file(source, f"knowledge.{end}", kwargs)
    from cmfah_hf.expansion.expander import GraphExpander  # SciPy takes time to import

    return GraphExpander.load(folder)


def find_indexes(source: str, kwargs: dict[str, Any]) -> dict[str, Path]:
    """The index files of a model, by `images` and `texts`; `HashIndexError` if it has none."""
    found = {"images": find_file(source, IMAGES_INDEX, kwargs), "texts": find_file(source, TEXTS_INDEX, kwargs)}
    paths = {name: path for name, path in found.items() if path is not None}
    if not paths:
        raise HashIndexError(
            f"{source}: no index came with it ({IMAGES_INDEX}, {TEXTS_INDEX}); make one with `cmfah index`."
        )
    return paths


def load_calibration(source: str, kwargs: dict[str, Any]) -> Calibration | None:
    """The calibration of a model, if it has one; `CheckpointError` if that is damaged."""
    path = find_file(source, CALIBRATION_NAME, kwargs)
    return None if path is None else Calibration.load(path)


def check_source(source: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Checks by one request that the source is a folder or a model on the Hub, before any file is requested.

    Returns the keyword arguments, with `local_files_only` if the Hub cannot be reached and the cache has the model.
    """
    if is_folder(source):
        return kwargs
    from huggingface_hub import hf_hub_url, try_to_load_from_cache  # a folder does not need it
    from huggingface_hub.constants import is_offline_mode

    _require_hub_id(source)
    revision, subfolder = kwargs.get("revision"), kwargs.get("subfolder")
    name = f"{subfolder}/{CONFIG_NAME}" if subfolder else CONFIG_NAME
    cached = try_to_load_from_cache(source, name, cache_dir=kwargs.get("cache_dir"), revision=revision)
    if is_offline_mode() or kwargs.get("local_files_only"):
        if isinstance(cached, str):
            return kwargs
        raise CheckpointError(
            f"{source}: no such folder, and no copy of such a model in the cache; offline the Hub is not asked. "
            f"Check the name, or go online. {folder_instead(source)}"
        )
    try:
        _ask_hub(source, hf_hub_url(source, name, revision=revision), kwargs.get("token"))
    except (HubConnectionError, HubServerError) as error:
        if not isinstance(cached, str):
            raise _missing(source, error) from error
        logger.warning("%s The copy in the cache is used.", error)
        return {**kwargs, "local_files_only": True}
    except HubError as error:
        raise _missing(source, error) from error
    return kwargs


def find_file(source: str, name: str, kwargs: dict[str, Any]) -> Path | None:
    """The path of one file of a model, downloaded if need be. None if the model has no such file."""
    if is_folder(source):
        try:
            return model_file(source, name, hub_arguments(kwargs))
        except ModelFileError as error:
            raise CheckpointError(str(error)) from error
    options = {option: kwargs[option] for option in HUB_OPTIONS if kwargs.get(option) is not None}
    found = hub_file(source, name, error=CheckpointError, **options)
    return None if found is None else Path(found)


def _require_hub_id(source: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    with suppress(HFValidationError):
        validate_repo_id(source)
        if "/" in source:
            return
    if file_of(source) is not None:
        raise CheckpointError(f"{source}: this is a file; give the folder of a training run.")
    raise CheckpointError(
        f"{source}: neither a folder nor the id of a model on the Hub, which is 'owner/name'; check the path."
    )


def _ask_hub(source: str, url: str, token: str | bool | None) -> None:
    from huggingface_hub import constants, get_hf_file_metadata
    from huggingface_hub.errors import RemoteEntryNotFoundError

    for wait in (*_WAITS, None):
        try:
            with hub_errors(source, token=token if isinstance(token, str) else None, kind=None):
                try:  # without the client's own retries: a typo in a path would wait for all of them
                    get_hf_file_metadata(url, token=token, timeout=constants.HF_HUB_ETAG_TIMEOUT)
                except RemoteEntryNotFoundError as error:
                    raise _without_config(source, "a repository") from error
            return
        except HubServerError:
            if wait is None:
                raise
        time.sleep(wait)


def _without_config(source: str, what: str) -> CheckpointError:
    return CheckpointError(f"{source}: {what} without a {CONFIG_NAME}; give the output of a training run.")


def _missing(source: str, error: HubError) -> CheckpointError:
    advice = f" {folder_instead(source)}" if isinstance(error, HubConnectionError) else ""
    reason = str(error).removeprefix(f"{source}: ")
    return CheckpointError(f"{source}: no folder of this name here, and {reason}{advice}")
