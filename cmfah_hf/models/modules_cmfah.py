"""The building blocks of both towers: regions, words, co-attention, pooling, hash head.

Shape suffixes: B pairs of a batch, R regions, W words, P positions of a sequence (regions or words), Q positions of its
partner (words, regions or concepts), D feature width, C channels of the backbone, E width of a word vector, F filters,
K hash bits. Equations are cited by their tags in `docs/method.md`.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .backbones_cmfah import CMFAHGivenFeatures, CMFAHTorchvisionBackbone, build_backbone
from .configuration_cmfah import CMFAHConfig
from .fused_cmfah import EPSILON, cosines, largest, largest_cosines, selected, selected_by_each_other, selection_weights


def sign(hash_BK: torch.Tensor) -> torch.Tensor:
    """Binary codes of -1 and +1, with `sgn(0) = +1`, `[hash]`."""
    return torch.where(hash_BK >= 0, 1.0, -1.0).to(hash_BK.dtype)


def _in_reading_order(
    module: Callable[[torch.Tensor], torch.Tensor], words_BWD: torch.Tensor, mask_BW: torch.Tensor
) -> torch.Tensor:
    """Applies `module` to the words that exist, moved together in their order; each result goes to its word's place.

    So what looks at neighbours, a convolution or an LSTM, sees the text and not how it is padded.
    """
    order_BW1 = (~mask_BW).long().argsort(dim=1, stable=True)[..., None]
    output_BWD = module(words_BWD.take_along_dim(order_BW1, dim=1))
    return output_BWD.take_along_dim(order_BW1.argsort(dim=1), dim=1)


class CMFAHRegionEmbeddings(nn.Module):
    """`[regions]`: a backbone's last feature map, one vector of `D` a region."""

    def __init__(self, config: CMFAHConfig):
        super().__init__()
        self.config = config
        if config.backbone_config is None:
            given = config.image_feature_dim is not None
            self.backbone = CMFAHGivenFeatures(config) if given else CMFAHTorchvisionBackbone(config)
            channels = self.backbone.channels[-1]
        else:
            self.backbone, channels = build_backbone(config)
        self._freeze()
        self.projection = nn.Linear(channels, config.hidden_size)

    def _freeze(self):
        if self.config.freeze_backbone:  # its dropout and batch statistics with its weights
            self.backbone.requires_grad_(False).eval()

    def train(self, mode: bool = True):
        super().train(mode)
        self._freeze()  # weights too: `from_pretrained`, which ends in `eval()`, makes parameters that are not frozen
        return self

    def extract_regions(self, pixel_values: torch.FloatTensor) -> torch.FloatTensor:
        """The backbone's own regions, `(B, R, C)`, row by row from the top left: what `region_features` may hold."""
        # A frozen backbone needs no graph; the caller's setting holds otherwise.
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_backbone):
            output = self.backbone(pixel_values.to(self.projection.weight.dtype))
        feature_map_BCHW = output if isinstance(output, torch.Tensor) else output.feature_maps[-1]
        return feature_map_BCHW.flatten(2).transpose(1, 2)

    def forward(
        self, pixel_values: torch.FloatTensor | None = None, region_features: torch.FloatTensor | None = None
    ) -> torch.FloatTensor:
        if (pixel_values is None) == (region_features is None):
            raise ValueError("Give the image tower either pixel_values or region_features.")
        if region_features is None:
            region_features = self.extract_regions(pixel_values)
        regions_BRC = region_features.to(self.projection.weight.dtype)
        if regions_BRC.shape[-1] != self.projection.in_features:
            raise ValueError(
                f"region_features have {regions_BRC.shape[-1]} channels and the backbone gives "
                f"{self.projection.in_features}; extract them again with this model's backbone."
            )
        if self.config.normalize_regions:
            # One scale a picture: how strongly a region responds beside its neighbours tells thing from background.
            wide = torch.promote_types(regions_BRC.dtype, torch.float32)
            lengths_BR1 = torch.linalg.vector_norm(regions_BRC, dim=-1, keepdim=True, dtype=wide)
            scale_B11 = lengths_BR1.square().mean(dim=1, keepdim=True).sqrt().clamp(min=EPSILON)
            regions_BRC = regions_BRC * (regions_BRC.shape[-1] ** 0.5 / scale_B11).to(regions_BRC.dtype)
        return self.projection(regions_BRC)


