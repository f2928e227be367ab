"""Outputs of the models, with their shapes.

Shape suffixes: B pairs of a batch, R regions, W tokens, P positions of a sequence (regions or tokens), Q positions of
its partner, D feature width, K hash bits.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import ModelOutput

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
            The positions before the first block and after each; with `output_hidden_states=True`.
        attentions (`tuple` of `torch.FloatTensor` of shape `(B, 1, P, Q)`):
            Weights of the positions and the partner's positions, of each block that adds or of the one selection; with
            `output_attentions=True`, and where the side attends.
        concept_cosines (`torch.FloatTensor` of shape `(B, Q)`):
            Without a partner, and where concepts select: the largest cosine of each concept with a position.
    """

    hash_values: torch.Tensor | None = None
    features: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    concept_cosines: torch.Tensor | None = None


def tower_output(hash_head: CMFAHHashHead, view: View, is_cross_modal: bool) -> CMFAHTowerOutput:
    """A tower's output, from its view of a batch."""
    return CMFAHTowerOutput(
        hash_values=hash_head(view.features, is_paired=is_cross_modal),
        features=view.features,
        last_hidden_state=view.hidden_states,
        concept_cosines=view.concept_cosines,
    )


@dataclass
class CMFAHLosses(ModelOutput):
    """Every term of the loss before its weight, summed over modalities and, by `paired_weight`, over views; scalars.

    Args:
        intra_feature, intra_hash, quantization: J1, J2 and J3 of `[intra]`.
        inter_feature, inter_hash: J4 and J5 of `[inter]`.
        similarity: `[label-similarity]`.
        label: `[label-guidance]`; `CMFAHForPreTraining` alone.
        concept: `[concept-guidance]`; `CMFAHForPreTraining` alone.
        adversarial: L_adv of `[adversarial]`; `CMFAHForPreTraining` alone.
    """

    intra_feature: torch.Tensor | None = None
    intra_hash: torch.Tensor | None = None
    quantization: torch.Tensor | None = None
    inter_feature: torch.Tensor | None = None
    inter_hash: torch.Tensor | None = None
    similarity: torch.Tensor | None = None
    label: torch.Tensor | None = None
    concept: torch.Tensor | None = None
    adversarial: torch.Tensor | None = None


@dataclass
class CMFAHViews:
    """Outputs of both towers in both views: each item alone, and each guided by its partner if that was asked for."""

    image: CMFAHTowerOutput
    text: CMFAHTowerOutput
    cross_modal_image: CMFAHTowerOutput | None = None
    cross_modal_text: CMFAHTowerOutput | None = None


@dataclass
class CMFAHOutput(ModelOutput):
    """Output of both towers for a batch of pairs.

    With both modalities given, each is guided by the other. These are *cross-modal* codes: they depend on the partner,
    which a query does not have. `get_image_hash` and `get_text_hash` encode one modality alone.

    Args:
        loss (`torch.FloatTensor`, *optional*, with `labels`): The weighted total of `losses`.
        image_hash, text_hash (`torch.FloatTensor` of shape `(B, K)`): H of `[hash]`, in (-1, 1).
        image_features, text_features (`torch.FloatTensor` of shape `(B, D)`): F of `[lstm]`.
        attentions (`tuple` of `torch.FloatTensor`): With `output_attentions=True`, each block's region x token weights
            `(B, 1, R, W)`, then each block's token x region weights `(B, 1, W, R)`; none of a side
            that does not attend.
        losses (`CMFAHLosses`, *optional*, with `labels`): The terms, one by one.
        image_model_output, text_model_output (`CMFAHTowerOutput`): The outputs of each tower, hidden states too.
    """

    loss: torch.Tensor | None = None
    image_hash: torch.Tensor | None = None
    text_hash: torch.Tensor | None = None
    image_features: torch.Tensor | None = None
    text_features: torch.Tensor | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    losses: CMFAHLosses | None = None
    image_model_output: CMFAHTowerOutput | None = None
    text_model_output: CMFAHTowerOutput | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


@dataclass
class CMFAHForPreTrainingOutput(ModelOutput):
    """A batch of pairs seen both ways: each item with its partner, and each alone.

    Args:
        loss (`torch.FloatTensor`, *optional*, with `labels`): What the towers minimise, L_gen - L_adv.
        losses (`CMFAHLosses`, *optional*, with `labels`): The terms, one by one.
        image_hash, text_hash (`torch.FloatTensor` of shape `(B, K)`): Hash values of the items alone, as in retrieval.
        image_features, text_features (`torch.FloatTensor` of shape `(B, D)`): Features of the items alone.
        image_concept_cosines, text_concept_cosines (`torch.FloatTensor` of shape `(B, Q)`): As in `CMFAHTowerOutput`.
        image_model_output, text_model_output (`CMFAHTowerOutput`): All that each tower gave in the paired view.
    """

    loss: torch.Tensor | None = None
    losses: CMFAHLosses | None = None
    image_hash: torch.Tensor | None = None
    text_hash: torch.Tensor | None = None
    image_features: torch.Tensor | None = None
    text_features: torch.Tensor | None = None
    image_concept_cosines: torch.Tensor | None = None
    text_concept_cosines: torch.Tensor | None = None
    image_model_output: CMFAHTowerOutput | None = None
    text_model_output: CMFAHTowerOutput | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


@dataclass
class CMFAHDiscriminatorOutput(ModelOutput):
    """What a discriminator thinks of features.

    Args:
        loss (`torch.FloatTensor`, *optional*, with `labels`): Binary cross-entropy.
        logits (`torch.FloatTensor` of shape `(B,)`): Above 0 where it takes the features for its own modality's.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
