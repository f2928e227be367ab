"""Evaluation of a trained model on a data set: queries and database are encoded, then measured."""

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader

from cmfah_hf.data import drop_unreadable, load_image_text
from cmfah_hf.data.collator import PairCollator, captions_in, expanded
from cmfah_hf.data.images import decode_image, decoding_off
from cmfah_hf.data.rows.columns import IMAGE_FEATURES, TEXT_FEATURES
from cmfah_hf.errors import DataError, QueryError
from cmfah_hf.evaluation import PAIR_METRICS, RANKINGS, RetrievalEvaluator
from cmfah_hf.evaluation.attention import attention_of_words
from cmfah_hf.evaluation.pointing import pointing_game
from cmfah_hf.expansion import GraphExpander
from cmfah_hf.models import CMFAHModel, CMFAHProcessor
from cmfah_hf.retrieval import CrossMediaRetriever
from cmfah_hf.retrieval.known_words import WordCoverage
from cmfah_hf.training.data.kept_tokens import TokenTable
from cmfah_hf.training.data.pairs import as_arrays
from cmfah_hf.training.data.region_cache import keep_regions
from cmfah_hf.training.data.streams import PairStream
from cmfah_hf.training.dual_encoders import EncoderVectors
from cmfah_hf.training.task import reads_text_features, without_augmentation

logger = logging.getLogger(__name__)

KeepCurves = Callable[[dict[str, dict[str, np.ndarray]]], None]
KeepCodes = Callable[[Mapping[str, "EncodedPairs"]], None]
PROTOCOLS = ("single", "paired")
_TEXTS_AT_ONCE = 256
# The prefix of figures of instance retrieval.
_PAIRS = "pairs/"
# Shares above which there is a warning.
_MANY_UNKNOWN_WORDS, _MANY_TEXTS_WITHOUT = 0.2, 0.05


@dataclass(frozen=True)
class EncodedPairs:
    """The continuous codes of pairs.

    Attributes:
        images, texts: `(N, K)` each; of a pair with several captions, the first.
        labels: The label names of each pair.
        words: The coverage of the words of all texts.
        captions: `(M, K)`, the codes of all captions, if they were asked for.
        rows_of_captions: `(M,)`, the row of each caption.
    """

    images: np.ndarray
    texts: np.ndarray
    labels: list[list[str]]
    words: WordCoverage
    captions: np.ndarray | None = None
    rows_of_captions: np.ndarray | None = None


@torch.inference_mode()
def encode_pairs(
    model: CMFAHModel,
    processor: CMFAHProcessor,
    pairs: Any,
    text_column: str,
    protocol: str = "single",
    expander: GraphExpander | None = None,
    captions: bool = False,
    tokens: TokenTable | None = None,
) -> EncodedPairs:
    """The codes, labels and words of a data set, which is read once.

    Args:
        model: The towers.
        processor: Their processor.
        pairs: Rows as `PairCollator` reads them.
        text_column: The column of the texts.
        protocol: `"single"`: the unimodal view, as for a query. `"paired"`: the cross-modal view, in which each query
            sees its answer; only for comparison with publications that do so.
        expander: The expander of `text_column`, if any. A word in its graph counts as known.
        captions: Whether to encode all captions of each pair too, without their image.
        tokens: The kept tokens of all texts of the pairs, if any.

    Raises:
        QueryError: If the protocol is unknown, or there are no pairs.
    """
    _check_protocol(protocol)
    was_training = model.training
    model.eval()
    image_hashes, text_hashes, words = [], [], WordCoverage()
    labels: list[list[str]] = []
    listed: list[tuple[int, str]] = []
    given = reads_text_features(model.config)
    captions = captions and not given
    collator = PairCollator(processor, None, text_column, expander=expander, tokens=tokens, text_features=given)
    # An unreadable image ends a stream that `datasets` decodes; a `PairStream` leaves it out.
    pairs = PairStream(pairs) if isinstance(pairs, datasets.IterableDataset) else without_augmentation(pairs)

    def collate(rows):
        if captions:
            for place, row in enumerate(rows, len(labels)):
                listed.extend((place, text) for text in captions_in(row) or [str(row["text"])])
        labels.extend(list(row.get("labels") or ()) for row in rows)
        for row in rows:
            whole = str(row[text_column] if text_column in row else row["text"])
            words.count(str(row.get("text", whole)), whole, processor, expander)
        return collator(rows)

    for batch in DataLoader(pairs, batch_size=64, collate_fn=collate):
        batch = {name: values.to(model.device) for name, values in batch.items() if name != "row"}
        if protocol == "single":
            image_hash, text_hash = model.get_image_hash(**batch), model.get_text_hash(**batch)
        else:
            outputs = model(**batch)
            image_hash, text_hash = outputs.image_hash, outputs.text_hash
        image_hashes.append(image_hash.float().cpu().numpy())
        text_hashes.append(text_hash.float().cpu().numpy())
    if not labels:
        model.train(was_training)
        raise QueryError("There is no pair to encode; give some.")
    encoded = EncodedPairs(np.concatenate(image_hashes), np.concatenate(text_hashes), labels, words)
    if len(listed) > len(labels):
        rows, texts = zip(*listed, strict=True)
        hashes = _encode_texts(model, processor, expanded(texts, expander, text_column), tokens)
        encoded = replace(encoded, captions=hashes, rows_of_captions=np.array(rows))
    model.train(was_training)
    return encoded


