"""Published weights of the backbones, and word vectors for the word table."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import hf_hub_download
from torch import nn
from transformers import AutoBackbone, PreTrainedModel
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from cmfah_hf.data import resolve_data_path
from cmfah_hf.errors import CheckpointError
from cmfah_hf.models import CMFAHConfig, CMFAHImageModel, CMFAHTextModel
from cmfah_hf.models.configuration_files import TORCHVISION_BACKBONES
from cmfah_hf.models.dual_encoder import Side, read_encoder, side_tensors
from cmfah_hf.models.model_files import ModelFileError, find_file, split_revision
from cmfah_hf.models.safe_weights import encoder_weights, read_weights
from cmfah_hf.models.text_encoder import CMFAHTextBackbone
from cmfah_hf.models.tokenization_cmfah import SPECIAL_TOKENS
from cmfah_hf.training.encoder_sources import EncoderLink, encoder_facts, link_to, located
from cmfah_hf.training.settings.arguments import DataArguments

logger = logging.getLogger(__name__)


def backbone_weights(data: DataArguments, config: CMFAHConfig) -> str | None:
    """The source of the image backbone's weights, if any: the setting, else the backbone's folder or Hub id."""
    encoder = config.dual_encoder_config or config.backbone_config
    return data.backbone_weights or (encoder.name_or_path if encoder is not None else None)


def encoders_of(data: DataArguments, config: CMFAHConfig) -> list[dict[str, str | None]]:
    """The facts of the pretrained encoders of a model, of `encoder_facts`, for its card.

    Raises:
        HubError: If the Hub cannot be reached and the cache has no copy of an encoder.
    """
    images = None if config.image_feature_dim is not None else backbone_weights(data, config)
    if config.dual_encoder_config is not None:
        whole = config.dual_encoder_config.name_or_path
        facts = [encoder_facts(whole, "images and texts", dual=True)] if whole else []
        return facts + ([encoder_facts(images, "images")] if images and images != whole else [])
    texts = config.text_backbone_config.name_or_path if config.text_backbone_config is not None else None
    return [encoder_facts(place, of) for of, place in (("images", images), ("texts", texts)) if place]


def load_backbone_weights(image_model: CMFAHImageModel, source: str) -> None:
    """Loads published weights into the backbone of an image tower.

    Args:
        image_model: The tower; its configuration names the backbone.
        source: `"torchvision"` for the weights that torchvision publishes for a VGG. A safetensors file with the names
            of the backbone (`features.0.weight`, ... for a VGG, timm's own for a timm name; a classifier is ignored), a
            folder with such a `model.safetensors`, or a Hub id. For an `AutoBackbone`, a folder or Hub id with any
            model of its architecture that `transformers` saved as safetensors; for a backbone of timm, the name of its
            model.

    Raises:
        CheckpointError: If the file does not exist, or its tensors do not fit the backbone.
    """
    backbone, backbone_config = image_model.embeddings.backbone, image_model.config.backbone_config
    if image_model.config.dual_encoder_config is not None:
        _load_half(image_model, "image", source)
        return
    local = resolve_data_path(source)
    if source == "torchvision":
        weights = _torchvision_weights(image_model.config.backbone)
    elif backbone_config is not None and (not local.exists() or (local / CONFIG_NAME).is_file()):
        weights = _transformers_weights(cast(PreTrainedModel, backbone), str(local) if local.exists() else source)
    else:
        path = _local_file(source) or _hub_file(source)
        try:
            weights = read_weights([Path(path)])
        except ModelFileError as error:
            raise CheckpointError(f"{path}: not a readable safetensors file ({error}).") from error
        if backbone_config is not None and backbone_config.model_type == "timm_backbone":
            # timm's own names, which `transformers` prefixes.
            weights = {f"_backbone.{name.removeprefix('_backbone.')}": tensor for name, tensor in weights.items()}
    _fill(backbone, weights, source)


def _fill(backbone: nn.Module, weights: Mapping[str, torch.Tensor], source: str) -> None:
    """Loads weights into a backbone. All of its tensors must be given; other tensors are ignored."""
    expected = backbone.state_dict()
    missing = sorted(set(expected) - set(weights))
    if missing:
        raise CheckpointError(
            f"{source}: {len(missing)} of the backbone's {len(expected)} tensors are missing, {missing[0]!r} first; "
            "these are not its weights."
        )
    for name, tensor in expected.items():
        if weights[name].shape != tensor.shape:
            raise _misfit(source, name, weights[name].shape, tensor.shape)
    backbone.load_state_dict({name: weights[name].to(expected[name].dtype) for name in expected})


def fill_word_table(text_model: CMFAHTextModel, vectors_VE: torch.Tensor) -> None:
    """Fills the word table with word vectors, after the rows of the special tokens.

    All are scaled to one length, as regions are: the length of a skip-gram vector depends on the word's frequency, not
    on its meaning.
    """
    table_VE = text_model.get_input_embeddings().weight.data
    table_VE.zero_()
    table_VE[len(SPECIAL_TOKENS) :] = nn.functional.normalize(vectors_VE, dim=1) * vectors_VE.shape[1] ** 0.5


def load_text_backbone_weights(text_model: CMFAHTextModel) -> EncoderLink | None:
    """Loads published weights into the text backbone of a text tower, from the source of its configuration.

    Returns:
        The link to a dual encoder that is on the Hub.

    Raises:
        CheckpointError: If there are no safetensors, or they do not fit the backbone.
    """
    encoder = text_model.embeddings
    if text_model.config.dual_encoder_config is not None:
        source = text_model.config.dual_encoder_config.name_or_path
        location, tensors = _load_half(text_model, "text", source)
        return link_to(source, location, tensors)
    assert isinstance(encoder, CMFAHTextBackbone)
    backbone = encoder.backbone
    place = backbone.config.name_or_path
    if not place:
        logger.warning("text_backbone_config names no source of its weights, so they are random; give text_backbone.")
        return None
    _fill(backbone, _transformers_weights(backbone, place, located), place)
    return None


def _load_half(
    tower: CMFAHImageModel | CMFAHTextModel, side: Side, source: str
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Loads published weights into one half of a dual encoder; the location and the tensors of the whole encoder."""
    try:
        location = located(source, dual=True)
        tensors = read_encoder(tower.config.dual_encoder_config, source, location)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise CheckpointError(f"{source}: no weights of a dual encoder can be loaded from there ({reason}).") from error
    _fill(tower.embeddings.backbone.encoder, side_tensors(tensors, side), source)
    return location, tensors


def _local_file(source: str) -> Path | None:
    path = resolve_data_path(source)
    if not path.is_dir():
        return path if path.is_file() else None
    try:
        return find_file(path, SAFE_WEIGHTS_NAME, {})
    except ModelFileError as error:
        raise CheckpointError(str(error)) from error


def _transformers_weights(
    backbone: PreTrainedModel, source: str, locate: Callable[[str], dict[str, Any]] = lambda _: {}
) -> dict[str, torch.Tensor]:
    """The tensors of a backbone in a folder or on the Hub, where it may be part of a larger model.

    `locate` gives the arguments of `from_pretrained` for the source.
    """
    if backbone.config.model_type == "timm_backbone":
        return _timm_weights(backbone, source)
    # Not with `AutoBackbone`, which asks timm if the Hub does not answer, and not by the name of the folder, in which
    # `transformers` would look for other files. The report lists missing and mismatched tensors, which would otherwise
    # be random.
    try:
        loaded: Any = type(backbone).from_pretrained(  # its hint has no `output_loading_info`
            None,
            config=backbone.config,
            state_dict=read_weights(encoder_weights(source, locate(source))),
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise CheckpointError(f"{source}: no weights of a backbone can be loaded from there ({reason}).") from error
    found, report = loaded
    for name, shape, wanted in sorted(report["mismatched_keys"]):
        raise _misfit(source, name, shape, wanted)
    return {name: tensor for name, tensor in found.state_dict().items() if name not in report["missing_keys"]}


def _timm_weights(backbone: PreTrainedModel, source: str) -> dict[str, torch.Tensor]:
    """The weights that timm publishes under a name: safetensors, or a pickle read with `weights_only`."""
    import timm

    if not timm.is_model(source):  # timm also accepts folders and repositories as names
        raise CheckpointError(f"{source}: timm publishes no weights of that name; give the name of one of its models.")
    return AutoBackbone.from_pretrained(source, config=backbone.config).state_dict()


def _misfit(source: str, name: str, shape: Sequence[int], wanted: Sequence[int]) -> CheckpointError:
    return CheckpointError(f"{source}: {name!r} has the shape {tuple(shape)}, the backbone's is {tuple(wanted)}.")


def _hub_file(source: str) -> str:
    try:
        name, revision = split_revision(source)
        return hf_hub_download(name, SAFE_WEIGHTS_NAME, **revision)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{source}: neither a file, a folder with {SAFE_WEIGHTS_NAME}, nor a Hub id that can be reached ({reason})."
        ) from error


def _torchvision_weights(name: str | None) -> dict[str, torch.Tensor]:
    import torchvision  # type: ignore[import-untyped]  # it has no stubs

    if name not in TORCHVISION_BACKBONES:
        raise CheckpointError("'torchvision' only has weights for its VGGs; name a file or a Hub id for this backbone.")
    # The only published format is a pickle: its checksum is checked, and `torch.load` reads it with `weights_only`.
    weights = torchvision.models.get_model_weights(name).DEFAULT
    try:
        return weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # no network, no room, or another content
        raise CheckpointError(
            f"torchvision: no weights of {name} from {weights.url} ({error}); check the network, or give "
            "a folder or a safetensors file of them: --backbone_weights FOLDER."
        ) from error
