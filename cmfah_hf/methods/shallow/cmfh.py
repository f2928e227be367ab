"""Collective matrix factorization hashing (CMFH): one latent factor of both modalities, and maps to it.

Shapes: `N` pairs, `D` width of the features, `K` bits.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from cmfah_hf.methods.base import Paper
from cmfah_hf.methods.closed_form.rotations import signs
from cmfah_hf.methods.shallow.hasher import CenteredPairs, ShallowHasher, ridge
from cmfah_hf.methods.shallow.maps import FeatureMap

# Weight of each modality's factorization.
SHARE = 0.5


@dataclass(kw_only=True)
class CMFH(ShallowHasher):
    """`[cmfh]`: `min sum_t 1/2 (|X_t - Y U_t|^2 + mu |Y - X_t W_t|^2) + gamma (|Y|^2 + |U|^2 + |W|^2)`.

    Args:
        bits, seed: As in `ShallowHasher`. The seed is that of the first `Y`.
        map_weight: mu.
        ridge_weight: gamma.
        rounds: Rounds of the exact updates of `U`, `Y` and `W`.

    Attributes:
        objectives_: The objective after each round.
    """

    name: ClassVar[str] = "cmfh"
    supervised: ClassVar[bool] = False
    database: ClassVar[str] = "pair"
    positive: ClassVar[tuple[str, ...]] = ("bits", "map_weight", "ridge_weight", "rounds")
    maps: ClassVar[tuple[str, ...]] = ("image_map", "text_map", "image_pair_map", "text_pair_map")
    pair_maps: ClassVar[tuple[str, str]] = ("image_pair_map", "text_pair_map")
    paper: ClassVar[Paper] = Paper.from_bibtex("""@inproceedings{ding2014cmfh,
  title     = {Collective Matrix Factorization Hashing for Multimodal Data},
  author    = {Ding, Guiguang and Guo, Yuchen and Zhou, Jile},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition},
  year      = {2014},
  doi       = {10.1109/CVPR.2014.267}
}""")

    map_weight: float = 100.0
    ridge_weight: float = 0.01
    rounds: int = 25

    def __post_init__(self) -> None:
        super().__post_init__()
        self.objectives_: list[float] = []

    def _fit(self, pairs: CenteredPairs) -> np.ndarray:
        features, means = pairs.features, pairs.means
        factor_NK = np.random.default_rng(self.seed).standard_normal((len(features[0]), self.bits))
        maps = [ridge(each, factor_NK, self._strength) for each in features]
        self.objectives_ = []
        for _ in range(self.rounds):
            bases = [ridge(factor_NK, each, self.ridge_weight / SHARE) for each in features]
            factor_NK = self._factor(features, bases, maps)
            maps = [ridge(each, factor_NK, self._strength) for each in features]
            self.objectives_.append(self.objective(features, factor_NK, bases, maps))
        self.image_map_, self.text_map_ = (FeatureMap(mean, weight) for mean, weight in zip(means, maps, strict=True))
        # The update of `Y` is linear in the features, so pairs that were not trained on have codes too.
        metric_KK = self._metric(bases)
        self.image_pair_map_, self.text_pair_map_ = (
            FeatureMap(mean, np.linalg.solve(metric_KK, SHARE * (base_KD + self.map_weight * map_DK.T)).T)
            for mean, base_KD, map_DK in zip(means, bases, maps, strict=True)
        )
        return signs(self.encode_pair(*(each + mean for each, mean in zip(features, means, strict=True))))

    @property
    def _strength(self) -> float:
        return self.ridge_weight / (SHARE * self.map_weight)

    def _factor(self, features: Any, bases: Any, maps: Any) -> np.ndarray:
        """`Y` that is optimal for fixed bases and maps, `(N, K)`."""
        pull_NK = sum(
            SHARE * (x_ND @ (base_KD.T + self.map_weight * map_DK))
            for x_ND, base_KD, map_DK in zip(features, bases, maps, strict=True)
        )
        return np.linalg.solve(self._metric(bases), pull_NK.T).T

    def _metric(self, bases: Any) -> np.ndarray:
        """The matrix `(K, K)` of the linear equations of `Y`."""
        strength = SHARE * self.map_weight * len(bases) + self.ridge_weight
        return SHARE * sum(base_KD @ base_KD.T for base_KD in bases) + strength * np.eye(self.bits)

    def objective(self, features: Any, factor_NK: np.ndarray, bases: Any, maps: Any) -> float:
        """The value that the rounds decrease."""
        value = self.ridge_weight * np.square(factor_NK).sum()
        for x_ND, base_KD, map_DK in zip(features, bases, maps, strict=True):
            value += SHARE * np.square(x_ND - factor_NK @ base_KD).sum()
            value += SHARE * self.map_weight * np.square(factor_NK - x_ND @ map_DK).sum()
            value += self.ridge_weight * (np.square(base_KD).sum() + np.square(map_DK).sum())
        return float(value)
