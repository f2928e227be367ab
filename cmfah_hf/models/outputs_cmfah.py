"""What the models return, with its shapes.

Shape suffixes: B pairs of a batch, R regions, W words, P positions of a sequence (regions or words), Q positions of its
partner, D feature width, K hash bits.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import ModelOutput


@dataclass
class CMFAHTowerOutput(ModelOutput):
    """What one tower makes of a batch.

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
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    concept_cosines: torch.Tensor | None = None


@dataclass
class CMFAHOutput(ModelOutput):
    """What the pair of towers makes of a batch of pairs.

    With both modalities given, each is guided by the other. These are *paired* values: they know their partner, and
    are not what a lone query has. `get_image_hash` and `get_text_hash` encode one modality alone.

    Args:
        image_hash, text_hash (`torch.FloatTensor` of shape `(B, K)`): H of `[hash]`, in (-1, 1).
        image_features, text_features (`torch.FloatTensor` of shape `(B, D)`): F of `[lstm]`.
        attentions (`tuple` of `torch.FloatTensor`): With `output_attentions=True`, each block's region x word weights
            `(B, 1, R, W)`, then each block's word x region weights `(B, 1, W, R)`; none of a side
            that does not attend.
        image_model_output, text_model_output (`CMFAHTowerOutput`): All that each tower gave, hidden states too.
    """

    image_hash: torch.Tensor | None = None
    text_hash: torch.Tensor | None = None
    image_features: torch.Tensor | None = None
    text_features: torch.Tensor | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    image_model_output: CMFAHTowerOutput | None = None
    text_model_output: CMFAHTowerOutput | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())
