"""Loading of a trained model's towers, processor and expander, from a folder or from the Hub."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from cmfah_hf.errors import CheckpointError
from cmfah_hf.expansion import GraphExpander
from cmfah_hf.hub_access import hub_errors
from cmfah_hf.models import MODELS, CMFAHModel, CMFAHProcessor, CMFAHTextModel
from cmfah_hf.models.model_files import ModelFileError, is_folder, read_object
from cmfah_hf.retrieval.image_options import ImageOptions
from cmfah_hf.retrieval.kept_fingerprints import kept_fingerprint
from cmfah_hf.retrieval.model_source import CONFIG_NAME, HUB_OPTIONS, find_config, load_expander, state_of_files
from cmfah_hf.retrieval.torch_encoder import TorchEncoder


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


def load_torch_encoder(
    source: str,
    kwargs: dict[str, Any],
    texts_only: bool = False,
    device: str | torch.device | None = None,
    image_options: ImageOptions | None = None,
) -> tuple[TorchEncoder, dict[str, Any]]:
    """The encoder of a trained model, and the arguments that lead to further files of the same commit.

    The arguments are those of `CrossMediaRetriever.from_pretrained`, whose errors it has.
    """
    parts = load_parts(source, kwargs, texts_only)
    model = cast(CMFAHModel, parts.model)  # of texts only, it encodes these in the same way
    encoder = TorchEncoder(model, parts.processor, parts.expander, device, image_options)
    encoder.know_files(parts.state, parts.fingerprint)
    return encoder, parts.kwargs


def load_parts(source: str, kwargs: dict[str, Any], texts_only: bool = False) -> Parts:
    """The parts of a trained model, from a folder or a Hub id; from the Hub, all of one commit.

    With `texts_only`, only the tower of texts is loaded, if the fingerprint of the whole is kept. Whatever is wrong is
    a `CheckpointError`.
    """
    is_plain = kwargs.keys() <= {"trust_remote_code", *HUB_OPTIONS}
    config_file, kwargs = find_config(source, kwargs)
    state = state_of_files(source, config_file, kwargs) if is_plain else None
    fingerprint = None if state is None else kept_fingerprint(state)
    both = _towers_class(config_file)
    model = _load_complete(both.text_model_class if texts_only and fingerprint else both, source, kwargs)
    processor = _load(CMFAHProcessor, source, kwargs)
    try:
        processor.check_model(model.config)
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}.") from error
    expander = load_expander(source, kwargs)
    if state is not None and state != state_of_files(source, config_file, kwargs):  # changed while they were read
        state = fingerprint = None
    return Parts(model, processor, expander, kwargs, state, fingerprint)


def _load_complete(kind: Any, source: str, kwargs: dict[str, Any]) -> Any:
    """A model of which no tensor is missing."""
    model, report = _load(kind, source, {**kwargs, "output_loading_info": True})
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise CheckpointError(
            f"{source}: {len(missing)} of the model's tensors are missing, {missing[0]!r} first; save it again."
        )
    return model


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
