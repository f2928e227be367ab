"""Related words from an encyclopedia, by positive pointwise mutual information (see docs/method.md, [knowledge]).

Shapes: N texts, V words of the vocabulary, C related words.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from cmfah_hf.errors import CheckpointError, CMFAHError, DataError, QueryError
from cmfah_hf.expansion.articles import iterate_articles
from cmfah_hf.expansion.cooccurrence import DECIMALS, WindowCounts, largest_scores, positive_pmi
from cmfah_hf.expansion.graph import normalized_stop_words
from cmfah_hf.expansion.storage import (
    Fitted,
    damaged,
    load_state,
    load_whole,
    replacing,
    require_words,
    save_state,
    sparse_rows,
)
from cmfah_hf.expansion.word_splitters import Splitter, Tokenizer, saved_tokenizer, tokenizer_name, word_splitter

logger = logging.getLogger(__name__)

KNOWLEDGE_STEM = "knowledge"
_ARRAYS = ("data", "indices", "indptr")
_LOWEST = {
    "window": 1, "min_count": 1, "min_pair_count": 1, "smoothing": 0.0, "top_k": 1, "opening_words": 0, "max_words": 1,
    "max_pairs": 2,
}  # fmt: skip
# Names of visible things in gensim's list of stop words.
_NO_STOP_WORDS = frozenset(
    ("bill", "bottom", "computer", "cry", "fire", "front", "mill", "side", "system", "thick", "thin", "top")
)


class WikipediaKnowledge(Fitted):
    """Related words from an encyclopedia or any other texts ([knowledge]).

    One pass over the articles counts the words near each word of a vocabulary. The `top_k` words with the largest
    positive pointwise mutual information are kept for each.

        expander = GraphExpander().fit(dataset)
        knowledge = WikipediaKnowledge().fit("enwiki-pages-articles.xml.bz2", expander.graph.vocabulary)
        expander.knowledge = knowledge                              # adds its words after those of the graph

    Args:
        window: Maximum distance of two words that are near each other, in words, without stop words.
        min_count: Minimum occurrences of a related word in the articles.
        min_pair_count: Minimum co-occurrences for two words to count as related.
        smoothing: The exponent of word frequencies; below 1, rare words get lower scores.
        top_k: Number of related words to keep for each word.
        within_vocabulary: Whether related words must be in the vocabulary, so that they occur with images.
        opening_words: An article whose title is a word of the vocabulary relates this word to the first
            `opening_words` words of its text, at any distance; 0 ignores titles.
        links: Whether such an article of a dump also relates the word to the titles that it links to.
        stop_words: Words to ignore in the articles: an iterable of words, `None`, or `"english"`, gensim's list
            without names of things such as "computer" and "fire".
        tokenizer: `"words"`, `"chinese"`, `"icu"` or a function from a text to a list of words; the same as the
            expander's. A function is not saved; pass it to `load` again.
        max_words: Memory bound: number of distinct words that are counted, about 150 bytes each. Beyond it the rarest
            are dropped.
        max_pairs: Memory bound: number of word pairs that are counted, about 40 bytes each.

    Attributes:
        vocabulary: V words.
        words: C related words, in alphabetical order.
        scores: `(V, C)` float64 `scipy.sparse.csr_array` of positive pointwise mutual information.

    Example:
        >>> texts = ["the dog barks", "a dog barks and a cat purrs", "a cat purrs"]
        >>> knowledge = WikipediaKnowledge(window=1, min_count=1, min_pair_count=1).fit(texts, ["dog", "barks", "cat"])
        >>> [word for word, score in knowledge.related("dog")]
        ['barks']
    """

    _UNFITTED = "The knowledge holds no words yet; call fit(source, vocabulary) or load(folder) first."

    def __init__(
        self,
        *,
        window: int = 5,
        min_count: int = 5,
        min_pair_count: int = 2,
        smoothing: float = 0.75,
        top_k: int = 100,
        within_vocabulary: bool = True,
        opening_words: int = 50,
        links: bool = False,
        stop_words: str | Iterable[str] | None = "english",
        tokenizer: Tokenizer = "words",
        max_words: int = 1_000_000,
        max_pairs: int = 20_000_000,
    ):
        self.split = word_splitter(tokenizer)
        self.tokenizer = tokenizer
        self.settings: dict[str, Any] = {
            "window": int(window),
            "min_count": int(min_count),
            "min_pair_count": int(min_pair_count),
            "smoothing": float(smoothing),
            "top_k": int(top_k),
            "within_vocabulary": bool(within_vocabulary),
            "opening_words": int(opening_words),
            "links": bool(links),
            "stop_words": _stop_words(stop_words, self.split),
            "max_words": int(max_words),
            "max_pairs": int(max_pairs),
        }
        for name, lowest in _LOWEST.items():
            if not self.settings[name] >= lowest:
                raise CMFAHError(f"{name}={self.settings[name]} is below {lowest}; give {name} >= {lowest}.")

    def fit(
        self, source: Any, vocabulary: Iterable[str], text_column: str = "text", title_column: str | None = "title"
    ) -> "WikipediaKnowledge":
        """Fits on the articles in one pass; an earlier fit is discarded.

        Args:
            source: The path of a MediaWiki dump or of a corpus file, several paths, a data set's id on the Hub
                (`"wikimedia/wikipedia:20231101.en"`), which is streamed, a data set, a stream, or an iterable of texts.
            vocabulary: The words to find related words for, such as those of a graph.
            text_column: The column of the texts.
            title_column: The column of the titles, which may be missing.

        Raises:
            DataError: If the source cannot be read, a column is missing, or it contains no word of the vocabulary.
        """
        vocabulary = list(dict.fromkeys(vocabulary))
        settings = self.settings
        stop_words = frozenset(settings["stop_words"])
        counts = WindowCounts(
            vocabulary,
            settings["window"],
            stop_words,
            settings["within_vocabulary"],
            settings["max_words"],
            settings["max_pairs"],
        )
        num_articles = 0
        titles = title_column if settings["opening_words"] else None
        for article in iterate_articles(source, text_column, titles, self.split, settings["links"]):
            counts.add(article.words, article.title, settings["opening_words"], article.links)
            num_articles += 1
        words, occurrences_W, totals_W, near_VW = counts.totals()
        if not occurrences_W[: len(vocabulary)].any():
            found = f"{counts.num_words} words" if counts.num_words else "no word"
            raise DataError(
                f"The {num_articles} texts hold {found} and none of the {len(vocabulary)} words of the vocabulary; "
                "check the column, the language and the tokenizer."
            )
        scores_VW = positive_pmi(near_VW, totals_W, occurrences_W, settings)
        scores_VW = largest_scores(scores_VW, words, settings["top_k"])
        used = sorted(np.unique(scores_VW.indices).tolist(), key=words.__getitem__)
        self._set_state(vocabulary, [words[number] for number in used], scores_VW[:, used])
        logger.info(
            "Knowledge from %d articles, %d words: %d of %d words have related words; at most %d occurrences of a "
            "word and %d of a pair were dropped.",
            num_articles,
            counts.num_words,
            np.count_nonzero(np.diff(self.scores.indptr)),
            len(vocabulary),
            counts.lost_occurrences,
            counts.lost_pairs,
        )
        return self

    @property
    def words(self) -> list[str]:
        self._check_fitted()
        return self._words

    @property
    def scores(self) -> sparse.csr_array:
        self._check_fitted()
        return self._scores_VC

    def __contains__(self, word: str) -> bool:
        self._check_fitted()
        return word in self._numbers

    def related(self, word: str, k: int = 10) -> list[tuple[str, float]]:
        """The `k` words with the largest positive pointwise mutual information, best first, ties alphabetically.

        Raises:
            QueryError: If the word is not in the vocabulary.
        """
        numbers = self._numbers if self.is_fitted else self.vocabulary
        if word not in numbers and len(own := self.split(word)) == 1:  # normalized, as "Dog" to "dog"
            word = own[0]
        if word not in numbers:
            raise QueryError(f"{word!r} is not among the {len(numbers)} words that this knowledge was fitted for.")
        return self.related_to([word])[: max(k, 0)]

    def related_to(self, words: Iterable[str]) -> list[tuple[str, float]]:
        """The words related to any of these, without these, by descending sum of scores, ties alphabetically.

        Words outside the vocabulary have no related words.
        """
        own = list(words)
        columns, scores = self.sums([own])[0]
        found = [(self.words[c], s) for c, s in zip(columns.tolist(), scores.tolist(), strict=True)]
        return [pair for pair in found if pair[0] not in set(own)]

    def sums(self, rows: Sequence[Iterable[str]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each word list the related words, as indices into `words`, and the sums of their scores, best first."""
        num_words = len(self.vocabulary)
        known = [sorted({self._numbers[word] for word in row if word in self._numbers}) for row in rows]
        indptr = np.concatenate([[0], np.cumsum([len(row) for row in known], dtype=np.int64)])
        columns = np.fromiter((number for row in known for number in row), dtype=np.int64)
        own_NV = sparse.csr_array((np.ones(len(columns)), columns, indptr), shape=(len(known), num_words))
        sums_NC = own_NV @ self._scores_VC
        sums_NC.sort_indices()
        found = []
        for first, end in zip(sums_NC.indptr[:-1], sums_NC.indptr[1:], strict=True):
            scores, words = np.round(sums_NC.data[first:end], DECIMALS), sums_NC.indices[first:end]
            order = np.argsort(-scores, kind="stable")  # the words are in alphabetical order
            found.append((words[order], scores[order]))
        return found

    def score(self, word: str, related: str) -> float:
        """The positive pointwise mutual information of two words; 0 if they are not related."""
        own, other = self._numbers.get(word), self._columns.get(related)
        return round(float(self._scores_VC[own, other]), DECIMALS) if own is not None and other is not None else 0.0

    @property
    def digest(self) -> str:
        """A digest of the fitted state, equal for equal fits."""
        digest = hashlib.sha256(json.dumps([self._content(), self.words]).encode())
        for _, array in sorted(self._tensors().items()):
            digest.update(array.tobytes())
        return digest.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Writes `knowledge.safetensors` (the scores) and `knowledge.json` (settings and words)."""
        with replacing(folder, [KNOWLEDGE_STEM]):
            self.write_state(folder)

    def write_state(self, folder: str | Path) -> None:
        """Writes the files of `save`, as part of another state that is within `replacing`."""
        content = {**self._content(), "words": self.words}
        save_state(folder, KNOWLEDGE_STEM, type(self).__name__, self._tensors(), content)

    @classmethod
    def load(cls, folder: str | Path, tokenizer: Tokenizer | None = None) -> "WikipediaKnowledge":
        """Loads a saved state.

        Args:
            folder: The folder given to `save`.
            tokenizer: The tokenizer, if it was a function.

        Raises:
            CheckpointError: If a file is missing or damaged.
        """
        return load_whole(folder, KNOWLEDGE_STEM, lambda place: cls.read_state(place, tokenizer))

    @classmethod
    def read_state(cls, folder: str | Path, tokenizer: Tokenizer | None = None) -> "WikipediaKnowledge":
        """Loads this state from its two files, without the recovery of `load`."""
        tensors, content = load_state(folder, KNOWLEDGE_STEM, cls.__name__)
        try:
            name = content["tokenizer"]
            knowledge = cls(**content["settings"], tokenizer=saved_tokenizer(name, tokenizer, folder, cls.__name__))
            vocabulary, words = require_words(content["vocabulary"]), require_words(content["words"])
            if words != sorted(words):
                raise ValueError("the words are out of order")
            scores_VC = sparse_rows(tensors, (len(vocabulary), len(words)))
            if not (np.isfinite(scores_VC.data) & (scores_VC.data > 0)).all():
                raise ValueError("a score is not a positive number")
        except CheckpointError:
            raise
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            raise damaged(folder, KNOWLEDGE_STEM, error) from error
        knowledge._set_state(vocabulary, words, scores_VC)
        return knowledge

    def _set_state(self, vocabulary: list[str], words: list[str], scores_VC: sparse.csr_array) -> None:
        scores_VC.sort_indices()
        # A fixed integer type, so that equal fits are equal bytes.
        scores_VC.indices = scores_VC.indices.astype(np.int32, copy=False)
        scores_VC.indptr = scores_VC.indptr.astype(np.int32, copy=False)
        self._vocabulary, self._words, self._scores_VC = vocabulary, words, scores_VC
        self._numbers = {word: number for number, word in enumerate(vocabulary)}
        self._columns = {word: number for number, word in enumerate(words)}

    def _content(self) -> dict[str, Any]:
        return {
            "settings": self.settings, "tokenizer": tokenizer_name(self.tokenizer), "vocabulary": self.vocabulary
        }  # fmt: skip

    def _tensors(self) -> dict[str, np.ndarray]:
        m = self.scores
        return {"data": m.data, "indices": m.indices, "indptr": m.indptr}

    def __getstate__(self) -> dict[str, Any]:
        # Plain strings and bytes, whose pickle, and so the fingerprint of a data set, depends on their content alone.
        state: dict[str, Any] = {"settings": json.dumps(self.settings, sort_keys=True), "tokenizer": self.tokenizer}
        if self._vocabulary is not None:
            state["vocabulary"], state["words"] = "\n".join(self._vocabulary), "\n".join(self._words)
            state["tensors"] = {name: (array.dtype.str, array.tobytes()) for name, array in self._tensors().items()}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        WikipediaKnowledge.__init__(self, **json.loads(state["settings"]), tokenizer=state["tokenizer"])
        if "vocabulary" in state:
            vocabulary = state["vocabulary"].split("\n")
            words = state["words"].split("\n") if state["words"] else []
            arrays = (np.frombuffer(state["tensors"][name][1], state["tensors"][name][0]).copy() for name in _ARRAYS)
            self._set_state(vocabulary, words, sparse.csr_array(tuple(arrays), shape=(len(vocabulary), len(words))))


def _stop_words(stop_words: str | Iterable[str] | None, split: Splitter) -> list[str]:
    words = normalized_stop_words(stop_words, split)
    return [word for word in words if word not in _NO_STOP_WORDS] if isinstance(stop_words, str) else list(words)
