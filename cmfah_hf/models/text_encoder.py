"""Text encoders: the tokens of texts, from a TextCNN over word vectors, any text model of `transformers`, or half of a
dual encoder.

A text encoder computes `W` tokens of each text and a mask of those that exist. A dual encoder also computes a vector.

Shape suffixes: B texts, W tokens, D feature width, E width of an input embedding or of a dual encoder's vectors, H
hidden size of the backbone.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForTextEncoding, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES

from .adapters import add_adapters, train_adapters_only
from .configuration_cmfah import CMFAHConfig
from .configuration_files import UNFIT
from .dual_encoder import CMFAHDualTextEncoder
from .encoder_output import Embedded, input_dtype, with_vector, without_vector
from .model_files import ModelFileError
from .remote_code import is_remote, remote_class


def build_text_encoder(config: CMFAHConfig) -> "CMFAHTextEncoder":
    """The text encoder of a configuration, with random weights."""
    if config.dual_encoder_config is not None:
        return CMFAHDualText(config)
    return CMFAHTextCNN(config) if config.text_backbone_config is None else CMFAHTextBackbone(config)


class CMFAHTextEncoder(nn.Module):
    """Base class of text encoders, parts of which may be frozen."""

    projection: nn.Linear
    # The width of the hidden states.
    channels: int
    # Whether `extract_tokens` gives one feature of a text instead of its tokens.
    keeps_one = False
    pooled_dim: int | None = None

    def __init__(self, config: CMFAHConfig):
        super().__init__()
        self.config = config
        self.dropout = nn.Dropout(config.dropout)

    def _freeze(self) -> None:
        raise NotImplementedError

    def train(self, mode: bool = True) -> "CMFAHTextEncoder":
        super().train(mode)
        self._freeze()  # loaded weights are new parameters
        return self

    def get_input_embeddings(self) -> nn.Module:
        """The embedding table of `input_ids`."""
        raise NotImplementedError

    def set_input_embeddings(self, value: nn.Module) -> None:
        raise NotImplementedError

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        token_features: torch.Tensor | None = None,
    ) -> Embedded:
        """The tokens `(B, W, D)`, zero where masked, the mask `(B, W)`, and the vectors of a dual encoder.

        Args:
            input_ids: `(B, W)`, rows of the embedding table.
            attention_mask: `(B, W)`, 1 at the tokens that exist. None: all that are not padding.
            inputs_embeds: `(B, W, E)`, input embeddings, instead of `input_ids`.
            token_features: `(B, W, H)`, as `extract_tokens` returns them, instead of `input_ids`.

        Raises:
            ValueError: If none or several of `input_ids`, `inputs_embeds` and `token_features` are given, or the tokens
                have another width.
        """
        if token_features is None:
            hidden_BWH, mask_BW, pooled_BE = self._hidden(input_ids, attention_mask, inputs_embeds)
        elif input_ids is not None or inputs_embeds is not None:
            raise ValueError("Give the text tower one of input_ids, inputs_embeds and token_features.")
        else:
            hidden_BWH, mask_BW, pooled_BE = self._kept(token_features, attention_mask)
        return self._embed(hidden_BWH, mask_BW, pooled_BE)

    def extract_tokens(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The hidden states `(B, W, H)` and the mask `(B, W)`, which can be given as `token_features` and
        `attention_mask`.

        Those of a dual encoder begin with its vector: `(B, 1 + W, max(H, E))`, the narrower ones filled up with zeros.
        """
        hidden_BWH, mask_BW, pooled_BE = self._hidden(input_ids, attention_mask, None)
        return (hidden_BWH if pooled_BE is None else with_vector(hidden_BWH, pooled_BE)), mask_BW

    def _kept(
        self, token_features: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """As `_hidden`, of what `extract_tokens` returned."""
        hidden_BWH, pooled_BE = token_features.to(input_dtype(self.projection)), None
        if self.pooled_dim is not None:
            hidden_BWH, pooled_BE = without_vector(hidden_BWH, self.channels, self.pooled_dim)
        if hidden_BWH.shape[-1] != self.channels:
            raise ValueError(
                f"token_features have the width {hidden_BWH.shape[-1]} and the text encoder gives {self.channels}; "
                "extract them again with this model's encoder."
            )
        return hidden_BWH, _mask(hidden_BWH[..., 0], attention_mask, None), pooled_BE

    def _hidden(
        self, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, inputs_embeds: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """The hidden states `(B, W, H)`, the mask `(B, W)`, and the vectors `(B, E)` of a dual encoder."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give the text tower either input_ids or inputs_embeds.")
        embeds_BWE = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        positions = embeds_BWE[..., 0] if input_ids is None else input_ids
        mask_BW = _mask(positions, attention_mask, self.config.pad_token_id if input_ids is not None else None)
        if input_ids is not None and self.config.unk_token_id is not None:
            mask_BW = mask_BW & (input_ids != self.config.unk_token_id)  # words without vectors are ignored
        if not mask_BW.shape[1]:  # convolution, attention and LSTM need a column
            embeds_BWE, mask_BW = nn.functional.pad(embeds_BWE, (0, 0, 0, 1)), nn.functional.pad(mask_BW, (0, 1))
        return self._encode(input_ids, embeds_BWE, mask_BW), mask_BW, None

    def _embed(self, hidden_BWH: torch.Tensor, mask_BW: torch.Tensor, pooled_BE: torch.Tensor | None) -> Embedded:
        tokens_BWD = self.projection(self.dropout(hidden_BWH)) * mask_BW[..., None].to(input_dtype(self.projection))
        return Embedded(tokens_BWD, mask_BW, pooled_BE)

    def _encode(self, input_ids: torch.Tensor | None, embeds_BWE: torch.Tensor, mask_BW: torch.Tensor) -> torch.Tensor:
        """The hidden states `(B, W, H)`; `input_ids` are None if embeddings were given."""
        raise NotImplementedError


class CMFAHPretrainedText(CMFAHTextEncoder):
    """Base class of text encoders with pretrained weights, which may be frozen, or adapted with `lora_rank`."""

    backbone: Any

    def adapt(self) -> None:
        """Adds the adapters of the configuration, and freezes what is frozen."""
        if self.config.lora_rank is not None and not self.config.freeze_text_backbone:
            add_adapters(self.backbone, self.config.lora_rank)
        self._freeze()

    def _freeze(self) -> None:
        if self.config.freeze_text_backbone:
            self.backbone.requires_grad_(False).eval()
        elif self.config.lora_rank is not None:
            train_adapters_only(self.backbone)


class CMFAHTextCNN(CMFAHTextEncoder):
    """`[words]`: a table of word vectors, a TextCNN of several widths, and a fully connected layer."""

    def __init__(self, config: CMFAHConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.word_dim, padding_idx=config.pad_token_id)
        self._freeze()
        self.convolutions = nn.ModuleList(
            nn.Conv1d(config.word_dim, config.text_filters, width, padding="same") for width in config.text_kernel_sizes
        )
        self.channels = config.text_filters * len(config.text_kernel_sizes)
        self.projection = nn.Linear(self.channels, config.hidden_size)

    def _freeze(self) -> None:
        if self.config.freeze_word_vectors:
            self.embed_tokens.requires_grad_(False)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embed_tokens = value  # type: ignore[assignment]  # transformers' signature allows any module

    def _encode(self, input_ids: torch.Tensor | None, embeds_BWE: torch.Tensor, mask_BW: torch.Tensor) -> torch.Tensor:
        # Masked tokens are zeros, like the padding of the convolution, so the amount of padding has no effect.
        return in_reading_order(self._convolve, embeds_BWE * mask_BW[..., None].to(embeds_BWE.dtype), mask_BW)

    def _convolve(self, embeds_BWE: torch.Tensor) -> torch.Tensor:
        embeds_BEW = embeds_BWE.mT
        return torch.cat([convolution(embeds_BEW).relu() for convolution in self.convolutions], dim=1).mT


class CMFAHTextBackbone(CMFAHPretrainedText):
    """Any text model of `transformers`: its `last_hidden_state`, projected to `D`.

    Padding must be on the side that the model was trained with; most models count positions from the left.
    """

    def __init__(self, config: CMFAHConfig):
        super().__init__(config)
        self.backbone = build_text_backbone(config)
        self.adapt()
        self.channels = self.backbone.config.hidden_size
        self.projection = nn.Linear(self.channels, config.hidden_size)

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.set_input_embeddings(value)

    def _encode(self, input_ids: torch.Tensor | None, embeds_BWE: torch.Tensor, mask_BW: torch.Tensor) -> torch.Tensor:
        # Attention over no positions is NaN, so a text without tokens attends to its padding.
        attended_BW = mask_BW | ~mask_BW.any(dim=1, keepdim=True)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_text_backbone):
            if input_ids is not None and input_ids.shape[1]:  # some models add more than the embeddings
                output = self.backbone(input_ids=input_ids, attention_mask=attended_BW.long())
            else:
                output = self.backbone(inputs_embeds=embeds_BWE, attention_mask=attended_BW.long())
        return output.last_hidden_state.to(input_dtype(self.projection))


class CMFAHDualText(CMFAHPretrainedText):
    """The text half of a dual encoder: its `last_hidden_state`, projected to `D`, and its vectors."""

    def __init__(self, config: CMFAHConfig):
        super().__init__(config)
        self.backbone = CMFAHDualTextEncoder(config)
        self.adapt()
        self.channels = self.backbone.channels[-1]
        self.projection = nn.Linear(self.channels, config.hidden_size)
        self.pooled_dim = config.pooled_dim

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.tower.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.tower.set_input_embeddings(value)

    def _hidden(
        self, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, inputs_embeds: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """As the parent's, from `input_ids` alone."""
        if input_ids is None or inputs_embeds is not None:
            raise ValueError("A dual encoder reads texts as input_ids, and not as inputs_embeds.")
        if not input_ids.shape[1]:
            input_ids = input_ids.new_full((len(input_ids), 1), self.config.pad_token_id or 0)
            attention_mask = torch.zeros_like(input_ids)
        mask_BW = _mask(input_ids, attention_mask, self.config.pad_token_id)
        attended_BW = mask_BW | ~mask_BW.any(dim=1, keepdim=True)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_text_backbone):
            hidden_BWC, pooled_BE = self.backbone(input_ids, attended_BW)
        dtype = input_dtype(self.projection)
        return hidden_BWC.to(dtype), mask_BW, pooled_BE.to(dtype)


def build_text_backbone(config: CMFAHConfig) -> PreTrainedModel:
    """The text model of `text_backbone_config`, with random weights and without a pooler.

    Raises:
        ValueError: If no text model can be built.
    """
    backbone_config = config.text_backbone_config
    assert isinstance(backbone_config, PreTrainedConfig)
    encodes = backbone_config.model_type in MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES  # only the encoder, as of T5
    try:
        auto_class = AutoModelForTextEncoding if encodes else AutoModel
        is_own = not is_remote(backbone_config)
        model_class: Any = auto_class._model_mapping[type(backbone_config)] if is_own else remote_class(backbone_config)
        options: dict[str, bool] = {}
        if isinstance(model_class, type) and "add_pooling_layer" in inspect.signature(model_class).parameters:
            options["add_pooling_layer"] = False
        build = auto_class.from_config if is_own else model_class._from_config
        return build(backbone_config, **options)
    except ModelFileError:
        raise
    except (*UNFIT, ImportError) as error:
        kind, reason = backbone_config.model_type, " ".join(str(error).split())[:200]
        raise ValueError(f"No {kind} text model can be built of its text_backbone_config ({reason}).") from error


def in_reading_order(
    module: Callable[[torch.Tensor], torch.Tensor], tokens_BWD: torch.Tensor, mask_BW: torch.Tensor
) -> torch.Tensor:
    """Applies `module` to the existing tokens, in order and without gaps; the results return to the tokens' positions.

    The results of convolutions and LSTMs, which read neighbors, then do not depend on padding.
    """
    # The place of each position: existing ones first. Counted instead of sorted, because exports to other runtimes lack
    # a stable sort.
    exists_BW = mask_BW.long()
    before_BW = exists_BW.cumsum(dim=1)
    gaps_BW = (1 - exists_BW).cumsum(dim=1)
    place_BW1 = torch.where(mask_BW, before_BW, before_BW[:, -1:] + gaps_BW)[..., None] - 1
    compact_BWD = torch.zeros_like(tokens_BWD).scatter(1, place_BW1.expand_as(tokens_BWD), tokens_BWD)
    output_BWD = module(compact_BWD)
    return output_BWD.gather(1, place_BW1.expand_as(output_BWD))


def _mask(positions_BW: torch.Tensor, attention_mask: torch.Tensor | None, pad_token_id: int | None) -> torch.Tensor:
    """The positions that exist: those of the mask, else all that are not padding."""
    if attention_mask is not None:
        return attention_mask.bool()
    if pad_token_id is not None:
        return positions_BW != pad_token_id
    return torch.ones_like(positions_BW, dtype=torch.bool)
