"""CMFAH: an image tower and a text tower that meet in short hash codes.

Shape suffixes: B pairs of a batch, R regions, W words, D feature width, K hash bits, C classes.
Equations are cited by their tags in `docs/method.md`.
"""

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import PrefixChange
from transformers.processing_utils import Unpack
from transformers.utils import CONFIG_NAME, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_cmfah import CMFAHConfig
from .model_files import HUB_ARGUMENTS, find_file, hub_arguments, is_file, pinned
from .modules_cmfah import (
    CMFAHCoAttention,
    CMFAHEncoder,
    CMFAHHashHead,
    CMFAHLayer,
    CMFAHRegionEmbeddings,
    CMFAHSelection,
    CMFAHWordEmbeddings,
)
from .outputs_cmfah import CMFAHOutput, CMFAHTowerOutput
from .safe_weights import align_weights, building_for, check_fit, find_weights, read_weights

# Arguments of `from_pretrained` that are about the weights, though a configuration has something of that name too.
_OF_WEIGHTS = ("dtype", "torch_dtype", "quantization_config", "attn_implementation")
# Tensors of the objective in a training checkpoint; the second pattern is that of earlier versions.
_TRAINING_KEYS = [
    r"^objective\.",
    r"^((image|text)_((hash_)?discriminator|concept_head)|label_(head|graph)|contrast_queue)\.",
]


def _is_setting(config_class: type[CMFAHConfig], name: str) -> bool:
    return name not in _OF_WEIGHTS and hasattr(config_class, name)


