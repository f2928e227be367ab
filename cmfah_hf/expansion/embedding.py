"""Skip-gram word vectors with hierarchical softmax (see docs/method.md, [skip-gram]).

Shapes: V words, E vector size.
"""

import logging
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from cmfah_hf.errors import CheckpointError, CMFAHError, DataError, QueryError
from cmfah_hf.expansion.corpus import iterate_files, iterate_words
from cmfah_hf.expansion.storage import Fitted, damaged, load_state, load_whole, replacing, require_words, save_state
from cmfah_hf.models.model_files import ModelFileError
from cmfah_hf.models.word_rules import WordRules, rules_of

logger = logging.getLogger(__name__)

_STEM = "skip_gram"
# gensim silently truncates longer sentences, so they are split before.
_MAX_SENTENCE = 10_000


class SkipGramEmbedding(Fitted):
    """Word vectors of a corpus, trained by gensim's `Word2Vec(sg=1, hs=1, negative=0)` ([skip-gram]).

    The corpus is read once and written to a temporary file of the size of its text, which the epochs read. So a stream
    is fetched once, generators work, and no text is kept in memory.

    With `workers=1` equal corpora and settings give equal vectors in any process on one machine: the vocabulary is
    sorted by count and word, the initial vectors are drawn from `seed` in this order, and no string hash is used.
    More workers are faster, but their results are not reproducible.

    Args:
        vector_size: E.
        epochs: Passes over the corpus.
        window: Number of words on either side that a word predicts.
        min_count: Minimum occurrences of a word with a vector.
        sample: Words with a higher share of the corpus are skipped at random; 0 keeps them all.
        alpha: Initial learning rate, which decreases linearly.
        seed: Seed of the initial vectors, the windows and the skipping.
        workers: Number of threads.
        word_rules: How texts become words. None: by `split_words`.

    Attributes:
        vocabulary: V words, by descending count, ties alphabetically.
        vectors: `(V, E)` float32.
        counts: `(V,)` int64, occurrences in the corpus.

    Example:
        >>> embedding = SkipGramEmbedding(vector_size=8).fit(["a dog runs", "a cat sleeps"])
        >>> embedding.vectors.shape
        (5, 8)
    """

    _UNFITTED = "The embedding holds no words yet; call fit(sentences) or load(folder) first."

    def __init__(
        self,
        vector_size: int = 1000,
        *,
        epochs: int = 5,
        window: int = 5,
        min_count: int = 1,
        sample: float = 1e-3,
        alpha: float = 0.025,
        seed: int = 0,
        workers: int = 1,
        word_rules: WordRules | None = None,
    ):
        settings = {
            "vector_size": int(vector_size),
            "epochs": int(epochs),
            "window": int(window),
            "min_count": int(min_count),
            "sample": float(sample),
            "alpha": float(alpha),
            "seed": int(seed),
            "workers": int(workers),
        }
        for name, value in settings.items():
            lowest = 0 if name in ("sample", "alpha", "seed") else 1
            if not value >= lowest:
                raise CMFAHError(f"{name}={value} is below {lowest}; give {name} >= {lowest}.")
        self.settings = settings
        self.word_rules = word_rules or WordRules()

    def fit(
        self,
        sentences: Any,
        text_column: str = "text",
        extra_corpus: str | Path | Sequence[str | Path] | None = None,
        always: Collection[str] = (),
    ) -> "SkipGramEmbedding":
        """Trains on the texts in order, each as one sentence; an earlier fit is discarded.

        Args:
            sentences: A map-style or streaming data set, or any iterable of texts or word lists, also a generator,
                e.g. `GraphExpander.corpus(...)`.
            text_column: The column of the texts.
            extra_corpus: Files with more texts: `.jsonl` or `.parquet` with a column `text`, or `.txt` with one text
                per line.
            always: Words that get a vector even if they occur less than `min_count` times, but at least once.

        Raises:
            DataError: If the column or a file is missing, a row is not a text, or no word is left.
        """
        corpus = iterate_words(sentences, text_column, self.word_rules.words)
        if extra_corpus is not None:
            corpus = chain(corpus, iterate_files(extra_corpus, self.word_rules.words))
        with tempfile.TemporaryDirectory(prefix="cmfah-skip-gram-") as folder:
            spool = Path(folder) / "corpus.txt"
            counts, num_sentences = _spool(corpus, spool)
            vocabulary = sorted(
                (word for word, count in counts.items() if count >= self.settings["min_count"] or word in always),
                key=lambda word: (-counts[word], word),
            )
            if not vocabulary:
                raise DataError(
                    f"The corpus leaves no word after {num_sentences} texts with words (min_count="
                    f"{self.settings['min_count']}); check the column or lower min_count."
                )
            vectors = self._train(spool, {word: counts[word] for word in vocabulary}, num_sentences, counts.total())
        self._set_state(vocabulary, vectors, np.array([counts[word] for word in vocabulary], dtype=np.int64))
        return self

    def _train(self, spool: Path, counts: dict[str, int], num_sentences: int, num_words: int) -> np.ndarray:
        from gensim.models.word2vec import LineSentence, Word2Vec

        # `sorted_vocab=0`: gensim would sort equal counts in an unstable order, on which the initial vectors and the
        # Huffman tree depend.
        model = Word2Vec(sg=1, hs=1, negative=0, sorted_vocab=0, **{**self.settings, "min_count": 1})
        model.build_vocab_from_freq(counts, corpus_count=num_sentences)
        if len(counts) > 1:  # A single word has no context.
            model.train(
                LineSentence(str(spool), max_sentence_length=_MAX_SENTENCE),
                total_examples=num_sentences,
                total_words=num_words,
                epochs=model.epochs,
            )
        logger.info("%d word vectors of %d dimensions from %d words.", len(counts), model.vector_size, num_words)
        if list(counts) != model.wv.index_to_key:
            raise CMFAHError("gensim changed the order of the words; install gensim 4.x.")
        return model.wv.vectors.astype(np.float32)

    @property
    def vectors(self) -> np.ndarray:
        self._check_fitted()
        return self._vectors_VE

    @property
    def counts(self) -> np.ndarray:
        self._check_fitted()
        return self._counts_V

    def __len__(self) -> int:
        return len(self.vocabulary)

    def __contains__(self, word: str) -> bool:
        return self._number(word) is not None

    def __getitem__(self, word: str) -> np.ndarray:
        """The vector of a word, `(E,)`; `QueryError` if the word has no vector."""
        return self.vectors[self._known(word)]

    def most_similar(self, word: str, k: int = 10) -> list[tuple[str, float]]:
        """The `k` other words with the largest cosine to `word`, best first; ties in the vocabulary's order.

        Raises:
            QueryError: If the word has no vector.
        """
        number = self._known(word)
        norms_V = np.linalg.norm(self.vectors, axis=1)
        cosines_V = self.vectors @ self.vectors[number] / np.maximum(norms_V * norms_V[number], 1e-30)
        order = np.argsort(-cosines_V, kind="stable")
        return [(self.vocabulary[i], float(cosines_V[i])) for i in order[order != number][: max(k, 0)]]

    def save(self, folder: str | Path) -> None:
        """Writes `skip_gram.safetensors` (vectors, counts) and `skip_gram.json` (settings, vocabulary)."""
        tensors = {"vectors": self.vectors, "counts": self.counts}
        content: dict[str, Any] = {"settings": self.settings, "vocabulary": self.vocabulary}
        if self.word_rules != WordRules():  # as files from before there were rules
            content["word_rules"] = self.word_rules.to_dict()
        with replacing(folder, [_STEM]):
            save_state(folder, _STEM, type(self).__name__, tensors, content)

    @classmethod
    def load(cls, folder: str | Path) -> "SkipGramEmbedding":
        """Loads a saved embedding.

        Raises:
            CheckpointError: If a file is missing or damaged.
        """
        return load_whole(folder, _STEM, cls._read)

    @classmethod
    def _read(cls, folder: Path) -> "SkipGramEmbedding":
        tensors, content = load_state(folder, _STEM, cls.__name__)
        try:
            rules = rules_of(content.get("word_rules"), folder / f"{_STEM}.json")
        except ModelFileError as error:
            raise CheckpointError(str(error)) from None
        try:
            embedding = cls(**content["settings"], word_rules=rules)
            vocabulary = require_words(content["vocabulary"])
            vectors_VE, counts_V = tensors["vectors"], tensors["counts"]
            shape = (len(vocabulary), embedding.settings["vector_size"])
            if vectors_VE.shape != shape or counts_V.shape != shape[:1] or vectors_VE.dtype != np.float32:
                raise ValueError(f"the arrays do not hold {shape[0]} vectors of {shape[1]}")
            if not np.isfinite(vectors_VE).all() or counts_V.dtype.kind != "i" or (counts_V < 0).any():
                raise ValueError("a vector or a count has an invalid value")
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            raise damaged(folder, _STEM, error) from error
        embedding._set_state(vocabulary, vectors_VE, counts_V)
        return embedding

    def _set_state(self, vocabulary: list[str], vectors_VE: np.ndarray, counts_V: np.ndarray) -> None:
        self._vocabulary = vocabulary
        self._word_numbers = {word: number for number, word in enumerate(vocabulary)}
        self._vectors_VE = vectors_VE
        self._counts_V = counts_V

    def _number(self, word: str) -> int | None:
        self._check_fitted()
        number = self._word_numbers.get(word)
        if number is None and len(words := self.word_rules.words(word)) == 1:  # normalized, as "Dog" to "dog"
            number = self._word_numbers.get(words[0])
        return number

    def _known(self, word: str) -> int:
        number = self._number(word)
        if number is None:
            raise QueryError(f"{word!r} has no vector; it is not among the {len(self)} words of the vocabulary.")
        return number


def _spool(corpus: Iterable[list[str]], path: Path) -> tuple[Counter, int]:
    """Writes one sentence per line; returns the count of each word and the number of sentences."""
    counts: Counter = Counter()
    num_sentences = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for words in corpus:
            counts.update(words)
            for first in range(0, len(words), _MAX_SENTENCE):
                file.write(" ".join(words[first : first + _MAX_SENTENCE]) + "\n")
                num_sentences += 1
    return counts, num_sentences
