"""CMFAH: an image tower and a text tower that meet in 64 bits.

Shape suffixes: B pairs of a batch, R regions, W words, M concepts, P positions of a sequence (regions or words),
Q positions of its partner (words, regions or concepts), D feature width, K hash bits, C classes or channels.
Equations are cited by their tags in `docs/method.md`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_cmfah import CMFAHConfig
from .losses import (
    EPSILON,
    cosine_matrix,
    label_guidance_loss,
    quantization_loss,
    sign,
    triplet_hinge,
    triplet_masks,
)


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
            A block's weights of the partner's positions; with `output_attentions=True`, and where the side attends.
    """

    hash_values: torch.FloatTensor | None = None
    features: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class CMFAHLosses(ModelOutput):
    """Every term of the loss, unweighted, summed over modalities and views. All are scalars.

    Args:
        intra_feature, intra_hash, quantization: J1, J2 and J3 of `[intra]`.
        inter_feature, inter_hash: J4 and J5 of `[inter]`.
        label: `[label-guidance]`; `CMFAHForPreTraining` alone.
        adversarial: L_adv of `[adversarial]`; `CMFAHForPreTraining` alone.
    """

    intra_feature: torch.FloatTensor | None = None
    intra_hash: torch.FloatTensor | None = None
    quantization: torch.FloatTensor | None = None
    inter_feature: torch.FloatTensor | None = None
    inter_hash: torch.FloatTensor | None = None
    label: torch.FloatTensor | None = None
    adversarial: torch.FloatTensor | None = None


@dataclass
class CMFAHOutput(ModelOutput):
    """What the pair of towers makes of a batch of pairs.

    With both modalities given, each is guided by the other. These are *paired* values: they know their partner, and
    are not what a lone query has. `get_image_hash` and `get_text_hash` encode one modality alone.

    Args:
        loss (`torch.FloatTensor`, *optional*, with `labels`): The weighted total of `losses`.
        image_hash, text_hash (`torch.FloatTensor` of shape `(B, K)`): H of `[hash]`, in (-1, 1).
        image_features, text_features (`torch.FloatTensor` of shape `(B, D)`): F of `[lstm]`.
        attentions (`tuple` of `torch.FloatTensor`): With `output_attentions=True`, each block's region x word weights
            `(B, 1, R, W)`, then each block's word x region weights `(B, 1, W, R)`; a side that does not attend has none.
        losses (`CMFAHLosses`, *optional*, with `labels`): The terms, one by one.
        image_model_output, text_model_output (`CMFAHTowerOutput`): All that each tower gave, hidden states too.
    """

    loss: torch.FloatTensor | None = None
    image_hash: torch.FloatTensor | None = None
    text_hash: torch.FloatTensor | None = None
    image_features: torch.FloatTensor | None = None
    text_features: torch.FloatTensor | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
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
        image_model_output, text_model_output (`CMFAHTowerOutput`): All that each tower gave in the paired view.
    """

    loss: torch.FloatTensor | None = None
    losses: CMFAHLosses | None = None
    image_hash: torch.FloatTensor | None = None
    text_hash: torch.FloatTensor | None = None
    image_features: torch.FloatTensor | None = None
    text_features: torch.FloatTensor | None = None
    image_model_output: CMFAHTowerOutput | None = None
    text_model_output: CMFAHTowerOutput | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


def _in_reading_order(
    module: Callable[[torch.Tensor], torch.Tensor], words_BWD: torch.Tensor, mask_BW: torch.Tensor
) -> torch.Tensor:
    """Applies `module` to the words that exist, moved together in their order, and puts each result in its word's place.

    So what looks at neighbours, a convolution or an LSTM, sees the text and not how it is padded.
    """
    order_BW1 = (~mask_BW).long().argsort(dim=1, stable=True)[..., None]
    output_BWD = module(words_BWD.take_along_dim(order_BW1, dim=1))
    return output_BWD.take_along_dim(order_BW1.argsort(dim=1), dim=1)


@dataclass
class CMFAHDiscriminatorOutput(ModelOutput):
    """What a discriminator thinks of features.

    Args:
        loss (`torch.FloatTensor`, *optional*, with `labels`): Binary cross-entropy.
        logits (`torch.FloatTensor` of shape `(B,)`): Above 0 where it takes the features for its own modality's.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None


