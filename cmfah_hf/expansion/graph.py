"""Bipartite image-word graph, fitted in one pass and stored as a word-word matrix (see docs/method.md, [graph]).

Shapes: N images (texts), V words.
"""

import logging
from collections.abc import Iterable, Sequence
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from cmfah_hf.errors import CMFAHError, DataError
from cmfah_hf.expansion.corpus import iterate_words, words_of
from cmfah_hf.expansion.storage import Fitted, require_words, sparse_rows
from cmfah_hf.expansion.walks import RandomWalk
from cmfah_hf.expansion.word_splitters import Splitter, Tokenizer, word_splitter

if TYPE_CHECKING:
    import networkx

logger = logging.getLogger(__name__)

# Number of word pairs that are multiplied out together, 16 bytes each.
_CHUNK_PAIRS = 1 << 20
# A text of n distinct words has n^2 pairs, so a text far longer than any caption would exhaust the memory.
_MAX_WORDS = 10_000


class ImageWordGraph(Fitted):
    """Graph of images and words, as transitions word -> image -> word ([graph], see docs/method.md).

    An image and a word have an edge if the word occurs in the image's text, once or more often. With `P_iw` the
    row-normalized step from image to word and `P_wi` that from word to image, the images can be summed out:

        M_ab = (P_wi P_iw)_ab = 1 / deg(a) * sum over images i of [a in i] [b in i] / len(i)

    so the fitted state is V x V and does not grow with the number of images, which are read once and not kept.

    Args:
        min_count: Minimum number of images of a word. Rarer words are removed when all images have been read, so hops
            are conditioned on not reaching one: their columns are removed and the rows of M normalized again.
        stop_words: Words to ignore: an iterable of words, or `"english"`.
        tokenizer: `"words"`, `"chinese"`, `"icu"` or a function from a text to a list of words.

    Attributes:
        vocabulary: V words, by descending count, ties alphabetically.
        counts: `(V,)` int64, the number of images of each word.
        num_images: N, including images without a word.
        transitions: `(V, V)` float64 `scipy.sparse.csr_array`, M. Every row sums to 1.
    """

    _UNFITTED = "The graph holds no words yet; call fit(dataset) first."

    def __init__(
        self, min_count: int = 1, stop_words: str | Iterable[str] | None = None, tokenizer: Tokenizer = "words"
    ):
        if min_count < 1:
            raise CMFAHError(f"min_count={min_count} is below 1; every word in the graph has at least one image.")
        self.min_count = int(min_count)
        self.tokenizer = tokenizer
        self.split = word_splitter(tokenizer)
        self.stop_words = normalized_stop_words(stop_words, self.split)

    def fit(self, source: Any, text_column: str = "text") -> "ImageWordGraph":
        """Fits on the texts in one pass; an earlier fit is discarded.

        Args:
            source: A map-style or streaming data set, or any iterable of texts, tag lists or rows.
            text_column: The column of the texts.

        Raises:
            DataError: If the column is missing, a row is not a text, or no word is left.
        """
        stop_words = frozenset(self.stop_words)
        numbers: dict[str, int] = {}
        pairs = _PairSums()
        num_images = 0
        for words in iterate_words(source, text_column, self.split):
            distinct = dict.fromkeys(word for word in words if word not in stop_words)
            if len(distinct) > _MAX_WORDS:
                raise DataError(
                    f"Row {num_images}, column {text_column!r}, holds {len(distinct)} different words; the graph "
                    f"accepts tags or captions of at most {_MAX_WORDS}. Cut the text."
                )
            pairs.add([numbers.setdefault(word, len(numbers)) for word in distinct])
            num_images += 1
        weights, counts = pairs.totals(len(numbers))
        names = list(numbers)
        order = sorted(
            (number for number in range(len(names)) if counts[number] >= self.min_count),
            key=lambda number: (-counts[number], names[number]),
        )
        if not order:
            raise DataError(
                f"Column {text_column!r} leaves no word for the graph after {num_images} rows (min_count="
                f"{self.min_count}, {len(stop_words)} stop words); check the column or lower min_count."
            )
        weights = weights[order][:, order]
        transitions = sparse.csr_array(sparse.diags_array(1.0 / weights.sum(axis=1)) @ weights)
        self._set_state([names[number] for number in order], counts[order], num_images, transitions)
        logger.info("Graph of %d images and %d words, %d word pairs.", num_images, len(order), transitions.nnz)
        return self

    @property
    def counts(self) -> np.ndarray:
        self._check_fitted()
        return self._counts_V

    @property
    def num_images(self) -> int:
        self._check_fitted()
        return self._num_images

    @property
    def transitions(self) -> sparse.csr_array:
        self._check_fitted()
        return self._transitions_VV

    @property
    def word_numbers(self) -> dict[str, int]:
        """The index of every word in `vocabulary`."""
        self._check_fitted()
        return self._word_numbers

    def start(self, words: Sequence[Sequence[str]], weights_V: np.ndarray | None = None) -> sparse.csr_array:
        """Step 1 of the walk from each word list: its known words with probabilities proportional to their weights.

        Args:
            words: N word lists.
            weights_V: Positive word weights. None: equal weights, which is `P_iw` of the word lists.

        Returns:
            `(N, V)`; rows sum to 1, or are empty if no word is known.
        """
        known = [
            sorted({number for word in row if (number := self.word_numbers.get(word)) is not None}) for row in words
        ]
        columns = np.fromiter((number for row in known for number in row), dtype=np.int32)
        indptr = np.concatenate([[0], np.cumsum([len(row) for row in known], dtype=np.int64)]).astype(np.int32)
        values = np.ones(len(columns)) if weights_V is None else weights_V[columns]
        # Summed row by row, so that rounding does not depend on the other rows.
        for first, end in pairwise(indptr):
            values[first:end] /= values[first:end].sum()
        return sparse.csr_array((values, columns, indptr), shape=(len(known), len(self.vocabulary)))

    def expected_visits(self, texts: Sequence[Any], walk_length: int = 5) -> np.ndarray:
        """Expected visits of each word by a walk from an image with each of these texts: `(N, V)` float64.

        Rows sum to the number of words on a walk, 3 for length 5, or to 0 for a text without a known word.
        """
        return RandomWalk(self.transitions, walk_length).expected_visits(self.start(self._words_of(texts)))

    def sample_walks(self, texts: Sequence[Any], num_walks: int, walk_length: int = 5, seed: int = 0) -> np.ndarray:
        """Walks from an image with each of these texts: `(N, num_walks, words on a walk)` int64 word indices.

        The next word is drawn from the word's row of M, which is the distribution of drawing an image and then one of
        its words. A text without a known word gives -1 throughout.
        """
        start = self.start(self._words_of(texts))
        generators = [np.random.default_rng([seed, row]) for row in range(start.shape[0])]
        return RandomWalk(self.transitions, walk_length).sample(start, num_walks, generators)

    def to_networkx(self, source: Any, text_column: str = "text") -> "networkx.Graph":
        """The bipartite graph for networkx.

        The fitted state does not contain the images, so their texts (or those of other images) are needed again.

        Returns:
            Nodes `("image", row)` with `bipartite=0` and `("word", word)` with `bipartite=1` and `count`; an edge if a
            word of the vocabulary occurs in the text.
        """
        import networkx

        graph: networkx.Graph = networkx.Graph()
        for word, count in zip(self.vocabulary, self.counts.tolist(), strict=True):
            graph.add_node(("word", word), bipartite=1, count=count)
        for row, words in enumerate(iterate_words(source, text_column, self.split)):
            graph.add_node(("image", row), bipartite=0)
            graph.add_edges_from((("image", row), ("word", word)) for word in words if word in self.word_numbers)
        return graph

    def to_word_graph(
        self, min_probability: float = 0.0, transitions_VV: sparse.csr_array | None = None
    ) -> "networkx.DiGraph":
        """M as a directed graph: words with their `count`, and edges with the probability of the hop as `weight`.

        Args:
            min_probability: Edges below it are omitted, so that the weights of a word can sum to less than 1.
            transitions_VV: Other probabilities, such as weighted ones. None: M.
        """
        import networkx

        words = self.vocabulary
        graph: networkx.DiGraph = networkx.DiGraph()
        graph.add_nodes_from((w, {"count": c}) for w, c in zip(words, self.counts.tolist(), strict=True))
        m = (self.transitions if transitions_VV is None else transitions_VV).tocoo()
        graph.add_weighted_edges_from(
            (words[a], words[b], p)
            for a, b, p in zip(m.row.tolist(), m.col.tolist(), m.data.tolist(), strict=True)
            if p >= min_probability
        )
        return graph

    def tensors(self) -> dict[str, np.ndarray]:
        """The arrays of the fitted state, for `set_state`."""
        m = self.transitions
        return {"counts": self.counts, "data": m.data, "indices": m.indices, "indptr": m.indptr}

    def set_state(self, vocabulary: list[str], num_images: int, tensors: dict[str, np.ndarray]) -> None:
        """Sets the state from `vocabulary`, `num_images` and `tensors()` of another graph.

        Raises:
            ValueError: If the parts are inconsistent.
            KeyError: If an array is missing.
        """
        size = len(require_words(vocabulary))
        counts_V = tensors["counts"]
        if size == 0 or counts_V.shape != (size,) or counts_V.dtype.kind != "i":
            raise ValueError(f"the counts are not those of {size} words")
        if type(num_images) is not int or not 1 <= counts_V.min() <= counts_V.max() <= num_images < 2**53:
            raise ValueError("a word is counted more often than there are images, or not at all")
        transitions = sparse_rows(tensors, (size, size))
        if not ((transitions.data > 0).all() and np.allclose(transitions.sum(axis=1), 1.0)):
            raise ValueError("the rows of the transition matrix are not distributions")
        self._set_state(list(vocabulary), counts_V, num_images, transitions)

    def _set_state(
        self, vocabulary: list[str], counts_V: np.ndarray, num_images: int, transitions_VV: sparse.csr_array
    ) -> None:
        transitions_VV.sort_indices()
        # A fixed integer type, so that equal graphs are equal bytes.
        index_type = np.int32 if transitions_VV.nnz < np.iinfo(np.int32).max else np.int64
        transitions_VV.indices = transitions_VV.indices.astype(index_type, copy=False)
        transitions_VV.indptr = transitions_VV.indptr.astype(index_type, copy=False)
        self._vocabulary = vocabulary
        self._word_numbers = {word: number for number, word in enumerate(vocabulary)}
        self._counts_V = np.asarray(counts_V, dtype=np.int64)
        self._num_images = int(num_images)
        self._transitions_VV = transitions_VV

    def _words_of(self, texts: Sequence[Any]) -> list[list[str]]:
        return [words_of(text, split=self.split) for text in texts]

    def __getstate__(self) -> dict[str, Any]:
        # Plain strings and bytes, whose pickle, and so the fingerprint of a data set, depends on their content alone.
        state: dict[str, Any] = {"min_count": self.min_count, "stop_words": "\n".join(self.stop_words)}
        if self.tokenizer != "words":
            state["tokenizer"] = self.tokenizer
        if self._vocabulary is not None:
            state["vocabulary"] = "\n".join(self._vocabulary)
            state["num_images"] = self.num_images
            state["tensors"] = {name: (array.dtype.str, array.tobytes()) for name, array in self.tensors().items()}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.min_count = state["min_count"]
        self.stop_words = tuple(state["stop_words"].split("\n")) if state["stop_words"] else ()
        self.tokenizer = state.get("tokenizer", "words")
        self.split = word_splitter(self.tokenizer)
        if "vocabulary" in state:
            tensors = {name: np.frombuffer(raw, dtype).copy() for name, (dtype, raw) in state["tensors"].items()}
            self.set_state(state["vocabulary"].split("\n"), state["num_images"], tensors)


