"""Expanding texts with the words that a walk on the image-word graph visits, and with those that an encyclopedia
relates to them (see docs/method.md, [graph] and [knowledge]).

Shapes: N texts, V words of the graph.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from cmfah_hf.errors import CheckpointError, CMFAHError, DataError
from cmfah_hf.expansion.corpus import check_column, is_one_row, words_of
from cmfah_hf.expansion.explanation import AddedWord, Explanation, knowledge_causes, walk_causes
from cmfah_hf.expansion.graph import ImageWordGraph
from cmfah_hf.expansion.knowledge import KNOWLEDGE_STEM, WikipediaKnowledge, saved_tokenizer
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
from cmfah_hf.expansion.walks import RandomWalk, coordinates, largest_shares, num_hops
from cmfah_hf.expansion.word_splitters import Tokenizer, tokenizer_name

if TYPE_CHECKING:
    import networkx

_STEM = "expander"
_MOST_WALKS = 10**6  # from each text
_SETTINGS = ["walk_length", "top_k", "min_probability", "mode", "num_walks", "seed", "word_weights", "output_column"]
# Texts whose visits are held at a time, N x V float64.
_BLOCK_ELEMENTS = 1 << 22
_BLOCK_TEXTS = 1_024
# Visits that differ by less than rounding does are equal, or the order of equal words would hang on the machine.
_DECIMALS = 12


class GraphExpander:
    """Adds to each text the words that a random walk on the image-word graph visits from it ([graph]), and with
    knowledge those that an encyclopedia relates to its own ([knowledge]).

    Fit it on texts, then give it to `datasets.map`, for the same texts or others:

        expander = GraphExpander().fit(dataset, text_column="text")
        dataset = dataset.map(expander, batched=True)          # adds the column "expanded_text"

    A text's own words always stay, first and in their order, those that the graph does not know included. The added
    words follow by falling expected visits, equal ones by word, and then those of the knowledge by falling score; no
    word is added twice. A text without a known word keeps its own words alone.
    Equal fits give equal fingerprints, so `datasets` finds its cache again.

    Args:
        walk_length: Steps of the walk from the image on, odd. It stands on words at steps 1, 3, 5, ...; 1 adds nothing.
        top_k: At most so many words are added; `None` for no limit.
        min_probability: Only words are added on which at least this share of the walk's words is expected: their
            expected visits divided by the number of words on a walk.
        mode: `"closed_form"` computes `x1 + x1 M + x1 M^2`; `"walk"` counts `num_walks` sampled walks. Their draws
            depend on `seed` and the text's known words alone, so a text gives the same words in any batch and process.
        num_walks: Walks from each text; for `mode="walk"`.
        seed: Of the sampled walks.
        min_count: Words in fewer images are left out of the graph.
        word_weights: How the walk picks a word of an image. `"binary"`: all alike. `"idf"`: words of few images more
            often, by `ln((1 + N) / (1 + count)) + 1`, as the first word and as the landing of each hop (M with its
            columns weighted and its rows normalised again).
        stop_words: Words to leave out of the graph, so never added: an iterable of words, or `"english"`.
        output_column: The column that is added.
        tokenizer: What words are: `"words"`, `"chinese"` or a function from a text to a list of words. The model reads
            Han characters singly whatever the words are. A function is not saved; `load` has to be given it again.
        knowledge: Fitted knowledge of the same tokenizer, or `None`. It can be set later as well, when the graph's
            vocabulary is there to fit it for.
        knowledge_top_k: At most so many words of the knowledge are added; `None` for no limit.

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
            raise CMFAHError(f"num_walks={num_walks} is beyond {_MOST_WALKS:,}, or output_column is no text.")
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
        self._derived: tuple[tuple[int, str], tuple[RandomWalk, np.ndarray | None, np.ndarray]] | None = None

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
        """Builds the graph in one pass over the texts and forgets what was fitted before.

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
        """The new column of a batch (or of one row), for `datasets.map`, which keeps the other columns.

        Args:
            batch: A mapping of columns with `text_column`: strings, or lists of tags. A plain mapping whose columns
                are all equally long lists is a batch.

        Returns:
            `{"expanded_text": [...]}` with a string for each text; words are separated by spaces.

        Raises:
            DataError: If the column is missing or holds something else.
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
        """The words of one text, a string or a list of tags: its own in their order, then the added ones."""
        return next(self._expanded([self._words_of(text)]))

    def expected_visits(self, text: Any) -> dict[str, float]:
        """How often a walk from the text is expected on each word, most visited first, equal ones by word.

        The values sum to the number of words on a walk (3 for length 5); words that it never reaches are left out, and
        a text without a known word gives `{}`. With `mode="walk"` they are the mean visits of the sampled walks.
        """
        visits_V = self._visits(self._start([self._words_of(text)]))[0]
        words = self.graph.vocabulary
        reached = np.flatnonzero(visits_V > 0)
        order = reached[np.lexsort((self._walk()[2][reached], -np.round(visits_V[reached], _DECIMALS)))]
        return {words[number]: float(visits_V[number]) for number in order}

    def explain(self, text: Any, ways: int | None = 5) -> Explanation:
        """Why `expand(text)` adds what it adds; `print` shows it as a table.

        A word of the graph is told by the words through which a walk comes to it, and with what share of the walk, one
        of the knowledge by the own words that it is related to.

        With `mode="walk"` the shares are the expected ones, which the sampled walks estimate.

        Args:
            text: A string or a list of tags.
            ways: The largest ways of each own word that are kept; `None` for all.
        """
        own = self._words_of(text)
        start_NV = self._start([own])
        hops, words = num_hops(self.walk_length), self.graph.vocabulary
        there = len(own) + len(self._best(self._shares(start_NV))[0])
        expanded = next(self._expanded([own]))
        added = []
        for place, word in enumerate(expanded[len(own) :], start=len(own)):
            if place < there:
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
        """Whether the graph or the knowledge holds a word."""
        return word in self.graph.word_numbers or (self.knowledge is not None and word in self.knowledge)

    @property
    def transitions(self) -> sparse.csr_array:
        """The hops of the walk from word to word, M with the word weights, `(V, V)`; every row sums to 1."""
        return self._walk()[0].transitions_VV

    def to_networkx(self, min_probability: float = 0.0) -> "networkx.DiGraph":
        """The words as a directed graph: `count`, in how many images each stands; on an edge `weight`, the probability
        of the hop (0 where there is none), and where the knowledge relates the two words `ppmi`.

        Args:
            min_probability: Hops below it are left out.
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
            source: A data set or any iterable of texts; read anew each time the corpus is iterated.
            text_column: The column of the texts; by default the one that the expander was fitted on.
            num_walks: Walks from each text that has a known word.
        """
        self.graph.vocabulary  # noqa: B018 - an expander that is not fitted fails here, not in the first iteration.
        if num_walks < 0:
            raise CMFAHError(f"num_walks={num_walks} is below 0; give num_walks >= 0.")
        return ExpandedCorpus(self, source, self.text_column if text_column is None else text_column, num_walks)

    @property
    def digest(self) -> str:
        """A digest of all that decides which words are added, equal for equal fits."""
        return state_digest(self.graph.tensors(), self._content())

    def save(self, folder: str | Path) -> None:
        """Writes `expander.safetensors` (the graph's arrays), `expander.json` (settings and words), and the knowledge,
        if there is any, as `knowledge.safetensors` and `knowledge.json`."""
        with replacing(folder, [_STEM, KNOWLEDGE_STEM]):
            if self.knowledge is not None:
                self.knowledge.write_state(folder)
            save_state(folder, _STEM, type(self).__name__, self.graph.tensors(), self._content())
            if self.knowledge is None:  # an earlier save's, which would be taken for a part of this one
                remove_state(folder, KNOWLEDGE_STEM)

    @classmethod
    def load(cls, folder: str | Path, tokenizer: Tokenizer | None = None) -> "GraphExpander":
        """Reads what `save` wrote.

        Args:
            folder: Where it was saved.
            tokenizer: The function that words were split by, if it was one of your own.

        Raises:
            CheckpointError: If a file is missing or damaged; it names the file.
        """
        return load_whole(folder, _STEM, lambda place: cls._read(place, tokenizer))

    @classmethod
    def _read(cls, folder: Path, tokenizer: Tokenizer | None) -> "GraphExpander":
        tensors, content = load_state(folder, _STEM, cls.__name__)
        own = saved_tokenizer(content.get("tokenizer", "words"), tokenizer, folder, cls.__name__)
        related = content.get("knowledge")
        try:
            further = {} if related is None else {"knowledge_top_k": related["top_k"]}
            digest = None if related is None else related["digest"]
            expander = cls(**content["settings"], tokenizer=own, **further)
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

    def _walk(self) -> tuple[RandomWalk, np.ndarray | None, np.ndarray]:
        """The walk, the word weights (V,) and each word's place in the alphabet (V,), computed when first needed."""
        key = (self.walk_length, self.word_weights)
        if self._derived is None or self._derived[0] != key:
            words = self.graph.vocabulary
            alphabet_V = np.empty(len(words), dtype=np.int64)
            alphabet_V[sorted(range(len(words)), key=words.__getitem__)] = np.arange(len(words))
            weights_V, transitions_VV = None, self.graph.transitions
            if self.word_weights == "idf":
                weights_V = np.log((1 + self.graph.num_images) / (1 + self.graph.counts)) + 1.0
                weighted = sparse.csr_array(transitions_VV @ sparse.diags_array(weights_V))
                transitions_VV = sparse.csr_array(sparse.diags_array(1.0 / weighted.sum(axis=1)) @ weighted)
            self._derived = key, (RandomWalk(transitions_VV, self.walk_length), weights_V, alphabet_V)
        return self._derived[1]

    def _words_of(self, text: Any, where: str = "The text") -> list[str]:
        return words_of(text, where, self.graph.split)

    def _start(self, rows: list[list[str]]) -> sparse.csr_array:
        return self.graph.start(rows, self._walk()[1])

    def _visits(self, start_NV: sparse.csr_array) -> np.ndarray:
        walk = self._walk()[0]
        if self.mode == "closed_form":
            return walk.expected_visits(start_NV)
        visits_NV = np.zeros(start_NV.shape)
        row_numbers = np.split(start_NV.indices, start_NV.indptr[1:-1])
        walks = walk.sample(start_NV, self.num_walks, [self._generator(row) for row in row_numbers])
        for row in np.flatnonzero(np.diff(start_NV.indptr)):
            visits_NV[row] = np.bincount(walks[row].ravel(), minlength=start_NV.shape[1]) / self.num_walks
        return visits_NV

    def _generator(self, numbers: np.ndarray) -> np.random.Generator:
        words = "\n".join(sorted(self.graph.vocabulary[number] for number in numbers))
        digest = hashlib.blake2b(words.encode(), digest_size=8).digest()
        return np.random.default_rng([self.seed, int.from_bytes(digest, "little")])

    def _expanded(self, rows: list[list[str]]) -> Iterator[list[str]]:
        words = self.graph.vocabulary
        words_on_walk = num_hops(self.walk_length) + 1
        a_text = max(len(words), self.num_walks * words_on_walk if self.mode == "walk" else 0)
        block = max(1, min(_BLOCK_TEXTS, _BLOCK_ELEMENTS // a_text))
        for first in range(0, len(rows), block):
            block_rows = rows[first : first + block]
            related = self.knowledge.sums(block_rows) if self.knowledge is not None else repeat(None)
            start_NV = self._start(block_rows)
            for own, numbers, known in zip(block_rows, self._best(self._shares(start_NV)), related, strict=False):
                expanded = own + [words[number] for number in numbers.tolist()]
                yield expanded if known is None else expanded + self._of_knowledge(known[0], expanded)

    def _shares(self, start_NV: sparse.csr_array) -> np.ndarray:
        """The share of a walk's words that each word which is not an own one is expected to have."""
        shares_NV = self._visits(start_NV) / (num_hops(self.walk_length) + 1)
        shares_NV[coordinates(start_NV)] = 0.0
        return shares_NV

    def _best(self, shares_NV: np.ndarray) -> list[np.ndarray]:
        return largest_shares(shares_NV, self._walk()[2], self.top_k, self.min_probability, _DECIMALS)

    def _of_knowledge(self, numbers: np.ndarray, expanded: list[str]) -> list[str]:
        """The first `knowledge_top_k` words of the knowledge that are not there yet."""
        there = set(expanded)
        new = (word for number in numbers.tolist() if (word := self.knowledge.words[number]) not in there)
        return list(islice(new, self.knowledge_top_k))

    def __getstate__(self) -> dict[str, Any]:
        # What was derived stays out: a used expander and a fresh one have to give the same fingerprint.
        state = {**self.__dict__, "_derived": None}
        if self._knowledge is None:  # then its settings decide nothing
            del state["_knowledge"], state["knowledge_top_k"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({"_knowledge": None, "knowledge_top_k": 10} | state)
