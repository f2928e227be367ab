"""Small texts with results computed by hand, and dense reference matrices for sparse ones."""

import numpy as np
import pytest

CAPTIONS = [
    "A dog on the beach",
    "a brown dog runs at the beach",
    "sunset over the sea",
    "beach, sea and sunset",
    "",
    "a cat on a sofa",
    "cat and dog",
    "children run on the beach",
    "!?",
    "boat sea",
    "a boat at sunset",
    "sofa",
]


@pytest.fixture(scope="session")
def captions() -> list[str]:
    return list(CAPTIONS)


@pytest.fixture(scope="session")
def dense_reference():
    """Word lists and a vocabulary -> the bipartite matrices `P_iw` (N, V) and `P_wi` (V, N) in dense float64."""

    def build(word_lists: list[list[str]], vocabulary: list[str]) -> tuple[np.ndarray, np.ndarray]:
        edges_NV = np.array([[word in words for word in vocabulary] for words in word_lists], dtype=np.float64)
        lengths = edges_NV.sum(axis=1, keepdims=True)
        p_iw = np.divide(edges_NV, lengths, out=np.zeros_like(edges_NV), where=lengths > 0)
        return p_iw, (edges_NV / edges_NV.sum(axis=0)).T

    return build
