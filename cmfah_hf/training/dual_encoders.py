"""Dual encoders in training and compression: their weights, the vectors of images and texts, and hash heads fitted to
these.

Shape suffixes: N items, E width of the encoder's vectors, K bits.
"""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from itertools import islice
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from transformers import PreTrainedConfig

from cmfah_hf.data.collator import captions_in
from cmfah_hf.data.images import decode_image
from cmfah_hf.data.images.pixels import pixel_values_of
from cmfah_hf.errors import CheckpointError
from cmfah_hf.hub_access import folder_instead, hub_errors
from cmfah_hf.methods.closed_form import CodeFitter, HashProjection
from cmfah_hf.models import CMFAHConfig, CMFAHModel, CMFAHProcessor
from cmfah_hf.models.dual_encoder import dual_encoder_class, read_encoder, side_tensors
from cmfah_hf.models.model_files import is_folder
from cmfah_hf.models.remote_code import RemoteCodeError
from cmfah_hf.retrieval.items import batches_of
from cmfah_hf.training.encoder_sources import link_to, located

TEXTS_AT_ONCE = 256
# Pairs that a head is fitted to before training, which are enough for its mean and covariance.
_PAIRS_TO_FIT = 20_000


def load_dual_encoder(
    encoder: str, bits: int, link: bool | None = None, trust_remote_code: bool | None = None
) -> tuple[CMFAHModel, CMFAHProcessor]:
    """A model over a pretrained dual encoder, whose codes are not fitted yet, and its processor.

    The arguments are those of `compress`.

    Raises:
        CheckpointError: If the encoder is no dual encoder, or cannot be loaded.
    """
    try:
        with nullcontext() if is_folder(encoder) else hub_errors(encoder, CheckpointError, kind=None):
            config = _configuration(encoder, bits, trust_remote_code)
            assert isinstance(config.dual_encoder_config, PreTrainedConfig)
            processor = CMFAHProcessor.from_backbones(config)
            config.pad_token_id = processor.tokenizer.pad_token_id
            place = config.dual_encoder_config.name_or_path or encoder  # with the commit of a revision
            location = located(place, dual=True)
            tensors = read_encoder(config.dual_encoder_config, place, location)
        model = CMFAHModel(config).eval()
    except RemoteCodeError as error:
        raise CheckpointError(str(error)) from error
    except CheckpointError as error:
        raise CheckpointError(f"{error} {folder_instead(encoder)}") from error
    except (OSError, ValueError, StrictDataclassError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise CheckpointError(f"{encoder}: no dual encoder can be loaded from there ({reason}).") from error
    for tower in (model.image_model, model.text_model):
        half = tower.embeddings.backbone
        half.encoder.load_state_dict(side_tensors(tensors, half.side))
        _align(tower.embeddings.projection, half.own_projection)
    found = None if link is False else link_to(encoder, location, tensors)
    if found is not None:
        found.name_in(config)
    elif link:
        raise CheckpointError(
            f"{encoder}: only an encoder of the Hub, owner/name, can be named by its commit; save its weights."
        )
    return model, processor


def _configuration(encoder: str, bits: int, trust_remote_code: bool | None) -> CMFAHConfig:
    settings = {"use_positions": False, "use_lstm": False, "num_concepts": 8, "hash_bits": bits}
    config = CMFAHConfig(dual_encoder=encoder, trust_remote_code=trust_remote_code, **settings)
    found = config.dual_encoder_config
    assert isinstance(found, PreTrainedConfig)
    dual_encoder_class(found)
    assert config.pooled_dim is not None
    config.hidden_size = config.pooled_dim
    return config


def _align(projection: torch.nn.Linear, own: torch.nn.Linear | None) -> None:
    """Puts regions or tokens into the space of the vectors, so that attention compares what the encoder compares."""
    with torch.no_grad():
        projection.bias.zero_()
        if own is not None and own.weight.shape == projection.weight.shape:
            projection.weight.copy_(own.weight)
        else:
            torch.nn.init.eye_(projection.weight)


def fill_head(model: CMFAHModel, projection: HashProjection) -> None:
    """Sets the hash heads of both towers to a projection of the encoder's vectors (`[projection]`)."""
    maps = (
        (model.image_model, projection.image_weight, projection.image_bias),
        (model.text_model, projection.text_weight, projection.text_bias),
    )
    for tower, weight_KE, bias_K in maps:
        head = tower.hash_head.vectors
        head.weight.data.copy_(torch.from_numpy(weight_KE))
        head.bias.data.copy_(torch.from_numpy(bias_K))


@torch.inference_mode()
def image_vectors(model: CMFAHModel, processor: CMFAHProcessor, images: Iterable[Image.Image]) -> np.ndarray:
    """The encoder's vectors of images, `(N, E)` float32 of unit length."""
    return vectors_of_pixels(model, pixel_values_of(processor, images).to(model.device))


@torch.inference_mode()
def vectors_of_pixels(model: CMFAHModel, pixel_values: torch.Tensor) -> np.ndarray:
    """The same of images that the processor has prepared, `(N, 3, H, W)`."""
    return as_array(model.image_model.embeddings(pixel_values).pooled)


@torch.inference_mode()
def text_vectors(model: CMFAHModel, processor: CMFAHProcessor, texts: list[str]) -> np.ndarray:
    """The encoder's vectors of texts, `(N, E)` float32 of unit length."""
    parts = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        inputs = processor(text=texts[start : start + TEXTS_AT_ONCE], return_tensors="pt").to(model.device)
        parts.append(as_array(model.text_model.embeddings(inputs["input_ids"], inputs["attention_mask"]).pooled))
    return np.concatenate(parts)


def fit_head(
    model: CMFAHModel, processor: CMFAHProcessor, pairs: Iterable[dict[str, Any]], text_column: str, seed: int
) -> HashProjection:
    """Fits the hash heads to pairs as a compression does (`[choice]`), so that training begins there.

    Only the vectors count at first: the weights of the positions are zero.

    Args:
        model: A model over a dual encoder, with its weights.
        processor: Its processor.
        pairs: Rows with `region_features` or `image`, and texts, of which the first 20,000 are read.
        text_column: The column of texts.
        seed: Seed of samples and rotations.

    Raises:
        DataError: If there are fewer than two pairs, or all images are equal.
    """
    width = width_of(model)
    fitter = CodeFitter(width, seed=seed)
    for batch in batches_of(islice(iter(pairs), _PAIRS_TO_FIT), TEXTS_AT_ONCE, "Head", progress=False):
        if "region_features" in batch[0]:  # which begin with the vector
            vectors_NE = np.stack([np.asarray(row["region_features"], np.float32)[0, :width] for row in batch])
        else:
            vectors_NE = image_vectors(model, processor, (decode_image(row["image"]) for row in batch))
        fitter.add_pairs(vectors_NE, text_vectors(model, processor, [first_text(row, text_column) for row in batch]))
    projection = fitter.fit(model.config.hash_bits).projection
    fill_head(model, projection)
    for tower in (model.image_model, model.text_model):
        if tower.hash_head.dense is not None:
            tower.hash_head.dense.weight.data.zero_()
            tower.hash_head.dense.bias.data.zero_()
        if model.config.hidden_size == width:
            _align(tower.embeddings.projection, tower.embeddings.backbone.own_projection)
    return projection


class EncoderVectors(torch.nn.Module):
    """The vectors of a model's encoders in place of its codes.

    Those of a dual encoder are the float reference in evaluation; towers over one feature give these features.
    """

    def __init__(self, model: CMFAHModel):
        super().__init__()
        self.model, self.config = model, model.config

    @property
    def device(self) -> torch.device:
        return self.model.device

    def get_image_hash(
        self, pixel_values: torch.Tensor | None = None, region_features: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """The vectors `(B, E)` of images; the arguments are those of `CMFAHModel.get_image_hash`."""
        return self.model.image_model.embeddings(pixel_values, region_features).pooled

    def get_text_hash(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_features: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """The vectors `(B, E)` of texts; the arguments are those of `CMFAHModel.get_text_hash`."""
        return self.model.text_model.embeddings(input_ids, attention_mask, token_features=token_features).pooled


def first_text(row: Mapping[str, Any], column: str) -> str:
    """One text of a row: its first caption if it has several, which `column` holds joined."""
    return next(iter(captions_in(row)), row.get(column) or "")


def width_of(model: CMFAHModel) -> int:
    """`E`, the width of the vectors of a model over a dual encoder."""
    assert model.config.pooled_dim is not None
    return model.config.pooled_dim


def as_array(values: torch.Tensor) -> np.ndarray:
    """A tensor as float32 on the CPU."""
    return values.float().cpu().numpy()
