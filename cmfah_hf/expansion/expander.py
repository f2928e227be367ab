"""Text expansion by walks on the image-word graph and related words of an encyclopedia.

See docs/method.md, [graph] and [knowledge].

Shapes: N texts, V words of the graph.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from cmfah_hf.errors import CheckpointError, CMFAHError, DataError
from cmfah_hf.expansion.corpus import check_column, is_one_row, words_of
from cmfah_hf.expansion.explanation import AddedWord, Explanation, knowledge_causes, walk_causes
from cmfah_hf.expansion.graph import ImageWordGraph
from cmfah_hf.expansion.knowledge import KNOWLEDGE_STEM, WikipediaKnowledge
from cmfah_hf.expansion.sentences import ExpandedCorpus
from cmfah_hf.expansion.storage import (
    damaged,
    load_state,
    load_whole,
    remove_state,
    replacing,
    save_state,
    state_digest,
)
from cmfah_hf.expansion.walks import coordinates, largest_shares, num_hops
from cmfah_hf.expansion.weighted_walk import WeightedWalk
from cmfah_hf.expansion.word_splitters import Tokenizer, saved_tokenizer, tokenizer_name

if TYPE_CHECKING:
    import networkx

_STEM = "expander"
_MOST_WALKS = 10**6  # from each text
_SETTINGS = ["walk_length", "top_k", "min_probability", "mode", "num_walks", "seed", "word_weights", "output_column"]
# Maximum size of the visits of texts that are expanded together, N x V float64.
_BLOCK_ELEMENTS = 1 << 22
_BLOCK_TEXTS = 1_024
# Visits that are equal when rounded to this many decimals are equal, so that the order does not depend on the machine.
_DECIMALS = 12


class GraphExpander:
    """Adds to each text words that random walks on the image-word graph visit ([graph]), and optionally related words
    of an encyclopedia ([knowledge]).

    Fit it on texts, then pass it to `datasets.map`, for the same texts or others:

        expander = GraphExpander().fit(dataset, text_column="text")
        dataset = dataset.map(expander, batched=True)          # adds the column "expanded_text"

    The words of the text come first, unchanged, including unknown ones. Then come the words of the graph by descending
    expected visits, ties alphabetically, and those of the knowledge by descending score; no word is added twice. A text
    without a known word gets no words. Equal fits give equal fingerprints, so `datasets` reuses its cache.

    Args:
        walk_length: Number of steps from the image, odd. A walk visits words at steps 1, 3, 5, ...; 1 adds nothing.
        top_k: Maximum number of words of the graph to add; `None` for no limit.
        min_probability: Minimum share of a word, its expected visits divided by the number of words on a walk.
        mode: `"closed_form"` computes `x1 + x1 M + x1 M^2`; `"walk"` counts `num_walks` sampled walks. Samples
            depend on `seed` and the text's known words only, so a text gives the same words in any batch and process.
        num_walks: Number of walks from each text in `mode="walk"`.
        seed: Seed of the sampled walks.
        min_count: Minimum number of images of a word in the graph.
        word_weights: Weights of the words of an image. `"binary"`: equal. `"idf"`: `ln((1 + N) / (1 + count)) + 1`, for
            the first word and for each hop (M with weighted columns, its rows normalized again).
        stop_words: Words to leave out of the graph, which are never added: an iterable of words, or `"english"`.
        output_column: The name of the new column.
        tokenizer: `"words"`, `"chinese"`, `"icu"` or a function from a text to a list of words. The model always
            reads single Han characters. A function is not saved; pass it to `load` again.
        knowledge: Fitted knowledge with the same tokenizer, or `None`. It can be set later, when the vocabulary of the
            graph is known.
        knowledge_top_k: Maximum number of words of the knowledge to add; `None` for no limit.

    Example:
        >>> expander = GraphExpander(top_k=1).fit(["dog beach", "dog park", "cat sofa"])
        >>> expander.expand("a beach")
        ['a', 'beach', 'dog']
    """

    def __init__(
        self,
        walk_length: int = 5,
        *,
        top_k: int | None = 10,
        min_probability: float = 0.0,
        mode: str = "closed_form",
        num_walks: int = 200,
        seed: int = 0,
        min_count: int = 1,
        word_weights: str = "binary",
        stop_words: str | Iterable[str] | None = None,
        output_column: str = "expanded_text",
        tokenizer: Tokenizer = "words",
        knowledge: WikipediaKnowledge | None = None,
        knowledge_top_k: int | None = 10,
    ):
        num_hops(walk_length)
        if mode not in ("closed_form", "walk"):
            raise CMFAHError(f"mode={mode!r} is not known; give 'closed_form' or 'walk'.")
        if word_weights not in ("binary", "idf"):
            raise CMFAHError(f"word_weights={word_weights!r} is not known; give 'binary' or 'idf'.")
        if not 0.0 <= min_probability <= 1.0:
            raise CMFAHError(f"min_probability={min_probability} is not a probability; give 0 to 1.")
        for name, value, lowest in (
            ("top_k", top_k, 0),
            ("num_walks", num_walks, 1),
            ("seed", seed, 0),
            ("knowledge_top_k", knowledge_top_k, 0),
        ):
            if value is not None and value < lowest:
                raise CMFAHError(f"{name}={value} is below {lowest}; give {name} >= {lowest}.")
        if num_walks > _MOST_WALKS or not isinstance(output_column, str):
            raise CMFAHError(f"num_walks={num_walks} is beyond {_MOST_WALKS:,}, or output_column is not a string.")
        self.walk_length = int(walk_length)
        self.top_k = None if top_k is None else int(top_k)
        self.min_probability = float(min_probability)
        self.mode = mode
        self.num_walks = int(num_walks)
        self.seed = int(seed)
        self.word_weights = word_weights
        self.output_column = output_column
        self.text_column = "text"
        self.graph = ImageWordGraph(min_count=min_count, stop_words=stop_words, tokenizer=tokenizer)
        self.knowledge_top_k = None if knowledge_top_k is None else int(knowledge_top_k)
        self.knowledge = knowledge
        self._derived: tuple[tuple[int, str], WeightedWalk] | None = None

    @property
    def knowledge(self) -> WikipediaKnowledge | None:
        return self._knowledge

    @knowledge.setter
    def knowledge(self, knowledge: WikipediaKnowledge | None) -> None:
        if knowledge is not None and knowledge.tokenizer != self.graph.tokenizer:
            raise CMFAHError(
                f"The knowledge has the tokenizer {knowledge.tokenizer!r} and the graph {self.graph.tokenizer!r}; give "
                "both the same."
            )
        self._knowledge = knowledge

    def fit(self, dataset: Any, text_column: str = "text") -> "GraphExpander":
        """Fits the graph in one pass over the texts; an earlier fit is discarded.

        Args:
            dataset: A map-style or streaming data set, or any iterable of texts: strings, lists of tags, or rows.
            text_column: The column of the texts, here and when the expander is called.

        Raises:
            DataError: If the column is missing, a row is not a text, or no word is left for the graph.
        """
        self.graph.fit(dataset, text_column)
        self.text_column = text_column
        self._derived = None
        return self

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The new column of a batch (or of one row), for `datasets.map`.

        Args:
            batch: A mapping of columns with `text_column`: strings, or lists of tags. A plain mapping whose columns
                are all lists of equal length is a batch.

        Returns:
            `{"expanded_text": [...]}` with a string for each text; words are separated by spaces.

        Raises:
            DataError: If the column is missing or has other values.
        """
        if not isinstance(batch, Mapping):
            raise DataError(
                f"The batch is a {type(batch).__name__}, not a mapping of columns; map a data set with_format(None)."
            )
        check_column(batch, self.text_column, "The batch")
        values = batch[self.text_column]
        where = f"Column {self.text_column!r}"
        if is_one_row(batch, self.text_column):
            return {self.output_column: " ".join(next(self._expanded([self._words_of(values, where)])))}
        rows = [self._words_of(value, f"{where}, row {number} of the batch,") for number, value in enumerate(values)]
        return {self.output_column: [" ".join(words) for words in self._expanded(rows)]}

    def expand(self, text: Any) -> list[str]:
        """The words of one text, a string or a list of tags, followed by the added words."""
        return next(self._expanded([self._words_of(text)]))

    def expected_visits(self, text: Any) -> dict[str, float]:
        """The expected visits of each word by a walk from the text, in descending order, ties alphabetically.

        The values sum to the number of words on a walk (3 for length 5); words that are never visited are omitted, and
        a text without a known word gives `{}`. With `mode="walk"` they are the mean visits of the sampled walks.
        """
        visits_V = self._visits(self._walk().start([self._words_of(text)]))[0]
        words = self.graph.vocabulary
        reached = np.flatnonzero(visits_V > 0)
        order = reached[np.lexsort((self._walk().alphabet_V[reached], -np.round(visits_V[reached], _DECIMALS)))]
        return {words[number]: float(visits_V[number]) for number in order}

    def explain(self, text: Any, ways: int | None = 5) -> Explanation:
        """Explains the words that `expand(text)` adds; `print` shows a table.

        A word of the graph is explained by the words through which walks reach it, and their shares; a word of the
        knowledge by the words of the text that it is related to. With `mode="walk"` the shares are expected values.

        Args:
            text: A string or a list of tags.
            ways: Number of ways to keep for each word of the text; `None` for all.
        """
        own = self._words_of(text)
        start_NV = self._walk().start([own])
        hops, words = num_hops(self.walk_length), self.graph.vocabulary
        num_of_graph = len(self._best(self._shares(start_NV))[0])
        added = []
        for place, word in enumerate(next(self._expanded([own]))[len(own) :]):
            if place < num_of_graph or self.knowledge is None:
                source = "graph"
                start = (start_NV.indices, start_NV.data)
                number = self.graph.word_numbers[word]
                causes = walk_causes(self.transitions, start, hops, number, words, ways)
            else:
                source = "knowledge"
                causes = knowledge_causes({a: self.knowledge.score(a, word) for a in own})
            added.append(AddedWord(word, source, float(sum(cause.score for cause in causes)), causes))
        unknown = [word for word in dict.fromkeys(own) if not self.knows(word)]
        return Explanation(own, unknown, added)

    def knows(self, word: str) -> bool:
        """Whether a word is in the graph or in the knowledge."""
        return word in self.graph.word_numbers or (self.knowledge is not None and word in self.knowledge)

    @property
    def transitions(self) -> sparse.csr_array:
        """M with the word weights: the probabilities of hops from word to word, `(V, V)`; every row sums to 1."""
        return self._walk().walk.transitions_VV

    def to_networkx(self, min_probability: float = 0.0) -> "networkx.DiGraph":
        """The words as a directed graph for networkx.

        Nodes have the number of images as `count`. Edges have the probability of the hop as `weight` (0 if there is
        none), and the score of the knowledge, if any, as `ppmi`.

        Args:
            min_probability: Hops below it are omitted.
        """
        graph = self.graph.to_word_graph(min_probability, self.transitions)
        if self.knowledge is not None:
            pairs = self.knowledge.scores.tocoo()
            vocabulary, words = self.knowledge.vocabulary, self.knowledge.words
            for a, b, score in zip(pairs.row.tolist(), pairs.col.tolist(), pairs.data.tolist(), strict=True):
                hop = graph.get_edge_data(vocabulary[a], words[b], {"weight": 0.0})
                graph.add_edge(vocabulary[a], words[b], **hop | {"ppmi": score})
        return graph

    def corpus(self, source: Any, text_column: str | None = None, num_walks: int = 10) -> "ExpandedCorpus":
        """Sentences for `SkipGramEmbedding.fit`: each expanded text, then `num_walks` walks from its image.

        Args:
            source: A data set or any iterable of texts; read again in each iteration of the corpus.
            text_column: The column of the texts. None: the one of `fit`.
            num_walks: Number of walks from each text with a known word.
        """
        self.graph.vocabulary  # noqa: B018 - raises if the expander is not fitted
        if num_walks < 0:
            raise CMFAHError(f"num_walks={num_walks} is below 0; give num_walks >= 0.")
        return ExpandedCorpus(self, source, self.text_column if text_column is None else text_column, num_walks)

    @property
    def digest(self) -> str:
        """A digest of everything that determines the added words, equal for equal fits."""
        return state_digest(self.graph.tensors(), self._content())

    def save(self, folder: str | Path) -> None:
        """Saves the expander, and its knowledge if any.

        The files are `expander.safetensors` (arrays of the graph), `expander.json` (settings and words),
        `knowledge.safetensors` and `knowledge.json`.
        """
        with replacing(folder, [_STEM, KNOWLEDGE_STEM]):
            if self.knowledge is not None:
                self.knowledge.write_state(folder)
            save_state(folder, _STEM, type(self).__name__, self.graph.tensors(), self._content())
            if self.knowledge is None:  # files of an earlier save do not belong to this one
                remove_state(folder, KNOWLEDGE_STEM)

    @classmethod
    def load(cls, folder: str | Path, tokenizer: Tokenizer | None = None) -> "GraphExpander":
        """Loads a saved expander.

        Args:
            folder: The folder given to `save`.
            tokenizer: The tokenizer, if it was a function.

        Raises:
            CheckpointError: If a file is missing or damaged.
        """
        return load_whole(folder, _STEM, lambda place: cls._read(place, tokenizer))

    @classmethod
    def _read(cls, folder: Path, tokenizer: Tokenizer | None) -> "GraphExpander":
        tensors, content = load_state(folder, _STEM, cls.__name__)
        own = saved_tokenizer(content.get("tokenizer", "words"), tokenizer, folder, cls.__name__)
        related = content.get("knowledge")
        try:
            options = {} if related is None else {"knowledge_top_k": related["top_k"]}
            digest = None if related is None else related["digest"]
            expander = cls(**content["settings"], tokenizer=own, **options)
            expander.text_column = str(content["text_column"])
            expander.graph.set_state(content["vocabulary"], content["num_images"], tensors)
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            raise damaged(folder, _STEM, error) from error
        if related is not None:
            expander.knowledge = WikipediaKnowledge.read_state(folder, tokenizer)
            if expander.knowledge.digest != digest:
                raise CheckpointError(
                    f"{Path(folder, KNOWLEDGE_STEM)}.json belongs to another save than {_STEM}.json; save the "
                    f"{cls.__name__} again."
                )
        return expander

    def _content(self) -> dict[str, Any]:
        settings = {name: getattr(self, name) for name in _SETTINGS}
        content = {
            "settings": settings | {"min_count": self.graph.min_count, "stop_words": list(self.graph.stop_words)},
            "text_column": self.text_column,
            "num_images": self.graph.num_images,
            "vocabulary": self.graph.vocabulary,
        }
        if self.graph.tokenizer != "words":
            content["tokenizer"] = tokenizer_name(self.graph.tokenizer)
        if self.knowledge is not None:
            content["knowledge"] = {"top_k": self.knowledge_top_k, "digest": self.knowledge.digest}
        return content

    def _walk(self) -> WeightedWalk:
        """The walk on the graph, computed on first use."""
        key = (self.walk_length, self.word_weights)
        if self._derived is None or self._derived[0] != key:
            self._derived = key, WeightedWalk(self.graph, *key)
        return self._derived[1]

    def _words_of(self, text: Any, where: str = "The text") -> list[str]:
        return words_of(text, where, self.graph.split)

    def _visits(self, start_NV: sparse.csr_array) -> np.ndarray:
        if self.mode == "closed_form":
            return self._walk().walk.expected_visits(start_NV)
        return self._walk().sampled_visits(start_NV, self.num_walks, self.seed)

    def _expanded(self, rows: list[list[str]]) -> Iterator[list[str]]:
        words = self.graph.vocabulary
        words_on_walk = num_hops(self.walk_length) + 1
        a_text = max(len(words), self.num_walks * words_on_walk if self.mode == "walk" else 0)
        block = max(1, min(_BLOCK_TEXTS, _BLOCK_ELEMENTS // a_text))
        for first in range(0, len(rows), block):
            block_rows = rows[first : first + block]
            visited = self._best(self._shares(self._walk().start(block_rows)))
            expanded = [
                own + [words[number] for number in numbers.tolist()]
                for own, numbers in zip(block_rows, visited, strict=True)
            ]
            yield from expanded if self.knowledge is None else self._with_related(self.knowledge, block_rows, expanded)

    def _shares(self, start_NV: sparse.csr_array) -> np.ndarray:
        """The expected share of each word in a walk; 0 for the words of the text."""
        shares_NV = self._visits(start_NV) / (num_hops(self.walk_length) + 1)
        shares_NV[coordinates(start_NV)] = 0.0
        return shares_NV

    def _best(self, shares_NV: np.ndarray) -> list[np.ndarray]:
        return largest_shares(shares_NV, self._walk().alphabet_V, self.top_k, self.min_probability, _DECIMALS)

    def _with_related(
        self, knowledge: WikipediaKnowledge, rows: list[list[str]], expanded: list[list[str]]
    ) -> Iterator[list[str]]:
        """The expanded texts, each with the first `knowledge_top_k` related words of the text that it lacks."""
        for words, (numbers, _) in zip(expanded, knowledge.sums(rows), strict=True):
            present = set(words)
            new = (word for number in numbers.tolist() if (word := knowledge.words[number]) not in present)
            yield words + list(islice(new, self.knowledge_top_k))

    def __getstate__(self) -> dict[str, Any]:
        # Without derived values, so that the fingerprint does not depend on previous use.
        state = {**self.__dict__, "_derived": None}
        if self._knowledge is None:  # then its settings have no effect
            del state["_knowledge"], state["knowledge_top_k"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({"_knowledge": None, "knowledge_top_k": 10} | state)
