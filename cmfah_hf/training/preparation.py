"""What stands before the first step of a run: its pairs, its words, what makes pairs alike, and its model."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets.fingerprint import Hasher
from huggingface_hub.errors import StrictDataclassError

from cmfah_hf.data import collect_classes, load_image_text, resolve_data_path, train_validation_split
from cmfah_hf.data.images import drop_unreadable
from cmfah_hf.data.label_counts import LabelCounts
from cmfah_hf.data.relevance import LabelRelevance, PairRelevance, Relevance, TagRelevance
from cmfah_hf.data.streams import PairStream, split_stream
from cmfah_hf.errors import CheckpointError, CMFAHError, DataError
from cmfah_hf.expansion import GraphExpander, SkipGramEmbedding, WikipediaKnowledge
from cmfah_hf.expansion.label_vectors import label_vectors
from cmfah_hf.models import METHODS, CMFAHConfig, CMFAHForPreTraining, CMFAHImageModel, CMFAHProcessor
from cmfah_hf.models.tokenization_cmfah import SPECIAL_TOKENS
from cmfah_hf.training.arguments import DataArguments
from cmfah_hf.training.backbone import fill_word_table, load_backbone_weights, load_text_backbone_weights
from cmfah_hf.training.checkpoints import disk_errors, wants_to_resume
from cmfah_hf.training.configuration import Run
from cmfah_hf.training.data_source import source_of
from cmfah_hf.training.kept_tables import kept_folder, kept_table
from cmfah_hf.training.region_cache import keep_regions
from cmfah_hf.training.streaming import count_streams, open_streams, stream_regions

logger = logging.getLogger(__name__)

WORDS_STEMS = ("expander", "knowledge", "skip_gram")
_PORTION = 1_000


@dataclass
class Pairs:
    """The pairs of a run: map-style, or streams.

    `splits` are `train` and `validation`, and where there are such `query` and `database`. `stream_of_all` are a
    stream's pairs of training and validation together. `classes` are those of train and of validation. `texts` is what
    the words are learned from, `together` how often a stream's training labels stand together, `backbone` what made
    the regions, if they are kept, and `source` where the data came from (`source_of`).
    """

    splits: dict[str, Any]
    stream_of_all: PairStream | None
    classes: dict[str, list[str]]
    texts: Iterable[Any]
    together: LabelCounts | None
    backbone: torch.nn.Module | None
    source: dict[str, str | None] = field(default_factory=dict)

    @property
    def all(self) -> Any:
        """The pairs of training and validation together."""
        if self.stream_of_all is not None:
            return self.stream_of_all
        return datasets.concatenate_datasets([self.splits["train"], self.splits["validation"]])

    @property
    def is_stream(self) -> bool:
        return self.stream_of_all is not None

    @property
    def label_counts(self) -> LabelCounts:
        """How often the labels of the training pairs stand together, `[label-graph]`."""
        return LabelCounts.of(self.splits["train"]) if self.together is None else self.together

    def expanded(self, expander: GraphExpander) -> "Pairs":
        """With the column of the expanded texts, `[graph]`."""
        if self.is_stream:
            splits = {name: pairs.map(expander, batched=True) for name, pairs in self.splits.items()}
            return replace(self, splits=splits, stream_of_all=self.stream_of_all.map(expander, batched=True))
        return replace(self, splits={name: _expanded(pairs, expander) for name, pairs in self.splits.items()})


def _expanded(pairs: datasets.Dataset, expander: GraphExpander) -> datasets.Dataset:
    features = datasets.Features({expander.output_column: datasets.Value("string")})

    def make(file: Path) -> None:
        pairs.select_columns(["text"]).with_format(None).map(
            expander,
            cache_file_name=str(file),
            load_from_cache_file=False,
            batched=True,
            remove_columns=["text"],
            features=features,
            desc="Expansion",
        )

    folder = kept_folder("expanded", f"{pairs._fingerprint} {Hasher.hash(expander)}")
    column = kept_table(folder, features, len(pairs), make)
    layout = pairs.format
    joined = datasets.concatenate_datasets([pairs.with_format(None), column], axis=1)
    if layout["type"] is None:
        return joined
    return joined.with_format(layout["type"], layout["columns"], output_all_columns=True, **layout["format_kwargs"])


def read_pairs(run: Run, output: Path) -> Pairs:
    """The pairs of a run, without unreadable pictures; of a frozen backbone whose regions are kept, their regions.

    Raises:
        DataError: If the data lacks what the run needs.
    """
    data, config = run.data, model_config(run)
    _check_method(run)
    if config.freeze_backbone and not backbone_weights(data, config):  # before hours are spent on its regions
        logger.warning(
            "The image backbone is frozen with weights drawn at random; give --backbone_weights, or "
            "--freeze_backbone false."
        )
    keeps_regions = config.freeze_backbone and data.keep_regions
    if data.streaming:
        loaded = open_streams(data)
    else:
        loaded = load_image_text(
            data.dataset, image_column=data.image_column, text_column=data.text_column, labels_column=data.labels_column
        )
    source = source_of(data.dataset, loaded) if run.training.should_save else {}
    if data.database_split == "database" and "database" not in loaded:
        data = replace(data, database_split=None)
    _check(data, loaded)
    wanted = {data.train_split, data.validation_split, data.query_split, data.database_split}
    loaded = {name: pairs for name, pairs in loaded.items() if name in wanted}
    image_model = processor = None
    if keeps_regions:
        image_model = CMFAHImageModel(config).to(run.training.device)
        if weights := backbone_weights(data, config):
            load_backbone_weights(image_model, weights)
        processor = CMFAHProcessor.from_vocabulary(config, [], data.image_mean, data.image_std)
    backbone = image_model.embeddings.backbone if image_model is not None else None
    if data.streaming:
        if keeps_regions:
            loaded = stream_regions(run, loaded, image_model, processor)
        whole = None if data.validation_split is not None else loaded[data.train_split]
        splits = _cut(data, loaded, split_stream)
        return Pairs(*count_streams(run, splits, whole, keeps_regions, output), backbone, source)
    with run.training.main_process_first(local=run.training.save_on_each_node, desc="pictures"):
        if keeps_regions:
            mirrored = {data.train_split, data.validation_split} if data.mirror else set()
            loaded = {
                name: keep_regions(pairs, image_model, processor, name in mirrored).remove_columns("image")
                for name, pairs in loaded.items()
            }
        else:
            loaded = {name: drop_unreadable(pairs) for name, pairs in loaded.items()}
        splits = _cut(data, loaded, train_validation_split)
    classes = {
        name: collect_classes(splits[name]) if data.similarity == "labels" else _labels_of(splits[name])
        for name in (("train",) if data.similarity == "labels" else ("train", "validation"))
    }
    return Pairs(splits, None, classes, splits["train"], None, backbone, source)


def model_config(run: Run) -> CMFAHConfig:
    """The configuration of a run's model, before anything is known of its data.

    Raises:
        CMFAHError: If a setting of it cannot be used.
    """
    try:
        return run.config_class(**run.model)
    except CMFAHError:
        raise
    # Of the settings of a backbone, each of which transformers checks in its own way.
    except (ValueError, TypeError, KeyError, AttributeError, OSError, ImportError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise CMFAHError(f"The settings of the model cannot be used: {reason}") from error


def _labels_of(pairs: datasets.Dataset) -> list[str]:
    if "labels" not in pairs.column_names:
        return []
    return sorted({name for names in pairs["labels"] for name in names or ()})


def _check_method(run: Run) -> None:
    """What a method makes of labels, where a run goes without them."""
    if run.data.similarity == "labels":
        return
    for name, what in (("use_label_graph", "label graph"), ("queue_size", "queue")):
        if run.setting(name):
            off = "false" if name == "use_label_graph" else "0"
            raise DataError(
                f"{run.method} makes its {what} of labels, and --similarity {run.data.similarity} goes without them; "
                f"give --similarity labels, --{name} {off}, or --method cmfah."
            )


def _check(data: DataArguments, loaded: Mapping[str, Any]) -> None:
    """What can be known to be missing is said before the backbone sees a picture, which may take hours."""
    for name in (data.train_split, data.validation_split, data.database_split):
        if name is not None and name not in loaded:
            raise DataError(f"{data.dataset}: there is no split {name!r}; there are {', '.join(loaded)}.")
    if data.similarity == "labels" and "labels" not in loaded[data.train_split].column_names:
        raise DataError(
            f"{data.dataset}: the split {data.train_split!r} has no labels, which guide the training; add them, or "
            "give --similarity tags or --similarity pairs, which need none."
        )


def _cut(data: DataArguments, loaded: Mapping[str, Any], divide: Callable) -> dict[str, Any]:
    """The splits by their part in the run: `train`, `validation`, and where there are such `query` and `database`."""
    splits = {"train": loaded[data.train_split]}
    if data.validation_split is not None:
        splits["validation"] = loaded[data.validation_split]
    else:
        splits["train"], splits["validation"] = divide(
            splits["train"], data.validation_fraction, seed=data.validation_seed
        )
    if data.query_split in loaded:
        splits["query"] = loaded[data.query_split]
    elif data.query_split is not None:
        logger.warning(
            "%s: there is no split %r, so no test queries are measured; there are %s.",
            data.dataset,
            data.query_split,
            ", ".join(loaded),
        )
    if data.database_split is not None:
        splits["database"] = loaded[data.database_split]
    return splits


def make_words(
    run: Run, texts: Iterable[Any], output: Path, checkpoint: Path | None
) -> tuple[GraphExpander | None, SkipGramEmbedding | None]:
    """The word graph and the word vectors: those of the run that goes on, else of the run that is named, else new.

    A model with a text backbone has word vectors only for a label graph. Of several processes the main one makes and
    keeps them, and the others read what it kept.
    """
    args, data = run.training, run.data
    if wants_to_resume(args.resume_from_checkpoint):
        for folder in (output, *([checkpoint.parent] if checkpoint is not None else [])):
            try:
                words = _load_words(run, folder)
            except CheckpointError:  # broken off before they were written
                continue
            if folder != output and args.should_save:
                _save_words(output, *words)
            return words
    if not args.should_save:
        return _load_words(run, output)
    words = _load_words(run, resolve_data_path(data.words_from)) if data.words_from else None
    # None of an earlier run may be taken for this one's, should it break off in between.
    for path in (output / f"{stem}{ending}" for stem in WORDS_STEMS for ending in (".json", ".safetensors")):
        path.unlink(missing_ok=True)
    words = words or _fit_words(run, texts)
    _save_words(output, *words)
    return words


def _needs_word_vectors(run: Run) -> bool:
    has_text_backbone = any(run.setting(name) is not None for name in ("text_backbone", "text_backbone_config"))
    return not has_text_backbone or bool(run.setting("use_label_graph"))


def _load_words(run: Run, folder: Path) -> tuple[GraphExpander | None, SkipGramEmbedding | None]:
    expander = GraphExpander.load(folder) if run.data.expand else None
    return expander, SkipGramEmbedding.load(folder) if _needs_word_vectors(run) else None


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
    if not _needs_word_vectors(run):
        return expander, None
    embedding = SkipGramEmbedding(
        model_config(run).word_dim,
        epochs=data.word_epochs,
        window=data.word_window,
        seed=data.word_seed,
        workers=data.word_workers,
        min_count=data.word_min_count,
    ).fit(corpus, extra_corpus=[resolve_data_path(path) for path in data.word_corpus] or None)
    return expander, embedding


class _ExpandedTexts:
    """Texts with the words that the graph adds, as often as they are asked for."""

    def __init__(self, texts: Iterable[str], expander: GraphExpander):
        self.texts, self.expander = texts, expander

    def __iter__(self) -> Iterator[str]:
        texts = iter(self.texts)
        while portion := list(islice(texts, _PORTION)):
            yield from self.expander({"text": portion})[self.expander.output_column]


def relevances(data: DataArguments, pairs: Pairs, expander: GraphExpander | None) -> tuple[Relevance, Relevance]:
    """What makes pairs alike in training, and in the evaluation on the validation pairs: labels, if there are any."""
    if data.similarity == "labels":
        by_label = LabelRelevance(pairs.classes["train"])
        return by_label, by_label
    relevance: Relevance = PairRelevance()
    if data.similarity == "tags":
        if not pairs.is_stream:
            texts = pairs.splits["train"][expander.output_column if expander is not None else "text"]
        else:
            texts = _ExpandedTexts(pairs.texts, expander) if expander is not None else pairs.texts
        relevance = TagRelevance.fit(texts)
    sides = (pairs.splits["validation"], pairs.splits["train"])
    found = sorted({name for names in pairs.classes.values() for name in names})
    if not found or not all("labels" in side.column_names for side in sides):
        return relevance, relevance
    return relevance, LabelRelevance(found)


def backbone_weights(data: DataArguments, config: CMFAHConfig) -> str | None:
    """Where the backbone's weights are; one that is given by Hub id or folder brings its own."""
    return data.backbone_weights or (
        config.backbone_config.name_or_path if config.backbone_config is not None else None
    )


