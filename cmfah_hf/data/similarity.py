"""Similarity of training pairs: by labels, by the tags of their texts, by pair identity, or by an encoder's vectors.

Shapes: B pairs of a batch, T tags, Q queries, N database items.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cmfah_hf.data.labels import encode_labels
from cmfah_hf.errors import DataError
from cmfah_hf.models.tokenization_cmfah import split_words

SIMILARITIES = ("labels", "tags", "pairs", "embeddings")
# Number of texts whose pairwise overlaps estimate the distribution of overlaps.
_SAMPLE = 1_000
_BINS = 1_000


class LabelSimilarity:
    """Pairs that share a label are similar. Calling it gives multi-hot labels, `(B, C)` float32."""

    name = "labels"

    def __init__(self, classes: Sequence[str]):
        self.classes = list(classes)

    def __call__(self, rows: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> np.ndarray:
        return encode_labels([[str(name) for name in row.get("labels") or ()] for row in rows], self.classes)

    def relevant(self, queries_QC: np.ndarray, database_NC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Labels of both sides for `RetrievalEvaluator`."""
        return queries_QC, database_NC


class TagSimilarity:
    """Pairs whose expanded texts share words are similar. Calling it gives tf-idf rows, `(B, T)` float32.

    The weight of a word is its inverse document frequency `ln(N / texts with it)`; words of all texts and of a single
    text are left out. Rows have unit length, or are zero. The overlap of two pairs is the cosine of their rows, and
    they are similar if it is above `threshold`, which is found by Otsu's method: it divides the overlaps of the
    training pairs into two classes with minimum within-class variance.

    Example:
        >>> tags = TagSimilarity.fit(["red boat sea", "boat sea", "red car", "car street"])
        >>> tags([{}, {}], ["boat", "a boat at sea"]).shape
        (2, 4)
    """

    name = "tags"

    def __init__(self, words: Sequence[str], weights_T: np.ndarray, threshold: float):
        self.words = list(words)
        self.weights_T = np.asarray(weights_T, np.float32)
        self.threshold = float(threshold)
        self._column = {word: column for column, word in enumerate(self.words)}

    @classmethod
    def fit(cls, texts: Iterable[str]) -> "TagSimilarity":
        """Fits weights and threshold on the training pairs' expanded texts, which are read twice."""
        counts: Counter[str] = Counter()
        size = 0
        for text in texts:
            counts.update(set(split_words(text)))
            size += 1
        words = sorted(word for word, count in counts.items() if 1 < count < size)
        if not words:
            raise DataError(
                f"the {size} training texts have no tag in common that some of them lack; train with "
                "--similarity pairs."
            )
        fitted = cls(words, np.array([math.log(size / counts[word]) for word in words]), 0.0)
        step = max(1, size // _SAMPLE)
        sample = [text for number, text in enumerate(texts) if number % step == 0][:_SAMPLE]
        rows_ST = fitted([{}] * len(sample), sample)
        overlaps_SS = rows_ST @ rows_ST.T
        fitted.threshold = otsu_threshold(overlaps_SS[np.triu_indices(len(sample), 1)])
        return fitted

    def __call__(self, rows: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> np.ndarray:
        weights_BT = np.zeros((len(texts), len(self.words)), np.float32)
        for number, text in enumerate(texts):
            columns = [self._column[word] for word in set(split_words(text)) if word in self._column]
            weights_BT[number, columns] = self.weights_T[columns]
        lengths_B1 = np.linalg.norm(weights_BT, axis=1, keepdims=True)
        return np.divide(weights_BT, lengths_B1, out=weights_BT, where=lengths_B1 > 0)

    def relevant(self, queries_QT: np.ndarray, database_NT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Labels of both sides for `RetrievalEvaluator`: one class for each query, held by its relevant items."""
        return np.eye(len(queries_QT), dtype=bool), database_NT @ queries_QT.T > self.threshold


class PairSimilarity:
    """Only image and text of the same pair are similar. Calling it gives a hash of each pair's id, `(B,)` int64."""

    name = "pairs"

    def __call__(self, rows: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> np.ndarray:
        try:
            names = [str(row["id"]) for row in rows]
        except KeyError:
            raise DataError("rows have no column 'id', which identifies a pair; add one.") from None
        digests = [hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest() for name in names]
        return np.array([int.from_bytes(digest, "big") >> 1 for digest in digests], np.int64)

    def relevant(self, queries_Q: np.ndarray, database_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Labels of both sides for `RetrievalEvaluator`; with one relevant item, MAP is the mean reciprocal rank."""
        return np.eye(len(queries_Q), dtype=bool), database_N[:, None] == queries_Q[None, :]


class EmbeddingSimilarity(PairSimilarity):
    """As `PairSimilarity`; `[distillation]` compares the vectors of a dual encoder, which the model computes."""

    name = "embeddings"


Similarity = LabelSimilarity | TagSimilarity | PairSimilarity


def otsu_threshold(values: np.ndarray) -> float:
    """Otsu's threshold of numbers in 0..1; of equally good ones the middle, 0 if all numbers are equal."""
    if not len(values):
        return 0.0
    counts, edges = np.histogram(np.clip(values, 0.0, 1.0), bins=_BINS, range=(0.0, 1.0))
    centers = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]
    above = len(values) - below
    sums = np.cumsum(counts * centers)
    means_below = sums[:-1] / np.maximum(below, 1)
    means_above = (sums[-1] - sums[:-1]) / np.maximum(above, 1)
    between = below * above * (means_below - means_above) ** 2.0
    if between.max() <= 0:
        return 0.0
    best = np.flatnonzero(between >= between.max() * (1 - 1e-12))
    return float((edges[best[0] + 1] + edges[best[-1] + 1]) / 2)
