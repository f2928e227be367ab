"""Outputs of models with an objective.

Shape suffixes: B pairs of a batch, Q positions of a missing modality (concepts), D feature width, E width of a dual
encoder's vectors, K hash bits.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers.utils import ModelOutput

from cmfah_hf.models.outputs_cmfah import CMFAHTowerOutput


class View(NamedTuple):
    """One modality of a batch in one view: continuous codes `(B, K)`, features `(B, D)`, concept cosines `(B, Q)`."""

    hash_values: torch.Tensor
    features: torch.Tensor
    concept_cosines: torch.Tensor | None = None


@dataclass
class CMFAHForPreTrainingOutput(ModelOutput):
    """Outputs for a batch of pairs in the unimodal and the cross-modal view.

    Args:
        loss (`torch.FloatTensor`, *optional*, with `labels`): The total, which the towers minimize.
        losses (`dict[str, torch.FloatTensor]`, *optional*, with `labels`): Its unweighted terms by name.
        image_hash, text_hash (`torch.FloatTensor` of shape `(B, K)`): Unimodal continuous codes.
        image_features, text_features (`torch.FloatTensor` of shape `(B, D)`): Unimodal features.
        image_concept_cosines, text_concept_cosines (`torch.FloatTensor` of shape `(B, Q)`): As in `CMFAHTowerOutput`.
        image_vectors, text_vectors (`torch.FloatTensor` of shape `(B, E)`): Vectors of a dual encoder, of unit length;
            the features that towers over one feature read, each modality with a width of its own.
        image_logits, text_logits (`torch.FloatTensor` of shape `(B, K)`): The values whose `tanh` the codes are.
        image_model_output, text_model_output (`CMFAHTowerOutput`): The towers' outputs in the cross-modal view.
    """

    loss: torch.Tensor | None = None
    losses: dict[str, torch.Tensor] | None = None
    image_hash: torch.Tensor | None = None
    text_hash: torch.Tensor | None = None
    image_features: torch.Tensor | None = None
    text_features: torch.Tensor | None = None
    image_concept_cosines: torch.Tensor | None = None
    text_concept_cosines: torch.Tensor | None = None
    image_vectors: torch.Tensor | None = None
    text_vectors: torch.Tensor | None = None
    image_logits: torch.Tensor | None = None
    text_logits: torch.Tensor | None = None
    image_model_output: CMFAHTowerOutput | None = None
    text_model_output: CMFAHTowerOutput | None = None

    @property
    def unimodal(self) -> tuple[View, View]:
        """Images and texts, each without its partner."""
        return (
            View(_required(self.image_hash), _required(self.image_features), self.image_concept_cosines),
            View(_required(self.text_hash), _required(self.text_features), self.text_concept_cosines),
        )

    @property
    def logits(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The values whose `tanh` the codes are, of images and of texts."""
        return _required(self.image_logits), _required(self.text_logits)

    @property
    def vectors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """`image_vectors` and `text_vectors`."""
        return _required(self.image_vectors), _required(self.text_vectors)

    @property
    def cross_modal(self) -> tuple[View, View] | None:
        """Images and texts, each with its partner; None if this view was not computed."""
        image, text = self.image_model_output, self.text_model_output
        if image is None or text is None:
            return None
        return (
            View(_required(image.hash_values), _required(image.features), image.concept_cosines),
            View(_required(text.hash_values), _required(text.features), text.concept_cosines),
        )

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(
            value.to_tuple()
            if isinstance(value, ModelOutput)
            else tuple(value.values())
            if isinstance(value, dict)
            else value
            for value in self.values()
        )


def _required(tensor: torch.Tensor | None) -> torch.Tensor:
    if tensor is None:
        raise ValueError("The outputs of a batch for training hold codes and features of both modalities.")
    return tensor


@dataclass
class CMFAHDiscriminatorOutput(ModelOutput):
    """Output of a discriminator.

    Args:
        loss (`torch.FloatTensor`, *optional*, with `labels`): Binary cross-entropy.
        logits (`torch.FloatTensor` of shape `(B,)`): Positive for features of its own modality.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
