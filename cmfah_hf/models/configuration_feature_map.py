"""The configuration of towers that map one feature of each item to scores by a formula, without layers between."""

from huggingface_hub.dataclasses import strict

from .configuration_feature_hash import FeatureHashConfig


@strict
class FeatureMapConfig(FeatureHashConfig):
    r"""
    Settings of the towers of a shallow method, `[feature-map]`: linear maps, or linear maps of radial basis functions.

    Features are those of `FeatureHashConfig`; its settings of layers have no effect.

    Args:
        image_anchors, text_anchors (`int`, *optional*):
            Number of the radial basis functions of each modality. None: the map is linear.

    Raises:
        ValueError: If a value is outside its range.

    Example:

    ```python
    >>> from cmfah_hf import FeatureMapConfig, FeatureMapModel

    >>> model = FeatureMapModel(FeatureMapConfig(image_feature_dim=128, text_feature_dim=10, image_anchors=500))
    >>> model.image_model.embeddings.kernel.anchors.shape
    torch.Size([500, 128])
    ```"""

    model_type = "feature_map"

    image_anchors: int | None = None
    text_anchors: int | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.hidden_size = self.hash_bits  # scores are pooled as features are

    def _check(self) -> None:
        super()._check()
        for name in ("image_anchors", "text_anchors"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give 1 or more, or None.")


__all__ = ["FeatureMapConfig"]
