"""The retrieval task of a trainer: pairs, their similarity, and evaluation by unimodal retrieval."""

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, cast

import torch
from transformers.trainer_utils import EvalLoopOutput, has_length

from cmfah_hf.data.collator import CaptionDraw, PairCollator
from cmfah_hf.data.similarity import PairSimilarity, Similarity
from cmfah_hf.evaluation import RetrievalEvaluator
from cmfah_hf.expansion import GraphExpander
from cmfah_hf.training.data.kept_tokens import TokenTable
from cmfah_hf.training.data.stream_loaders import as_stream
from cmfah_hf.training.data.streams import PairStream

AUGMENTING_COLUMN = "region_features_mirrored"


def training_collator(
    config: Any,
    processor: Any,
    text_column: str,
    similarity: Similarity | None,
    expander: Any,
    seed: int,
    tokens: TokenTable | None = None,
) -> PairCollator:
    """The collator of training pairs, which draws a caption for each epoch by `seed`.

    The other arguments are as in `CMFAHTrainer`, and `tokens` as in `PairCollator`.
    """
    classes = [config.id2label[number] for number in range(config.num_labels)]
    given = reads_text_features(config)
    return PairCollator(processor, classes, text_column, similarity, expander, CaptionDraw(seed), tokens, given)


def reads_text_features(config: Any) -> bool:
    """Whether a model reads given features instead of texts."""
    return getattr(config, "text_feature_dim", None) is not None


class RetrievalTask:
    """Collators of the training pairs and the evaluation pairs, and the evaluation; arguments of `CMFAHTrainer`."""

    def __init__(
        self,
        collator: Any,
        processor: Any = None,
        text_column: str = "text",
        database: Any = None,
        similarity: Similarity | None = None,
        measured: Similarity | None = None,
        expander: GraphExpander | None = None,
    ):
        self.collator = self.plain_collator = collator
        if isinstance(collator, PairCollator):  # all but training reads the first caption
            self.plain_collator = copy(collator)
            self.plain_collator.draw = None
        self.measuring_collator = self.plain_collator
        if measured is not None:
            kept = {name: getattr(collator, name) for name in ("tokens", "text_features") if hasattr(collator, name)}
            self.measuring_collator = PairCollator(processor, None, text_column, measured, expander, **kept)
        self.database = as_stream(database)
        self.measured = measured or similarity
        self.evaluator = RetrievalEvaluator(metrics=("map", "random"), ranking="hamming")

    def begin_epoch(self, epoch: int) -> None:
        """Draws the captions of this epoch, also when a run resumes within it."""
        if isinstance(self.collator, PairCollator) and self.collator.draw is not None:
            self.collator.draw.set_epoch(epoch)

    def searched(self, train_dataset: Any, eval_dataset: Any) -> Any:
        """The pairs that evaluation searches."""
        if self.database is not None:
            return self.database
        # Pairs that are similar only to themselves have no similar training pairs, so evaluation pairs are searched.
        return eval_dataset if isinstance(self.measured, PairSimilarity) else without_augmentation(train_dataset)

    def metrics(self, queries: EvalLoopOutput, database: EvalLoopOutput, prefix: str) -> dict[str, float]:
        """MAP in the mean of both directions, from images to texts, from texts to images, and of a random ranking."""
        # transformers annotates these as arrays or tuples of arrays; here, they are images and texts.
        labels_q: Any = queries.label_ids
        labels_db: Any = database.label_ids
        if self.measured is not None:
            labels_q, labels_db = self.measured.relevant(labels_q, labels_db)
        hash_q: Any = queries.predictions
        hash_db: Any = database.predictions
        found = self.evaluator(hash_q[0], hash_q[1], hash_db[0], hash_db[1], labels_q, labels_db)
        i2t, t2i = found["hamming/i2t/map"], found["hamming/t2i/map"]
        maps = {"map": (i2t + t2i) / 2, "map_i2t": i2t, "map_t2i": t2i, "map_random": found["random/map"]}
        return {f"{prefix}_{name}": value for name, value in maps.items()}


def without_augmentation(pairs: Any) -> Any:
    """A data set without the column of mirrored images, for evaluation."""
    if isinstance(pairs, PairStream):  # in evaluation it yields none
        return pairs
    if not hasattr(pairs, "column_names"):
        is_list = has_length(pairs) and not isinstance(pairs, Mapping)
        return _Rows(cast(Sequence[dict[str, Any]], pairs), augmented=False) if is_list else pairs
    return pairs.remove_columns(AUGMENTING_COLUMN) if AUGMENTING_COLUMN in (pairs.column_names or ()) else pairs


def numbered(pairs: Any) -> Any:
    """A map-style data set with its row numbers under `row`."""
    if not hasattr(pairs, "column_names"):
        return _Rows(pairs, numbered=True)
    if "row" in pairs.column_names:
        return pairs
    layout = pairs.format
    with_rows = pairs.with_format(None).add_column("row", list(range(len(pairs))))
    if layout["type"] is None:
        return with_rows
    # In the format of kept regions, float16, row numbers above 2,048 would be rounded.
    return with_rows.with_format(layout["type"], layout["columns"], output_all_columns=True, **layout["format_kwargs"])


class _Rows(torch.utils.data.Dataset):
    """Rows of a list or of a torch data set, with their numbers under `row` or without mirrored images."""

    def __init__(self, rows: Sequence[dict[str, Any]], numbered: bool = False, augmented: bool = True):
        self.rows, self.numbered, self.augmented = rows, numbered, augmented

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        row = dict(self.rows[number])
        if self.numbered:
            row["row"] = number
        if not self.augmented:
            row.pop(AUGMENTING_COLUMN, None)
        return row