class _PairSums:
    """`sum over images of [a in i] [b in i] / len(i)` for all word pairs, and the number of images of each word.

    Words are numbered by first occurrence. Images are buffered for matrix products, and products are merged once they
    are as large as the sum, so that each pair is copied a constant number of times.
    """

    def __init__(self) -> None:
        self._rows: list[list[int]] = []
        self._num_pairs = 0
        self._num_words = 0
        self._waiting: list[sparse.csr_array] = []
        self._sums = sparse.csr_array((0, 0))
        self._counts_V = np.zeros(0, dtype=np.int64)

    def add(self, words: list[int]) -> None:
        if not words:
            return
        self._rows.append(words)
        self._num_words = max(self._num_words, max(words) + 1)
        self._num_pairs += len(words) ** 2
        if self._num_pairs >= _CHUNK_PAIRS:
            self._multiply()
            if sum(product.nnz for product in self._waiting) >= max(_CHUNK_PAIRS, self._sums.nnz):
                self._merge()

    def totals(self, num_words: int) -> tuple[sparse.csr_array, np.ndarray]:
        """The sums, `(V, V)`, and the counts, `(V,)`."""
        self._num_words = num_words
        self._multiply()
        self._merge()
        return self._sums, self._counts_V

    def _multiply(self) -> None:
        lengths = np.array([len(row) for row in self._rows], dtype=np.int64)
        columns = np.fromiter(chain.from_iterable(self._rows), dtype=np.int32, count=int(lengths.sum()))
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        shape = (len(lengths), self._num_words)
        member_NV = sparse.csr_array((np.ones(len(columns)), columns, indptr), shape=shape)
        step_NV = sparse.csr_array((np.repeat(1.0 / lengths, lengths), columns, indptr), shape=shape)
        if len(columns):
            self._waiting.append(sparse.csr_array(member_NV.T @ step_NV))
        counts_V = np.bincount(columns, minlength=self._num_words)
        counts_V[: len(self._counts_V)] += self._counts_V
        self._counts_V = counts_V
        self._rows, self._num_pairs = [], 0

    def _merge(self) -> None:
        size = (self._num_words, self._num_words)
        self._sums.resize(size)
        for product in self._waiting:
            product.resize(size)
            self._sums = self._sums + product
        self._waiting = []


def normalized_stop_words(stop_words: str | Iterable[str] | None, split: Splitter) -> tuple[str, ...]:
    """Sorted stop words, split by `split`: those of an iterable, `"english"`, or none."""
    if stop_words is None:
        return ()
    if isinstance(stop_words, str):
        if stop_words != "english":
            raise CMFAHError(f"stop_words={stop_words!r} is not known; give 'english' or a list of words.")
        from gensim.parsing.preprocessing import STOPWORDS

        stop_words = STOPWORDS
    return tuple(sorted({word for entry in stop_words for word in split(entry)}))
