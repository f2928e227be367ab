"""The configuration of towers that hash one pooled feature of each image and text."""

from huggingface_hub.dataclasses import strict

from .configuration_cmfah import CMFAHConfig

ACTIVATIONS = ("relu", "tanh")


@strict
class FeatureHashConfig(CMFAHConfig):
    r"""
    Settings of towers that are a perceptron over one pooled feature of each item, `[feature-hash]`.

    The deep methods that CMFAH is compared with train such towers, so that all of them read the same features. Encoders
    are those of `CMFAHConfig`; without a pretrained text encoder, a text is the binary bag of its words. Nothing
    attends to the other modality, and settings of attention, TextCNN and LSTM have no effect.

    Args:
        hidden_size (`int`, defaults to 1024):
            Width `D` of the features before the hash head.
        mlp_sizes (`list[int]`, defaults to `[]`):
            Widths of the layers before that of `hidden_size`.
        activation (`str`, defaults to `"relu"`):
            Activation after each of these layers: `"relu"` or `"tanh"`.
        text_feature_dim (`int`, *optional*):
            Width of text features given as `token_features` `(B, 1, text_feature_dim)`, for a model that reads no
            texts. None: features are computed of texts.
        num_prototypes (`int`, *optional*):
            Rows of a table of prototypes, to which features attend before the hash head, `[prototypes]`. A method that
            has them sets this, and fills the table. None: no such attention.

    Raises:
        ValueError: If a value is outside its range.

    Example:

    ```python
    >>> import torch
    >>> from cmfah_hf import FeatureHashConfig, FeatureHashModel

    >>> model = FeatureHashModel(FeatureHashConfig(image_feature_dim=128, text_feature_dim=10, hash_bits=32))
    >>> model.get_image_hash(region_features=torch.rand(2, 1, 128)).shape
    torch.Size([2, 32])
    ```"""

    model_type = "feature_hash"

    hidden_size: int = 1024
    mlp_sizes: list[int] | tuple[int, ...] = ()
    activation: str = "relu"
    text_feature_dim: int | None = None
    num_prototypes: int | None = None
    attention: str = "none"
    use_lstm: bool = False
    class_concepts: bool = False

    def __post_init__(self, **kwargs):
        if self.text_feature_dim is not None:
            self.text_backbone = self.text_backbone_config = None
        super().__post_init__(**kwargs)
        self.mlp_sizes = list(self.mlp_sizes)

    def _check(self) -> None:
        super()._check()
        needless = {"attention": "none", "use_lstm": False, "bit_queries": False, "shared_mlp_size": None}
        for name, value in {**needless, "use_positions": True}.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name} is {getattr(self, name)!r}, and towers over one feature have no use for it.")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation is {self.activation!r}; choose one of {', '.join(ACTIVATIONS)}.")
        if any(size < 1 for size in self.mlp_sizes):
            raise ValueError(f"mlp_sizes is {list(self.mlp_sizes)}; give widths of 1 or more.")
        for name in ("text_feature_dim", "num_prototypes"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give 1 or more, or None.")


__all__ = ["FeatureHashConfig"]
