"""Cross-modality similarity-sensitive hashing (CMSSH): bits as boosted weak classifiers of similar pairs.

Shapes: `P` pairs of an image and a text, `D` and `E` widths of image and text features, `T` thresholds, `K` bits.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.sparse.linalg import svds

from cmfah_hf.errors import DataError
from cmfah_hf.methods.base import Paper
from cmfah_hf.methods.closed_form.rotations import signs
from cmfah_hf.methods.shallow.hasher import CenteredPairs, ShallowHasher
from cmfah_hf.methods.shallow.maps import FeatureMap

# Shares of the projections below the thresholds that are tried.
_QUANTILES = np.arange(1, 20) / 20


@dataclass(kw_only=True)
class CMSSH(ShallowHasher):
    """`[cmssh]`: for each bit, directions and thresholds with the largest weighted agreement, then AdaBoost's weights.

    Args:
        bits, seed: As in `ShallowHasher`. The seed is that of the drawn pairs.
        pairs: Similar pairs of an image and a text, and as many dissimilar ones, drawn with replacement.

    Attributes:
        agreements_: `r` of each bit, `(K,)`, from 0 to 1. The weights' normalizer is `sqrt(1 - r^2)`.
    """

    name: ClassVar[str] = "cmssh"
    paper: ClassVar[Paper] = Paper.from_bibtex("""@inproceedings{bronstein2010cmssh,
  title     = {Data Fusion through Cross-Modality Metric Learning Using Similarity-Sensitive Hashing},
  author    = {Bronstein, Michael M. and Bronstein, Alexander M. and Michel, Fabrice and Paragios, Nikos},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition},
  year      = {2010},
  doi       = {10.1109/CVPR.2010.5539928}
}""")

    positive: ClassVar[tuple[str, ...]] = ("bits", "pairs")

    pairs: int = 20_000

    def __post_init__(self) -> None:
        super().__post_init__()
        self.agreements_ = np.zeros(0)

    def _fit(self, pairs: CenteredPairs) -> np.ndarray:
        (images_ND, texts_ND), means, labels_NC = pairs.features, pairs.means, pairs.labels
        image_P, text_P, similar_P = self._draw(labels_NC)
        x_PD, y_PE = images_ND[image_P], texts_ND[text_P]
        weights_P = np.where(similar_P > 0, 1 / (similar_P > 0).sum(), 1 / (similar_P < 0).sum())
        w_DK, v_EK = np.empty((x_PD.shape[1], self.bits)), np.empty((y_PE.shape[1], self.bits))
        a_K, b_K, self.agreements_ = np.empty(self.bits), np.empty(self.bits), np.empty(self.bits)
        for bit in range(self.bits):
            signed_P = weights_P * similar_P
            w_D, v_E = _top_directions((x_PD * signed_P[:, None]).T @ y_PE)
            image_bit_P, text_bit_P, a, b, agreement = _thresholds(x_PD @ w_D, y_PE @ v_E, signed_P)
            if agreement <= 0:
                raise DataError(f"Bit {bit} of CMSSH agrees with no more than half of the pairs; give fewer bits.")
            w_DK[:, bit], v_EK[:, bit], a_K[bit], b_K[bit], self.agreements_[bit] = w_D, v_E, a, b, agreement
            weights_P = _boosted(weights_P, similar_P, image_bit_P * text_bit_P, agreement)
        self.image_map_, self.text_map_ = FeatureMap(means[0], w_DK, a_K), FeatureMap(means[1], v_EK, b_K)
        return signs(images_ND @ w_DK + a_K)

    def _draw(self, labels_NC: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows of images and texts `(P,)`, and +1 for similar pairs, -1 for dissimilar ones."""
        random = np.random.default_rng(self.seed)
        rows: dict[bool, list[np.ndarray]] = {True: [], False: []}
        missing = {True: self.pairs, False: self.pairs}
        for _ in range(1000):
            drawn_2P = random.integers(len(labels_NC), size=(2, 4 * self.pairs))
            share_P = (labels_NC[drawn_2P[0]] * labels_NC[drawn_2P[1]]).any(axis=1)
            for is_similar in rows:
                found_2P = drawn_2P[:, share_P == is_similar][:, : missing[is_similar]]
                rows[is_similar].append(found_2P)
                missing[is_similar] -= found_2P.shape[1]
            if not any(missing.values()):
                break
        else:
            kind = "similar" if missing[True] else "dissimilar"
            raise DataError(f"By their labels, almost no two pairs are {kind}, and CMSSH learns from both kinds.")
        image_P, text_P = np.concatenate(rows[True] + rows[False], axis=1)
        return image_P, text_P, np.repeat([1.0, -1.0], self.pairs)


def _top_directions(c_DE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The singular vectors of the largest singular value."""
    if min(c_DE.shape) == 1:
        left_DR, _, right_RE = np.linalg.svd(c_DE, full_matrices=False)
    else:
        left_DR, _, right_RE = svds(c_DE, k=1, v0=np.ones(min(c_DE.shape)), rng=0)
    return left_DR[:, 0], right_RE[0]


def _thresholds(
    x_P: np.ndarray, y_P: np.ndarray, signed_P: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float, float, float]:
    """The bits of both sides for the thresholds with the largest agreement, these thresholds, and the agreement."""
    a_T, b_T = -np.quantile(x_P, _QUANTILES), -np.quantile(y_P, _QUANTILES)
    image_PT, text_PT = signs(x_P[:, None] + a_T), signs(y_P[:, None] + b_T)
    agreement_TT = (image_PT * signed_P[:, None]).T @ text_PT / 2
    row, column = np.unravel_index(int(np.argmax(agreement_TT)), agreement_TT.shape)
    agreement = float(agreement_TT[row, column])
    return image_PT[:, row], text_PT[:, column], float(a_T[row]), float(b_T[column]), agreement


def _boosted(weights_P: np.ndarray, similar_P: np.ndarray, equal_P: np.ndarray, agreement: float) -> np.ndarray:
    """AdaBoost's weights: those of wrong pairs grow. Similar and dissimilar pairs sum to 1 each."""
    agreement = min(agreement, 1 - 1e-9)
    alpha = np.log((1 + agreement) / (1 - agreement)) / 2
    weights_P = weights_P * np.exp(-alpha * similar_P * equal_P)
    sums_P = np.where(similar_P > 0, weights_P[similar_P > 0].sum(), weights_P[similar_P < 0].sum())
    return weights_P / sums_P
