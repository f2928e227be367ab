"""Loading of a trained model's towers, processor and expander, from a folder or from the Hub."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, RemoteEntryNotFoundError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from transformers.utils import CONFIG_NAME
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import is_offline_mode

from cmfah_hf.documents import file_of
from cmfah_hf.errors import CheckpointError, HashIndexError, HubConnectionError, HubError, HubServerError
from cmfah_hf.expansion import GraphExpander
from cmfah_hf.hub_access import hub_errors, hub_file
from cmfah_hf.models import MODELS, CMFAHModel, CMFAHProcessor, CMFAHTextModel
from cmfah_hf.models.model_files import ModelFileError, hub_arguments, is_folder, pinned, read_object
from cmfah_hf.models.model_files import find_file as model_file
from cmfah_hf.retrieval.calibration import CALIBRATION_NAME, Calibration
from cmfah_hf.retrieval.kept_fingerprints import kept_fingerprint, state_of_commit, state_of_folder

logger = logging.getLogger(__name__)

# The index files of a model, in its folder or repository.
IMAGES_INDEX, TEXTS_INDEX = "images.index", "texts.index"

# Seconds before each further attempt if the Hub is reachable but busy.
_WAITS = (1, 2)
_HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder")


class Parts(NamedTuple):
    """The parts of a trained model.

    Attributes:
        model: Both towers, or only that of texts.
        processor: Their processor.
        expander: The graph that expands queries, or None.
        kwargs: The keyword arguments of `from_pretrained` that lead to further files of the same commit.
        state: The state of the files, by which the fingerprint is kept; None if more than the files decided the model.
        fingerprint: The kept fingerprint, or None.
    """

    model: CMFAHModel | CMFAHTextModel
    processor: CMFAHProcessor
    expander: GraphExpander | None
    kwargs: dict[str, Any]
    state: str | None
    fingerprint: str | None


def load_parts(source: str, kwargs: dict[str, Any], texts_only: bool = False) -> Parts:
    """The parts of a trained model, from a folder or a Hub id; from the Hub, all of one commit.

    With `texts_only`, only the tower of texts is loaded, if the fingerprint of the whole is kept. Whatever is wrong is
    a `CheckpointError`.
    """
    is_plain = kwargs.keys() <= {"trust_remote_code", *_HUB_OPTIONS}
    kwargs = check_source(source, kwargs)
    config_file = find_file(source, CONFIG_NAME, kwargs)
    if config_file is None:
        raise _without_config(source, "a folder" if is_folder(source) else "a repository")
    kwargs |= pinned(source, config_file, hub_arguments(kwargs))
    state = _state(source, config_file, kwargs) if is_plain else None
    fingerprint = None if state is None else kept_fingerprint(state)
    both = _towers_class(config_file)
    model = _load_complete(both.text_model_class if texts_only and fingerprint else both, source, kwargs)
    processor = _load(CMFAHProcessor, source, kwargs)
    try:
        processor.check_model(model.config)
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}.") from error
    found = [find_file(source, f"expander.{end}", kwargs) for end in ("json", "safetensors")]
    if any(found):  # its knowledge files are read from the same folder
        for end in ("json", "safetensors"):
            find_file(source, f"knowledge.{end}", kwargs)
    folder = next((path.parent for path in found if path is not None), None)
    expander = GraphExpander.load(folder) if folder is not None else None
    if state is not None and state != _state(source, config_file, kwargs):  # changed while they were read
        state = fingerprint = None
    return Parts(model, processor, expander, kwargs, state, fingerprint)


def _state(source: str, config_file: Path, kwargs: dict[str, Any]) -> str | None:
    """The state of the files of a model, by which its fingerprint is kept; None if it is not known."""
    if is_folder(source):
        return state_of_folder(config_file.parent.resolve())
    commit = kwargs.get("revision")
    return None if commit is None else state_of_commit(f"{source}/{kwargs.get('subfolder') or ''}", commit)


def _load_complete(kind: Any, source: str, kwargs: dict[str, Any]) -> Any:
    """A model of which no tensor is missing."""
    model, report = _load(kind, source, {**kwargs, "output_loading_info": True})
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise CheckpointError(
            f"{source}: {len(missing)} of the model's tensors are missing, {missing[0]!r} first; save it again."
        )
    return model


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
    _require_hub_id(source)
    revision, subfolder = kwargs.get("revision"), kwargs.get("subfolder")
    name = f"{subfolder}/{CONFIG_NAME}" if subfolder else CONFIG_NAME
    cached = try_to_load_from_cache(source, name, cache_dir=kwargs.get("cache_dir"), revision=revision)
    if is_offline_mode() or kwargs.get("local_files_only"):
        if isinstance(cached, str):
            return kwargs
        raise CheckpointError(
            f"{source}: no such folder, and no copy of such a model in the cache; offline the Hub is not asked. "
            "Check the name, go online, or give a folder."
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
    options = {option: kwargs[option] for option in _HUB_OPTIONS if kwargs.get(option) is not None}
    found = hub_file(source, name, error=CheckpointError, **options)
    return None if found is None else Path(found)


def _require_hub_id(source: str) -> None:
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
    for wait in (*_WAITS, None):
        try:
            with hub_errors(source, token=token if isinstance(token, str) else None):
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
    return CheckpointError(f"{source}: no folder of this name here, and {str(error).removeprefix(f'{source}: ')}")


def _towers_class(config_file: Path) -> type[CMFAHModel]:
    """The towers of the method that a configuration names, else those of CMFAH, which reject the configuration."""
    try:
        found = read_object(config_file).get("model_type")
    except (OSError, ModelFileError):
        found = None
    return MODELS[found if isinstance(found, str) and found in MODELS else "cmfah"].model


def _load(part: Any, source: str, kwargs: dict[str, Any]) -> Any:
    try:
        with no_bars(), nullcontext() if is_folder(source) else hub_errors(source, CheckpointError):
            return part.from_pretrained(source, **kwargs)
    except CheckpointError:
        raise
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise CheckpointError(f"{source}: no {part.__name__} can be loaded from there ({reason}).") from error
    except RuntimeError as error:
        raise CheckpointError(f"{source}: the shapes of its tensors are not those of its {CONFIG_NAME}.") from error


@contextmanager
def no_bars() -> Iterator[None]:
    """Disables transformers' progress bars: for a few dozen tensors they are noise, most of all around an error."""
    hook = transformers_logging.set_tqdm_hook(lambda bar, args, options: bar(*args, **{**options, "disable": True}))
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(hook)
