"""Preparation of a run: data, vocabulary, similarity, model."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path

import torch

from cmfah_hf.data.label_counts import LabelCounts
from cmfah_hf.data.similarity import (
    EmbeddingSimilarity,
    LabelSimilarity,
    PairSimilarity,
    Similarity,
    TagSimilarity,
)
from cmfah_hf.expansion import GraphExpander, SkipGramEmbedding
from cmfah_hf.expansion.label_vectors import label_vectors
from cmfah_hf.methods.label_graph import LabelGraph
from cmfah_hf.methods.pretraining import PRETRAINING_MODELS, CMFAHForPreTraining
from cmfah_hf.models import CMFAHConfig, CMFAHProcessor, CMFAHTextModel
from cmfah_hf.models.tokenization_cmfah import SPECIAL_TOKENS
from cmfah_hf.training.backbone import (
    backbone_weights,
    fill_word_table,
    load_backbone_weights,
    load_text_backbone_weights,
)
from cmfah_hf.training.data.kept_tokens import TokenTable, keep_tokens, texts_to_read
from cmfah_hf.training.data.pairs import Pairs, read_pairs
from cmfah_hf.training.dual_encoders import fit_head
from cmfah_hf.training.encoder_sources import EncoderLink
from cmfah_hf.training.encoder_updates import train_adapters
from cmfah_hf.training.settings.arguments import DataArguments
from cmfah_hf.training.settings.configuration import Run
from cmfah_hf.training.vocabulary import make_words

logger = logging.getLogger(__name__)

_PORTION = 1_000
# The splits that a training and its evaluations read, and those that are measured at its end.
_TRAINED = ("train", "validation", "validation_database")
_TESTED = ("query", "database")


@dataclass
class PreparedRun:
    """Everything that a run needs before its first step.

    Attributes:
        run: The settings of the run, including those that depend on the data.
        pairs: The pairs of the run, with expanded texts if it expands them.
        expander: The word graph with its knowledge; None if texts are not expanded.
        embedding: The word vectors; None with a text backbone, unless a label graph needs them.
        similarity: The similarity of pairs in training.
        measured: The similarity of pairs in evaluation.
        label_counts: The co-occurrences of labels, for a method with a label graph.
        link: The dual encoder on the Hub whose weights the last model was built with, if any.
    """

    run: Run
    pairs: Pairs
    expander: GraphExpander | None
    embedding: SkipGramEmbedding | None
    similarity: Similarity
    measured: Similarity
    label_counts: LabelCounts | None
    link: EncoderLink | None = field(default=None, init=False)
    _tokens: dict[tuple[str, ...], TokenTable | None] = field(default_factory=dict, init=False, repr=False)

    @property
    def text_column(self) -> str:
        """The column that the model reads texts from."""
        return "text" if self.expander is None else self.expander.output_column

    @property
    def classes(self) -> list[str]:
        """The classes that guide the training; none without labels."""
        return self.pairs.classes["train"] if self.run.data.similarity == "labels" else []

    def build_model(self) -> tuple[CMFAHForPreTraining, CMFAHProcessor]:
        """A new model with the word vectors, the backbone's weights and the label graph, and its processor."""
        run, classes, embedding = self.run, self.classes, self.embedding
        settings, vocabulary = dict(run.model_settings), embedding.vocabulary if embedding is not None else []
        rank = settings.pop("lora_rank", None)
        if embedding is not None:  # a text backbone has sizes of its own, which take precedence
            settings |= {"word_dim": embedding.vectors.shape[1], "vocab_size": len(vocabulary) + len(SPECIAL_TOKENS)}
        if "text_feature_dim" in self.pairs.feature_dims:  # its texts are not read
            settings["vocab_size"] = len(SPECIAL_TOKENS)
        settings |= self.pairs.feature_dims
        if not classes and run.setting("label_weight"):
            logger.info("Without labels there is no label guidance: label_weight is taken as 0.")
            run = replace(run, objective={**run.objective, "label_weight": 0})
        config = run.config_class(
            **settings,
            id2label=dict(enumerate(classes)),
            label2id={name: number for number, name in enumerate(classes)},
        )
        processor = self._processor(config, vocabulary)
        if config.dual_encoder_config is not None:
            config.pad_token_id = processor.tokenizer.pad_token_id
        model = PRETRAINING_MODELS[config.model_type](config, run.objective_config(), run.method)
        if not processor.word_level:
            self.link = load_text_backbone_weights(model.cmfah.text_model)
        elif embedding is not None and isinstance(model.get_input_embeddings(), torch.nn.Embedding):
            fill_word_table(model.cmfah.text_model, torch.from_numpy(embedding.vectors))
        graph = getattr(model.objective, "label_graph", None)
        if isinstance(graph, LabelGraph) and self.label_counts is not None and embedding is not None:
            counts_CC = torch.from_numpy(self.label_counts.matrix(classes))
            graph.fill(counts_CC, torch.from_numpy(label_vectors(classes, embedding)))
        weights = backbone_weights(run.data, config)
        if self.pairs.backbone is not None:  # it computed the regions, perhaps with random weights
            model.cmfah.image_model.embeddings.backbone.load_state_dict(self.pairs.backbone.state_dict())
        elif weights and config.image_feature_dim is None:
            load_backbone_weights(model.cmfah.image_model, weights)
        if config.dual_encoder_config is not None and run.data.fit_head:
            projection = fit_head(
                model.cmfah, processor, self.pairs.splits["train"], self.text_column, run.training.seed
            )
            logger.info("The hash heads begin at %s of the encoder's vectors.", projection.name)
        train_adapters(model, rank, run.training)
        return model, processor

    def kept_tokens(self, text_model: CMFAHTextModel, processor: CMFAHProcessor) -> TokenTable | None:
        """The tokens of all texts that the training and its evaluations read; None if they are not kept.

        They are computed once, by any model with the same frozen text encoder.
        """
        return self._tokens_of(_TRAINED, text_model, processor)

    def tested_tokens(self, text_model: CMFAHTextModel, processor: CMFAHProcessor) -> TokenTable | None:
        """As `kept_tokens`, with the tokens of the test queries and their database too."""
        trained, tested = (self._tokens_of(names, text_model, processor) for names in (_TRAINED, _TESTED))
        # In two tables, so that the test queries have no effect on the batches that the others are encoded in.
        return None if trained is None or tested is None else trained.with_texts_of(tested)

    def _tokens_of(
        self, names: tuple[str, ...], text_model: CMFAHTextModel, processor: CMFAHProcessor
    ) -> TokenTable | None:
        data = self.run.data
        frozen = text_model.config.freeze_text_backbone and not processor.word_level
        if not frozen or not data.keep_tokens or self.pairs.is_stream:
            return None
        if names not in self._tokens:
            read = [self.pairs.splits[name] for name in names if name in self.pairs.splits]
            texts = chain.from_iterable(texts_to_read(pairs, self.text_column, self.expander) for pairs in read)
            self._tokens[names] = keep_tokens(text_model.to(self.run.training.device), processor, texts)
        return self._tokens[names]

    def _processor(self, config: CMFAHConfig, vocabulary: list[str]) -> CMFAHProcessor:
        statistics = self.run.data.image_mean, self.run.data.image_std
        if config.text_backbone_config is not None or config.dual_encoder_config is not None:
            return CMFAHProcessor.from_backbones(config, *statistics)
        rules = self.embedding.word_rules if self.embedding is not None else None
        return CMFAHProcessor.from_vocabulary(config, vocabulary, *statistics, rules, self.run.data.word_unknown)


