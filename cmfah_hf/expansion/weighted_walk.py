"""Random walks on a fitted graph with word weights, from word lists (see docs/method.md, [graph]).

Shapes: N texts, V words of the graph.
"""

import hashlib

import numpy as np
from scipy import sparse

from cmfah_hf.expansion.graph import ImageWordGraph
from cmfah_hf.expansion.walks import RandomWalk


class WeightedWalk:
    """Walks on a graph whose words are weighted, `"binary"` or `"idf"`; `alphabet_V` are alphabetical ranks."""

    def __init__(self, graph: ImageWordGraph, walk_length: int, word_weights: str):
        self._graph = graph
        words = graph.vocabulary
        self.alphabet_V = np.empty(len(words), dtype=np.int64)
        self.alphabet_V[sorted(range(len(words)), key=words.__getitem__)] = np.arange(len(words))
        self._weights_V: np.ndarray | None = None
        transitions_VV = graph.transitions
        if word_weights == "idf":
            self._weights_V = np.log((1 + graph.num_images) / (1 + graph.counts)) + 1.0
            weighted = sparse.csr_array(transitions_VV @ sparse.diags_array(self._weights_V))
            transitions_VV = sparse.csr_array(sparse.diags_array(1.0 / weighted.sum(axis=1)) @ weighted)
        self.walk = RandomWalk(transitions_VV, walk_length)

    def start(self, rows: list[list[str]]) -> sparse.csr_array:
        """Step 1 of the walk from each word list, see `ImageWordGraph.start`."""
        return self._graph.start(rows, self._weights_V)

    def sampled_visits(self, start_NV: sparse.csr_array, num_walks: int, seed: int) -> np.ndarray:
        """Mean visits of sampled walks, `(N, V)`; those of a row depend on `seed` and its words only."""
        visits_NV = np.zeros(start_NV.shape)
        row_numbers = np.split(start_NV.indices, start_NV.indptr[1:-1])
        walks = self.walk.sample(start_NV, num_walks, [self._generator(row, seed) for row in row_numbers])
        for row in np.flatnonzero(np.diff(start_NV.indptr)):
            visits_NV[row] = np.bincount(walks[row].ravel(), minlength=start_NV.shape[1]) / num_walks
        return visits_NV

    def _generator(self, numbers: np.ndarray, seed: int) -> np.random.Generator:
        words = "\n".join(sorted(self._graph.vocabulary[number] for number in numbers))
        digest = hashlib.blake2b(words.encode(), digest_size=8).digest()
        return np.random.default_rng([seed, int.from_bytes(digest, "little")])
