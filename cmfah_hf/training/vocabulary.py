"""The word graph and the word vectors of a run: fitted once, or loaded from an earlier run."""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cmfah_hf.data import resolve_data_path
from cmfah_hf.errors import CheckpointError, CMFAHError
from cmfah_hf.expansion import GraphExpander, SkipGramEmbedding, WikipediaKnowledge
from cmfah_hf.expansion.corpus import iterate_values, text_of, words_of
from cmfah_hf.models.word_rules import WordRules, needs_folding, needs_segmenter
from cmfah_hf.training.checkpoints import disk_errors, wants_to_resume
from cmfah_hf.training.settings.arguments import DataArguments
from cmfah_hf.training.settings.configuration import Run

logger = logging.getLogger(__name__)

WORDS_STEMS = ("expander", "knowledge", "skip_gram")


def make_words(
    run: Run, texts: Iterable[Any], output: Path, checkpoint: Path | None
) -> tuple[GraphExpander | None, SkipGramEmbedding | None]:
    """The word graph and the word vectors: of the resumed run, else of `words_from`, else fitted on the texts.

    With a text backbone, word vectors are only made for a label graph. The main process fits and saves both, and the
    other processes read the files. `texts` has the columns `text` and, if the run is guided by labels, `labels`.
    """
    args, data = run.training, run.data
    if wants_to_resume(args.resume_from_checkpoint):
        for folder in (output, *([checkpoint.parent] if checkpoint is not None else [])):
            try:
                words = _load_words(run, folder)
            except CheckpointError:  # interrupted before they were written
                continue
            if folder != output and args.should_save:
                _save_words(output, *words)
            return words
    if not args.should_save:
        return _load_words(run, output)
    given = _load_words(run, resolve_data_path(data.words_from)) if data.words_from else None
    # If this run is interrupted before it writes its own files, those of an earlier run must not be mistaken for them.
    for path in (output / f"{stem}{ending}" for stem in WORDS_STEMS for ending in (".json", ".safetensors")):
        path.unlink(missing_ok=True)
    words = given or _fit_words(run, texts)
    _save_words(output, *words)
    return words


def needs_word_vectors(run: Run) -> bool:
    """Whether a run has word vectors: without a pretrained text encoder or text features, or for a label graph."""
    names = ("text_feature_dim", "text_backbone", "text_backbone_config", "dual_encoder", "dual_encoder_config")
    has_text_encoder = any(run.setting(name) is not None for name in names)
    return not has_text_encoder or bool(run.setting("use_label_graph"))


def _load_words(run: Run, folder: Path) -> tuple[GraphExpander | None, SkipGramEmbedding | None]:
    expander = GraphExpander.load(folder) if run.data.expand else None
    return expander, SkipGramEmbedding.load(folder) if needs_word_vectors(run) else None


def _save_words(output: Path, expander: GraphExpander | None, embedding: SkipGramEmbedding | None) -> None:
    with disk_errors(output, "the words"):
        if expander is not None:
            expander.save(output)
        if embedding is not None:
            embedding.save(output)


def _fit_words(run: Run, texts: Iterable[Any]) -> tuple[GraphExpander | None, SkipGramEmbedding | None]:
    """The word graph of the training texts with its knowledge, and the word vectors."""
    data = run.data
    expander = None
    if data.expand:
        expander = GraphExpander(
            data.walk_length,
            top_k=data.top_k,
            min_probability=data.min_probability,
            seed=run.training.seed,
            tokenizer=data.word_tokenizer,
            knowledge_top_k=data.knowledge_top_k,
        ).fit(texts)
        if data.knowledge:
            expander.knowledge = WikipediaKnowledge(
                window=data.knowledge_window,
                min_pair_count=data.knowledge_min_pair_count,
                within_vocabulary=data.knowledge_within_vocabulary,
                tokenizer=data.word_tokenizer,
            ).fit([resolve_data_path(source) for source in data.knowledge], expander.graph.vocabulary)
    if not needs_word_vectors(run):
        return expander, None
    rules = word_rules(data, texts)
    labels, absent = label_words(texts, rules) if data.word_labels and data.similarity == "labels" else (set(), set())
    named = _WithLabelWords(texts, absent, rules) if absent else texts
    embedding = SkipGramEmbedding(
        run.model_config().word_dim,
        epochs=data.word_epochs,
        window=data.word_window,
        seed=data.word_seed,
        workers=data.word_workers,
        min_count=data.word_min_count,
        word_rules=rules,
    ).fit(
        named if expander is None else expander.corpus(named, "text", num_walks=data.word_walks),
        extra_corpus=[resolve_data_path(path) for path in data.word_corpus] or None,
        always=labels,
    )
    return expander, embedding


def word_rules(data: DataArguments, texts: Iterable[Any]) -> WordRules:
    """The rules for words that the settings and the scripts of the training texts ask for.

    Texts in other scripts are read the same with and without these rules, so the models of such texts have none.

    Raises:
        CMFAHError: If `word_segmenter` is "icu", which is not installed.
    """
    unspaced, marked = data.word_segmenter == "icu", False
    for value, _ in iterate_values(texts, "text"):
        text = text_of(value)
        unspaced = unspaced or (data.word_segmenter == "auto" and needs_segmenter(text))
        marked = marked or (data.word_folding and needs_folding(text))
        if (unspaced or data.word_segmenter == "none") and (marked or not data.word_folding):
            break
    rules = WordRules("icu" if unspaced else "none", marked)
    try:
        rules.require()
    except ImportError as error:
        if data.word_segmenter == "icu":
            raise CMFAHError(f"word_segmenter is 'icu'. {error}") from None
        logger.warning("%s Without it, letters with no space between them are one word.", error)
        return WordRules(fold_marks=marked)
    return rules


def label_words(texts: Iterable[Any], rules: WordRules) -> tuple[set[str], set[str]]:
    """The words with a letter of the label names, and those of them that no text has."""
    present: set[str] = set()
    names: set[str] = set()
    for value, labels in iterate_values(texts, "text", "labels"):
        names.update(labels if labels is not None else ())
        present.update(words_of(value, split=rules.words))
    words = {word for name in names for word in rules.words(name) if any(map(str.isalpha, word))}
    return words, words - present


class _WithLabelWords:
    """Texts, each followed by those words of its labels that no text has; can be iterated repeatedly.

    So the vectors of these words are close to those of the words of their class's texts.
    """

    def __init__(self, texts: Iterable[Any], absent: set[str], rules: WordRules):
        self._texts, self._absent, self._rules = texts, absent, rules

    def __iter__(self) -> Iterator[str]:
        for value, labels in iterate_values(self._texts, "text", "labels"):
            words = [word for name in labels or () for word in self._rules.words(name) if word in self._absent]
            yield " ".join([text_of(value), *words])
