"""The towers: an image model and a text model with binary codes in one space, and both as one model.

Shape suffixes: B pairs of a batch, R regions, W tokens, D feature width, K hash bits.
Equations are cited by their tags in `docs/method.md`.
"""

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.processing_utils import Unpack
from transformers.utils import CONFIG_NAME, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_cmfah import CMFAHConfig
from .image_encoder import CMFAHImageEncoder
from .model_files import HUB_ARGUMENTS, find_file, hub_arguments, is_file, pinned
from .modules_cmfah import CMFAHCoAttention, CMFAHEncoder, CMFAHHashHead, CMFAHLayer, CMFAHSelection, fused_views
from .outputs_cmfah import CMFAHOutput, CMFAHTowerOutput, CMFAHViews, tower_output
from .safe_weights import align_weights, building_for, check_fit, find_weights, load_from_wholes, read_weights
from .text_encoder import build_text_encoder

# Arguments of `from_pretrained` for the weights, although configurations also have these attributes.
_OF_WEIGHTS = ("dtype", "torch_dtype", "quantization_config", "attn_implementation")
# Tensors of the objective in a training checkpoint; the second pattern is that of earlier versions.
_TRAINING_KEYS = [
    r"^objective\.",
    r"^((image|text)_((hash_)?discriminator|concept_head)|label_(head|graph)|contrast_queue)\.",
]


def _is_setting(config_class: type[CMFAHConfig], name: str) -> bool:
    return name not in _OF_WEIGHTS and hasattr(config_class, name)


