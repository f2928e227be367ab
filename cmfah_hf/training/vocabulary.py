"""The word graph and the word vectors of a run: fitted once, or loaded from an earlier run."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cmfah_hf.data import resolve_data_path
from cmfah_hf.errors import CheckpointError
from cmfah_hf.expansion import GraphExpander, SkipGramEmbedding, WikipediaKnowledge
from cmfah_hf.training.checkpoints import disk_errors, wants_to_resume
from cmfah_hf.training.settings.configuration import Run

WORDS_STEMS = ("expander", "knowledge", "skip_gram")


def make_words(
    run: Run, texts: Iterable[Any], output: Path, checkpoint: Path | None
) -> tuple[GraphExpander | None, SkipGramEmbedding | None]:
    """The word graph and the word vectors: of the resumed run, else of `words_from`, else fitted on the texts.

    With a text backbone, word vectors are only made for a label graph. The main process fits and saves both, and the
    other processes read the files.
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
    corpus: Any = texts
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
        corpus = expander.corpus(texts, num_walks=data.word_walks)
    if not needs_word_vectors(run):
        return expander, None
    embedding = SkipGramEmbedding(
        run.model_config().word_dim,
        epochs=data.word_epochs,
        window=data.word_window,
        seed=data.word_seed,
        workers=data.word_workers,
        min_count=data.word_min_count,
    ).fit(corpus, extra_corpus=[resolve_data_path(path) for path in data.word_corpus] or None)
    return expander, embedding
