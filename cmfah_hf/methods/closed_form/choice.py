"""Fits all closed-form codes to the vectors of a dual encoder, and chooses one on held-out pairs or neighbors.

Shapes: `N` items, `E` width of the vectors, `K` bits, `Q` queries.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from cmfah_hf.errors import DataError
from cmfah_hf.methods.closed_form.moments import Moments, PairMoments
from cmfah_hf.methods.closed_form.projections import (
    HashProjection,
    cca_projection,
    check_spread,
    differ,
    pca_projection,
    shared_projection,
)
from cmfah_hf.methods.closed_form.rotations import itq_rotation, random_frames
from cmfah_hf.methods.closed_form.vectors import Reservoir, unit_vectors

TANH_RMS = 1 / 16
"""Root mean square of `z` before `tanh` (`[tanh-scale]` in docs/method.md)."""

_NEIGHBORS = 10
_QUERIES = 500
_FEWEST_HELD_OUT = 20
# Dimensions of random frames: the bits divided by these, at least `_FEWEST_DIMENSIONS`.
_FRAME_SHARES = (2, 4, 8, 16)
_FEWEST_DIMENSIONS = 8

# Shares of a mean that are tried as the center of texts.
_CENTER_SHARES = {"": 1.0, "3/4 of the ": 0.75, "1/2 of the ": 0.5, "1/4 of the ": 0.25}

# A rotation from the rows to rotate, which only some need.
_Rotation = Callable[[Callable[[], np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class Candidate:
    """A fitted projection with its agreement with the encoder's rankings of held-out items.

    Attributes:
        name: Projection and rotation, for example `"pca, itq"`.
        aqd, hamming: By AQD and by Hamming distance, in [0, 1]: with held-out pairs, how high a code ranks the own
            partner (`discounted_rank`); without, the expected share of the encoder's ten nearest items among the code's
            ten nearest (`expected_overlap`).
    """

    name: str
    aqd: float
    hamming: float

    @property
    def score(self) -> float:
        """The mean of both rankings, by which candidates are compared."""
        return (self.aqd + self.hamming) / 2


@dataclass(frozen=True)
class Choice:
    """The best projection and the comparison behind it.

    Attributes:
        projection: The best, fitted to all vectors including the held-out ones.
        candidates: All candidates, best first.
        held_out: Images held out for the comparison; 0 if there were too few, so that it used the fitted images.
        by_partner: Whether the candidates were compared by the ranks of partners; otherwise by the encoder's nearest.
        centers: Without texts, the centers of texts that were compared by `phrases`, best first.
        held_out_codes: Continuous codes `(P, K)` of the images and of the texts of the held-out pairs, by a projection
            that was fitted without them; None with fewer than 20.
    """

    projection: HashProjection
    candidates: tuple[Candidate, ...]
    held_out: int
    by_partner: bool
    centers: tuple[Candidate, ...] = ()
    held_out_codes: tuple[np.ndarray, np.ndarray] | None = None


@dataclass(frozen=True)
class _Data:
    """Moments, and sampled unit vectors `(N, E)`; without texts or pairs, their counts are 0."""

    images: Moments
    texts: Moments
    pairs: PairMoments
    image_rows: np.ndarray
    text_rows: np.ndarray
    paired_rows: int = 0  # the last rows of both are pairs, in one order


class CodeFitter:
    """Collects the vectors of a dual encoder in a stream, and fits codes to them without training.

    Memory is that of the moments and of one sample per kind of input (images, texts, pairs), independent of the number
    of vectors. The result is the same for any division of the stream into blocks, up to rounding.

    Example:
        >>> fitter = CodeFitter(width=8)
        >>> fitter.add_images(np.random.default_rng(0).standard_normal((200, 8)))
        >>> fitter.fit(bits=8).projection.rank
        8
    """

    def __init__(self, width: int, *, sample: int = 20_000, held_out: int = 2_000, seed: int = 0):
        """
        Args:
            width: `E`, of both modalities.
            sample: Vectors kept for the rotations, in addition to the held-out ones.
            held_out: Most items held out for the comparison, at most a fifth of all.
            seed: Seed of samples and rotations.
        """
        self.width, self.sample, self.held_out, self.seed = width, sample, held_out, seed
        self._pools = {
            name: (Moments(columns), Reservoir(sample + held_out, columns, seed))
            for name, columns in (("images", width), ("texts", width), ("pairs", 2 * width))
        }

    def add_images(self, vectors: Any) -> None:
        """Adds `(N, E)` vectors of images without texts.

        Raises:
            DataError: If they are not a finite matrix of this width.
        """
        self._add("images", self._units(vectors, "image vectors"))

    def add_texts(self, vectors: Any) -> None:
        """Adds `(N, E)` vectors of texts without images, as `add_images`."""
        self._add("texts", self._units(vectors, "text vectors"))

    def add_pairs(self, images: Any, texts: Any) -> None:
        """Adds `(N, E)` vectors of images and of the texts of the same rows, as `add_images`."""
        image_NE, text_NE = self._units(images, "image vectors"), self._units(texts, "text vectors")
        if len(image_NE) != len(text_NE):
            raise DataError(f"Pairs need one text per image, not {len(image_NE)} images and {len(text_NE)} texts.")
        self._add("pairs", np.concatenate([image_NE, text_NE], axis=1))

    def fit(self, bits: int, *, phrases: Any = None, rounds: int = 50) -> Choice:
        """Fits and compares all candidates (`[choice]` in docs/method.md); can be called for several lengths.

        Args:
            bits: `K`.
            phrases: `(N, E)` vectors of any texts, with which the center of texts is chosen if no texts were added.
                None: that of the images.
            rounds: Rounds of ITQ.

        Raises:
            DataError: With fewer than 2 images, or if all vectors of a modality are equal.
        """
        fitted, held_out = self._split()
        held = len(held_out.image_rows)
        everything = self._joined(fitted, held_out)
        check_spread(everything.images, "image")
        if held < _FEWEST_HELD_OUT:
            fitted, held_out, held = everything, everything, 0
        compared = []
        for name, build in self._builders(fitted, bits, rounds).items():
            projection = build()
            compared.append((Candidate(name, *_compared(projection, held_out)), projection))
        compared.sort(key=lambda one: -one[0].score)
        candidates = tuple(candidate for candidate, _ in compared)
        final = self._builders(everything, bits, rounds)[candidates[0].name]()
        by_partner = held_out.paired_rows >= _FEWEST_HELD_OUT
        if phrases is None or everything.texts.count:
            codes = _paired_codes(compared[0][1], held_out) if held and by_partner else None
            return Choice(final, candidates, held, by_partner, held_out_codes=codes)
        rows_NE = self._units(phrases, "vectors of phrases")
        centers = _compared_centers(compared[0][1], fitted.images.mean, replace(held_out, text_rows=rows_NE))
        center_E = _centers(everything.images.mean, rows_NE.mean(axis=0))[centers[0].name]
        return Choice(final.centered(center_E), candidates, held, by_partner, centers)

    def _units(self, vectors: Any, what: str) -> np.ndarray:
        units_NE = unit_vectors(vectors, what)
        if units_NE.shape[1] != self.width:
            raise DataError(f"The {what} have the width {units_NE.shape[1]}, where {self.width} was expected.")
        return units_NE

    def _add(self, name: str, rows: np.ndarray) -> None:
        moments, reservoir = self._pools[name]
        moments.add(reservoir.add(rows))

    def _split(self) -> tuple[_Data, _Data]:
        """The vectors to fit, and those to compare with: a random part of each sample."""
        parts = []
        for moments, reservoir in self._pools.values():
            held = min(self.held_out, reservoir.count // 5)
            rows = reservoir.rows.astype(np.float64)
            fitted = Moments(rows.shape[1])
            fitted.merge(moments)
            fitted.add(rows[held:])
            compared = Moments(rows.shape[1])
            compared.add(rows[:held])
            parts.append(((fitted, rows[held:]), (compared, rows[:held])))
        fitted_parts, compared_parts = zip(*parts, strict=True)
        return self._data(*fitted_parts), self._data(*compared_parts)

    def _data(self, images: tuple, texts: tuple, pairs: tuple) -> _Data:
        joint = PairMoments(self.width)
        joint.joint = pairs[0]
        images[0].merge(joint.images)
        texts[0].merge(joint.texts)
        return _Data(
            images[0],
            texts[0],
            joint,
            np.concatenate([images[1], pairs[1][:, : self.width]]),
            np.concatenate([texts[1], pairs[1][:, self.width :]]),
            len(pairs[1]),
        )

    def _joined(self, one: _Data, other: _Data) -> _Data:
        moments = Moments(self.width), Moments(self.width), PairMoments(self.width)
        for part in (one, other):
            moments[0].merge(part.images)
            moments[1].merge(part.texts)
            moments[2].merge(part.pairs)
        return _Data(
            *moments,
            np.concatenate([one.image_rows, other.image_rows]),
            np.concatenate([one.text_rows, other.text_rows]),
        )

    def _builders(self, data: _Data, bits: int, rounds: int) -> dict[str, Callable[[], HashProjection]]:
        """The functions that fit each candidate, by its name."""
        text_mean_E = data.texts.mean if data.texts.count else None
        projections: dict[str, Callable[[], HashProjection]] = {
            "pca": lambda: pca_projection(data.images, bits, text_mean_E)
        }
        if differ(data.texts):
            projections["shared"] = lambda: shared_projection(data.images, data.texts, bits)
        if differ(data.pairs.texts):
            projections["cca"] = lambda: cca_projection(
                data.pairs, bits, image_mean_E=data.images.mean, text_mean_E=text_mean_E
            )

        def frames(dimensions: int) -> _Rotation:
            return lambda _: random_frames(bits, dimensions, self.seed)

        rotations: dict[str, _Rotation] = {"itq": lambda rows: itq_rotation(rows(), rounds, self.seed)[0]}
        rotations["random rotation"] = frames(bits)
        for share in _FRAME_SHARES:
            if (dimensions := bits // share) >= _FEWEST_DIMENSIONS:
                rotations[f"frames of {dimensions}"] = frames(dimensions)

        def build(project: Callable[[], HashProjection], rotation: str) -> HashProjection:
            # Scaled before as well, so that both modalities weigh the same in the rotation.
            projection = scaled_for_tanh(project(), data.image_rows, data.text_rows)
            rotated = projection.rotated(rotations[rotation](lambda: self._rows(projection, data)), rotation)
            return scaled_for_tanh(rotated, data.image_rows, data.text_rows)

        return {
            f"{name}, {rotation}": partial(build, project, rotation)
            for name, project in projections.items()
            for rotation in rotations
        }

    def _rows(self, projection: HashProjection, data: _Data) -> np.ndarray:
        """Projected vectors for ITQ: as many of images as of texts, if there are enough."""
        texts = min(len(data.text_rows), self.sample // 2)
        images = self.sample - texts
        return np.concatenate([projection.images(data.image_rows[:images]), projection.texts(data.text_rows[:texts])])


def _centers(image_mean_E: np.ndarray, phrase_mean_E: np.ndarray) -> dict[str, np.ndarray]:
    """The candidates for the center of texts, by name: both means, parts of them, and zero."""
    means = {"images": image_mean_E, "phrases": phrase_mean_E}
    found = {
        f"{part}mean of {name}": share * mean for name, mean in means.items() for part, share in _CENTER_SHARES.items()
    }
    return {"zero": np.zeros_like(image_mean_E), **found, "1/2 of both means": (image_mean_E + phrase_mean_E) / 2}


def _compared_centers(projection: HashProjection, image_mean_E: np.ndarray, data: _Data) -> tuple[Candidate, ...]:
    """The agreement of codes with the encoder by center of texts, best first; `data` has phrases as texts."""
    centers = _centers(image_mean_E, data.text_rows.mean(axis=0))
    found = (Candidate(name, *_compared(projection.centered(center), data)) for name, center in centers.items())
    return tuple(sorted(found, key=lambda one: -one.score))


def scaled_for_tanh(projection: HashProjection, images_NE: np.ndarray, texts_NE: np.ndarray) -> HashProjection:
    """The projection with a root mean square of `TANH_RMS` in each modality (`[tanh-scale]` in docs/method.md).

    It is measured with these vectors; without texts, their factor is that of the images.
    """
    image_factor = tanh_factor(projection.images(images_NE))
    text_factor = tanh_factor(projection.texts(texts_NE)) if len(texts_NE) else image_factor
    return projection.scaled(image_factor, text_factor)


def tanh_factor(values_NK: np.ndarray) -> float:
    """The factor that gives values the root mean square `TANH_RMS`."""
    size = float(np.sqrt(np.mean(np.square(values_NK))))
    return TANH_RMS / size if size > 0 else 1.0


def _compared(projection: HashProjection, data: _Data) -> tuple[float, float]:
    """The figures of a `Candidate`, by AQD and by Hamming distance."""
    images_NE, texts_NE = data.image_rows, data.text_rows
    image_NK, text_NK = projection.images(images_NE), projection.texts(texts_NE)
    paired = min(data.paired_rows, _QUERIES)
    found = []
    if data.paired_rows >= _FEWEST_HELD_OUT:
        # Partners are last on both sides, in the same order.
        for queries_QK, items_NK in ((text_NK[-paired:], image_NK), (image_NK[-paired:], text_NK)):
            partners_Q = np.arange(len(items_NK) - paired, len(items_NK))
            found.append([discounted_rank(scores_QN, partners_Q) for scores_QN in _scores(queries_QK, items_NK)])
    else:
        queries = min(_QUERIES, len(images_NE) // 4 + 1)
        directions = [((images_NE[:queries], image_NK[:queries]), (images_NE[queries:], image_NK[queries:]))]
        if len(texts_NE):
            directions = [((texts_NE, text_NK), (images_NE, image_NK)), ((images_NE, image_NK), (texts_NE, text_NK))]
        for (queries_QE, queries_QK), (items_NE, items_NK) in directions:
            k = min(_NEIGHBORS, 1 + len(items_NE) // 10)
            cosines_QN = queries_QE[:_QUERIES] @ items_NE.T
            nearest_QN = np.zeros(cosines_QN.shape, bool)
            np.put_along_axis(nearest_QN, np.argsort(-cosines_QN, axis=1, kind="stable")[:, :k], True, axis=1)
            scores = _scores(queries_QK[:_QUERIES], items_NK)
            found.append([expected_overlap(scores_QN, nearest_QN, k) for scores_QN in scores])
    aqd, hamming = np.mean(found, axis=0)
    return float(aqd), float(hamming)


def _paired_codes(projection: HashProjection, data: _Data) -> tuple[np.ndarray, np.ndarray]:
    """The continuous codes of the images and the texts of the pairs."""
    rows = slice(-data.paired_rows, None)
    return np.tanh(projection.images(data.image_rows[rows])), np.tanh(projection.texts(data.text_rows[rows]))


def _scores(queries_QK: np.ndarray, items_NK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scores `(Q, N)` of AQD and, as inner products of signs, of Hamming distance."""
    signs_KN = np.where(items_NK >= 0, 1.0, -1.0).T
    return np.tanh(queries_QK) @ signs_KN, np.where(queries_QK >= 0, 1.0, -1.0) @ signs_KN


def discounted_rank(scores_QN: np.ndarray, partners_Q: np.ndarray) -> float:
    """The mean over queries of `1 / log2(1 + rank)` of the partner, largest score first, with its tie's mean rank."""
    own_Q1 = np.take_along_axis(scores_QN, partners_Q[:, None], axis=1)
    ranks_Q = (scores_QN > own_Q1).sum(axis=1) + ((scores_QN == own_Q1).sum(axis=1) + 1) / 2
    return float(np.mean(1 / np.log2(1 + ranks_Q)))


def expected_overlap(scores_QN: np.ndarray, relevant_QN: np.ndarray, k: int) -> float:
    """The expected share of the `k` relevant items of a query among its `k` best, over all orders of tied items."""
    last_Q1 = np.partition(scores_QN, -k, axis=1)[:, [-k]]
    above_QN, tied_QN = scores_QN > last_Q1, scores_QN == last_Q1
    free_Q = k - above_QN.sum(axis=1)
    found_Q = (relevant_QN & above_QN).sum(axis=1) + (relevant_QN & tied_QN).sum(axis=1) * free_Q / tied_QN.sum(axis=1)
    return float(found_Q.mean() / k)
