"""The configuration of the towers: encoders, attention, and hash heads."""

from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import CONFIG_NAME

from .configuration_files import checked_settings
from .model_files import ModelFileError, find_file, hub_arguments, is_file, read_object
from .named_encoders import check_kind, configuration_of, image_size_of, resolve_backbone
from .remote_code import remote_code

ATTENTION_VARIANTS = ("both", "image", "text", "none")
# The types of guidance, with the default temperatures of the image tower and the text tower.
TEMPERATURES = {"select": (10.0, 10.0), "add": (4.0, 9.0)}
POOLINGS = ("mean", "max", "mean_max")
# Settings of the objective that earlier versions saved among those of the model.
FORMER_SETTINGS = {
    *("margin", "positive_overlap", "intra_feature_weight", "intra_hash_weight", "quantization_weight"),
    *("inter_feature_weight", "inter_hash_weight", "adversarial_weight", "label_weight", "label_positive_weight"),
    *("similarity_weight", "concept_weight", "paired_weight", "use_label_graph", "label_graph_weight"),
    *("label_graph_threshold", "label_graph_share", "label_graph_temperature", "use_cross_contrast"),
    *("use_intra_contrast", "cross_contrast_weight", "intra_contrast_weight", "contrast_temperature", "queue_size"),
    "adversarial",
}

_SIZES = ("image_size", "vocab_size", "word_dim", "text_filters", "hidden_size", "num_hidden_layers")
_CHOICES = {
    "attention": ATTENTION_VARIANTS,
    "guidance": tuple(TEMPERATURES),
    "image_pooling": POOLINGS,
    "text_pooling": POOLINGS,
}