class CMFAHPreTrainedModel(PreTrainedModel):
    """Base class of all CMFAH models: configuration, initial weights, loading, recorded outputs."""

    config: CMFAHConfig
    config_class = CMFAHConfig
    base_model_prefix = "cmfah"
    main_input_name = "pixel_values"
    input_modalities: str | list[str] = ["image", "text"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["CMFAHLayer", "CMFAHTorchvisionBackbone", "CMFAHTextCNN"]
    _can_record_outputs = {"hidden_states": CMFAHLayer, "attentions": [CMFAHCoAttention, CMFAHSelection]}
    # Prefixes of tensor names in checkpoints of a larger model.
    _names_begin_with: tuple[str, ...] = ("cmfah.",)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """Loads a model from safetensors, which are checked before the model is built.

        Only `config.json` and the weights are read, both within the folder or repository. Results do not depend on the
        layout of the files.

        Raises:
            ModelFileError: If a file is damaged or outside the folder, or the files do not fit together.
            ValueError: If another weight format is requested, or the checkpoint is of another architecture.
            OSError: If there are no safetensors, or the Hub cannot be reached.
        """
        source = pretrained_model_name_or_path
        if kwargs.pop("use_safetensors", None) is False or kwargs.get("gguf_file") is not None:
            raise ValueError("Weights in other formats than safetensors are pickles or foreign, and never loaded.")
        if source is None or kwargs.get("state_dict") is not None:
            given, may_differ = kwargs.get("state_dict") or {}, kwargs.get("ignore_mismatched_sizes", False)
            with building_for(cls, given, cls._names_begin_with, "state_dict", may_differ):
                return super().from_pretrained(source, *model_args, config=config, **kwargs)
        hub = hub_arguments(kwargs)
        options = {name: value for name, value in kwargs.items() if name not in HUB_ARGUMENTS}
        if not isinstance(config, PreTrainedConfig):
            settings = {name: options.pop(name) for name in list(options) if _is_setting(cls.config_class, name)}
            where = source if config is None else config
            hub = pinned(source, None if is_file(source) else find_file(source, CONFIG_NAME, hub), hub)
            config = cls.config_class.from_pretrained(where, **hub, **settings)
        tensors = cls._current_names(read_weights(find_weights(source, options.pop("variant", None), hub)))
        may_differ = options.get("ignore_mismatched_sizes", False)
        with building_for(cls, tensors, cls._names_begin_with, source, may_differ):
            loaded = super().from_pretrained(None, *model_args, config=config, state_dict=tensors, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        align_weights(model)
        for module in model.modules():
            if isinstance(module, CMFAHPreTrainedModel):
                module.config.name_or_path = str(source)
        return loaded

    @classmethod
    def _current_names(cls, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A checkpoint's tensors by their current names, for a class that has renamed some."""
        return tensors

    def post_init(self):
        super().post_init()
        check_fit(self)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):  # with a narrow normal, activations of a new VGG would vanish
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, (nn.Linear, nn.Conv1d)):
            init.kaiming_uniform_(module.weight, a=5**0.5)
        elif isinstance(module, CMFAHEncoder) and module.concepts is not None:
            # The length of concepts only matters if they are added.
            init.normal_(module.concepts, std=self.config.initializer_range if module.selection is None else 0.2)


class CMFAHImageModel(CMFAHPreTrainedModel):
    """The image tower. It encodes images alone; `CMFAHModel` passes a `partner`.

    Example:

    ```python
    >>> from cmfah_hf import CMFAHImageModel

    >>> tower = CMFAHImageModel.from_pretrained("path/to/checkpoint")
    >>> hash_values = tower(pixel_values=pixel_values).hash_values  # (B, K) in (-1, 1)
    ```"""

    input_modalities = ["image"]
    _names_begin_with = ("cmfah.", "image_model.")
    _keys_to_ignore_on_load_unexpected = [r"^(cmfah\.)?text_model\.", *_TRAINING_KEYS]

    def __init__(self, config: CMFAHConfig):
        super().__init__(config)
        self.embeddings = CMFAHImageEncoder(config)
        temperature = config.temperatures[0]
        self.encoder = CMFAHEncoder(config, config.attends_image, temperature, config.image_pooling)
        self.hash_head = CMFAHHashHead(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def encode(
        self,
        regions_BRD: torch.Tensor,
        partner: torch.Tensor | None = None,
        partner_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CMFAHTowerOutput:
        """As `forward`, from embedded regions."""
        view = self.encoder(regions_BRD, None, partner, partner_mask)
        return tower_output(self.hash_head, view, is_cross_modal=partner is not None)

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
    _names_begin_with = ("cmfah.", "text_model.")
    _keys_to_ignore_on_load_unexpected = [r"^(cmfah\.)?image_model\.", *_TRAINING_KEYS]

    def __init__(self, config: CMFAHConfig):
        super().__init__(config)
        self.embeddings = build_text_encoder(config)
        temperature = config.temperatures[1]
        self.encoder = CMFAHEncoder(config, config.attends_text, temperature, config.text_pooling)
        self.hash_head = CMFAHHashHead(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings.set_input_embeddings(value)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def encode(
        self,
        tokens_BWD: torch.Tensor,
        mask_BW: torch.Tensor,
        partner: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CMFAHTowerOutput:
        """As `forward`, from embedded tokens."""
        view = self.encoder(tokens_BWD, mask_BW, partner, None)
        return tower_output(self.hash_head, view, is_cross_modal=partner is not None)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        partner: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CMFAHTowerOutput:
        """
        Args:
            input_ids: `(B, W)`, tokens as the processor numbers them.
            attention_mask: `(B, W)`, 1 at the tokens that exist. None: all that are not padding.
            inputs_embeds: `(B, W, word_dim)`, input embeddings, instead of `input_ids`.
            partner: `(B, R, D)`, the regions of the text's image. None: the concepts replace them.
        """
        tokens_BWD, mask_BW = self.embeddings(input_ids, attention_mask, inputs_embeds)
        return self.encode(tokens_BWD, mask_BW, partner, **kwargs)


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

    _keys_to_ignore_on_load_unexpected = _TRAINING_KEYS
    image_model_class = CMFAHImageModel
    text_model_class = CMFAHTextModel

    def __init__(self, config: CMFAHConfig):
        super().__init__(config)
        self.image_model = self.image_model_class._from_config(config)
        self.text_model = self.text_model_class._from_config(config)
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
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Continuous codes `(B, K)` in (-1, 1) of texts alone, `[hash]`.

        Args:
            input_ids: `(B, W)`, tokens as the processor numbers them.
            attention_mask: `(B, W)`, 1 at tokens and 0 at padding. None: all that are not padding.
            inputs_embeds: `(B, W, word_dim)`, input embeddings, instead of `input_ids`.
            **kwargs: Ignored, such as the processor's outputs for images.

        Raises:
            ValueError: If neither or both of `input_ids` and `inputs_embeds` are given.

        Example:

        ```python
        >>> model.get_text_hash(**processor(text=["a dog", "the sea"], return_tensors="pt")).shape
        torch.Size([2, 64])
        ```"""
        return self.text_model(input_ids, attention_mask, inputs_embeds).hash_values

    def encode_views(
        self,
        regions_BRD: torch.Tensor,
        tokens_BWD: torch.Tensor,
        mask_BW: torch.Tensor,
        cross_modal: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CMFAHViews:
        """The unimodal and cross-modal view of embedded pairs.

        Fused kernels compute both in one pass if partners select and no intermediate outputs are recorded.

        Args:
            regions_BRD: The images, from `image_model.embeddings`.
            tokens_BWD, mask_BW: The texts, from `text_model.embeddings`.
            cross_modal: Whether to compute the cross-modal view. Without attention it is the unimodal one.
        """
        kwargs["return_dict"] = True
        image, text = self.image_model, self.text_model
        attends, adds = self.config.attention != "none", self.config.guidance == "add"
        if attends and not adds and not (kwargs.get("output_attentions") or kwargs.get("output_hidden_states")):
            encoders, positions = (image.encoder, text.encoder), ((regions_BRD, None), (tokens_BWD, mask_BW))
            outputs = []
            for tower, views in zip((image, text), fused_views(encoders, positions, cross_modal), strict=True):
                crossed = [tower_output(tower.hash_head, view, is_cross_modal=True) for view in views[:-1]]
                outputs.append([tower_output(tower.hash_head, views[-1], is_cross_modal=False), *crossed])
            return CMFAHViews(*(output for both in zip(*outputs, strict=True) for output in both))
        unimodal = image.encode(regions_BRD, **kwargs), text.encode(tokens_BWD, mask_BW, **kwargs)
        if not attends:
            return CMFAHViews(*unimodal, *unimodal)
        if not cross_modal:
            return CMFAHViews(*unimodal)
        return CMFAHViews(
            *unimodal,
            image.encode(regions_BRD, tokens_BWD, mask_BW, **kwargs),
            text.encode(tokens_BWD, mask_BW, regions_BRD, **kwargs),
        )

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        region_features: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CMFAHOutput:
        """
        Args:
            pixel_values: `(B, 3, H, W)`, or `region_features` `(B, R, C)`; both may be missing.
            input_ids: `(B, W)`, or `inputs_embeds` `(B, W, word_dim)`; both may be missing.
            attention_mask: `(B, W)`, 1 at the tokens that exist.
        """
        kwargs["return_dict"] = True
        regions_BRD = tokens_BWD = mask_BW = None
        if pixel_values is not None or region_features is not None:
            regions_BRD = self.image_model.embeddings(pixel_values, region_features)
        if input_ids is not None or inputs_embeds is not None:
            tokens_BWD, mask_BW = self.text_model.embeddings(input_ids, attention_mask, inputs_embeds)
        if regions_BRD is None and tokens_BWD is None:
            raise ValueError("Give the model images (pixel_values), texts (input_ids), or both.")
        image = text = None
        if regions_BRD is not None:
            image = self.image_model.encode(regions_BRD, tokens_BWD, mask_BW, **kwargs)
        if tokens_BWD is not None:
            text = self.text_model.encode(tokens_BWD, mask_BW, regions_BRD, **kwargs)
        outputs = CMFAHOutput(image_model_output=image, text_model_output=text)
        attentions: tuple[torch.Tensor, ...] = ()
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
