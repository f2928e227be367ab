"""Mean and covariance of a stream of vectors, in memory that does not depend on its length (`[moments]`).

Shapes: `N` items of a block, `E` width of the vectors. Everything is float64.
"""

from typing import Any

import numpy as np

from cmfah_hf.errors import DataError


class Moments:
    """Count, mean and scatter of `(N, E)` blocks, merged by Chan's update (`[moments]` in docs/method.md).

    Each block is centered by its own mean before its squares are summed, so a large mean costs no precision.

    Attributes:
        count: Number of vectors.
        mean: Their mean `(E,)`; zero without vectors.
        scatter: `(E, E)`, the sum of the outer products of the centered vectors.

    Example:
        >>> moments = Moments(2)
        >>> moments.add(np.array([[1.0, 2.0], [3.0, 6.0]]))
        >>> moments.covariance.tolist()
        [[1.0, 2.0], [2.0, 4.0]]
    """

    def __init__(self, width: int):
        self.count = 0
        self.mean = np.zeros(width)
        self.scatter = np.zeros((width, width))

    @property
    def covariance(self) -> np.ndarray:
        """The covariance `(E, E)`, with the divisor `N`; `DataError` without vectors."""
        if not self.count:
            raise DataError("There are no vectors, so they have no covariance; add some first.")
        return self.scatter / self.count

    def add(self, block: Any) -> None:
        """Adds `(N, E)` vectors; `DataError` if the block has another width, or a number that is not finite."""
        block_NE = np.asarray(block, dtype=np.float64)
        if block_NE.ndim != 2 or block_NE.shape[1] != len(self.mean):
            raise DataError(f"Vectors have the width {len(self.mean)}, a block has the shape {block_NE.shape}.")
        if not np.isfinite(block_NE).all():
            raise DataError("A block of vectors has a NaN or an infinity; check the encoder's output.")
        if len(block_NE):
            other = Moments(len(self.mean))
            other.count, other.mean = len(block_NE), block_NE.mean(axis=0)
            centered_NE = block_NE - other.mean
            other.scatter = centered_NE.T @ centered_NE
            self.merge(other)

    def merge(self, other: "Moments") -> None:
        """Adds the vectors of other moments; `DataError` if they have another width."""
        if len(other.mean) != len(self.mean):
            raise DataError(f"Moments of widths {len(self.mean)} and {len(other.mean)} cannot be merged.")
        if not other.count:
            return
        count = self.count + other.count
        shift_E = other.mean - self.mean
        self.scatter = self.scatter + other.scatter + np.outer(shift_E, shift_E) * (self.count * (other.count / count))
        self.mean = self.mean + shift_E * (other.count / count)
        self.count = count


class PairMoments:
    """Joint moments of pairs: those of the concatenated vectors of image and text.

    Attributes:
        joint: The moments of width `2 E`.
    """

    def __init__(self, width: int):
        self.joint = Moments(2 * width)

    def add(self, images: Any, texts: Any) -> None:
        """Adds the `(N, E)` vectors of images and of the texts of the same rows.

        Raises:
            DataError: If the shapes differ, or as `Moments.add` does.
        """
        images_NE, texts_NE = np.asarray(images), np.asarray(texts)
        if images_NE.shape != texts_NE.shape or images_NE.ndim != 2:
            raise DataError(f"Pairs need one text per image and equal widths, not {images_NE.shape}, {texts_NE.shape}.")
        self.joint.add(np.concatenate([images_NE, texts_NE], axis=1))

    def merge(self, other: "PairMoments") -> None:
        """Adds the pairs of other moments."""
        self.joint.merge(other.joint)

    @property
    def images(self) -> Moments:
        """The moments of the images."""
        return self._part(slice(None, len(self.joint.mean) // 2))

    @property
    def texts(self) -> Moments:
        """The moments of the texts."""
        return self._part(slice(len(self.joint.mean) // 2, None))

    @property
    def cross_covariance(self) -> np.ndarray:
        """The cross covariance of images (rows) and texts (columns), with the divisor `N`."""
        width = len(self.joint.mean) // 2
        return self.joint.covariance[:width, width:]

    def _part(self, columns: slice) -> Moments:
        part = Moments(len(self.joint.mean) // 2)
        part.count = self.joint.count
        part.mean, part.scatter = self.joint.mean[columns], self.joint.scatter[columns, columns]
        return part