@strict
class CMFAHConfig(PreTrainedConfig):
    r"""
    Settings of the towers of a CMFAH model: encoders, attention, and the hash heads.

    `num_labels` and `id2label` name the classes of the training pairs.

    Args:
        backbone (`str`, defaults to `"vgg19"`):
            The image backbone: a VGG of torchvision (the paper's is VGG19), a timm name, or a folder or Hub id that
            `AutoBackbone` can load. All but VGGs are resolved once, into `backbone_config`.
        backbone_config (`dict | PreTrainedConfig`, *optional*):
            The configuration of an `AutoBackbone`; it takes precedence over `backbone`.
        freeze_backbone (`bool`, defaults to `True`):
            Whether the backbone is not trained. A frozen one stays in evaluation mode, and its regions can be kept.
        image_feature_dim (`int`, *optional*):
            Width of image features given as `region_features` `(B, 1, image_feature_dim)`, for a model without a
            backbone. None: regions come from the backbone.
        image_size (`int`, defaults to 224):
            Width and height of the input images, in pixels.
        num_channels (`int`, defaults to 3):
            Channels of the input images; always 3, for red, green and blue.
        normalize_regions (`bool`, defaults to `True`):
            Whether the regions of an image are scaled together, to a root mean square length of `sqrt(channels)`.
        vocab_size (`int`, defaults to 1388):
            Rows of the word table, including `[PAD]` and `[UNK]`. Replaced by that of a text backbone.
        word_dim (`int`, defaults to 1000):
            Width of the word vectors, `[skip-gram]`, or of the input embeddings of a text backbone.
        freeze_word_vectors (`bool`, defaults to `False`):
            Whether the word table is not trained.
        text_backbone (`str`, *optional*):
            A folder or Hub id of a text model of `transformers`, which replaces word table and TextCNN. An id may have
            a revision, `NAME@REVISION`. It is resolved once, into `text_backbone_config`.
        text_backbone_config (`dict | PreTrainedConfig`, *optional*):
            The configuration of a text model; it takes precedence over `text_backbone`.
        freeze_text_backbone (`bool`, defaults to `True`):
            Whether the text backbone is not trained.
        dual_encoder (`str`, *optional*):
            A folder or Hub id of a dual encoder of `transformers` (CLIP, SigLIP and their kin), or of one in a model of
            sentence-transformers, which replaces both backbones and `image_size`. An id may have a revision,
            `NAME@REVISION`. It is resolved once, into `dual_encoder_config`.
        dual_encoder_config (`dict | PreTrainedConfig`, *optional*):
            The configuration of a dual encoder; it takes precedence over all other encoders.
        pooled_dim (`int`, *optional*):
            Width `E` of the vectors of the dual encoder. None: read from its configuration.
        use_positions (`bool`, defaults to `True`):
            Whether the pooled positions count in a code beside the vector of a dual encoder, `[hash-vectors]`.
        encoder_source, encoder_revision, encoder_digest, encoder_subfolder (`str`, *optional*):
            Hub id, commit and digest of a dual encoder whose weights are not saved with the model, but fetched from
            there, and its folder there if it has one. None: they are saved with it.
        text_kernel_sizes (`list[int]`, defaults to `[1, 3, 5]`):
            Widths of the TextCNN's filters, in words, `[words]`.
        text_filters (`int`, defaults to 256):
            Filters of each width.
        hidden_size (`int`, defaults to 512):
            Width `D` of regions, tokens and pooled features.
        num_hidden_layers (`int`, defaults to 1):
            Blocks of co-attention and LSTM in each tower. The paper has one.
        attention (`str`, defaults to `"both"`):
            Which modality is guided by the other: `"both"`, `"image"`, `"text"` or `"none"`.
        guidance (`str`, defaults to `"select"`):
            `"select"`: the partner's positions select among those of the modality, `[selection]`. `"add"`: they are
            added to the positions that they match, `[attention-v]` and `[attention-t]`, as in the paper.
        image_temperature, text_temperature (`float`, *optional*):
            Temperatures of the attention of the image tower and the text tower. None: 10 and 10 for `"select"`; 4 and
            9, those of SCAN, for `"add"`.
        num_concepts (`int`, defaults to 64):
            Learned vectors that replace a missing modality. With `class_concepts`, at least one per class.
        class_concepts (`bool`, defaults to `True`):
            Whether each class has one of the concepts, for `[concept-guidance]`, if the guidance is `"select"`.
        use_lstm (`bool`, defaults to `True`):
            Whether an LSTM reads the attended sequence, `[lstm]`.
        dropout (`float`, defaults to 0.0):
            Dropout on the TextCNN's filters and on pooled features.
        image_pooling, text_pooling (`str`, default to `"mean"`):
            Pooling of the positions of an image and a text, `[lstm]`: `"mean"`, `"max"`, or the sum `"mean_max"`.
        normalize_features (`bool`, defaults to `False`):
            Whether the pooled features are batch-normalized before the hash head, with statistics for each view.
        lora_rank (`int`, *optional*):
            Rank of the adapters of encoders that are not frozen, in a training and its checkpoints; a finished model
            has none. None: the weights of the encoders themselves are trained.
        bit_queries (`bool`, defaults to `False`):
            Whether each bit also reads the positions by a query of its own, `[bit-queries]`.
        shared_mlp_size (`int`, *optional*):
            Hidden width of residual blocks before the hash heads that both modalities share, `[shared-mlp]`. None: no
            such blocks.
        hash_bits (`int`, defaults to 64):
            Length `K` of a hash code; a multiple of 8.
        initializer_range (`float`, defaults to 0.02):
            Standard deviation of new word vectors and concepts.
        trust_remote_code (`bool`, *optional*):
            Whether code of the encoders' own on the Hub may run. Not saved. None: as around the call.
        objective (`dict`, *optional*):
            The method (`_name`) and the settings of the objective of a trained model. The towers do not read it.

    Raises:
        ValueError: If a value is outside its range, or `hash_bits` is not a multiple of 8.

    Example:

    ```python
    >>> from cmfah_hf import CMFAHConfig, CMFAHModel

    >>> model = CMFAHModel(CMFAHConfig(hash_bits=32, attention="image"))
    >>> model.config.hash_bits
    32
    ```"""

    model_type = "cmfah"
    sub_configs_defaults = {
        "backbone_config": SubConfigSpec(AutoConfig, model_type="resnet", optional=True),
        "text_backbone_config": SubConfigSpec(AutoConfig, model_type="bert", optional=True),
        "dual_encoder_config": SubConfigSpec(AutoConfig, model_type="clip", optional=True),
    }
    # One head per block: the attention weights are cosines of whole features.
    num_attention_heads = 1

    backbone: str | None = "vgg19"
    backbone_config: dict | PreTrainedConfig | None = None
    freeze_backbone: bool = True
    image_feature_dim: int | None = None
    image_size: int = 224
    num_channels: int = 3
    normalize_regions: bool = True
    vocab_size: int = 1388
    word_dim: int = 1000
    freeze_word_vectors: bool = False
    text_backbone: str | None = None
    text_backbone_config: dict | PreTrainedConfig | None = None
    freeze_text_backbone: bool = True
    dual_encoder: str | None = None
    dual_encoder_config: dict | PreTrainedConfig | None = None
    pooled_dim: int | None = None
    use_positions: bool = True
    encoder_source: str | None = None
    encoder_revision: str | None = None
    encoder_digest: str | None = None
    encoder_subfolder: str | None = None
    pad_token_id: int | None = 0
    unk_token_id: int | None = 1
    text_kernel_sizes: list[int] | tuple[int, ...] = (1, 3, 5)
    text_filters: int = 256
    hidden_size: int = 512
    num_hidden_layers: int = 1
    attention: str = "both"
    guidance: str = "select"
    image_temperature: float | int | None = None
    text_temperature: float | int | None = None
    num_concepts: int = 64
    class_concepts: bool = True
    use_lstm: bool = True
    dropout: float | int = 0.0
    image_pooling: str = "mean"
    text_pooling: str = "mean"
    normalize_features: bool = False
    lora_rank: int | None = None
    bit_queries: bool = False
    shared_mlp_size: int | None = None
    hash_bits: int = 64
    initializer_range: float = 0.02
    objective: dict | None = None

    def __post_init__(self, **kwargs):
        with remote_code(kwargs.pop("trust_remote_code", None)):
            self._resolve()
        for name in self.sub_configs_defaults:
            sub_config = getattr(self, name)
            if isinstance(sub_config, dict) and sub_config.get("model_type") not in CONFIG_MAPPING:
                kind = sub_config.get("model_type")
                raise ValueError(f"{name} has the model_type {kind!r}, which transformers does not know.")
        for name in FORMER_SETTINGS & kwargs.keys():
            raise ValueError(f"{name} is a setting of the objective, not of the towers; give it to the objective's.")
        super().__post_init__(**kwargs)
        for name in self.sub_configs_defaults:
            if isinstance(getattr(self, name), PreTrainedConfig):
                check_kind(name, getattr(self, name))
        if isinstance(self.text_backbone_config, PreTrainedConfig):
            self._follow_text_backbone(self.text_backbone_config)
        if isinstance(self.dual_encoder_config, PreTrainedConfig):
            self._follow_dual_encoder(self.dual_encoder_config)
        else:
            self.pooled_dim = None
        self.text_kernel_sizes = list(self.text_kernel_sizes)
        self._check()
        self.image_temperature, self.text_temperature = self.temperatures

    def _resolve(self) -> None:
        """Replaces names of encoders by their configurations, so that a saved one needs no second look-up."""
        if self.dual_encoder is not None and self.dual_encoder_config is None:
            found = self.dual_encoder_config = configuration_of(self.dual_encoder, "dual encoder", {}, "dual")
            self.image_size = image_size_of(found) or self.image_size
        self.dual_encoder = None
        if self.dual_encoder_config is not None:
            self.image_feature_dim = self.backbone = self.backbone_config = None
            self.text_backbone = self.text_backbone_config = None
        if self.image_feature_dim is not None:
            self.backbone = self.backbone_config = None
        if self.backbone is not None and self.backbone_config is None:
            self.backbone_config = resolve_backbone(self.backbone)
        if self.backbone_config is not None:
            self.backbone = None
        if self.text_backbone is not None and self.text_backbone_config is None:
            self.text_backbone_config = configuration_of(self.text_backbone, "text model", {}, "text")
        self.text_backbone = None

    def _follow_dual_encoder(self, encoder: PreTrainedConfig) -> None:
        """Sets the sizes of a dual encoder. Its `pad_token_id` is that of its tokenizer, which is not always there."""
        text = encoder.get_text_config()
        self.vocab_size, self.word_dim, self.unk_token_id = text.vocab_size, text.hidden_size, None
        sizes = (getattr(encoder, "projection_dim", None), getattr(text, "projection_size", None), text.hidden_size)
        if self.pooled_dim is None:
            self.pooled_dim = next(size for size in sizes if size)

    def _follow_text_backbone(self, backbone: PreTrainedConfig) -> None:
        """Sets the sizes and token ids of a text backbone instead of those of a word table."""
        text = backbone.get_text_config()
        self.vocab_size, self.word_dim = text.vocab_size, text.hidden_size
        self.pad_token_id, self.unk_token_id = text.pad_token_id, None

    def _check(self) -> None:
        # As `ValueError`s; the validators of `@strict` raise errors of another type.
        if self.hash_bits <= 0 or self.hash_bits % 8:
            raise ValueError(
                f"hash_bits is {self.hash_bits}; a code is stored in whole bytes, so give a multiple of 8."
            )
        encoders = (self.backbone, self.backbone_config, self.image_feature_dim, self.dual_encoder_config)
        if all(each is None for each in encoders):
            raise ValueError("backbone and backbone_config are both None; name an image backbone in one of them.")
        if not self.use_positions and self.dual_encoder_config is None:
            raise ValueError("use_positions is False, and without a dual encoder there is nothing else to read.")
        if self.lora_rank is not None and self.freeze_backbone and self.freeze_text_backbone:
            raise ValueError("lora_rank is given, and both encoders are frozen; set freeze_backbone to False.")
        self._check_sizes()
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; give a share from 0 to below 1.")
        if self.attention != "none" and self.num_concepts < 1:
            raise ValueError(f"num_concepts is {self.num_concepts}; attention needs 1 or more, for missing modalities.")

    def _check_sizes(self) -> None:
        for name in _SIZES:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give 1 or more.")
        for name in ("pad_token_id", "unk_token_id"):
            if not 0 <= (getattr(self, name) or 0) < self.vocab_size:
                raise ValueError(f"{name} is {getattr(self, name)}; give one of the {self.vocab_size} rows, or None.")
        for name in ("image_feature_dim", "pooled_dim", "shared_mlp_size", "lora_rank"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give 1 or more, or None.")
        if not self.text_kernel_sizes or min(self.text_kernel_sizes) < 1:
            raise ValueError(f"text_kernel_sizes is {self.text_kernel_sizes}; give one or more widths of 1 or more.")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args: Any, **kwargs: Any):
        """The configuration of a saved model.

        Args:
            pretrained_model_name_or_path: A folder, a file or a Hub id.
            args, kwargs: As in `transformers`. `trust_remote_code`: whether the code of an encoder that the model names
                may run; by default as around the call.
        """
        with remote_code(kwargs.pop("trust_remote_code", None)):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """The settings in the file of a model, which is read with limits.

        Raises:
            ModelFileError: If the file is damaged or outside the folder of the model.
            ValueError: If the configuration has another `model_type`.
        """
        source = pretrained_model_name_or_path
        file = source if is_file(source) else find_file(source, CONFIG_NAME, hub_arguments(kwargs))
        content = {} if file is None else read_object(file)
        if content.get("configuration_files"):
            raise ModelFileError(f"{file} leads to other configuration files; give the one to read.")
        if content.get("model_type", cls.model_type) != cls.model_type:
            raise ValueError(
                f"{source}: a checkpoint of {str(content['model_type'])[:80]!r}, not of {cls.model_type!r}; load it "
                "with a class of its own."
            )
        return super().get_config_dict(source, **kwargs)

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """The configuration from settings that may be untrusted; see `checked_settings`.

        Raises:
            ModelFileError: If a setting has another type, or is not one that this package writes.
            ValueError: If a value is outside its range.
        """
        try:
            return super().from_dict(_with_objective(checked_settings(config_dict, cls, CONFIG_NAME)), **kwargs)
        except StrictDataclassError as error:
            raise ModelFileError(f"{CONFIG_NAME}: {' '.join(str(error).split())}") from error

    @property
    def num_class_concepts(self) -> int:
        """The number of concepts that belong to classes, which come first; 0 without class concepts."""
        return int(self.num_labels or 0) if self.guidance == "select" and self.class_concepts else 0

    @property
    def temperatures(self) -> tuple[float, float]:
        """The temperatures of the image tower and the text tower, given or the defaults of the guidance."""
        image, text = TEMPERATURES[self.guidance]
        return (
            image if self.image_temperature is None else self.image_temperature,
            text if self.text_temperature is None else self.text_temperature,
        )

    @property
    def attends_image(self) -> bool:
        """Whether regions are guided by tokens or by the concepts that replace them."""
        return self.attention in ("both", "image")

    @property
    def attends_text(self) -> bool:
        """Whether tokens are guided by regions or by the concepts that replace them."""
        return self.attention in ("both", "text")


def _with_objective(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of earlier versions with those of the objective moved into their own section."""
    former = {name: value for name, value in settings.items() if name in FORMER_SETTINGS}
    if not former:
        return settings
    kept = {name: value for name, value in settings.items() if name not in former}
    kept.setdefault("class_concepts", bool(former.get("concept_weight", 1)))
    kept["objective"] = {"_name": settings.get("model_type"), **former, **(settings.get("objective") or {})}
    return kept


__all__ = ["CMFAHConfig"]
