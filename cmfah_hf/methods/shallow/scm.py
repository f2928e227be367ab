"""Semantic correlation maximization (SCM): linear codes whose inner products approximate the cosines of labels.

Shapes: `N` pairs, `D` and `E` widths of the wider and the other modality, `C` classes, `K` bits.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.linalg import eigh

from cmfah_hf.errors import DataError
from cmfah_hf.methods.base import Paper
from cmfah_hf.methods.closed_form.rotations import signs
from cmfah_hf.methods.shallow.hasher import CenteredPairs, ShallowHasher
from cmfah_hf.methods.shallow.maps import FeatureMap

# Added to the diagonal of both covariances.
RIDGE = 1e-6


@dataclass(kw_only=True)
class SCM(ShallowHasher):
    """`[scm]`: `min |K S' - sgn(X W) sgn(Y V)^T|^2` with `S'` from -1 to 1, twice the cosine of labels less 1.

    Args:
        bits, seed: As in `ShallowHasher`; nothing is random.
        solution: `"seq"`, a bit after the other, each on what the others left; or `"orth"`, all bits at once,
            uncorrelated, at most as many as the smallest of both widths and the classes.
        on_rise: What `"seq"` does once a bit has a larger eigenvalue than the one before: `"continue"`, or `"cca"`,
            which fills the other bits with canonical correlations, as published code does.

    Example:

    ```python
    >>> import numpy as np
    >>> from cmfah_hf.methods import SCM

    >>> labels = np.eye(3)[np.arange(90) % 3]
    >>> random = np.random.default_rng(0)
    >>> images, texts = labels @ random.normal(size=(3, 8)), labels @ random.normal(size=(3, 5))
    >>> scm = SCM(bits=16).fit(images, texts, labels)
    >>> bits = scm.encode_text(texts[:2]) >= 0
    >>> bits.shape
    (2, 16)
    ```"""

    name: ClassVar[str] = "scm"
    paper: ClassVar[Paper] = Paper.from_bibtex("""@inproceedings{zhang2014scm,
  title     = {Large-Scale Supervised Multimodal Hashing with Semantic Correlation Maximization},
  author    = {Zhang, Dongqing and Li, Wu-Jun},
  booktitle = {AAAI Conference on Artificial Intelligence},
  year      = {2014},
  doi       = {10.1609/aaai.v28i1.8995}
}""")

    solution: str = "seq"
    on_rise: str = "continue"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.solution not in ("seq", "orth"):
            raise DataError(f"solution is {self.solution!r}; choose 'seq' or 'orth'.")
        if self.on_rise not in ("continue", "cca"):
            raise DataError(f"on_rise is {self.on_rise!r}; choose 'continue' or 'cca'.")

    def _fit(self, pairs: CenteredPairs) -> np.ndarray:
        (images_ND, texts_ND), means, labels_NC = pairs.features, pairs.means, pairs.labels
        # The eigenproblem is that of the wider modality.
        is_swapped = texts_ND.shape[1] > images_ND.shape[1]
        x_ND, y_NE = (texts_ND, images_ND) if is_swapped else (images_ND, texts_ND)
        covariances = _Covariances(x_ND, y_NE)
        c_DE = correlation(x_ND, y_NE, labels_NC, self.bits)
        if self.solution == "orth":
            if self.bits > (most := min(*c_DE.shape, labels_NC.shape[1])):
                raise DataError(
                    f"bits is {self.bits}, and SCM with solution='orth' has at most {most} here: the smallest of both "
                    "widths and the classes; use solution='seq'."
                )
            w_DK, v_EK, _ = covariances.directions(c_DE, self.bits)
        else:
            w_DK, v_EK = self._sequence(covariances, c_DE)
        image_DK, text_DK = (v_EK, w_DK) if is_swapped else (w_DK, v_EK)
        self.image_map_, self.text_map_ = FeatureMap(means[0], image_DK), FeatureMap(means[1], text_DK)
        return signs(images_ND @ image_DK)

    def _sequence(self, pair: "_Covariances", c_DE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        w_DK = np.zeros((pair.x_ND.shape[1], self.bits))
        v_EK = np.zeros((pair.y_NE.shape[1], self.bits))
        last = np.inf
        for bit in range(self.bits):
            w_D1, v_E1, values = pair.directions(c_DE, 1)
            if self.on_rise == "cca" and values[0] > last:
                rest = self.bits - bit
                if rest > (most := pair.x_ND.shape[1]):
                    raise DataError(
                        f"SCM with on_rise='cca' has {rest} of {self.bits} bits left after a rise, and at most {most} "
                        "canonical correlations; give fewer bits or on_rise='continue'."
                    )
                w_DK[:, bit:], v_EK[:, bit:], _ = pair.directions(pair.x_ND.T @ pair.y_NE, rest)
                break
            last = values[0]
            w_DK[:, bit], v_EK[:, bit] = w_D1[:, 0], v_E1[:, 0]
            c_DE = c_DE - np.outer(
                pair.x_ND.T @ signs(pair.x_ND @ w_D1[:, 0]), pair.y_NE.T @ signs(pair.y_NE @ v_E1[:, 0])
            )
        return w_DK, v_EK


def correlation(x_ND: np.ndarray, y_NE: np.ndarray, labels_NC: np.ndarray, bits: int) -> np.ndarray:
    """`K X^T S' Y` `(D, E)`, without the matrix `S'` of all pairs."""
    unit_NC = labels_NC / np.linalg.norm(labels_NC, axis=1, keepdims=True)
    return bits * (2 * (x_ND.T @ unit_NC) @ (y_NE.T @ unit_NC).T - np.outer(x_ND.sum(axis=0), y_NE.sum(axis=0)))


class _Covariances:
    """Both modalities and their covariances, with the generalized eigenproblem of SCM and of CCA."""

    def __init__(self, x_ND: np.ndarray, y_NE: np.ndarray):
        self.x_ND, self.y_NE = x_ND, y_NE
        self._xx_DD = x_ND.T @ x_ND + RIDGE * np.eye(x_ND.shape[1])
        self._yy_EE = y_NE.T @ y_NE + RIDGE * np.eye(y_NE.shape[1])

    def directions(self, c_DE: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The first `count` pairs of directions that maximize `w^T C v`, and the eigenvalues, largest first."""
        inner_ED = np.linalg.solve(self._yy_EE, c_DE.T)
        square_DD = c_DE @ inner_ED
        width = len(square_DD)
        values, w_DK = eigh((square_DD + square_DD.T) / 2, self._xx_DD, subset_by_index=(width - count, width - 1))
        values, w_DK = values[::-1], w_DK[:, ::-1]
        v_EK = inner_ED @ w_DK / np.sqrt(np.maximum(values, np.finfo(np.float64).tiny))
        return w_DK, v_EK, values
