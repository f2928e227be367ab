"""The towers: an image model and a text model with binary codes in one space, and both as one model.

Shape suffixes: B pairs of a batch, R regions, W tokens, D feature width, K hash bits.
Equations are cited by their tags in `docs/method.md`.
"""

from typing import Any

import torch
from torch import nn
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_cmfah import CMFAHConfig
from .encoder_output import Embedded
from .image_encoder import CMFAHImageEncoder
from .modules_cmfah import CMFAHEncoder, CMFAHHashHead, fused_views
from .outputs_cmfah import CMFAHOutput, CMFAHTowerOutput, CMFAHViews, tower_output
from .pretrained_cmfah import TRAINING_KEYS, CMFAHPreTrainedModel
from .safe_weights import load_from_wholes
from .text_encoder import CMFAHTextEncoder, build_text_encoder


class CMFAHImageModel(CMFAHPreTrainedModel):
    """The image tower. It encodes images alone; `CMFAHModel` passes a `partner`.

    Example:

    ```python
    >>> from cmfah_hf import CMFAHImageModel

    >>> tower = CMFAHImageModel.from_pretrained("path/to/checkpoint")
    >>> hash_values = tower(pixel_values=pixel_values).hash_values  # (B, K) in (-1, 1)
    ```"""

    input_modalities = ["image"]
    _input_embed_layer = "projection"  # whose output is a tensor, as adapters and checkpointing expect
    _build_encoder: Any = CMFAHImageEncoder
    _names_begin_with = ("cmfah.", "image_model.")
    _keys_to_ignore_on_load_unexpected = [r"^(cmfah\.)?text_model\.", *TRAINING_KEYS]

    def __init__(self, config: CMFAHConfig):
        super().__init__(config)
        self.embeddings: CMFAHImageEncoder = self._build_encoder(config)
        temperature = config.temperatures[0]
        self.encoder = CMFAHEncoder(config, config.attends_image, temperature, config.image_pooling)
        self.hash_head: CMFAHHashHead = self._build_head(config, temperature)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def encode(
        self,
        image: Embedded,
        partner: torch.Tensor | None = None,
        partner_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CMFAHTowerOutput:
        """As `forward`, from embedded regions."""
        view = self.encoder(image.positions, None, partner, partner_mask)
        return tower_output(self.hash_head, view, image, is_cross_modal=partner is not None)

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        region_features: torch.Tensor | None = None,
        partner: torch.Tensor | None = None,
        partner_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CMFAHTowerOutput:
        """
        Args:
            pixel_values: `(B, 3, H, W)`, as the processor makes them.
            region_features: `(B, R, C)`, precomputed regions of the backbone, instead of `pixel_values`.
            partner: `(B, W, D)`, the tokens of the image's text. None: the concepts replace them.
            partner_mask: `(B, W)`, true at the tokens that exist.
        """
        return self.encode(self.embeddings(pixel_values, region_features), partner, partner_mask, **kwargs)


class CMFAHTextModel(CMFAHPreTrainedModel):
    """The text tower. It encodes texts alone; `CMFAHModel` passes a `partner`.

    With word vectors, masked and unknown words are ignored, and padding may be on either side.

    Example:

    ```python
    >>> from cmfah_hf import CMFAHTextModel

    >>> tower = CMFAHTextModel.from_pretrained("path/to/checkpoint")
    >>> hash_values = tower(**processor(text=["a dog on the beach"], return_tensors="pt")).hash_values
    ```"""

    main_input_name = "input_ids"
    input_modalities = ["text"]
    _build_encoder: Any = staticmethod(build_text_encoder)
    _names_begin_with = ("cmfah.", "text_model.")
    _keys_to_ignore_on_load_unexpected = [r"^(cmfah\.)?image_model\.", *TRAINING_KEYS]

    def __init__(self, config: CMFAHConfig):
        super().__init__(config)
        self.embeddings: CMFAHTextEncoder = self._build_encoder(config)
        temperature = config.temperatures[1]
        self.encoder = CMFAHEncoder(config, config.attends_text, temperature, config.text_pooling)
        self.hash_head: CMFAHHashHead = self._build_head(config, temperature)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings.set_input_embeddings(value)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def encode(
        self, text: Embedded, partner: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> CMFAHTowerOutput:
        """As `forward`, from embedded tokens."""
        view = self.encoder(text.positions, text.mask, partner, None)
        return tower_output(self.hash_head, view, text, is_cross_modal=partner is not None)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        partner: torch.Tensor | None = None,
        token_features: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CMFAHTowerOutput:
        """
        Args:
            input_ids: `(B, W)`, tokens as the processor numbers them.
            attention_mask: `(B, W)`, 1 at the tokens that exist. None: all that are not padding.
            inputs_embeds: `(B, W, word_dim)`, input embeddings, instead of `input_ids`.
            partner: `(B, R, D)`, the regions of the text's image. None: the concepts replace them.
            token_features: `(B, W, C)`, precomputed tokens of the text encoder, instead of `input_ids`.
        """
        text = self.embeddings(input_ids, attention_mask, inputs_embeds, token_features)
        return self.encode(text, partner, **kwargs)

    def get_text_hash(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """As `CMFAHModel.get_text_hash`, of the same tokens the same codes `(B, K)`."""
        return self(input_ids, attention_mask).hash_values


class CMFAHModel(CMFAHPreTrainedModel):
    """Both towers. In pairs, each modality is guided by the other; a single modality is encoded alone.

    Example:

    ```python
    >>> from cmfah_hf import CMFAHModel, CMFAHProcessor

    >>> model = CMFAHModel.from_pretrained("path/to/checkpoint")
    >>> processor = CMFAHProcessor.from_pretrained("path/to/checkpoint")
    >>> inputs = processor(images=[image], text=["a dog on the beach"], return_tensors="pt")
    >>> hash_values = model.get_text_hash(**inputs)  # the text alone, (1, K)
    >>> region_by_token = model(**inputs, output_attentions=True).attentions[0][0, 0]  # (R, W)
    ```"""

    _keys_to_ignore_on_load_unexpected = TRAINING_KEYS
    image_model_class = CMFAHImageModel
    text_model_class = CMFAHTextModel

    def __init__(self, config: CMFAHConfig):
        super().__init__(config)
        self.image_model = self.image_model_class._from_config(config)
        self.text_model = self.text_model_class._from_config(config)
        self.text_model.hash_head.mlp = self.image_model.hash_head.mlp
        self.post_init()
        # `post_init` merges the keys of the towers, which ignore each other's weights; this model needs both.
        own = set(type(self)._keys_to_ignore_on_load_unexpected or ())
        self._keys_to_ignore_on_load_unexpected = own  # type: ignore[assignment]  # transformers makes it a set too

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    def get_image_hash(
        self,
        pixel_values: torch.Tensor | None = None,
        region_features: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Continuous codes `(B, K)` in (-1, 1) of images alone, `[hash]`.

        Args:
            pixel_values: `(B, 3, H, W)`, as the processor makes them.
            region_features: `(B, R, C)`, precomputed regions of the backbone, instead of `pixel_values`.
            **kwargs: Ignored, such as the processor's outputs for texts.

        Raises:
            ValueError: If neither or both of `pixel_values` and `region_features` are given.

        Example:

        ```python
        >>> model.get_image_hash(**processor(images=[image], return_tensors="pt")).shape
        torch.Size([1, 64])
        ```"""
        return self.image_model(pixel_values, region_features).hash_values

    def get_text_hash(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        token_features: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Continuous codes `(B, K)` in (-1, 1) of texts alone, `[hash]`.

        Args:
            input_ids: `(B, W)`, tokens as the processor numbers them.
            attention_mask: `(B, W)`, 1 at tokens and 0 at padding. None: all that are not padding.
            inputs_embeds: `(B, W, word_dim)`, input embeddings, instead of `input_ids`.
            token_features: `(B, W, C)`, precomputed tokens of the text encoder, instead of `input_ids`.
            **kwargs: Ignored, such as the processor's outputs for images.

        Raises:
            ValueError: If none or several of `input_ids`, `inputs_embeds` and `token_features` are given.

        Example:

        ```python
        >>> model.get_text_hash(**processor(text=["a dog", "the sea"], return_tensors="pt")).shape
        torch.Size([2, 64])
        ```"""
        return self.text_model(input_ids, attention_mask, inputs_embeds, token_features=token_features).hash_values

    def encode_views(
        self, images: Embedded, texts: Embedded, cross_modal: bool = True, **kwargs: Unpack[TransformersKwargs]
    ) -> CMFAHViews:
        """The unimodal and cross-modal view of embedded pairs.

        Fused kernels compute both in one pass if partners select and no intermediate outputs are recorded.

        Args:
            images: From `image_model.embeddings`.
            texts: From `text_model.embeddings`.
            cross_modal: Whether to compute the cross-modal view. Without attention it is the unimodal one.
        """
        kwargs["return_dict"] = True
        image, text = self.image_model, self.text_model
        attends, adds = self.config.attention != "none", self.config.guidance == "add"
        if attends and not adds and not (kwargs.get("output_attentions") or kwargs.get("output_hidden_states")):
            encoders, positions = (image.encoder, text.encoder), (images[:2], texts[:2])
            outputs = []
            views_of_both = fused_views(encoders, positions, cross_modal)
            for tower, own, views in zip((image, text), (images, texts), views_of_both, strict=True):
                crossed = [tower_output(tower.hash_head, view, own, is_cross_modal=True) for view in views[:-1]]
                outputs.append([tower_output(tower.hash_head, views[-1], own, is_cross_modal=False), *crossed])
            return CMFAHViews(*(output for both in zip(*outputs, strict=True) for output in both))
        unimodal = image.encode(images, **kwargs), text.encode(texts, **kwargs)
        if not attends:
            return CMFAHViews(*unimodal, *unimodal)
        if not cross_modal:
            return CMFAHViews(*unimodal)
        return CMFAHViews(
            *unimodal,
            image.encode(images, texts.positions, texts.mask, **kwargs),
            text.encode(texts, images.positions, **kwargs),
        )

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        region_features: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        token_features: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CMFAHOutput:
        """
        Args:
            pixel_values: `(B, 3, H, W)`, or `region_features` `(B, R, C)`; both may be missing.
            input_ids: `(B, W)`, or `inputs_embeds` `(B, W, word_dim)`, or `token_features` `(B, W, C)`; all may be
                missing.
            attention_mask: `(B, W)`, 1 at the tokens that exist.
        """
        kwargs["return_dict"] = True
        images = texts = None
        if pixel_values is not None or region_features is not None:
            images = self.image_model.embeddings(pixel_values, region_features)
        if any(given is not None for given in (input_ids, inputs_embeds, token_features)):
            texts = self.text_model.embeddings(input_ids, attention_mask, inputs_embeds, token_features)
        if images is None and texts is None:
            raise ValueError("Give the model images (pixel_values), texts (input_ids), or both.")
        image = text = None
        if images is not None:
            tokens_BWD, mask_BW = (None, None) if texts is None else texts[:2]
            image = self.image_model.encode(images, tokens_BWD, mask_BW, **kwargs)
        if texts is not None:
            text = self.text_model.encode(texts, None if images is None else images.positions, **kwargs)
        outputs = CMFAHOutput(image_model_output=image, text_model_output=text)
        attentions: tuple[torch.Tensor, ...] = ()
        outputs.image_vectors = None if images is None else images.pooled
        outputs.text_vectors = None if texts is None else texts.pooled
        if image is not None:
            outputs.image_hash, outputs.image_features = image.hash_values, image.features
            attentions += image.attentions or ()
        if text is not None:
            outputs.text_hash, outputs.text_features = text.hash_values, text.features
            attentions += text.attentions or ()
        outputs.attentions = attentions or None
        return outputs


load_from_wholes(CMFAHImageModel, CMFAHTextModel)


__all__ = ["CMFAHImageModel", "CMFAHModel", "CMFAHPreTrainedModel", "CMFAHTextModel"]
