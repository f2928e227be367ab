"""SCRATCH: supervised matrix factorization of kernels with discrete codes.

Shapes: `N` pairs, `D` width of the features, `A` anchors, `C` classes, `K` bits.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.spatial.distance import cdist

from cmfah_hf.methods.base import Paper
from cmfah_hf.methods.closed_form.rotations import signs
from cmfah_hf.methods.shallow.hasher import CenteredPairs, ShallowHasher, ridge
from cmfah_hf.methods.shallow.maps import FeatureMap, radial_basis


@dataclass(kw_only=True)
class SCRATCH(ShallowHasher):
    """`[scratch]`: a latent factor `V` of the kernels of both modalities and of the labels, and codes `B = sgn(V R)`.

    `min sum_t (1/2 |phi_t - V U_t|^2 + mu |V - phi_t W_t|^2) + alpha |L - V G|^2 + |B - V R|^2 + gamma (squares)`.

    Args:
        bits, seed: As in `ShallowHasher`. The seed is that of the anchors and of the first `V`.
        anchors: Training pairs whose radial basis functions are the kernels; at most all.
        label_weight: alpha.
        map_weight: mu.
        ridge_weight: gamma.
        rounds: Rounds of updates.
    """

    name: ClassVar[str] = "scratch"
    database: ClassVar[str] = "learnt"
    positive: ClassVar[tuple[str, ...]] = ("bits", "anchors", "map_weight", "label_weight", "ridge_weight", "rounds")
    paper: ClassVar[Paper] = Paper.from_bibtex("""@inproceedings{li2018scratch,
  title     = {{SCRATCH}: A Scalable Discrete Matrix Factorization Hashing for Cross-Modal Retrieval},
  author    = {Li, Chuan-Xiang and Chen, Zhen-Duo and Zhang, Peng-Fei and Luo, Xin and Nie, Liqiang and Zhang, Wei and
               Xu, Xin-Shun},
  booktitle = {ACM International Conference on Multimedia},
  year      = {2018},
  doi       = {10.1145/3240508.3240547}
}""")

    anchors: int = 500
    label_weight: float = 500.0
    map_weight: float = 1000.0
    ridge_weight: float = 5.0
    rounds: int = 20

    def _fit(self, pairs: CenteredPairs) -> np.ndarray:
        random, labels_NC = np.random.default_rng(self.seed), pairs.labels
        chosen = random.permutation(len(labels_NC))[: self.anchors]
        kernels = [_Kernel(each, each[chosen]) for each in pairs.features]
        factor_NK = random.standard_normal((len(labels_NC), self.bits))
        codes_NK = signs(factor_NK)
        self.rotation_ = np.eye(self.bits)
        for _ in range(self.rounds):
            factor_NK = self._factor(kernels, factor_NK, codes_NK, labels_NC)
            left_KK, _, right_KK = np.linalg.svd(factor_NK.T @ codes_NK)
            self.rotation_ = left_KK @ right_KK
            codes_NK = signs(factor_NK @ self.rotation_)
        self.image_map_, self.text_map_ = (
            FeatureMap(
                mean,
                kernel.map_to(factor_NK, self.ridge_weight / self.map_weight) @ self.rotation_,
                anchors=kernel.anchors_AD,
                width=kernel.width,
                kernel_mean=kernel.mean_A,
            )
            for mean, kernel in zip(pairs.means, kernels, strict=True)
        )
        return codes_NK

    def _factor(
        self, kernels: "list[_Kernel]", factor_NK: np.ndarray, codes_NK: np.ndarray, labels_NC: np.ndarray
    ) -> np.ndarray:
        """`V` that is optimal for the bases, the maps, the label map and the rotation, which fit the last `V`."""
        label_KC = ridge(factor_NK, labels_NC, self.ridge_weight / self.label_weight)
        pull_NK = self.label_weight * labels_NC @ label_KC.T + codes_NK @ self.rotation_.T
        metric_KK = self.label_weight * label_KC @ label_KC.T
        metric_KK[np.diag_indices_from(metric_KK)] += len(kernels) * self.map_weight + 1 + self.ridge_weight
        for kernel in kernels:
            base_KA = ridge(factor_NK, kernel.phi_NA, 2 * self.ridge_weight)
            map_AK = kernel.map_to(factor_NK, self.ridge_weight / self.map_weight)
            pull_NK += kernel.phi_NA @ (base_KA.T / 2 + self.map_weight * map_AK)
            metric_KK += base_KA @ base_KA.T / 2
        return np.linalg.solve(metric_KK, pull_NK.T).T


class _Kernel:
    """Radial basis functions of a modality's training features, less their mean."""

    def __init__(self, features_ND: np.ndarray, anchors_AD: np.ndarray):
        self.anchors_AD = anchors_AD
        self.width = 2 * float(cdist(features_ND, anchors_AD, "sqeuclidean").mean())
        phi_NA = radial_basis(features_ND, anchors_AD, self.width)
        self.mean_A = phi_NA.mean(axis=0)
        self.phi_NA = phi_NA - self.mean_A

    def map_to(self, factor_NK: np.ndarray, strength: float) -> np.ndarray:
        """`W` `(A, K)`."""
        return ridge(self.phi_NA, factor_NK, strength)