class CMFAHWordEmbeddings(nn.Module):
    """`[words]`: the word table, a TextCNN of several widths, and a fully connected layer; one vector of `D` a word."""

    def __init__(self, config: CMFAHConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.word_dim, padding_idx=config.pad_token_id)
        self._freeze()
        self.convolutions = nn.ModuleList(
            nn.Conv1d(config.word_dim, config.text_filters, width, padding="same") for width in config.text_kernel_sizes
        )
        self.projection = nn.Linear(config.text_filters * len(config.text_kernel_sizes), config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def _freeze(self):
        if self.config.freeze_word_vectors:
            self.embed_tokens.requires_grad_(False)

    def train(self, mode: bool = True):
        super().train(mode)
        self._freeze()  # as above: a table that was loaded is a new parameter
        return self

    def _convolve(self, embeds_BWE: torch.Tensor) -> torch.Tensor:
        embeds_BEW = embeds_BWE.mT
        return torch.cat([convolution(embeds_BEW).relu() for convolution in self.convolutions], dim=1).mT

    def forward(self, embeds_BWE: torch.FloatTensor, mask_BW: torch.BoolTensor) -> torch.FloatTensor:
        # Masked words are zeros, as the convolution's own padding is: how far a text is padded changes nothing.
        exists_BW1 = mask_BW[..., None].to(embeds_BWE.dtype)
        filters_BWF = _in_reading_order(self._convolve, embeds_BWE * exists_BW1, mask_BW)
        return self.projection(self.dropout(filters_BWF)) * exists_BW1


class CMFAHCoAttention(nn.Module):
    """`[similarity]`, `[attention-v]`, `[attention-t]`: every position gathers what answers it in the partner."""

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
        """What each position gathers, `(B, P, D)`, with the position itself where that is asked for; the weights."""
        similarity_BPQ = cosines(local_BPD, partner_BQD).clamp(min=0)
        similarity_BPQ = nn.functional.normalize(similarity_BPQ, dim=1, eps=EPSILON)
        scores_BPQ = self.temperature * similarity_BPQ
        if partner_mask_BQ is not None:
            scores_BPQ = scores_BPQ.masked_fill(~partner_mask_BQ[:, None], torch.finfo(scores_BPQ.dtype).min)
        weights_BPQ = scores_BPQ.softmax(dim=-1)
        if partner_mask_BQ is not None:  # a partner without a single position answers nothing
            weights_BPQ = weights_BPQ * partner_mask_BQ[:, None].to(weights_BPQ.dtype)
        weights_B1PQ = weights_BPQ[:, None]  # one head, as whoever reads attention weights expects them
        weights_BPQ = weights_B1PQ[:, 0]  # of these, so that they have gradients for whoever asks
        if not adds_local:
            return weights_BPQ @ partner_BQD, weights_B1PQ
        if partner_BQD.ndim == 3:
            return torch.baddbmm(local_BPD, weights_BPQ, partner_BQD), weights_B1PQ
        sum_ND = torch.addmm(local_BPD.flatten(0, 1), weights_BPQ.flatten(0, 1), partner_BQD)
        return sum_ND.view_as(local_BPD), weights_B1PQ


class CMFAHSelection(nn.Module):
    """`[selection]`: how much each position answers the partner, and the positions summed by that.

    The partner says where to look, and never what is to be seen there.
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
        """The selected positions' sum, `(B, D)`; the weights, `(B, 1, P, Q)`; the `largest_cosines`, `(B, Q)`."""
        cosines_BPQ = cosines(local_BPD, partner_BQD)
        weights_BPQ = selection_weights(cosines_BPQ, mask_BP, partner_mask_BQ, self.temperature)
        weights_B1PQ = weights_BPQ.to(cosines_BPQ.dtype)[:, None]
        selected_BD = (weights_B1PQ.sum(dim=-1) @ local_BPD).squeeze(1)
        return selected_BD, weights_B1PQ, largest_cosines(cosines_BPQ, mask_BP)


class CMFAHLayer(GradientCheckpointingLayer):
    """`[lstm]`: co-attention, an LSTM over the attended positions, and the plain positions added."""

    def __init__(self, config: CMFAHConfig, attends: bool, temperature: float):
        super().__init__()
        self.attention = CMFAHCoAttention(temperature) if attends else None
        self.lstm = nn.LSTM(config.hidden_size, config.hidden_size, batch_first=True) if config.use_lstm else None

    def _read(self, sequence_BPD: torch.Tensor) -> torch.Tensor:
        if sequence_BPD.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            # An LSTM in halves is something that not every processor's oneDNN has.
            with torch.autocast("cpu", enabled=False):
                return self.lstm(sequence_BPD.to(self.lstm.weight_ih_l0.dtype))[0].to(sequence_BPD.dtype)
        return self.lstm(sequence_BPD)[0]

    def forward(
        self,
        hidden_states_BPD: torch.Tensor,
        mask_BP: torch.Tensor | None,
        partner_BQD: torch.Tensor | None,
        partner_mask_BQ: torch.Tensor | None,
    ) -> torch.Tensor:
        if self.attention is not None and self.lstm is None:
            output_BPD, _ = self.attention(hidden_states_BPD, partner_BQD, partner_mask_BQ, adds_local=True)
            return output_BPD if mask_BP is None else output_BPD * mask_BP[..., None].to(output_BPD.dtype)
        update_BPD = hidden_states_BPD
        if self.attention is not None:
            update_BPD, _ = self.attention(hidden_states_BPD, partner_BQD, partner_mask_BQ)
        if self.lstm is not None and mask_BP is None:
            update_BPD = self._read(update_BPD)
        elif self.lstm is not None:
            update_BPD = _in_reading_order(self._read, update_BPD, mask_BP)
        if self.attention is None and self.lstm is None:
            return hidden_states_BPD
        output_BPD = hidden_states_BPD + update_BPD
        return output_BPD if mask_BP is None else output_BPD * mask_BP[..., None].to(output_BPD.dtype)


# The features with the partner, `(B, D)`, where they were asked for; those without; the concepts' `largest_cosines`.
Views = tuple[torch.Tensor | None, torch.Tensor, torch.Tensor | None]


class CMFAHEncoder(nn.Module):
    """From a modality's positions to its pooled feature, with a partner or with the concepts that stand in for one."""

    def __init__(self, config: CMFAHConfig, attends: bool, temperature: float, pooling: str):
        super().__init__()
        self.attends = attends
        self.pooling = pooling
        self.selection = CMFAHSelection(temperature) if attends and config.guidance == "select" else None
        # The concept bank: what an absent partner is replaced by, "One modality at a time" of `docs/method.md`. Its
        # first concepts are those of the classes, where `[concept-guidance]` teaches them.
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
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """The features, `(B, D)`; the positions, `(B, P, D)`; the concepts' `largest_cosines`, where they select."""
        is_alone = partner_BQD is None
        if self.attends and is_alone:
            partner_BQD, partner_mask_BQ = self.concepts, None  # (Q, D): the same for each item of the batch
        hidden_BPD = self._read(local_BPD, mask_BP, partner_BQD, partner_mask_BQ)
        features_BD = self._pool(hidden_BPD, mask_BP)
        if self.selection is None:
            return features_BD, hidden_BPD, None
        selected_BD, _, answers_BQ = self.selection(hidden_BPD, mask_BP, partner_BQD, partner_mask_BQ)
        return features_BD + selected_BD, hidden_BPD, answers_BQ if is_alone else None

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

    def _views(
        self,
        hidden_BPD: torch.Tensor,
        mask_BP: torch.Tensor | None,
        *partner: tuple[torch.Tensor, torch.Tensor | None],
    ) -> Views:
        if self.selection is None:
            features_BD = self._pool(hidden_BPD, mask_BP)
            return features_BD if partner else None, features_BD, None
        asking = *partner, (self.concepts, None)
        return self._views_from(hidden_BPD, mask_BP, selected(hidden_BPD, mask_BP, self.selection.temperature, *asking))

    def _views_from(
        self,
        hidden_BPD: torch.Tensor,
        mask_BP: torch.Tensor | None,
        found: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    ) -> Views:
        selected_BVD, largest_BD, answers_BQ = found
        features_BVD = selected_BVD + self._pool(hidden_BPD, mask_BP, largest_BD)[:, None]
        return features_BVD[:, 0] if features_BVD.shape[1] > 1 else None, features_BVD[:, -1], answers_BQ

    def views(
        self,
        local_BPD: torch.Tensor,
        mask_BP: torch.Tensor | None,
        other: "CMFAHEncoder",
        partner_BQD: torch.Tensor,
        partner_mask_BQ: torch.Tensor | None,
        paired: bool,
    ) -> tuple[Views, Views]:
        """Of this modality and of the `other` one, the features with the partner and those without.

        As calls of `forward` would give them, in less time. Not for partners that are added.

        Args:
            paired: Whether there are to be features with the partner.
        """
        hidden_BPD = self._read(local_BPD, mask_BP)
        other_BQD = other._read(partner_BQD, partner_mask_BQ)
        # Positions that no LSTM has read are those that the partner looks at: both look along the same cosines.
        is_shared = hidden_BPD is local_BPD and other_BQD is partner_BQD
        if paired and is_shared and self.selection is not None and other.selection is not None:
            own, others = selected_by_each_other(
                (local_BPD, mask_BP, self.concepts, self.selection.temperature),
                (partner_BQD, partner_mask_BQ, other.concepts, other.selection.temperature),
            )
            return self._views_from(hidden_BPD, mask_BP, own), other._views_from(other_BQD, partner_mask_BQ, others)
        own, others = ([(local_BPD, mask_BP)], [(partner_BQD, partner_mask_BQ)]) if paired else ([], [])
        return self._views(hidden_BPD, mask_BP, *others), other._views(other_BQD, partner_mask_BQ, *own)

    def _pool(
        self, hidden_BPD: torch.Tensor, mask_BP: torch.Tensor | None, largest_BD: torch.Tensor | None = None
    ) -> torch.Tensor:
        pooled_BD = _masked_mean(hidden_BPD, mask_BP) if "mean" in self.pooling else 0.0
        if "max" in self.pooling:
            largest_BD = largest(hidden_BPD, mask_BP) if largest_BD is None else largest_BD
            if mask_BP is not None:  # of no word at all: nothing
                largest_BD = largest_BD.masked_fill(~mask_BP.any(dim=1, keepdim=True), 0.0)
            pooled_BD = pooled_BD + largest_BD
        return pooled_BD


def _masked_mean(hidden_BPD: torch.Tensor, mask_BP: torch.Tensor | None) -> torch.Tensor:
    if mask_BP is None:
        return hidden_BPD.sum(dim=1) / hidden_BPD.shape[1]
    return hidden_BPD.sum(dim=1) / mask_BP.sum(dim=1, keepdim=True).clamp(min=1).to(hidden_BPD.dtype)  # masked are 0


class CMFAHHashHead(nn.Module):
    """`[hash]`: `H = tanh(W F + b)`."""

    def __init__(self, config: CMFAHConfig):
        super().__init__()
        self.norm = self.paired_norm = None
        if config.normalize_features:
            self.norm = nn.BatchNorm1d(config.hidden_size)
            # Features with a partner are distributed unlike those without: statistics of their own, one scale for both.
            self.paired_norm = nn.BatchNorm1d(config.hidden_size, affine=False) if config.attention != "none" else None
        self.dropout = nn.Dropout(config.dropout)
        self.dense = nn.Linear(config.hidden_size, config.hash_bits)

    def forward(self, features_BD: torch.Tensor, is_paired: bool = False) -> torch.Tensor:
        if is_paired and self.paired_norm is not None:
            features_BD = torch.addcmul(self.norm.bias, self.norm.weight, self.paired_norm(features_BD))
        elif self.norm is not None:
            features_BD = self.norm(features_BD)
        return self.dense(self.dropout(features_BD)).tanh()