def prepare(run: Run, output: Path, checkpoint: Path | None) -> PreparedRun:
    """Reads and expands the pairs of a run, and fits its vocabulary and similarity.

    Args:
        run: The settings of the run.
        output: The folder of the run, for its vocabulary.
        checkpoint: The checkpoint that it resumes from, if any, with a vocabulary next to it.

    Raises:
        CMFAHError: If the data or a setting cannot be used.
    """
    pairs = read_pairs(run, output)
    # With `save_on_each_node`, the nodes do not share a file system.
    with run.training.main_process_first(local=run.training.save_on_each_node, desc="words"):
        expander, embedding = make_words(pairs.settings_of(run), pairs.labeled_texts, output, checkpoint)
        if expander is not None:
            pairs = pairs.expanded(expander)
    similarity, measured = similarities(run.data, pairs, expander)
    run = _with_derived_settings(similarity, run)
    # The label graph of a refit is that of the training pairs, as its vocabulary is.
    label_counts = pairs.label_counts if run.setting("use_label_graph") else None
    return PreparedRun(run, pairs, expander, embedding, similarity, measured, label_counts)


def _with_derived_settings(similarity: Similarity, run: Run) -> Run:
    """The run with the settings of its objective that follow from others, if the objective has them and none is given.

    The threshold of similar tags is `positive_overlap`; an encoder's vectors count by `distillation_weight`, 1. A
    schedule over `num_epochs` is that of the training.
    """
    names = run.objective_class.settings_class.names()
    if "num_epochs" in names:
        run = replace(run, objective={"num_epochs": max(1, round(run.training.num_train_epochs)), **run.objective})
    if isinstance(similarity, EmbeddingSimilarity) and "distillation_weight" in names:
        return replace(run, objective={"distillation_weight": 1, **run.objective})
    if not isinstance(similarity, TagSimilarity) or "positive_overlap" not in names:
        return run
    run = replace(run, objective={"positive_overlap": similarity.threshold, **run.objective})
    similarity.threshold = run.objective["positive_overlap"]
    return run


class _ExpandedTexts:
    """Texts with the words that the graph adds; can be iterated repeatedly."""

    def __init__(self, texts: Iterable[str], expander: GraphExpander):
        self.texts, self.expander = texts, expander

    def __iter__(self) -> Iterator[str]:
        texts = iter(self.texts)
        while portion := list(islice(texts, _PORTION)):
            yield from self.expander({"text": portion})[self.expander.output_column]


def similarities(data: DataArguments, pairs: Pairs, expander: GraphExpander | None) -> tuple[Similarity, Similarity]:
    """The similarity of pairs in training, and in evaluation on the validation pairs, which prefers labels."""
    if data.similarity == "labels":
        by_label = LabelSimilarity(pairs.classes["train"])
        return by_label, by_label
    similarity: Similarity = EmbeddingSimilarity() if data.similarity == "embeddings" else PairSimilarity()
    if data.similarity == "tags":
        if not pairs.is_stream:
            texts = pairs.splits["train"][expander.output_column if expander is not None else "text"]
        else:
            texts = _ExpandedTexts(pairs.texts, expander) if expander is not None else pairs.texts
        similarity = TagSimilarity.fit(texts)
    sides = (pairs.splits["validation"], pairs.splits["train"])
    found = sorted({name for names in pairs.classes.values() for name in names})
    if not found or not all("labels" in side.column_names for side in sides):
        return similarity, similarity
    return similarity, LabelSimilarity(found)