class CMFAHTorchvisionBackbone(nn.Module):
    """The convolutional part of a torchvision VGG, under torchvision's own names (`features.0.weight`, ...)."""

    def __init__(self, config: CMFAHConfig):
        super().__init__()
        import torchvision

        self.features = getattr(torchvision.models, config.backbone)(weights=None, init_weights=False).features
        self.channels = [next(m.out_channels for m in reversed(self.features) if isinstance(m, nn.Conv2d))]
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Callable | None = None

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if not (self.gradient_checkpointing and self.training):
            return self.features(pixel_values)
        stage: list[nn.Module] = []
        for module in self.features:  # a stage ends where its pooling shrinks the map, so little is kept between them
            stage.append(module)
            if isinstance(module, nn.MaxPool2d):
                pixel_values = self._gradient_checkpointing_func(nn.Sequential(*stage).__call__, pixel_values)
                stage = []
        return pixel_values


class CMFAHRegionEmbeddings(nn.Module):
    """`[regions]`: a backbone's last feature map, one vector of `D` a region."""

    def __init__(self, config: CMFAHConfig):
        super().__init__()
        self.config = config
        if config.backbone_config is None:
            self.backbone = CMFAHTorchvisionBackbone(config)
        else:
            from transformers.backbone_utils import load_backbone

            self.backbone = load_backbone(config)
        if config.freeze_backbone:
            self.backbone.requires_grad_(False)
        self.projection = nn.Linear(self.backbone.channels[-1], config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def train(self, mode: bool = True):
        super().train(mode)
        if self.config.freeze_backbone:  # its dropout and batch statistics are frozen with its weights
            self.backbone.eval()
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
            regions_BRC = nn.functional.normalize(regions_BRC, dim=-1, eps=EPSILON) * regions_BRC.shape[-1] ** 0.5
        return self.dropout(self.projection(regions_BRC))


class CMFAHWordEmbeddings(nn.Module):
    """`[words]`: the word table, a TextCNN of several widths, and a fully connected layer; one vector of `D` a word."""

    def __init__(self, config: CMFAHConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.word_dim, padding_idx=config.pad_token_id)
        if config.freeze_word_vectors:
            self.embed_tokens.requires_grad_(False)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(config.word_dim, config.text_filters, width, padding="same") for width in config.text_kernel_sizes
        )
        self.projection = nn.Linear(config.text_filters * len(config.text_kernel_sizes), config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def _convolve(self, embeds_BWE: torch.Tensor) -> torch.Tensor:
        embeds_BEW = embeds_BWE.mT
        return torch.cat([convolution(embeds_BEW).relu() for convolution in self.convolutions], dim=1).mT

    def forward(self, embeds_BWE: torch.FloatTensor, mask_BW: torch.BoolTensor) -> torch.FloatTensor:
        # Masked words are zeros, as the convolution's own padding is: how far a text is padded changes nothing.
        exists_BW1 = mask_BW[..., None].to(embeds_BWE.dtype)
        filters_BWF = _in_reading_order(self._convolve, self.dropout(embeds_BWE) * exists_BW1, mask_BW)
        return self.dropout(self.projection(filters_BWF)) * exists_BW1


class CMFAHCoAttention(nn.Module):
    """`[similarity]`, `[attention-v]`, `[attention-t]`: every position gathers what answers it in the partner."""

    def __init__(self, temperature: float):
        super().__init__()
        self.temperature = temperature

    def forward(
        self, local_BPD: torch.Tensor, partner_BQD: torch.Tensor, partner_mask_BQ: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        similarity_BPQ = cosine_matrix(local_BPD, partner_BQD).clamp(min=0)
        similarity_BPQ = nn.functional.normalize(similarity_BPQ, dim=1, eps=EPSILON)
        scores_BPQ = self.temperature * similarity_BPQ
        if partner_mask_BQ is not None:
            scores_BPQ = scores_BPQ.masked_fill(~partner_mask_BQ[:, None], torch.finfo(scores_BPQ.dtype).min)
        weights_BPQ = scores_BPQ.softmax(dim=-1)
        if partner_mask_BQ is not None:  # a partner without a single position answers nothing
            weights_BPQ = weights_BPQ * partner_mask_BQ[:, None].to(weights_BPQ.dtype)
        weights_B1PQ = weights_BPQ[:, None]  # one head, as whoever reads attention weights expects them
        return (weights_B1PQ @ partner_BQD[:, None]).squeeze(1), weights_B1PQ


class CMFAHLayer(GradientCheckpointingLayer):
    """`[lstm]`: co-attention, an LSTM over the attended positions, and the plain positions added."""

    def __init__(self, config: CMFAHConfig, attends: bool, temperature: float):
        super().__init__()
        self.attention = CMFAHCoAttention(temperature) if attends else None
        self.lstm = nn.LSTM(config.hidden_size, config.hidden_size, batch_first=True) if config.use_lstm else None

    def _read(self, sequence_BPD: torch.Tensor) -> torch.Tensor:
        return self.lstm(sequence_BPD)[0]

    def forward(
        self,
        hidden_states_BPD: torch.Tensor,
        mask_BP: torch.Tensor | None,
        partner_BQD: torch.Tensor | None,
        partner_mask_BQ: torch.Tensor | None,
    ) -> torch.Tensor:
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


class CMFAHEncoder(nn.Module):
    """From a modality's positions to its pooled feature, with a partner or with the concepts that stand in for one."""

    def __init__(self, config: CMFAHConfig, attends: bool, temperature: float):
        super().__init__()
        self.attends = attends
        # The concept bank: what an absent partner is replaced by, "One modality at a time" of `docs/method.md`.
        self.concepts = nn.Parameter(torch.empty(config.num_concepts, config.hidden_size)) if attends else None
        self.layers = nn.ModuleList(CMFAHLayer(config, attends, temperature) for _ in range(config.num_hidden_layers))

    def forward(
        self,
        local_BPD: torch.Tensor,
        mask_BP: torch.Tensor | None,
        partner_BQD: torch.Tensor | None,
        partner_mask_BQ: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.attends and partner_BQD is None:
            partner_BQD, partner_mask_BQ = self.concepts.expand(len(local_BPD), -1, -1), None
        hidden_BPD = local_BPD
        for layer in self.layers:
            hidden_BPD = layer(hidden_BPD, mask_BP, partner_BQD, partner_mask_BQ)
        if mask_BP is None:
            return hidden_BPD.mean(dim=1), hidden_BPD
        lengths_B1 = mask_BP.sum(dim=1, keepdim=True).clamp(min=1).to(hidden_BPD.dtype)
        return hidden_BPD.sum(dim=1) / lengths_B1, hidden_BPD


class CMFAHHashHead(nn.Module):
    """`[hash]`: `H = tanh(W F + b)`."""

    def __init__(self, config: CMFAHConfig):
        super().__init__()
        self.dropout = nn.Dropout(config.dropout)
        self.dense = nn.Linear(config.hidden_size, config.hash_bits)

    def forward(self, features_BD: torch.Tensor) -> torch.Tensor:
        return self.dense(self.dropout(features_BD)).tanh()


class CMFAHPreTrainedModel(PreTrainedModel):
    """What all CMFAH models have in common: their configuration, their initial weights, what they can record."""

    config: CMFAHConfig
    config_class = CMFAHConfig
    base_model_prefix = "cmfah"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["CMFAHLayer", "CMFAHTorchvisionBackbone", "CMFAHWordEmbeddings"]
    _can_record_outputs = {"hidden_states": CMFAHLayer, "attentions": CMFAHCoAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):  # a VGG that is trained from scratch would fade out under a narrow normal
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, (nn.Linear, nn.Conv1d)):
            init.kaiming_uniform_(module.weight, a=5**0.5)
        elif isinstance(module, CMFAHEncoder) and module.concepts is not None:
            init.normal_(module.concepts, std=self.config.initializer_range)


class CMFAHImageModel(CMFAHPreTrainedModel):
    """The image tower. Alone it encodes pictures without any text; `partner` is for `CMFAHModel`.

    Example:

    ```python
    >>> from cmfah_hf import CMFAHImageModel

    >>> tower = CMFAHImageModel.from_pretrained("path/to/checkpoint")
    >>> hash_values = tower(pixel_values=pixel_values).hash_values  # (B, K) in (-1, 1)
    ```"""

    input_modalities = ("image",)

    def __init__(self, config: CMFAHConfig):
        super().__init__(config)
        self.embeddings = CMFAHRegionEmbeddings(config)
        self.encoder = CMFAHEncoder(config, config.attends_image, config.image_temperature)
        self.hash_head = CMFAHHashHead(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def encode(
        self,
        regions_BRD: torch.FloatTensor,
        partner: torch.FloatTensor | None = None,
        partner_mask: torch.BoolTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CMFAHTowerOutput:
        """As `forward`, from regions that are already embedded."""
        features_BD, last_hidden_state_BRD = self.encoder(regions_BRD, None, partner, partner_mask)
        return CMFAHTowerOutput(
            hash_values=self.hash_head(features_BD), features=features_BD, last_hidden_state=last_hidden_state_BRD
        )

    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        region_features: torch.FloatTensor | None = None,
        partner: torch.FloatTensor | None = None,
        partner_mask: torch.BoolTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CMFAHTowerOutput:
        """
        Args:
            pixel_values: `(B, 3, H, W)`, as the processor makes them.
            region_features: `(B, R, C)`, the backbone's regions computed before; instead of `pixel_values`.
            partner: `(B, W, D)`, the words of the picture's text. None: the concept bank stands in.
            partner_mask: `(B, W)`, true at the words that exist.
        """
        return self.encode(self.embeddings(pixel_values, region_features), partner, partner_mask, **kwargs)


class CMFAHTextModel(CMFAHPreTrainedModel):
    """The text tower. Alone it encodes texts without any picture; `partner` is for `CMFAHModel`.

    Padding may stand on either side: masked and unknown words are as if they were not there.

    Example:

    ```python
    >>> from cmfah_hf import CMFAHTextModel

    >>> tower = CMFAHTextModel.from_pretrained("path/to/checkpoint")
    >>> hash_values = tower(**processor(text=["a dog on the beach"], return_tensors="pt")).hash_values
    ```"""

    main_input_name = "input_ids"
    input_modalities = ("text",)

    def __init__(self, config: CMFAHConfig):
        super().__init__(config)
        self.embeddings = CMFAHWordEmbeddings(config)
        self.encoder = CMFAHEncoder(config, config.attends_text, config.text_temperature)
        self.hash_head = CMFAHHashHead(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding):
        self.embeddings.embed_tokens = value

    def embed(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
    ) -> tuple[torch.FloatTensor, torch.BoolTensor]:
        """The words `(B, W, D)` in their places, zero where masked, and the mask `(B, W)`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give the text tower either input_ids or inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if attention_mask is None:
            mask_BW = inputs_embeds.new_ones(inputs_embeds.shape[:2], dtype=torch.bool)
            if input_ids is not None and self.config.pad_token_id is not None:
                mask_BW = input_ids != self.config.pad_token_id
        else:
            mask_BW = attention_mask.bool()
        if input_ids is not None and self.config.unk_token_id is not None:
            mask_BW = mask_BW & (input_ids != self.config.unk_token_id)  # a word without a vector says nothing
        return self.embeddings(inputs_embeds, mask_BW), mask_BW

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def encode(
        self,
        words_BWD: torch.FloatTensor,
        mask_BW: torch.BoolTensor,
        partner: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CMFAHTowerOutput:
        """As `forward`, from words that are already embedded."""
        features_BD, last_hidden_state_BWD = self.encoder(words_BWD, mask_BW, partner, None)
        return CMFAHTowerOutput(
            hash_values=self.hash_head(features_BD), features=features_BD, last_hidden_state=last_hidden_state_BWD
        )

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        partner: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CMFAHTowerOutput:
        """
        Args:
            input_ids: `(B, W)`, rows of the word table.
            attention_mask: `(B, W)`, 1 at the words that exist. None: all that are not `[PAD]`.
            inputs_embeds: `(B, W, word_dim)`, word vectors; instead of `input_ids`.
            partner: `(B, R, D)`, the regions of the text's picture. None: the concept bank stands in.
        """
        words_BWD, mask_BW = self.embed(input_ids, attention_mask, inputs_embeds)
        return self.encode(words_BWD, mask_BW, partner, **kwargs)


class CMFAHModel(CMFAHPreTrainedModel):
    """Both towers. Given pairs, each modality is guided by the other; given one modality, it is encoded alone.

    Example:

    ```python
    >>> from cmfah_hf import CMFAHModel, CMFAHProcessor

    >>> model = CMFAHModel.from_pretrained("path/to/checkpoint")
    >>> processor = CMFAHProcessor.from_pretrained("path/to/checkpoint")
    >>> inputs = processor(images=[picture], text=["a dog on the beach"], return_tensors="pt")
    >>> hash_values = model.get_text_hash(inputs.input_ids, inputs.attention_mask)  # the text alone, (1, K)
    >>> region_by_word = model(**inputs, output_attentions=True).attentions[0][0, 0]  # (R, W)
    ```"""

    # The training checkpoint holds these beside the towers.
    _keys_to_ignore_on_load_unexpected = [r"^(image|text)_discriminator\.", r"^label_head\."]

    def __init__(self, config: CMFAHConfig):
        super().__init__(config)
        self.image_model = CMFAHImageModel._from_config(config)
        self.text_model = CMFAHTextModel._from_config(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding):
        self.text_model.set_input_embeddings(value)

    def get_image_hash(
        self, pixel_values: torch.FloatTensor | None = None, region_features: torch.FloatTensor | None = None
    ) -> torch.FloatTensor:
        """Hash values `(B, K)` in (-1, 1) of pictures alone, from pixels or from regions computed before, `[hash]`."""
        return self.image_model(pixel_values, region_features).hash_values

    def get_text_hash(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
    ) -> torch.FloatTensor:
        """Hash values `(B, K)` in (-1, 1) of texts alone, `[hash]`."""
        return self.text_model(input_ids, attention_mask, inputs_embeds).hash_values

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        region_features: torch.FloatTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        codes: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CMFAHOutput:
        """
        Args:
            pixel_values: `(B, 3, H, W)`, or `region_features` `(B, R, C)`; may be missing altogether.
            input_ids: `(B, W)`, or `inputs_embeds` `(B, W, word_dim)`; may be missing altogether.
            attention_mask: `(B, W)`, 1 at the words that exist.
            labels: `(B, C)`, multi-hot. With them, and with both modalities, the loss is computed.
            codes: `(B, K)` of -1 and +1, the target of J3. None: `sgn(H_v + H_t)` of this batch.
        """
        kwargs["return_dict"] = True
        has_image = pixel_values is not None or region_features is not None
        has_text = input_ids is not None or inputs_embeds is not None
        if not has_image and not has_text:
            raise ValueError("Give the model pictures (pixel_values), texts (input_ids), or both.")
        regions_BRD = self.image_model.embeddings(pixel_values, region_features) if has_image else None
        words_BWD, mask_BW = (
            self.text_model.embed(input_ids, attention_mask, inputs_embeds) if has_text else (None, None)
        )
        image = self.image_model.encode(regions_BRD, words_BWD, mask_BW, **kwargs) if has_image else CMFAHTowerOutput()
        text = self.text_model.encode(words_BWD, mask_BW, regions_BRD, **kwargs) if has_text else CMFAHTowerOutput()
        loss = losses = None
        if labels is not None and has_image and has_text:
            alone = image, text
            if self.config.attention != "none":
                alone = self.image_model.encode(regions_BRD), self.text_model.encode(words_BWD, mask_BW)
            losses = views_losses(self.config, alone, (image, text), labels, codes)
            loss = weighted_total(losses, self.config)
        return CMFAHOutput(
            loss=loss,
            image_hash=image.hash_values,
            text_hash=text.hash_values,
            image_features=image.features,
            text_features=text.features,
            attentions=((image.attentions or ()) + (text.attentions or ())) or None,
            losses=losses,
            image_model_output=image if has_image else None,
            text_model_output=text if has_text else None,
        )


def pair_losses(
    image: CMFAHTowerOutput,
    text: CMFAHTowerOutput,
    labels_BC: torch.Tensor,
    codes_BK: torch.Tensor,
    margin: float,
) -> CMFAHLosses:
    """J1 to J5 of `[intra]` and `[inter]` for one view of a batch, each summed over the modalities or directions."""
    within, across = triplet_masks(labels_BC, within=True), triplet_masks(labels_BC, within=False)

    def intra(x_BD: torch.Tensor) -> torch.Tensor:
        return triplet_hinge(cosine_matrix(x_BD, x_BD), *within, margin)

    def inter(x_BD: torch.Tensor, y_BD: torch.Tensor) -> torch.Tensor:
        similarity_BB = cosine_matrix(x_BD, y_BD)
        return triplet_hinge(similarity_BB, *across, margin) + triplet_hinge(similarity_BB.mT, *across, margin)

    return CMFAHLosses(
        intra_feature=intra(image.features) + intra(text.features),
        intra_hash=intra(image.hash_values) + intra(text.hash_values),
        quantization=quantization_loss(image.hash_values, codes_BK) + quantization_loss(text.hash_values, codes_BK),
        inter_feature=inter(image.features, text.features),
        inter_hash=inter(image.hash_values, text.hash_values),
    )


def views_losses(
    config: CMFAHConfig,
    alone: tuple[CMFAHTowerOutput, CMFAHTowerOutput],
    paired: tuple[CMFAHTowerOutput, CMFAHTowerOutput],
    labels_BC: torch.Tensor,
    codes_BK: torch.Tensor | None,
    extra: Callable[[CMFAHTowerOutput, CMFAHTowerOutput], dict[str, torch.Tensor]] | None = None,
) -> CMFAHLosses:
    """The terms of both views of a batch, the paired one `paired_weight` times.

    Both aim at one code, that of the pair: so the pair teaches the single.

    Args:
        config: Names the margin, the variant and the paired view's weight.
        alone, paired: Image and text of each view; without attention the two are one.
        labels_BC: `(B, C)`, multi-hot.
        codes_BK: `(B, K)`, `B` of `[algorithm-1]`. None: `sgn(H_v + H_t)` of the paired view.
        extra: Further terms of a view, by name.
    """
    if codes_BK is None:
        codes_BK = sign(paired[0].hash_values + paired[1].hash_values).detach()
    views = [(1.0, alone)]
    if config.attention != "none" and config.paired_weight > 0:
        views.append((config.paired_weight, paired))
    totals: dict[str, torch.Tensor] = {}
    for weight, (image, text) in views:
        terms = {
            **pair_losses(image, text, labels_BC, codes_BK, config.margin),
            **(extra(image, text) if extra else {}),
        }
        for name, value in terms.items():
            totals[name] = totals.get(name, 0.0) + weight * value
    return CMFAHLosses(**totals)


def weighted_total(losses: CMFAHLosses, config: CMFAHConfig) -> torch.Tensor:
    """L_gen - L_adv: the terms that are there, each times its weight; `[adversarial]` is what the towers maximise."""
    weights = {
        "intra_feature": config.intra_feature_weight,
        "intra_hash": config.intra_hash_weight,
        "quantization": config.quantization_weight,
        "inter_feature": config.inter_feature_weight,
        "inter_hash": config.inter_hash_weight,
        "label": config.label_weight,
        "adversarial": -config.adversarial_weight,
    }
    return sum(weights[name] * value for name, value in losses.items())


class CMFAHDiscriminator(CMFAHPreTrainedModel):
    """`[adversarial]`: a three-layer MLP that tells one modality's features from the other's.

    Example:

    ```python
    >>> CMFAHDiscriminator(config)(features).logits  # (B,)
    ```"""

    main_input_name = "features"
    supports_gradient_checkpointing = False
    _can_record_outputs = None

    def __init__(self, config: CMFAHConfig):
        super().__init__(config)
        self.dense_in = nn.Linear(config.hidden_size, config.hidden_size)
        self.dense_hidden = nn.Linear(config.hidden_size, config.hidden_size // 2)
        self.dense_out = nn.Linear(config.hidden_size // 2, 1)
        self.post_init()

    @can_return_tuple
    def forward(
        self, features: torch.FloatTensor, labels: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> CMFAHDiscriminatorOutput:
        """
        Args:
            features: `(B, D)`, of either modality.
            labels: `(B,)`, 1 where the features are real and 0 where they are fake.
        """
        hidden = nn.functional.leaky_relu(self.dense_in(features), 0.2)
        hidden = nn.functional.leaky_relu(self.dense_hidden(hidden), 0.2)
        logits = self.dense_out(hidden).squeeze(-1)
        loss = None
        if labels is not None:
            loss = nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return CMFAHDiscriminatorOutput(loss=loss, logits=logits)


class CMFAHForPreTraining(CMFAHPreTrainedModel):
    """The towers with all that trains them: both discriminators and the label head.

    Every batch is seen both ways, each item with its partner and each alone, so that the pair teaches the single.
    The discriminators learn from `discriminators_loss`, in a step and with an optimizer of their own.
    """

    def __init__(self, config: CMFAHConfig):
        super().__init__(config)
        self.cmfah = CMFAHModel._from_config(config)
        self.image_discriminator = CMFAHDiscriminator._from_config(config)
        self.text_discriminator = CMFAHDiscriminator._from_config(config)
        self.label_head = nn.Linear(config.hash_bits, config.num_labels)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.cmfah.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding):
        self.cmfah.set_input_embeddings(value)

    def discriminators_loss(self, image_features_BD: torch.Tensor, text_features_BD: torch.Tensor) -> torch.Tensor:
        """L_adv of `[adversarial]`: each discriminator calls its own modality real and the other fake."""
        real_B, fake_B = (
            image_features_BD.new_ones(len(image_features_BD)),
            image_features_BD.new_zeros(len(text_features_BD)),
        )
        image, text = self.image_discriminator, self.text_discriminator
        return (
            image(image_features_BD, labels=real_B).loss
            + image(text_features_BD, labels=fake_B).loss
            + text(text_features_BD, labels=real_B).loss
            + text(image_features_BD, labels=fake_B).loss
        )

    def towers_losses(
        self, outputs: CMFAHForPreTrainingOutput, labels: torch.Tensor, codes: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, CMFAHLosses]:
        """What the towers minimise with the discriminators as they are, and its terms, from what `forward` gave.

        Args:
            outputs: Of `forward`, with the graph.
            labels: `(B, C)`, multi-hot.
            codes: `(B, K)` of -1 and +1, `B` of `[algorithm-1]`. None: `sgn(H_v + H_t)` of this batch.
        """

        def guided(image: CMFAHTowerOutput, text: CMFAHTowerOutput) -> dict[str, torch.Tensor]:
            return {
                "label": sum(
                    label_guidance_loss(self.label_head(tower.hash_values), labels, self.config.label_positive_weight)
                    for tower in (image, text)
                ),
                "adversarial": self.discriminators_loss(image.features, text.features),
            }

        alone = (
            CMFAHTowerOutput(outputs.image_hash, outputs.image_features),
            CMFAHTowerOutput(outputs.text_hash, outputs.text_features),
        )
        paired = (outputs.image_model_output, outputs.text_model_output)
        losses = views_losses(self.config, alone, paired, labels, codes, guided)
        return weighted_total(losses, self.config), losses

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        region_features: torch.FloatTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        codes: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CMFAHForPreTrainingOutput:
        """
        Args:
            pixel_values: `(B, 3, H, W)`, or `region_features` `(B, R, C)`.
            input_ids: `(B, W)`, or `inputs_embeds` `(B, W, word_dim)`.
            attention_mask: `(B, W)`, 1 at the words that exist.
            labels: `(B, C)`, multi-hot. With them the loss is computed.
            codes: `(B, K)` of -1 and +1, `B` of `[algorithm-1]`. None: `sgn(H_v + H_t)` of this batch.
        """
        image_model, text_model = self.cmfah.image_model, self.cmfah.text_model
        kwargs["return_dict"] = True
        regions_BRD = image_model.embeddings(pixel_values, region_features)
        words_BWD, mask_BW = text_model.embed(input_ids, attention_mask, inputs_embeds)
        paired_image = image_model.encode(regions_BRD, words_BWD, mask_BW, **kwargs)
        paired_text = text_model.encode(words_BWD, mask_BW, regions_BRD, **kwargs)
        image, text = paired_image, paired_text
        if self.config.attention != "none":
            image, text = image_model.encode(regions_BRD), text_model.encode(words_BWD, mask_BW)
        outputs = CMFAHForPreTrainingOutput(
            image_hash=image.hash_values,
            text_hash=text.hash_values,
            image_features=image.features,
            text_features=text.features,
            image_model_output=paired_image,
            text_model_output=paired_text,
        )
        if labels is not None:
            outputs.loss, outputs.losses = self.towers_losses(outputs, labels, codes)
        return outputs


__all__ = [
    "CMFAHDiscriminator",
    "CMFAHDiscriminatorOutput",
    "CMFAHForPreTraining",
    "CMFAHForPreTrainingOutput",
    "CMFAHImageModel",
    "CMFAHLosses",
    "CMFAHModel",
    "CMFAHOutput",
    "CMFAHPreTrainedModel",
    "CMFAHTextModel",
    "CMFAHTowerOutput",
]