def _encode_texts(
    model: CMFAHModel, processor: CMFAHProcessor, texts: Sequence[str], tokens: TokenTable | None
) -> np.ndarray:
    """The unimodal continuous codes of texts, `(M, K)`."""
    hashes = []
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        read = list(texts[start : start + _TEXTS_AT_ONCE])
        inputs = processor(text=read, return_tensors="pt") if tokens is None else tokens(read)
        inputs = {name: values.to(model.device) for name, values in inputs.items()}
        hashes.append(model.get_text_hash(**inputs).float().cpu().numpy())
    return np.concatenate(hashes)


def _check_protocol(protocol: str) -> None:
    if protocol not in PROTOCOLS:
        raise QueryError(f"There is no protocol {protocol!r}; choose one of {', '.join(PROTOCOLS)}.")


def evaluate_pairs(
    model: CMFAHModel,
    processor: CMFAHProcessor,
    queries: Any,
    database: Any = None,
    text_column: str = "text",
    protocol: str = "single",
    evaluator: RetrievalEvaluator | None = None,
    plots: Path | None = None,
    expander: GraphExpander | None = None,
    instances: bool = True,
    keep_curves: KeepCurves | None = None,
    tokens: TokenTable | None = None,
    keep_codes: KeepCodes | None = None,
) -> dict[str, float]:
    """The figures of `RetrievalEvaluator` for the pairs of a data set, and the coverage of their words.

    Category retrieval, by labels, searches the database; of a pair with several captions, it reads the first. Instance
    retrieval searches the query pairs themselves, for the image of each text and the texts of each image, with all
    captions; its figures have names such as `"pairs/hamming/t2i/recall@1"`.

    For queries and database, names such as `queries_unknown_words` give the number of words, the number of unknown
    words and of texts without a known word, and the shares of both.

    Args:
        model, processor, text_column, protocol, expander: As in `encode_pairs`.
        queries, database: The query pairs, and the pairs that are searched. Without a database, only instance retrieval
            is measured, which needs no labels.
        evaluator: The evaluator by labels. None: all figures of the default one.
        plots: A folder for the precision-recall and precision@k curves as PNG.
        keep_curves: Called with these curves, as `RetrievalEvaluator.curves` returns them.
        instances: Whether to measure instance retrieval; not if the protocol is `"paired"`, in which each query sees
            its answer.
        tokens: As in `encode_pairs`, of queries and database.
        keep_codes: Called with the encoded `queries`, and `database` if there is one.

    Raises:
        QueryError: If the protocol is unknown, queries or database have no labels, or nothing is to be measured.
    """
    _check_protocol(protocol)
    instances = instances and protocol == "single"
    if database is None and not instances:
        raise QueryError("There is nothing to measure without a database; give one, with labels.")
    given = {"queries": queries} if database is None else {"queries": queries, "database": database}
    for name, pairs in given.items():
        if database is not None and "labels" not in pairs.column_names:
            raise QueryError(f"The {name} have no labels, which define relevance; add labels.")
    sides = {
        name: encode_pairs(
            model, processor, pairs, text_column, protocol, expander, instances and name == "queries", tokens
        )
        for name, pairs in given.items()
    }
    if keep_codes is not None:
        keep_codes(sides)
    figures: dict[str, float] = {}
    if database is not None:
        hashes = [values for side in sides.values() for values in (side.images, side.texts)]
        labels = [side.labels for side in sides.values()]
        evaluator = evaluator or RetrievalEvaluator()
        if plots is not None or keep_curves is not None:
            curves = evaluator.curves(*hashes, *labels)
            if plots is not None:
                _plot_curves(curves, plots)
            if keep_curves is not None:
                keep_curves(curves)
        figures |= evaluator(*hashes, *labels)
    if instances:
        of_pairs = RetrievalEvaluator(PAIR_METRICS, ks=(1, 5, 10), ranking=RANKINGS)
        side = sides["queries"]
        if side.captions is None:
            found = of_pairs.pairs(side.images, side.texts)
        else:
            found = of_pairs.pairs(side.images, side.captions, np.arange(len(side.images)), side.rows_of_captions)
        figures |= {f"{_PAIRS}{name}": value for name, value in found.items()}
    for name, side in sides.items():
        figures |= side.words.figures(name)
        _warn_of_unknown_words(name, side.words)
    return figures


