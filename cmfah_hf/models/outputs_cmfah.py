"""Outputs of the models, with their shapes.

Shape suffixes: B pairs of a batch, R regions, W tokens, P positions of a sequence (regions or tokens), Q positions of
its partner, D feature width, K hash bits.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import ModelOutput

from .encoder_output import Embedded
from .modules_cmfah import CMFAHHashHead, View


@dataclass
class CMFAHTowerOutput(ModelOutput):
    """Output of one tower.

    Args:
        hash_values (`torch.FloatTensor` of shape `(B, K)`):
            H of `[hash]`, in (-1, 1).
        features (`torch.FloatTensor` of shape `(B, D)`):
            F of `[lstm]`, pooled over the positions.
        last_hidden_state (`torch.FloatTensor` of shape `(B, P, D)`):
            The positions after the last block; zero where masked.
        hidden_states (`tuple` of `torch.FloatTensor` of shape `(B, P, D)`):
            The positions before the first block and after each block; with `output_hidden_states=True`.
        attentions (`tuple` of `torch.FloatTensor` of shape `(B, 1, P, Q)`):
            Weights of the positions and the partner's positions, of each block or of the selection; with
            `output_attentions=True`, if the modality attends.
        concept_cosines (`torch.FloatTensor` of shape `(B, Q)`):
            The largest cosine of each concept with a position, in the unimodal view of a tower that selects.
        hash_logits (`torch.FloatTensor` of shape `(B, K)`):
            The values whose `tanh` the codes are.
    """

    hash_values: torch.Tensor | None = None
    features: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    concept_cosines: torch.Tensor | None = None
    hash_logits: torch.Tensor | None = None


def tower_output(hash_head: CMFAHHashHead, view: View, own: Embedded, is_cross_modal: bool) -> CMFAHTowerOutput:
    """The output of a tower for one view of a batch of encoded images or texts."""
    logits = hash_head(view.features, view.hidden_states, own.mask, own.pooled, is_cross_modal)
    return CMFAHTowerOutput(
        hash_values=logits.tanh(),
        features=view.features,
        last_hidden_state=view.hidden_states,
        concept_cosines=view.concept_cosines,
        hash_logits=logits,
    )


@dataclass
class CMFAHViews:
    """Outputs of both towers in the unimodal view and, on request, the cross-modal view."""

    image: CMFAHTowerOutput
    text: CMFAHTowerOutput
    cross_modal_image: CMFAHTowerOutput | None = None
    cross_modal_text: CMFAHTowerOutput | None = None


@dataclass
class CMFAHOutput(ModelOutput):
    """Output of both towers for a batch of pairs.

    If both modalities are given, each is guided by the other. These *cross-modal* codes depend on the partner, which a
    query does not have. `get_image_hash` and `get_text_hash` encode one modality alone.

    Args:
        image_hash, text_hash (`torch.FloatTensor` of shape `(B, K)`): H of `[hash]`, in (-1, 1).
        image_features, text_features (`torch.FloatTensor` of shape `(B, D)`): F of `[lstm]`.
        attentions (`tuple` of `torch.FloatTensor`): With `output_attentions=True`, each block's region x token weights
            `(B, 1, R, W)`, then each block's token x region weights `(B, 1, W, R)`, for modalities that attend.
        image_model_output, text_model_output (`CMFAHTowerOutput`): The outputs of each tower.
        image_vectors, text_vectors (`torch.FloatTensor` of shape `(B, E)`): Vectors of a dual encoder, or the features
            that towers over one feature read.
    """

    image_hash: torch.Tensor | None = None
    text_hash: torch.Tensor | None = None
    image_features: torch.Tensor | None = None
    text_features: torch.Tensor | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    image_model_output: CMFAHTowerOutput | None = None
    text_model_output: CMFAHTowerOutput | None = None
    image_vectors: torch.Tensor | None = None
    text_vectors: torch.Tensor | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())