def build_model(
    run: Run,
    classes: list[str],
    embedding: SkipGramEmbedding | None,
    backbone: torch.nn.Module | None,
    label_counts: LabelCounts | None = None,
) -> tuple[CMFAHForPreTraining, CMFAHProcessor]:
    """A model with the word vectors, the backbone's weights and the label graph in it, and its processor.

    Args:
        run: The run.
        classes: The names of the classes; none where the run goes without labels.
        embedding: The word vectors.
        backbone: What made the regions, if they are kept.
        label_counts: How often labels stand together; of a method with a label graph.
    """
    settings, vocabulary = dict(run.model), embedding.vocabulary if embedding is not None else []
    if embedding is not None:  # a text backbone has sizes of its own, which take precedence
        settings |= {"word_dim": embedding.vectors.shape[1], "vocab_size": len(vocabulary) + len(SPECIAL_TOKENS)}
    if not classes and run.setting("label_weight"):
        logger.info("Without labels there is no label guidance: label_weight is taken as 0.")
        settings["label_weight"] = 0
    config = run.config_class(
        **settings,
        id2label=dict(enumerate(classes)),
        label2id={name: number for number, name in enumerate(classes)},
    )
    model = METHODS[run.method].pretraining(config)
    if config.text_backbone_config is not None:
        load_text_backbone_weights(model.cmfah.text_model)
    elif embedding is not None:
        fill_word_table(model.cmfah.text_model, torch.from_numpy(embedding.vectors))
    if label_counts is not None and embedding is not None:
        counts_CC = torch.from_numpy(label_counts.matrix(classes))
        model.label_graph.fill(counts_CC, torch.from_numpy(label_vectors(classes, embedding)))
    weights = backbone_weights(run.data, config)
    if backbone is not None:  # the one that made the regions, also where its weights were drawn at random
        model.cmfah.image_model.embeddings.backbone.load_state_dict(backbone.state_dict())
    elif weights:
        load_backbone_weights(model.cmfah.image_model, weights)
    statistics = run.data.image_mean, run.data.image_std
    if config.text_backbone_config is not None:
        return model, CMFAHProcessor.from_backbones(config, *statistics)
    return model, CMFAHProcessor.from_vocabulary(config, vocabulary, *statistics)
