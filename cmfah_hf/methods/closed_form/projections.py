"""Projections of both modalities to `K` dimensions from their moments: PCA, shared covariance, CCA.

Shapes: `N` items, `E` width of the encoder's vectors, `K` bits. All vectors have unit length (see `unit_vectors`).

If the data has fewer dimensions than `K`, the remaining rows of the weights are zero. A rotation of all `K` dimensions
turns the weights into a random tight frame: `K` directions with `W^T W` as before, so no inner product changes.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cmfah_hf.errors import DataError
from cmfah_hf.methods.closed_form.moments import Moments, PairMoments
from cmfah_hf.methods.closed_form.vectors import unit_vectors

# Variance of a direction, relative to the largest, that the rounding of vectors in float16 can cause.
_NOISE = 1e-9
# Sum of the variances of unit vectors that differ by rounding only.
_EQUAL = 1e-12


@dataclass(frozen=True)
class HashProjection:
    """Affine maps of the unit vectors of images and texts to `K` values, whose signs are codes (`[projection]`).

    Attributes:
        image_weight, image_bias: The map of images, `z = W x + b`, `(K, E)` and `(K,)`.
        text_weight, text_bias: The map of texts.
        name: For example `"pca"`, or `"pca, itq"` once rotated.
        rank: Dimensions of the data that the projection uses. With `rank < K`, codes have redundant bits.
    """

    image_weight: np.ndarray
    image_bias: np.ndarray
    text_weight: np.ndarray
    text_bias: np.ndarray
    name: str
    rank: int

    @property
    def bits(self) -> int:
        """`K`."""
        return len(self.image_bias)

    def images(self, vectors_NE: Any) -> np.ndarray:
        """`z` of the vectors of images, `(N, K)` float64; the vectors need not have unit length.

        Raises:
            DataError: If they are not a finite matrix of width `E`.
        """
        return _map(vectors_NE, self.image_weight, self.image_bias, "image vectors")

    def texts(self, vectors_NE: Any) -> np.ndarray:
        """`z` of the vectors of texts, as `images`."""
        return _map(vectors_NE, self.text_weight, self.text_bias, "text vectors")

    def rotated(self, rotation_KK: np.ndarray, name: str = "") -> "HashProjection":
        """This projection followed by a rotation, `z R`; `name` is appended to its name."""
        return replace(
            self,
            image_weight=rotation_KK.T @ self.image_weight,
            image_bias=rotation_KK.T @ self.image_bias,
            text_weight=rotation_KK.T @ self.text_weight,
            text_bias=rotation_KK.T @ self.text_bias,
            name=f"{self.name}, {name}" if name else self.name,
        )

    def centered(self, text_mean_E: np.ndarray) -> "HashProjection":
        """This projection with another center of texts."""
        return replace(self, text_bias=-self.text_weight @ text_mean_E)

    def scaled(self, image_factor: float, text_factor: float) -> "HashProjection":
        """This projection with all `z` of images, and all of texts, times a factor; no sign changes."""
        return replace(
            self,
            image_weight=self.image_weight * image_factor,
            image_bias=self.image_bias * image_factor,
            text_weight=self.text_weight * text_factor,
            text_bias=self.text_bias * text_factor,
        )


def pca_projection(images: Moments, bits: int, text_mean_E: np.ndarray | None = None) -> HashProjection:
    """The first `K` principal components of the images, applied to both modalities (`[projection]`).

    Args:
        images: Moments of the unit vectors of images.
        bits: `K`.
        text_mean_E: The mean of the unit vectors of texts, to center texts. None: the mean of the images, which suits
            image queries only, since the two clouds of a dual encoder lie apart.

    Raises:
        DataError: With fewer than 2 images, if all are equal, or if the widths differ.
    """
    check_spread(images, "image")
    return _principal(images.covariance, images.mean, text_mean_E, bits, "pca")


def shared_projection(images: Moments, texts: Moments, bits: int) -> HashProjection:
    """The first `K` eigenvectors of the mean of both covariances, each around its own mean (`[projection]`).

    Raises a `DataError` with fewer than 2 items of a modality, if all of one are equal, or if the widths differ.
    """
    for moments, what in ((images, "image"), (texts, "text")):
        check_spread(moments, what)
    _check_widths(images.mean, texts.mean)
    covariance_EE = (images.covariance + texts.covariance) / 2
    return _principal(covariance_EE, images.mean, texts.mean, bits, "shared")


def cca_projection(
    pairs: PairMoments,
    bits: int,
    *,
    regularization: float = 0.01,
    image_mean_E: np.ndarray | None = None,
    text_mean_E: np.ndarray | None = None,
) -> HashProjection:
    """The first `K` canonical directions of pairs, each times its correlation (`[cca]` in docs/method.md).

    Args:
        pairs: Joint moments of the unit vectors of pairs.
        bits: `K`.
        regularization: Added to the diagonal of both covariances, as a share of their mean diagonal.
        image_mean_E, text_mean_E: Centers, if more items than the pairs are known; by default those of the pairs.

    Raises:
        DataError: With fewer than 2 pairs, if all images or all texts are equal, or if the widths differ.
    """
    images, texts = pairs.images, pairs.texts
    for moments, what in ((images, "image"), (texts, "text")):
        check_spread(moments, what)
    from_images_EE, of_images = whitening(images.covariance, regularization)
    from_texts_EE, of_texts = whitening(texts.covariance, regularization)
    left_EE, correlations_E, right_EE = np.linalg.svd(from_images_EE.T @ pairs.cross_covariance @ from_texts_EE)
    rank = min(of_images, of_texts, int((np.square(correlations_E) > _NOISE * correlations_E[0] ** 2).sum()))
    kept = slice(0, min(rank, bits))
    image_weight_KE = (from_images_EE @ left_EE[:, kept]).T
    scale_K1 = correlations_E[kept, None] * _own_signs(image_weight_KE)
    return _centered(
        scale_K1 * image_weight_KE,
        scale_K1 * (right_EE[kept] @ from_texts_EE.T),
        images.mean if image_mean_E is None else image_mean_E,
        texts.mean if text_mean_E is None else text_mean_E,
        bits,
        "cca",
    )


def check_spread(moments: Moments, what: str) -> None:
    """Checks that vectors differ; `DataError` with fewer than 2 vectors, or if all are equal."""
    if moments.count < 2:
        raise DataError(f"Codes without training need 2 or more {what} vectors, not {moments.count}.")
    if not differ(moments):
        raise DataError(f"All {moments.count} {what} vectors are equal, so no code can tell them apart.")


def differ(moments: Moments) -> bool:
    """Whether there are two vectors or more, and not all are equal."""
    return moments.count > 1 and float(np.trace(moments.covariance)) >= _EQUAL


def _principal(
    covariance_EE: np.ndarray, image_mean_E: np.ndarray, text_mean_E: np.ndarray | None, bits: int, name: str
) -> HashProjection:
    variances_E, directions_EE = np.linalg.eigh(covariance_EE)
    rank = int((variances_E > _NOISE * variances_E[-1]).sum())
    weight_KE = directions_EE[:, ::-1][:, : min(rank, bits)].T
    weight_KE = weight_KE * _own_signs(weight_KE)
    return _centered(
        weight_KE, weight_KE, image_mean_E, image_mean_E if text_mean_E is None else text_mean_E, bits, name
    )


def _own_signs(weight_KE: np.ndarray) -> np.ndarray:
    """Signs `(K, 1)` that make the largest entry of each direction positive; those of solvers depend on rounding."""
    largest_K1 = np.take_along_axis(weight_KE, np.abs(weight_KE).argmax(axis=1, keepdims=True), axis=1)
    return np.where(largest_K1 < 0, -1.0, 1.0)


def whitening(covariance_EE: np.ndarray, regularization: float) -> tuple[np.ndarray, int]:
    """A matrix `A` for which `A^T (C + regularization) A` is the identity on the range of `C`, and the rank of `C`."""
    variances_E, directions_EE = np.linalg.eigh(covariance_EE)
    used_E = variances_E > _NOISE * variances_E[-1]
    scales_E = np.zeros(len(variances_E))
    scales_E[used_E] = (variances_E[used_E] + regularization * variances_E.mean()) ** -0.5
    return directions_EE * scales_E, int(used_E.sum())


def _centered(
    image_weight_RE: np.ndarray,
    text_weight_RE: np.ndarray,
    image_mean_E: np.ndarray,
    text_mean_E: np.ndarray,
    bits: int,
    name: str,
) -> HashProjection:
    _check_widths(image_mean_E, text_mean_E)
    rank = len(image_weight_RE)
    padding = ((0, bits - rank), (0, 0))
    image_weight_KE, text_weight_KE = np.pad(image_weight_RE, padding), np.pad(text_weight_RE, padding)
    return HashProjection(
        image_weight_KE, -image_weight_KE @ image_mean_E, text_weight_KE, -text_weight_KE @ text_mean_E, name, rank
    )


def _check_widths(image_mean_E: np.ndarray, text_mean_E: np.ndarray) -> None:
    if image_mean_E.shape != text_mean_E.shape:
        raise DataError(
            f"Image vectors have the width {len(image_mean_E)}, text vectors {len(text_mean_E)}; "
            "a dual encoder gives both the same."
        )


def _map(vectors: Any, weight_KE: np.ndarray, bias_K: np.ndarray, what: str) -> np.ndarray:
    vectors_NE = unit_vectors(vectors, what)
    if vectors_NE.shape[1] != weight_KE.shape[1]:
        raise DataError(f"The {what} have the width {vectors_NE.shape[1]}; the projection needs {weight_KE.shape[1]}.")
    return vectors_NE @ weight_KE.T + bias_K
