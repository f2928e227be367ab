"""Base of the methods without gradients: they fit maps of precomputed features, by formulas or by rounds of them.

Shapes: `N` items, `D` width of the features, `C` classes, `K` bits.
"""

import json
from dataclasses import asdict, dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from cmfah_hf.atomic import atomic_folder
from cmfah_hf.documents import read_json
from cmfah_hf.errors import CheckpointError, DataError
from cmfah_hf.methods.base import Paper
from cmfah_hf.methods.closed_form.vectors import finite_matrix
from cmfah_hf.methods.registry import SHALLOW_METHODS
from cmfah_hf.methods.shallow.maps import FeatureMap

CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.safetensors"
HasherType = TypeVar("HasherType", bound="ShallowHasher")
_HASHERS: "dict[str, type[ShallowHasher]]" = {}


@dataclass(frozen=True)
class CenteredPairs:
    """Training pairs.

    Attributes:
        features: `(N, D)` of images and of texts, minus their means.
        means: `(D,)` of images and of texts.
        labels: `(N, C)`, multi-hot; without columns for an unsupervised method.
    """

    features: tuple[np.ndarray, np.ndarray]
    means: tuple[np.ndarray, np.ndarray]
    labels: np.ndarray


@dataclass(kw_only=True)
class ShallowHasher:
    """A method that fits codes to features of images and texts.

    The constructor takes the settings only. `fit` learns; names of what is learned end with `_`.

    Args:
        bits: K.
        seed: Of everything random.

    Attributes:
        image_map_, text_map_: `FeatureMap`, of images alone and of texts alone.
        training_codes_: `(N, K)` int8 of -1 and +1, the method's own codes of the training pairs.

    Raises:
        DataError: If a setting is outside its range.
    """

    name: ClassVar[str] = ""
    paper: ClassVar[Paper]
    # Whether `fit` needs labels; otherwise it refuses them.
    supervised: ClassVar[bool] = True
    # Which codes of the database the paper reports: `"single"`, from one modality; `"pair"`, from both; `"learnt"`, the
    # codes of `fit`, which has seen the database's labels.
    database: ClassVar[str] = "single"
    # Settings that must be above 0.
    positive: ClassVar[tuple[str, ...]] = ("bits",)
    # The maps that `fit` learns, without the `_` of their attributes.
    maps: ClassVar[tuple[str, ...]] = ("image_map", "text_map")
    # Those of `maps` whose scores add up to those of a pair.
    pair_maps: ClassVar[tuple[str, str]] = ("image_map", "text_map")

    bits: int = 64
    seed: int = 0

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        _HASHERS[cls.name] = cls

    def __post_init__(self) -> None:
        for name in self.positive:
            if not getattr(self, name) > 0:
                raise DataError(f"{name} is {getattr(self, name)}; give a number above 0.")
        for name in self.maps:
            setattr(self, f"{name}_", None)
        self.training_codes_: np.ndarray | None = None

    def fit(self: HasherType, image_features: Any, text_features: Any, labels: Any = None) -> HasherType:
        """Fits the maps to pairs.

        Args:
            image_features: `(N, D_image)`.
            text_features: `(N, D_text)`, of the same pairs.
            labels: `(N, C)`, multi-hot, for a supervised method; every pair has one or more.

        Raises:
            DataError: If they are no finite matrices with a row for each pair, a modality is constant, labels are
                missing or not used, or the method cannot give so many bits.
        """
        pairs = self._pairs(image_features, text_features, labels)
        self.training_codes_ = self._fit(pairs).astype(np.int8)
        return self

    def _fit(self, pairs: CenteredPairs) -> np.ndarray:
        """Learns the maps; returns the codes `(N, K)` of the training pairs."""
        raise NotImplementedError

    def _pairs(self, image_features: Any, text_features: Any, labels: Any) -> CenteredPairs:
        images_ND = finite_matrix(image_features, "image features")
        texts_ND = finite_matrix(text_features, "text features")
        if len(images_ND) != len(texts_ND):
            raise DataError(f"There are {len(images_ND)} rows of image features and {len(texts_ND)} of text features.")
        labels_NC = self._checked_labels(labels, len(images_ND))
        for modality, features_ND in (("image", images_ND), ("text", texts_ND)):
            if not len(features_ND) or not np.ptp(features_ND, axis=0).any():
                raise DataError(f"All rows of the {modality} features are equal; there is nothing to learn from.")
        means = images_ND.mean(axis=0), texts_ND.mean(axis=0)
        return CenteredPairs((images_ND - means[0], texts_ND - means[1]), means, labels_NC)

    def _checked_labels(self, labels: Any, count: int) -> np.ndarray:
        if not self.supervised:
            if labels is not None:
                raise DataError(f"{self.name} is unsupervised and uses no labels; leave them out.")
            return np.zeros((count, 0))
        if labels is None:
            raise DataError(f"{self.name} is supervised; give the labels of the training pairs.")
        labels_NC = finite_matrix(labels, "labels")
        if len(labels_NC) != count:
            raise DataError(f"There are labels of {len(labels_NC)} pairs, and features of {count}.")
        if not ((labels_NC == 0) | (labels_NC == 1)).all():
            raise DataError("The labels must be 0 or 1, one column per class.")
        if not (labeled_N := labels_NC.any(axis=1)).all():
            raise DataError(f"Pair {int(np.argmin(labeled_N))} has no label, and {self.name} needs one for every pair.")
        return labels_NC

    def encode_image(self, image_features: Any) -> np.ndarray:
        """Scores `(N, K)`, float32, of features `(N, D)` of images alone; their signs are the codes, `sgn(0) = +1`.

        Raises:
            DataError: If nothing was fitted, or the features do not fit the training.
        """
        return self.learned_map("image_map")(image_features)

    def encode_text(self, text_features: Any) -> np.ndarray:
        """Scores `(N, K)` of texts alone, as `encode_image`."""
        return self.learned_map("text_map")(text_features)

    def encode_pair(self, image_features: Any, text_features: Any) -> np.ndarray:
        """Scores `(N, K)` of pairs, one code from both modalities.

        Raises:
            DataError: If the method has no codes of pairs, or as for `encode_image`.
        """
        if self.database != "pair":
            raise DataError(f"{self.name} has no codes of pairs; encode images and texts alone.")
        image_map, text_map = map(self.learned_map, self.pair_maps)
        image_NK, text_NK = image_map(image_features), text_map(text_features)
        if len(image_NK) != len(text_NK):
            raise DataError(f"There are {len(image_NK)} rows of image features and {len(text_NK)} of text features.")
        return image_NK + text_NK

    def learned_map(self, name: str) -> FeatureMap:
        """One of `maps`, such as `"image_map"`.

        Raises:
            DataError: If nothing was fitted.
        """
        found: FeatureMap | None = getattr(self, f"{name}_")
        if found is None:
            raise DataError(f"This {self.name} has learned nothing; call fit first.")
        return found

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes settings and maps to a folder: `config.json` and `model.safetensors`.

        Raises:
            DataError: If nothing was fitted.
            CheckpointError: If the folder cannot be written, or holds anything but an earlier such model.
        """
        tensors = {
            f"{own}.{name}": value for own in self.maps for name, value in self.learned_map(own).tensors().items()
        }
        if self.training_codes_ is not None:
            tensors["training_codes"] = np.ascontiguousarray(self.training_codes_)
        with atomic_folder(folder, CheckpointError, (CONFIG_NAME, WEIGHTS_NAME)) as temporary:
            config = json.dumps({"method": self.name, **asdict(self)}, indent=2)
            (temporary / CONFIG_NAME).write_text(config + "\n", encoding="utf-8")
            save_file(tensors, temporary / WEIGHTS_NAME, metadata={"format": "np"})

    @classmethod
    def from_pretrained(cls: type[HasherType], folder: str | Path) -> HasherType:
        """The hasher of a folder that `save_pretrained` wrote; `ShallowHasher` loads any method.

        Raises:
            CheckpointError: If there is none, a file is damaged, or it is of another method.
        """
        folder = Path(folder)
        config = read_json(folder / CONFIG_NAME, CheckpointError)
        if not isinstance(config, dict) or not isinstance(config.get("method"), str):
            raise CheckpointError(f"{folder / CONFIG_NAME} names no method; it is no model of a shallow method.")
        try:
            kind = hasher_class(config["method"])
        except DataError as error:
            raise CheckpointError(f"{folder / CONFIG_NAME}: {error}") from error
        if not issubclass(kind, cls):
            raise CheckpointError(f"{folder} has a model of {kind.name}; load it with {kind.__name__}.")
        settings = {name: value for name, value in config.items() if name != "method"}
        if unknown := settings.keys() - {field.name for field in fields(kind)}:
            raise CheckpointError(f"{folder / CONFIG_NAME}: {kind.name} has no setting {', '.join(sorted(unknown))}.")
        path = folder / WEIGHTS_NAME
        try:
            hasher = kind(**settings)
            tensors = load_file(path)
            for own in kind.maps:
                parts = {name.partition(".")[2]: value for name, value in tensors.items() if name.startswith(f"{own}.")}
                setattr(hasher, f"{own}_", FeatureMap.from_tensors(parts))
        except (DataError, SafetensorError, OSError, TypeError) as error:
            raise CheckpointError(f"{path} is no readable model of {kind.name} ({error}).") from error
        hasher.training_codes_ = tensors.get("training_codes")
        return hasher


def hasher_class(name: str) -> type[ShallowHasher]:
    """The class of a shallow method.

    Raises:
        DataError: If no method has the name.
    """
    if name in SHALLOW_METHODS:
        import_module(f"cmfah_hf.methods.shallow.{name.replace('-', '_')}")
    if name not in _HASHERS:
        raise DataError(
            f"There is no shallow method {name[:80]!r} but {', '.join(sorted({*SHALLOW_METHODS, *_HASHERS}))}."
        )
    return _HASHERS[name]


def ridge(features_ND: np.ndarray, targets_NK: np.ndarray, strength: float) -> np.ndarray:
    """`W` `(D, K)` that minimizes `|F W - T|^2 + strength |W|^2`."""
    gram_DD = features_ND.T @ features_ND
    gram_DD[np.diag_indices_from(gram_DD)] += strength
    return np.linalg.solve(gram_DD, features_ND.T @ targets_NK)