class CMFAHPreTrainedModel(PreTrainedModel):
    """What all CMFAH models have in common: their configuration, their initial weights, what they can record."""

    config: CMFAHConfig
    config_class = CMFAHConfig
    base_model_prefix = "cmfah"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["CMFAHLayer", "CMFAHTorchvisionBackbone", "CMFAHWordEmbeddings"]
    _can_record_outputs = {"hidden_states": CMFAHLayer, "attentions": [CMFAHCoAttention, CMFAHSelection]}
    # What the names of its tensors begin with in checkpoints of a larger model.
    _names_begin_with: tuple[str, ...] = ("cmfah.",)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """As the parent's, from safetensors alone, which are checked before a model is built.

        Only `config.json` and the weights are read, from nowhere but below the folder or repository. The same weights
        give the same bits, whichever file they are from.

        Raises:
            ModelFileError: If a file is damaged, leads elsewhere, or does not fit the other.
            ValueError: If weights of another kind are asked for, or the checkpoint is another architecture's.
            OSError: If there are no weights as safetensors, or the Hub cannot be reached.
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
        if isinstance(module, nn.Conv2d):  # a VGG that is trained from scratch would fade out under a narrow normal
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, (nn.Linear, nn.Conv1d)):
            init.kaiming_uniform_(module.weight, a=5**0.5)
        elif isinstance(module, CMFAHEncoder) and module.concepts is not None:
            # Of what is added the length counts; of what selects only how slowly it turns.
            init.normal_(module.concepts, std=self.config.initializer_range if module.selection is None else 0.2)


class CMFAHImageModel(CMFAHPreTrainedModel):
    """The image tower. Alone it encodes pictures without any text; `partner` is for `CMFAHModel`.

    Example:

    ```python
    >>> from cmfah_hf import CMFAHImageModel

    >>> tower = CMFAHImageModel.from_pretrained("path/to/checkpoint")
    >>> hash_values = tower(pixel_values=pixel_values).hash_values  # (B, K) in (-1, 1)
    ```"""

    input_modalities = ("image",)
    _names_begin_with = ("cmfah.", "image_model.")
    _keys_to_ignore_on_load_unexpected = [r"^(cmfah\.)?text_model\.", *_TRAINING_KEYS]

    def __init__(self, config: CMFAHConfig):
        super().__init__(config)
        self.embeddings = CMFAHRegionEmbeddings(config)
        self.encoder = CMFAHEncoder(config, config.attends_image, config.image_temperature, config.image_pooling)
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
        features_BD, last_hidden_state_BRD, answers_BQ = self.encoder(regions_BRD, None, partner, partner_mask)
        return CMFAHTowerOutput(
            hash_values=self.hash_head(features_BD, is_paired=partner is not None),
            features=features_BD,
            last_hidden_state=last_hidden_state_BRD,
            concept_cosines=answers_BQ,
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
    _names_begin_with = ("cmfah.", "text_model.")
    _keys_to_ignore_on_load_unexpected = [r"^(cmfah\.)?image_model\.", *_TRAINING_KEYS]

    def __init__(self, config: CMFAHConfig):
        super().__init__(config)
        self.embeddings = CMFAHWordEmbeddings(config)
        self.encoder = CMFAHEncoder(config, config.attends_text, config.text_temperature, config.text_pooling)
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
        if mask_BW.shape[1] == 0:  # texts without a word in a batch without a column: convolution and LSTM need one
            inputs_embeds, mask_BW = nn.functional.pad(inputs_embeds, (0, 0, 0, 1)), nn.functional.pad(mask_BW, (0, 1))
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
        features_BD, last_hidden_state_BWD, answers_BQ = self.encoder(words_BWD, mask_BW, partner, None)
        return CMFAHTowerOutput(
            hash_values=self.hash_head(features_BD, is_paired=partner is not None),
            features=features_BD,
            last_hidden_state=last_hidden_state_BWD,
            concept_cosines=answers_BQ,
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

    _keys_to_ignore_on_load_unexpected = _TRAINING_KEYS
    image_model_class = CMFAHImageModel
    text_model_class = CMFAHTextModel

    def __init__(self, config: CMFAHConfig):
        super().__init__(config)
        self.image_model = self.image_model_class._from_config(config)
        self.text_model = self.text_model_class._from_config(config)
        self.post_init()
        # Without what `post_init` gathers from the towers: each alone passes over the other's weights, both do not.
        self._keys_to_ignore_on_load_unexpected = set(type(self)._keys_to_ignore_on_load_unexpected)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding):
        self.text_model.set_input_embeddings(value)

    def get_image_hash(
        self, pixel_values: torch.FloatTensor | None = None, region_features: torch.FloatTensor | None = None
    ) -> torch.FloatTensor:
        """Hash values `(B, K)` in (-1, 1) of pictures alone, from pixels or from regions computed before, `[hash]`.

        Args:
            pixel_values: `(B, 3, H, W)`, as the processor gives them.
            region_features: `(B, R, C)` in their place: the backbone's regions, computed before.
        """
        return self.image_model(pixel_values, region_features).hash_values

    def get_text_hash(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
    ) -> torch.FloatTensor:
        """Hash values `(B, K)` in (-1, 1) of texts alone, `[hash]`.

        Args:
            input_ids: `(B, W)`, words as the processor numbers them, padded on the right.
            attention_mask: `(B, W)`, 1 at words and 0 at padding. None: what is not padding counts.
            inputs_embeds: `(B, W, word_dim)` in the place of `input_ids`.

        Raises:
            ValueError: If neither or both of `input_ids` and `inputs_embeds` are given.
        """
        return self.text_model(input_ids, attention_mask, inputs_embeds).hash_values

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        region_features: torch.FloatTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CMFAHOutput:
        """
        Args:
            pixel_values: `(B, 3, H, W)`, or `region_features` `(B, R, C)`; may be missing altogether.
            input_ids: `(B, W)`, or `inputs_embeds` `(B, W, word_dim)`; may be missing altogether.
            attention_mask: `(B, W)`, 1 at the words that exist.
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
        return CMFAHOutput(
            image_hash=image.hash_values,
            text_hash=text.hash_values,
            image_features=image.features,
            text_features=text.features,
            attentions=((image.attentions or ()) + (text.attentions or ())) or None,
            image_model_output=image if has_image else None,
            text_model_output=text if has_text else None,
        )


def load_from_wholes(image_model_class: type[CMFAHImageModel], text_model_class: type[CMFAHTextModel]) -> None:
    """Lets towers load from a checkpoint of both, and of the training, where they stand below further names."""
    for tower, name in ((image_model_class, "image_model"), (text_model_class, "text_model")):
        prefixes = [PrefixChange(prefix_to_remove="cmfah"), PrefixChange(prefix_to_remove=name)]
        register_checkpoint_conversion_mapping(tower.__name__, prefixes, overwrite=True)


load_from_wholes(CMFAHImageModel, CMFAHTextModel)


__all__ = [
    "CMFAHImageModel",
    "CMFAHModel",
    "CMFAHPreTrainedModel",
    "CMFAHTextModel",
]