def split_figures(figures: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """The figures of `evaluate_pairs` in two parts: by labels, and of instance retrieval, without `pairs/`."""
    by_labels = {name: value for name, value in figures.items() if not name.startswith(_PAIRS)}
    return by_labels, {name.removeprefix(_PAIRS): figures[name] for name in figures if name.startswith(_PAIRS)}


def _plot_curves(curves: dict[str, dict[str, np.ndarray]], plots: Path) -> None:
    from cmfah_hf.evaluation.plots import plot_precision_at_k, plot_precision_recall

    plots.mkdir(parents=True, exist_ok=True)
    plot_precision_recall(curves, plots / "precision_recall.png")
    plot_precision_at_k(curves, plots / "precision_at_k.png")


def _warn_of_unknown_words(name: str, words: WordCoverage) -> None:
    if words.unknown > _MANY_UNKNOWN_WORDS * words.words or words.without > _MANY_TEXTS_WITHOUT * words.texts:
        logger.warning(
            "The model does not know %d of the %d words of the %s, and %d of %d texts hold no word that it knows: such "
            "texts all have the same code. Compare the figures with those of a constant query.",
            words.unknown,
            words.words,
            name,
            words.without,
            words.texts,
        )


def evaluate_folder(
    model: str,
    dataset: str,
    query_split: str = "query",
    database_split: str | None = None,
    protocol: str = "single",
    plots: Path | None = None,
    captions: str = "auto",
    reference: str | None = None,
    keep_curves: KeepCurves | None = None,
) -> dict[str, float]:
    """The figures of a saved model on a data set, as in `evaluate_pairs`; without labels, only of instance retrieval.

    With a frozen backbone, the regions of the images are kept on disk for later calls.

    Args:
        model: A folder or a Hub id.
        dataset: As in `load_image_text`.
        query_split: The split of the queries.
        database_split: The split that is searched. None: `database` if the data has it, else `train`.
        protocol: As in `encode_pairs`.
        plots: A folder for the curves as PNG.
        captions: As in `load_image_text`.
        reference: `"float"`: measure the cosine of the encoder's own vectors too, on the same items, if the model has a
            dual encoder; the figures have names such as `"float/t2i/map"`.
        keep_curves: As in `evaluate_pairs`; not called without labels.

    Raises:
        CMFAHError: If the model or the data cannot be used, a split is missing, or labels are, for the protocol
            `"paired"`, for plots, or on one side.
    """
    _check_protocol(protocol)
    retriever = CrossMediaRetriever.from_pretrained(model)
    if reference not in (None, "float"):
        raise QueryError(f"There is no reference {reference!r}; give 'float', or none.")
    if reference is not None and (retriever.model.config.dual_encoder_config is None or protocol == "paired"):
        raise QueryError(f"{model}: the float reference needs a dual encoder, and the protocol 'single'.")
    loaded = load_image_text(dataset, captions=captions)
    database_split = database_split or ("database" if "database" in loaded else "train")
    names = [query_split, database_split]
    for name in names:
        if name not in loaded:
            raise DataError(f"{dataset}: there is no split {name!r}; there are {', '.join(loaded)}.")
    unlabeled = [name for name in names if "labels" not in loaded[name].column_names]
    if unlabeled and (len(set(unlabeled)) < len(set(names)) or protocol == "paired" or plots is not None):
        raise DataError(f"{dataset}: the split {unlabeled[0]!r} has no labels, which define relevance; add them.")
    if unlabeled:
        logger.warning("%s: there are no labels; only the retrieval of the other half of a pair is measured.", dataset)
        names = [query_split]
    sides = [inputs_for(retriever, loaded[name], dataset) for name in names]
    (queries, text_column), database = sides[0], None if unlabeled else sides[1][0]
    figures = evaluate_pairs(
        retriever.model,
        retriever.processor,
        queries,
        database,
        text_column,
        protocol,
        plots=plots,
        expander=retriever.expander,
        keep_curves=keep_curves,
    )
    if reference is not None:
        vectors, by_cosine = EncoderVectors(retriever.model), RetrievalEvaluator(ranking=("cosine",))
        found = evaluate_pairs(
            cast(CMFAHModel, vectors), retriever.processor, queries, database, text_column, evaluator=by_cosine
        )
        figures |= {name.replace("cosine/", "float/"): value for name, value in found.items() if "cosine/" in name}
    return figures


def inputs_for(retriever: CrossMediaRetriever, pairs: datasets.Dataset, dataset: str) -> tuple[datasets.Dataset, str]:
    """Pairs in the form that a model reads, with expanded texts if it expands them, and the column of the texts.

    Raises:
        DataError: If the data, named `dataset`, lacks what the model reads.
    """
    pairs = _fit_for(retriever, pairs, dataset)
    if retriever.expander is None:
        return pairs, "text"
    return pairs.map(retriever.expander, batched=True, desc="Expansion"), retriever.expander.output_column


def _fit_for(retriever: CrossMediaRetriever, pairs: datasets.Dataset, dataset: str) -> datasets.Dataset:
    """The pairs in the form that the model reads: regions of a frozen backbone, readable images, or given features."""
    model = retriever.model
    if reads_text_features(model.config) and TEXT_FEATURES not in pairs.column_names:
        raise DataError(f"{dataset}: the model reads features of texts, and the data has none; take other data.")
    width = model.config.image_feature_dim
    if "image" in pairs.column_names and width is None:
        if model.config.freeze_backbone:
            return keep_regions(pairs, model.image_model, retriever.processor).remove_columns("image")
        return drop_unreadable(pairs)
    if width is None or IMAGE_FEATURES not in pairs.column_names:
        reads, has = ("images", "features of them") if width is None else (f"{width} features of an image", "images")
        raise DataError(
            f"{dataset}: the model reads {reads}, and the data has {has}; take other data or another model."
        )
    pairs = as_arrays(pairs)
    if len(pairs) and len(pairs[0][IMAGE_FEATURES]) != width:
        raise DataError(
            f"{dataset}: its images have {len(pairs[0][IMAGE_FEATURES])} features, and the model reads {width}; take "
            "the features that it was trained on."
        )
    return pairs


def pointing_accuracy(model: CMFAHModel, processor: CMFAHProcessor, pairs: Any) -> dict[str, float]:
    """The pointing game on a data set with boxes, such as the scenes.

    Args:
        model: Towers with attention.
        processor: Their processor.
        pairs: Rows with `image`, `text` and `boxes`: a list of `{"word": ..., "box": [left, top, right, bottom]}`.

    Returns:
        `accuracy`: the share of words whose region of largest attention is in a box of the word; `chance`: the share
        for random regions; `words`: the number of words.

    Raises:
        ImageError: If an image cannot be read.
        QueryError: If the model knows no word of a box.
    """
    hits = chance = 0.0
    total = 0
    for row, pair in enumerate(decoding_off(pairs) if hasattr(pairs, "features") else pairs):
        boxes = defaultdict(list)
        for box in pair["boxes"]:
            if box["word"]:
                boxes[box["word"].lower()].append(box["box"])
        if not set(boxes) & set(processor.known_words(pair["text"])):
            continue
        image = decode_image(pair["image"], name=f"row {row}")
        words, weights_RW, grid, seen = attention_of_words(model, processor, image, pair["text"])
        result = pointing_game(weights_RW, words, boxes, image.size, grid, seen)
        hits, total, chance = hits + result.hits, total + result.total, chance + result.chance * result.total
    if not total:
        raise QueryError("No pair has a box whose word the model knows.")
    return {"accuracy": hits / total, "chance": chance / total, "words": float(total)}
