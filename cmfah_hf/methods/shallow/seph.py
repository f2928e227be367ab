"""Semantics-preserving hashing (SePH-km): codes by the cosines of labels, and kernel logistic regression of each bit.

Shapes: `N` pairs, `A` anchors, `K` bits.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.cluster.vq import kmeans2
from scipy.optimize import minimize
from scipy.spatial.distance import cdist
from scipy.special import expit

from cmfah_hf.errors import DataError
from cmfah_hf.methods.base import Paper
from cmfah_hf.methods.closed_form.rotations import signs
from cmfah_hf.methods.shallow.hasher import CenteredPairs, ShallowHasher
from cmfah_hf.methods.shallow.maps import FeatureMap, radial_basis

# The matrices of all pairs take 8 N^2 bytes each.
MOST_PAIRS = 5_000
_FIRST_SCALE = 1e-4
_STEP, _MOMENTUM, _LEAST_GAIN = 500.0, 0.5, 0.01
_SMALLEST = np.finfo(np.float64).tiny


@dataclass(kw_only=True)
class SePH(ShallowHasher):
    """`[seph]`: `min KL(P || Q) + a | |H| - 1 |^2`, `P` from the cosines of labels, `Q` from the distances of `H`.

    Args:
        bits, seed: As in `ShallowHasher`. The seed is that of the first `H` and of k-means.
        anchors: k-means centers of each modality, whose radial basis functions are the kernels; at most all pairs.
        steps: Gradient steps with momentum and gains.
        binary_weight: `a K N`.
        ridge_weight: Weight of the squared norm in the logistic regressions.

    Attributes:
        objectives_: The objective before each step and after the last.

    Raises:
        DataError: In `fit`, for more than `MOST_PAIRS` pairs.
    """

    name: ClassVar[str] = "seph"
    database: ClassVar[str] = "pair"
    positive: ClassVar[tuple[str, ...]] = ("bits", "anchors", "ridge_weight")
    paper: ClassVar[Paper] = Paper.from_bibtex("""@inproceedings{lin2015seph,
  title     = {Semantics-Preserving Hashing for Cross-View Retrieval},
  author    = {Lin, Zijia and Ding, Guiguang and Hu, Mingqing and Wang, Jianmin},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition},
  year      = {2015},
  doi       = {10.1109/CVPR.2015.7299011}
}""")

    anchors: int = 500
    steps: int = 100
    binary_weight: float = 0.01
    ridge_weight: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        self.objectives_: list[float] = []

    def _fit(self, pairs: CenteredPairs) -> np.ndarray:
        labels_NC = pairs.labels
        if len(labels_NC) > MOST_PAIRS:
            raise DataError(
                f"SePH needs matrices of all {len(labels_NC):,} x {len(labels_NC):,} pairs; fit it to at most "
                f"{MOST_PAIRS:,}, for example a random sample."
            )
        codes_NK = signs(self._codes(label_probabilities(labels_NC)))
        self.image_map_, self.text_map_ = (
            self._regressed(features, mean, codes_NK)
            for features, mean in zip(pairs.features, pairs.means, strict=True)
        )
        # The log odds of both modalities add up; the sign is that of p q - (1 - p)(1 - q).
        return signs(self.encode_pair(*(each + mean for each, mean in zip(pairs.features, pairs.means, strict=True))))

    def _codes(self, p_NN: np.ndarray) -> np.ndarray:
        """The real-valued `H` `(N, K)` with the smallest objective of all steps."""
        h_NK = _FIRST_SCALE * np.random.default_rng(self.seed).standard_normal((len(p_NN), self.bits))
        velocity_NK, gains_NK = np.zeros_like(h_NK), np.ones_like(h_NK)
        weight = self.binary_weight / h_NK.size
        best_NK, best = h_NK, np.inf
        self.objectives_ = []
        for step in range(self.steps + 1):
            value, gradient_NK = divergence(p_NN, h_NK, weight)
            self.objectives_.append(value)
            if value < best:
                best_NK, best = h_NK, value
            if step == self.steps:
                break
            turned_NK = np.sign(gradient_NK) != np.sign(velocity_NK)
            gains_NK = np.maximum(np.where(turned_NK, gains_NK + 0.2, gains_NK * 0.8), _LEAST_GAIN)
            velocity_NK = _MOMENTUM * velocity_NK - _STEP * gains_NK * gradient_NK
            h_NK = h_NK + velocity_NK
            h_NK = h_NK - h_NK.mean(axis=0)
        return best_NK

    def _regressed(self, features_ND: np.ndarray, mean_D: np.ndarray, codes_NK: np.ndarray) -> FeatureMap:
        """The map of one modality whose scores are the log odds of each bit."""
        anchors_AD, _ = kmeans2(features_ND, min(self.anchors, len(features_ND)), minit="++", seed=self.seed)
        width = float(cdist(features_ND, features_ND, "sqeuclidean").mean())
        # In these coordinates the penalty w^T K_AA w is a squared norm, and the optimizer converges.
        values_A, directions_AA = np.linalg.eigh(radial_basis(anchors_AD, anchors_AD, width))
        kept_A = values_A > values_A[-1] * 1e-10
        root_AR = directions_AA[:, kept_A] / np.sqrt(values_A[kept_A])
        inputs_NR = radial_basis(features_ND, anchors_AD, width) @ root_AR
        weights_RK = np.stack([logistic(inputs_NR, codes_N, self.ridge_weight) for codes_N in codes_NK.T], axis=1)
        return FeatureMap(mean_D, root_AR @ weights_RK, anchors=anchors_AD, width=width)


def label_probabilities(labels_NC: np.ndarray) -> np.ndarray:
    """`P` `(N, N)`: the cosines of the labels of different pairs, divided by their sum.

    Raises:
        DataError: If no two pairs share a label.
    """
    unit_NC = labels_NC / np.linalg.norm(labels_NC, axis=1, keepdims=True)
    p_NN = unit_NC @ unit_NC.T
    np.fill_diagonal(p_NN, 0)
    if not (total := p_NN.sum()):
        raise DataError("No two pairs share a label, so SePH has nothing to preserve.")
    return p_NN / total


def divergence(p_NN: np.ndarray, h_NK: np.ndarray, weight: float) -> tuple[float, np.ndarray]:
    """`KL(P || Q) + weight | |H| - 1 |^2` and its gradient `(N, K)`; `Q` is `1 / (1 + |h - h'|^2 / 4)` over its sum."""
    near_NN = 1 / (1 + cdist(h_NK, h_NK, "sqeuclidean") / 4)
    np.fill_diagonal(near_NN, 0)
    q_NN = near_NN / near_NN.sum()
    away_NK = np.abs(h_NK) - 1
    some_NN = p_NN > 0
    value = (p_NN[some_NN] * np.log(p_NN[some_NN] / np.maximum(q_NN[some_NN], _SMALLEST))).sum()
    value += weight * np.square(away_NK).sum()
    pull_NN = (p_NN - q_NN) * near_NN
    gradient_NK = pull_NN.sum(axis=1)[:, None] * h_NK - pull_NN @ h_NK
    return float(value), gradient_NK + 2 * weight * away_NK * signs(h_NK)


def logistic(inputs_NR: np.ndarray, codes_N: np.ndarray, ridge_weight: float) -> np.ndarray:
    """`w` `(R,)` that minimizes `sum log(1 + exp(-c x^T w)) + ridge_weight |w|^2`."""

    def loss(w_R: np.ndarray) -> tuple[float, np.ndarray]:
        margins_N = codes_N * (inputs_NR @ w_R)
        value = np.logaddexp(0, -margins_N).sum() + ridge_weight * w_R @ w_R
        return value, 2 * ridge_weight * w_R - inputs_NR.T @ (codes_N * expit(-margins_N))

    start_R = np.zeros(inputs_NR.shape[1])
    return minimize(loss, start_R, jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
