"""Shallow methods as methods of a training: their settings and papers, and the towers that hold their maps.

They are fitted to features, and not trained: the towers of a fitted model are its maps, so it is evaluated, indexed,
pushed and loaded like the others.

Shapes: `N` pairs, `C` width of the features, `A` anchors, `K` bits.
"""

from dataclasses import asdict, field, fields, make_dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from torch import nn

from cmfah_hf.methods.base import Objective, ObjectiveConfig
from cmfah_hf.methods.closed_form.choice import tanh_factor
from cmfah_hf.methods.registry import SHALLOW_METHODS, register_method
from cmfah_hf.methods.shallow.hasher import ShallowHasher, hasher_class
from cmfah_hf.methods.shallow.maps import FeatureMap
from cmfah_hf.models.configuration_cmfah import CMFAHConfig
from cmfah_hf.models.modeling_feature_map import FeatureMapModel, RadialBasis

# Settings of a hasher that are settings of the model and the training.
_OF_THE_RUN = ("bits", "seed")


class ShallowObjectiveConfig(ObjectiveConfig):
    """Settings of a shallow method, those of its `ShallowHasher`."""

    hasher: ClassVar[type[ShallowHasher]]

    def new_hasher(self, bits: int, seed: int) -> ShallowHasher:
        """The hasher with these settings; `DataError` if a setting is outside its range."""
        return self.hasher(bits=bits, seed=seed, **asdict(self))

    def apply_to(self, config: CMFAHConfig) -> None:
        """Checks the settings; nothing is changed."""
        self.new_hasher(config.hash_bits, 0)


class ShallowObjective(Objective):
    """A shallow method, whose settings make a `ShallowHasher`; there is no loss."""

    settings: ShallowObjectiveConfig
    settings_class: ClassVar[type[ShallowObjectiveConfig]]
    model_type = "feature_map"
    needs_cross_modal = False


def fill_towers(towers: FeatureMapModel, hasher: ShallowHasher, features: tuple[np.ndarray, np.ndarray]) -> None:
    """Gives towers the maps of a fitted hasher, in place.

    Each map is scaled to a root mean square of its scores, of `features` `(N, C)` of images and of texts, that `tanh`
    hardly changes, `[tanh-scale]`; codes do not depend on it.
    """
    sides = (("image", towers.image_model), ("text", towers.text_model))
    for (side, tower), features_NC in zip(sides, features, strict=True):
        learned = hasher.learned_map(f"{side}_map")
        factor = tanh_factor(learned(features_NC))
        _fill(tower.embeddings, learned, factor)
        setattr(towers.config, f"{side}_anchors", None if learned.anchors is None else len(learned.anchors))


@torch.no_grad()
def _fill(encoder: Any, learned: FeatureMap, factor: float) -> None:
    bias_K = np.zeros(learned.weight.shape[1]) if learned.bias is None else learned.bias
    like = encoder.projection.weight
    if learned.anchors is None:
        encoder.kernel.mean.copy_(torch.from_numpy(learned.mean))
    else:
        if learned.kernel_mean is not None:
            bias_K = bias_K - learned.kernel_mean @ learned.weight
        encoder.kernel = RadialBasis(*learned.anchors.shape).to(like)
        encoder.kernel.anchors.copy_(torch.from_numpy(learned.anchors + learned.mean))
        encoder.kernel.width.fill_(learned.width)
    encoder.projection = nn.Linear(*learned.weight.shape).to(like)
    encoder.projection.weight.copy_(torch.from_numpy(factor * learned.weight.T))
    encoder.projection.bias.copy_(torch.from_numpy(factor * bias_K))


def _register(name: str) -> None:
    kind = hasher_class(name)
    # A whole number is also a number, in files.
    settings = [
        (own.name, float | int if own.type is float else own.type, field(default=own.default))
        for own in fields(kind)
        if own.name not in _OF_THE_RUN
    ]
    config = make_dataclass(
        f"{kind.__name__}ObjectiveConfig", settings, bases=(ShallowObjectiveConfig,), namespace={"hasher": kind}
    )
    namespace: dict[str, Any] = {
        "__module__": __name__,
        "__doc__": kind.__doc__,
        "settings_class": strict(config),
        "paper": kind.paper,
        "labels": "needs" if kind.supervised else "refuses",
    }
    register_method(name)(type(f"{kind.__name__}Objective", (ShallowObjective,), namespace))


for _name in SHALLOW_METHODS:
    _register(_name)
