"""Corpus for word vectors: expanded texts and random walks (see docs/method.md, [skip-gram])."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from cmfah_hf.expansion.corpus import iterate_words

# Number of texts that are expanded together.
_BLOCK_TEXTS = 1_024


class ExpandedCorpus:
    """Expanded texts, each with `num_walks` walks, as word lists; lazy, and the same in every iteration."""

    def __init__(self, expander: Any, source: Any, text_column: str, num_walks: int):
        self._expander = expander
        self._source = source
        self._text_column = text_column
        self._num_walks = num_walks

    def __iter__(self) -> Iterator[list[str]]:
        rows: list[list[str]] = []
        first = 0
        for words in iterate_words(self._source, self._text_column, self._expander.graph.split):
            rows.append(words)
            if len(rows) == _BLOCK_TEXTS:
                yield from self._sentences(rows, first)
                first += len(rows)
                rows = []
        yield from self._sentences(rows, first)

    def _sentences(self, rows: list[list[str]], first: int) -> Iterator[list[str]]:
        expander = self._expander
        walk = expander._walk()
        start_NV = walk.start(rows)
        generators = [np.random.default_rng([expander.seed, first + row]) for row in range(len(rows))]
        walks = walk.walk.sample(start_NV, self._num_walks, generators)
        for expanded, row_walks in zip(expander._expanded(rows), walks, strict=True):
            yield expanded
            if self._num_walks and row_walks[0, 0] >= 0:
                yield from ([expander.graph.vocabulary[number] for number in walk] for walk in row_walks.tolist())
