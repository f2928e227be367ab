"""Sources of pretrained encoders: their commits on the Hub, and what a model's card says of them."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cmfah_hf.data import resolve_data_path
from cmfah_hf.data.dataset_card import CARD_NAME
from cmfah_hf.documents import file_of
from cmfah_hf.errors import HubError
from cmfah_hf.hub.cards import license_in
from cmfah_hf.hub.finished_run import is_repo_id, last_part
from cmfah_hf.hub_access import hub_errors, hub_file
from cmfah_hf.models import CMFAHConfig
from cmfah_hf.models.dual_encoder import digest_of
from cmfah_hf.models.model_files import is_folder, pinned, split_revision
from cmfah_hf.models.safe_weights import encoder_weights
from cmfah_hf.models.sentence_files import sentence_settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncoderLink:
    """The weights of a dual encoder on the Hub, which a model can name instead of holding them.

    Attributes:
        source: The Hub id.
        revision: The commit.
        digest: The digest of the weights of both halves, of `digest_of`.
        subfolder: The folder of the encoder in the repository, if it has one.
    """

    source: str
    revision: str
    digest: str
    subfolder: str | None

    def name_in(self, config: CMFAHConfig) -> None:
        """Writes the link into the configuration of a model, which is then saved without these weights."""
        config.encoder_source, config.encoder_revision = self.source, self.revision
        config.encoder_digest, config.encoder_subfolder = self.digest, self.subfolder


def located(encoder: str, dual: bool = False) -> dict[str, Any]:
    """The arguments of `from_pretrained` for an encoder: its folder in the repository and, on the Hub, its commit.

    Raises:
        ModelFileError: If a file is damaged, or an encoder of sentence-transformers has other modules.
        OSError: If there are no safetensors, or the Hub cannot be reached.
    """
    location = sentence_settings(encoder, dual).location
    # That of the weights: the Hub's conversion to safetensors has a commit of its own.
    return pinned(encoder, encoder_weights(encoder, location)[0], location)


def link_to(encoder: str, location: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> EncoderLink | None:
    """The link to a dual encoder that `located` found; None if it is a folder, or has no owner on the Hub."""
    name, _ = split_revision(encoder)
    if is_folder(encoder) or not is_repo_id(name) or "revision" not in location:
        return None
    return EncoderLink(name, location["revision"], digest_of(tensors), location.get("subfolder"))


def link_encoder(model: Any, link: EncoderLink | None) -> None:
    """Names the encoder of a trained model by its commit, if the model has still the weights of that commit.

    It has others if the encoder was trained, if a half of it was loaded from elsewhere, or if the training was resumed
    and its checkpoint is of an earlier commit. Then they are saved with the model.

    Args:
        model: A `CMFAHForPreTraining`.
        link: The encoder that the model was built with. None: its weights are saved.
    """
    config = model.config
    if link is None or not (config.freeze_backbone and config.freeze_text_backbone):
        return
    tensors: dict[str, torch.Tensor] = {}
    for tower in (model.cmfah.image_model, model.cmfah.text_model):
        tensors |= tower.embeddings.backbone.encoder.state_dict()
    if digest_of(tensors) == link.digest:
        for module in (model, model.cmfah):
            link.name_in(module.config)
    else:
        logger.warning(
            "The encoder of the model is not that of %s at %s, so its weights are saved with the model.",
            link.source,
            link.revision[:8],
        )


def encoder_facts(encoder: str, of: str, dual: bool = False) -> dict[str, str | None]:
    """The facts of a pretrained encoder for a model's card, as `metrics.json` holds them.

    Args:
        encoder: A folder or file, a Hub id, or the name of a model of torchvision or timm.
        of: What it encodes: `"images"`, `"texts"`, or `"images and texts"`.
        dual: Whether it is a dual encoder.

    Returns:
        `of`; `name`, the Hub id or the last part of the path; `revision`, the commit on the Hub; and `license`, that of
        its own card. The last two are None if there is none.

    Raises:
        HubError: If the Hub cannot be reached and the cache has no copy of the encoder.
    """
    local = resolve_data_path(encoder) if of == "images" else Path(encoder)
    if local.exists():
        card = file_of(local / CARD_NAME)
        name = last_part(str(local.resolve()))
        return {"of": of, "name": name, "revision": None, "license": None if card is None else license_in(card)}
    repo_id, _ = split_revision(encoder)
    found = {"of": of, "name": repo_id, "revision": None, "license": None}
    if "/" not in encoder and of == "images":  # of torchvision or timm
        return found
    with hub_errors(encoder):
        # An image backbone is never that of a model of sentence-transformers.
        location = located(encoder, dual) if of != "images" else pinned(encoder, encoder_weights(encoder, {})[0], {})
    revision = location.get("revision")
    return found | {"revision": revision, "license": _license_on_hub(repo_id, revision)}


def _license_on_hub(encoder: str, revision: str | None) -> str | None:
    """The license in the card of an encoder at its commit; None, with a warning, if the Hub does not give the card."""
    try:
        card = hub_file(encoder, CARD_NAME, revision=revision)
    except HubError as error:  # the encoder itself has been loaded
        logger.warning("The license of the encoder is unknown: %s", error)
        return None
    return None if card is None else license_in(Path(card))
