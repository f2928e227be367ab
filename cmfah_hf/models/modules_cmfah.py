"""Co-attention, selection, pooling and the hash head: the layers of both towers after their encoders.

Shape suffixes: B pairs of a batch, P positions of a sequence (regions or tokens), Q positions of its partner (tokens,
regions or concepts), V views, D feature width, E width of a dual encoder's vectors, K hash bits. Equations are cited by
their tags in `docs/method.md`.
"""

from dataclasses import dataclass
from functools import reduce

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_cmfah import CMFAHConfig
from .fused_cmfah import EPSILON, cosines, largest, largest_cosines, selected, selected_by_each_other, selection_weights
from .lstm_cmfah import CMFAHLSTM
from .text_encoder import in_reading_order


class CMFAHCoAttention(nn.Module):
    """`[similarity]`, `[attention-v]`, `[attention-t]`: attention of each position to the partner's positions."""

    def __init__(self, temperature: float):
        super().__init__()
        self.temperature = temperature

    def forward(
        self,
        local_BPD: torch.Tensor,
        partner_BQD: torch.Tensor,
        partner_mask_BQ: torch.Tensor | None,
        adds_local: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The attended sums `(B, P, D)`, plus the positions themselves if `adds_local`, and the weights."""
        similarity_BPQ = cosines(local_BPD, partner_BQD).clamp(min=0)
        similarity_BPQ = nn.functional.normalize(similarity_BPQ, dim=1, eps=EPSILON)
        scores_BPQ = self.temperature * similarity_BPQ
        if partner_mask_BQ is not None:
            scores_BPQ = scores_BPQ.masked_fill(~partner_mask_BQ[:, None], torch.finfo(scores_BPQ.dtype).min)
        weights_BPQ = scores_BPQ.softmax(dim=-1)
        if partner_mask_BQ is not None:  # a partner without positions contributes nothing
            weights_BPQ = weights_BPQ * partner_mask_BQ[:, None].to(weights_BPQ.dtype)
        weights_B1PQ = weights_BPQ[:, None]  # one head, in the layout of attention weights
        weights_BPQ = weights_B1PQ[:, 0]  # a view of these, so that they have gradients
        if not adds_local:
            return weights_BPQ @ partner_BQD, weights_B1PQ
        if partner_BQD.ndim == 3:
            return torch.baddbmm(local_BPD, weights_BPQ, partner_BQD), weights_B1PQ
        sum_ND = torch.addmm(local_BPD.flatten(0, 1), weights_BPQ.flatten(0, 1), partner_BQD)
        return sum_ND.view_as(local_BPD), weights_B1PQ


class CMFAHSelection(nn.Module):
    """`[selection]`: the sum of the positions, weighted by their similarity to the partner's positions.

    The partner only determines the weights.
    """

    def __init__(self, temperature: float):
        super().__init__()
        self.temperature = temperature

    def forward(
        self,
        local_BPD: torch.Tensor,
        mask_BP: torch.Tensor | None,
        partner_BQD: torch.Tensor,
        partner_mask_BQ: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The selected sum `(B, D)`, the weights `(B, 1, P, Q)`, and the `largest_cosines` `(B, Q)`."""
        cosines_BPQ = cosines(local_BPD, partner_BQD)
        weights_BPQ = selection_weights(cosines_BPQ, mask_BP, partner_mask_BQ, self.temperature)
        weights_B1PQ = weights_BPQ.to(cosines_BPQ.dtype)[:, None]
        selected_BD = (weights_B1PQ.sum(dim=-1) @ local_BPD).squeeze(1)
        return selected_BD, weights_B1PQ, largest_cosines(cosines_BPQ, mask_BP)


class CMFAHLayer(GradientCheckpointingLayer):
    """`[lstm]`: co-attention, an LSTM over the attended positions, and a residual connection."""

    def __init__(self, config: CMFAHConfig, attends: bool, temperature: float):
        super().__init__()
        self.attention = CMFAHCoAttention(temperature) if attends else None
        self.lstm = CMFAHLSTM(config.hidden_size) if config.use_lstm else None

    def forward(
        self,
        hidden_states_BPD: torch.Tensor,
        mask_BP: torch.Tensor | None,
        partner_BQD: torch.Tensor | None,
        partner_mask_BQ: torch.Tensor | None,
    ) -> torch.Tensor:
        if self.lstm is None and (self.attention is None or partner_BQD is None):
            return hidden_states_BPD
        update_BPD = hidden_states_BPD
        if self.attention is not None and partner_BQD is not None:
            update_BPD, _ = self.attention(
                hidden_states_BPD, partner_BQD, partner_mask_BQ, adds_local=self.lstm is None
            )
        if self.lstm is not None:
            update_BPD = hidden_states_BPD + _read(self.lstm, update_BPD, mask_BP)
        return update_BPD if mask_BP is None else update_BPD * mask_BP[..., None].to(update_BPD.dtype)


def _read(lstm: CMFAHLSTM, sequence_BPD: torch.Tensor, mask_BP: torch.Tensor | None) -> torch.Tensor:
    """The outputs of the LSTM over the existing positions, in their order."""

    def read(positions_BPD: torch.Tensor) -> torch.Tensor:
        if positions_BPD.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            # oneDNN does not have an LSTM in half precision for all processors.
            with torch.autocast("cpu", enabled=False):
                return lstm(positions_BPD.to(lstm.weight_ih_l0.dtype))[0].to(positions_BPD.dtype)  # type: ignore[arg-type]
        return lstm(positions_BPD)[0]

    return read(sequence_BPD) if mask_BP is None else in_reading_order(read, sequence_BPD, mask_BP)


@dataclass
class View:
    """A modality in one view: with its partner (cross-modal) or with concepts instead (unimodal).

    Attributes:
        features: `(B, D)`, the pooled feature.
        hidden_states: `(B, P, D)`, the positions after the last block.
        concept_cosines: `(B, Q)`, the `largest_cosines` of concepts that select, in the unimodal view.
    """

    features: torch.Tensor
    hidden_states: torch.Tensor
    concept_cosines: torch.Tensor | None = None


# Positions `(B, P, D)` and their mask `(B, P)`; None if all exist.
Positions = tuple[torch.Tensor, torch.Tensor | None]


class CMFAHEncoder(nn.Module):
    """Pools the positions of a modality, guided by a partner or, if it is missing, by concepts."""

    def __init__(self, config: CMFAHConfig, attends: bool, temperature: float, pooling: str):
        super().__init__()
        self.pooling = pooling
        self.selection = CMFAHSelection(temperature) if attends and config.guidance == "select" else None
        # Concepts replace a missing modality, "One modality at a time" of `docs/method.md`. The first ones belong to
        # the classes if `[concept-guidance]` trains them.
        num_concepts = max(config.num_concepts, config.num_class_concepts)
        self.concepts = nn.Parameter(torch.empty(num_concepts, config.hidden_size)) if attends else None
        adds = attends and self.selection is None
        self.layers = nn.ModuleList(CMFAHLayer(config, adds, temperature) for _ in range(config.num_hidden_layers))

    def forward(
        self,
        local_BPD: torch.Tensor,
        mask_BP: torch.Tensor | None,
        partner_BQD: torch.Tensor | None,
        partner_mask_BQ: torch.Tensor | None,
    ) -> View:
        """The cross-modal view or, without a partner, the unimodal view."""
        is_unimodal = partner_BQD is None
        if partner_BQD is None:
            partner_BQD, partner_mask_BQ = self.concepts, None  # (C, D), shared by the batch
        hidden_BPD = self._read(local_BPD, mask_BP, partner_BQD, partner_mask_BQ)
        features_BD = self._pool(hidden_BPD, mask_BP)
        if self.selection is None or partner_BQD is None:
            return View(features_BD, hidden_BPD)
        selected_BD, _, answers_BQ = self.selection(hidden_BPD, mask_BP, partner_BQD, partner_mask_BQ)
        return View(features_BD + selected_BD, hidden_BPD, answers_BQ if is_unimodal else None)

    def _read(
        self,
        local_BPD: torch.Tensor,
        mask_BP: torch.Tensor | None,
        partner_BQD: torch.Tensor | None = None,
        partner_mask_BQ: torch.Tensor | None = None,
    ) -> torch.Tensor:
        for layer in self.layers:
            local_BPD = layer(local_BPD, mask_BP, partner_BQD, partner_mask_BQ)
        return local_BPD

    def _pool(
        self, hidden_BPD: torch.Tensor, mask_BP: torch.Tensor | None, largest_BD: torch.Tensor | None = None
    ) -> torch.Tensor:
        mean_BD = masked_mean(hidden_BPD, mask_BP) if self.pooling != "max" else None
        if self.pooling == "mean" and mean_BD is not None:
            return mean_BD
        largest_BD = largest(hidden_BPD, mask_BP) if largest_BD is None else largest_BD
        if mask_BP is not None:  # zeros without positions
            largest_BD = largest_BD.masked_fill(~mask_BP.any(dim=1, keepdim=True), 0.0)
        return largest_BD if mean_BD is None else mean_BD + largest_BD


def fused_views(
    encoders: tuple[CMFAHEncoder, CMFAHEncoder], positions: tuple[Positions, Positions], cross_modal: bool
) -> tuple[list[View], list[View]]:
    """The unimodal and, on request, cross-modal view of both modalities, in one pass over the positions.

    The values equal those of the encoders up to rounding. Partners that are added are not supported.

    Returns:
        For each modality, the cross-modal view if requested, and the unimodal view.
    """
    read = [
        (encoder._read(local_BPD, mask_BP), mask_BP)
        for encoder, (local_BPD, mask_BP) in zip(encoders, positions, strict=True)
    ]
    # Without an LSTM, both modalities compare the same positions, so they share one table of cosines.
    is_shared = all(hidden[0] is local[0] for hidden, local in zip(read, positions, strict=True))
    asking = [
        (encoder.concepts, encoder.selection.temperature)
        for encoder in encoders
        if encoder.selection is not None and encoder.concepts is not None
    ]
    if cross_modal and is_shared and len(asking) == 2:
        found = selected_by_each_other(*((*own, *of_its) for own, of_its in zip(read, asking, strict=True)))
        image, text = (_views(*each) for each in zip(encoders, read, found, strict=True))
        return image, text
    image, text = (
        _views(encoder, own, _select(encoder, own, [partner] if cross_modal else []), cross_modal)
        for encoder, own, partner in zip(encoders, read, reversed(positions), strict=True)
    )
    return image, text


# What `selected` returns.
Selected = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _select(encoder: CMFAHEncoder, own: Positions, partners: list[Positions]) -> Selected | None:
    """`selected` by each partner and by the concepts; None for an encoder that does not select."""
    if encoder.selection is None or encoder.concepts is None:
        return None
    return selected(*own, encoder.selection.temperature, *partners, (encoder.concepts, None))


def _views(encoder: CMFAHEncoder, own: Positions, found: Selected | None, cross_modal: bool = True) -> list[View]:
    """The cross-modal view, if requested, and the unimodal view, from the selected sums of each."""
    hidden_BPD, mask_BP = own
    if found is None:
        view = View(encoder._pool(hidden_BPD, mask_BP), hidden_BPD)
        return [view, view] if cross_modal else [view]
    selected_BVD, largest_BD, answers_BQ = found
    *cross, unimodal_BD = (selected_BVD + encoder._pool(hidden_BPD, mask_BP, largest_BD)[:, None]).unbind(dim=1)
    return [*(View(features_BD, hidden_BPD) for features_BD in cross), View(unimodal_BD, hidden_BPD, answers_BQ)]


def masked_mean(hidden_BPD: torch.Tensor, mask_BP: torch.Tensor | None) -> torch.Tensor:
    """The mean of the existing positions, `(B, D)`; masked ones are 0."""
    if mask_BP is None:
        return hidden_BPD.sum(dim=1) / hidden_BPD.shape[1]
    return hidden_BPD.sum(dim=1) / mask_BP.sum(dim=1, keepdim=True).clamp(min=1).to(hidden_BPD.dtype)


class CMFAHBitQueries(nn.Module):
    """`[bit-queries]`: one value per bit, from the positions that the query of this bit weights."""

    def __init__(self, config: CMFAHConfig, temperature: float):
        super().__init__()
        self.temperature = temperature
        self.queries = nn.Parameter(torch.empty(config.hash_bits, config.hidden_size))
        self.weight = nn.Parameter(torch.empty(config.hash_bits, config.hidden_size))

    def forward(self, hidden_BPD: torch.Tensor, mask_BP: torch.Tensor | None) -> torch.Tensor:
        """`(B, K)`; 0 without positions."""
        scores_BPK = self.temperature * cosines(hidden_BPD, self.queries)
        if mask_BP is not None:
            scores_BPK = scores_BPK.masked_fill(~mask_BP[..., None], torch.finfo(scores_BPK.dtype).min)
        values_BPK = hidden_BPD @ self.weight.mT  # masked positions are 0
        return (scores_BPK.softmax(dim=1) * values_BPK).sum(dim=1)


class CMFAHResidualBlock(nn.Module):
    """One block of `[shared-mlp]`. Its scale is 0 at first, so it begins as the identity."""

    def __init__(self, width: int, hidden_width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.dense_in = nn.Linear(width, hidden_width)
        self.dense_out = nn.Linear(hidden_width, width)
        self.scale = nn.Parameter(torch.empty(1))

    def forward(self, x_BD: torch.Tensor) -> torch.Tensor:
        """`(B, D)`, features or vectors."""
        return x_BD + self.scale * self.dense_out(nn.functional.gelu(self.dense_in(self.norm(x_BD))))


class CMFAHHashHead(nn.Module):
    """`[hash]`: `H = tanh(W F + b)`.

    With a dual encoder, `[hash-vectors]`: `H = tanh(W F + U p + b)`; `[bit-queries]` add a value to each bit.
    `[shared-mlp]` changes the vectors or, without a dual encoder, the features; `CMFAHModel` shares it between the
    towers.
    """

    def __init__(self, config: CMFAHConfig, temperature: float):
        super().__init__()
        self.norm = nn.BatchNorm1d(config.hidden_size) if config.normalize_features else None
        # The features of the views are distributed differently: separate statistics, one scale for both.
        has_two = config.normalize_features and config.attention != "none"
        self.paired_norm = nn.BatchNorm1d(config.hidden_size, affine=False) if has_two else None
        self.dropout = nn.Dropout(config.dropout)
        self.dense = nn.Linear(config.hidden_size, config.hash_bits) if config.use_positions else None
        self.vectors = None if config.pooled_dim is None else nn.Linear(config.pooled_dim, config.hash_bits)
        self.bits = CMFAHBitQueries(config, temperature) if config.bit_queries else None
        self.mlp = None
        if config.shared_mlp_size is not None:
            width = config.pooled_dim or config.hidden_size
            self.mlp = nn.Sequential(*(CMFAHResidualBlock(width, config.shared_mlp_size) for _ in range(2)))

    def forward(
        self,
        features_BD: torch.Tensor,
        hidden_BPD: torch.Tensor,
        mask_BP: torch.Tensor | None = None,
        pooled_BE: torch.Tensor | None = None,
        is_paired: bool = False,
    ) -> torch.Tensor:
        """The hash logits `(B, K)`, whose `tanh` is the continuous code.

        Args:
            features_BD: The pooled features of a view.
            hidden_BPD, mask_BP: Its positions and their mask.
            pooled_BE: The vectors of a dual encoder.
            is_paired: Whether the view is the cross-modal one.
        """
        parts = []
        if self.mlp is not None and pooled_BE is not None:
            pooled_BE = self.mlp(pooled_BE)
        if self.dense is not None:
            features_BD = self._normalized(features_BD, is_paired)
            if self.mlp is not None and self.vectors is None:
                features_BD = self.mlp(features_BD)
            parts.append(self.dense(self.dropout(features_BD)))
        if self.vectors is not None:
            parts.append(self.vectors(pooled_BE))
        if self.bits is not None:
            parts.append(self.bits(hidden_BPD, mask_BP))
        return reduce(torch.add, parts)

    def _normalized(self, features_BD: torch.Tensor, is_paired: bool) -> torch.Tensor:
        if self.norm is None:
            return features_BD
        if is_paired and self.paired_norm is not None:
            return torch.addcmul(self.norm.bias, self.norm.weight, self.paired_norm(features_BD))
        return self.norm(features_BD)
