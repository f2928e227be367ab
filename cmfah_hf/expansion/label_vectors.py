"""Label vectors from word vectors, for the label graph (see docs/method.md, [label-graph]).

Shapes: C labels, E vector size.
"""

import hashlib
import logging
from collections.abc import Sequence

import numpy as np

from cmfah_hf.expansion.embedding import SkipGramEmbedding

logger = logging.getLogger(__name__)


def label_vectors(classes: Sequence[str], embedding: SkipGramEmbedding) -> np.ndarray:
    """Vectors of C label names, `(C, E)` float32, with the norm `sqrt(E)` of the model's word vectors, `[skip-gram]`.

    A name is the mean of its words' normalized vectors, without unknown words. A name without a known word gets a
    random vector seeded by the name, which does not depend on the process or the other labels.
    """
    width = embedding.vectors.shape[1]
    vectors_CE = np.zeros((len(classes), width), dtype=np.float32)
    unknown = []
    for row, name in enumerate(classes):
        known = [_normalized(embedding[word]) for word in embedding.word_rules.words(name) if word in embedding]
        vector_E = np.mean(known, axis=0) if known else np.zeros(width)
        if not vector_E.any():
            unknown.append(name)
            seed = int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
            vector_E = np.random.default_rng(seed).standard_normal(width)
        vectors_CE[row] = _normalized(vector_E) * width**0.5
    if unknown:
        logger.warning(
            "%d of %d labels have no word with a vector, so those of the label graph are drawn from the names: %s%s.",
            len(unknown),
            len(classes),
            ", ".join(map(repr, unknown[:10])),
            ", ..." if len(unknown) > 10 else "",
        )
    return vectors_CE


def _normalized(vector_E: np.ndarray) -> np.ndarray:
    return vector_E / max(float(np.linalg.norm(vector_E)), 1e-12)
