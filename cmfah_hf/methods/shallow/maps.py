"""Maps of features to scores, whose signs are codes: linear, or linear over radial basis functions of anchors.

Shapes: `N` items, `D` width of the features, `A` anchors, `K` bits.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from cmfah_hf.errors import DataError
from cmfah_hf.methods.closed_form.vectors import finite_matrix

# Items whose distances from the anchors are in memory at once.
_PORTION = 10_000


@dataclass(frozen=True)
class FeatureMap:
    """`s = W^T phi(x - mean) + b`.

    Attributes:
        mean: `(D,)`, of the training features.
        weight: `(D, K)`, or `(A, K)` with anchors.
        bias: `(K,)`. None: zeros.
        anchors: `(A, D)`, centered; `phi` are then their radial basis functions, less their `kernel_mean`. None:
            `phi` is the identity.
        width: The squared distance at which a radial basis function is `1/e`.
        kernel_mean: `(A,)`. None: zeros.
    """

    mean: np.ndarray
    weight: np.ndarray
    bias: np.ndarray | None = None
    anchors: np.ndarray | None = None
    width: float = 1.0
    kernel_mean: np.ndarray | None = None

    def __call__(self, features_ND: Any) -> np.ndarray:
        """The scores `(N, K)`, float32.

        Raises:
            DataError: If the features are no finite matrix of width `D`.
        """
        features_ND = finite_matrix(features_ND, "features")
        if features_ND.shape[1] != len(self.mean):
            raise DataError(
                f"The features have the width {features_ND.shape[1]}, and those of the training had {len(self.mean)}."
            )
        scores_NK = np.empty((len(features_ND), self.weight.shape[1]), np.float32)
        for start in range(0, len(features_ND), _PORTION):
            rows = slice(start, start + _PORTION)
            part_NK = self._phi(features_ND[rows] - self.mean) @ self.weight
            scores_NK[rows] = part_NK if self.bias is None else part_NK + self.bias
        return scores_NK

    def _phi(self, centered_ND: np.ndarray) -> np.ndarray:
        if self.anchors is None:
            return centered_ND
        kernel_NA = radial_basis(centered_ND, self.anchors, self.width)
        return kernel_NA if self.kernel_mean is None else kernel_NA - self.kernel_mean

    def tensors(self) -> dict[str, np.ndarray]:
        """Its arrays by name, for a file."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: np.asarray(value, np.float64, order="C") for name, value in values.items() if value is not None}

    @classmethod
    def from_tensors(cls, tensors: dict[str, np.ndarray]) -> "FeatureMap":
        """The map of such arrays.

        Raises:
            DataError: If an array is missing, unknown, or of another shape.
        """
        known = {field.name for field in fields(cls)}
        if not {"mean", "weight", "width"} <= tensors.keys() <= known:
            raise DataError(f"A map of features has {', '.join(sorted(known))}, and not {', '.join(sorted(tensors))}.")
        if tensors["width"].shape:
            raise DataError(f"The width of a map of features has the shape {tensors['width'].shape}; it is one number.")
        arrays: dict[str, Any] = {**tensors, "width": float(tensors["width"])}
        found = cls(**arrays)
        rows = len(found.mean) if found.anchors is None else len(found.anchors)
        shapes = [
            (found.weight, (rows, found.weight.shape[-1])),
            (found.bias, (found.weight.shape[-1],)),
            (found.anchors, (rows, len(found.mean))),
            (found.kernel_mean, (rows,)),
        ]
        for value, shape in shapes:
            if value is not None and value.shape != shape:
                raise DataError(f"An array of a map of features has the shape {value.shape} instead of {shape}.")
        return found


def radial_basis(x_ND: np.ndarray, anchors_AD: np.ndarray, width: float) -> np.ndarray:
    """`exp(-|x - a|^2 / width)`, `(N, A)`."""
    return np.exp(-cdist(x_ND, anchors_AD, "sqeuclidean") / width)
