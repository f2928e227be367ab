"""From rows of a data set to the batch that a model reads."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from cmfah_hf.data.images import decode_image
from cmfah_hf.data.relevance import LabelRelevance, Relevance


class PairCollator:
    """Makes a batch of rows: pictures or their kept regions, texts, multi-hot labels, and the rows' numbers.

    Args:
        processor: A `CMFAHProcessor`.
        classes: The `C` class names, in the order of the model's labels. None: a batch has no labels.
        text_column: The column to read texts from; rows without it fall back on `text`.
        relevance: What stands in the place of labels. None: the labels of the classes.

    Returns (of a call):
        `region_features` `(B, R, C)` where the rows hold them (of the picture or, as often, of its mirror image where
        they hold `region_features_mirrored` too) or `image_features` (one region), else `pixel_values` `(B, 3, H, W)`; `input_ids` and
        `attention_mask` `(B, W)`; `labels` `(B, C)`, zeros where a row has none, or what `relevance` makes; `row`
        `(B,)` where the rows hold it.
    """

    def __init__(
        self,
        processor: Any,
        classes: Sequence[str] | None = None,
        text_column: str = "text",
        relevance: Relevance | None = None,
    ):
        if relevance is None and classes is not None:
            relevance = LabelRelevance(classes)
        self.processor = processor
        self.classes = classes
        self.text_column = text_column
        self.relevance = relevance

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        texts = [str(row[self.text_column] if self.text_column in row else row["text"]) for row in rows]
        batch = dict(self.processor(text=texts, return_tensors="pt"))
        if "region_features" in rows[0]:
            batch["region_features"] = torch.from_numpy(np.stack(_regions(rows, texts)))
        elif "image_features" in rows[0]:
            features_BD = np.stack([np.asarray(row["image_features"], dtype=np.float32) for row in rows])
            batch["region_features"] = torch.from_numpy(features_BD).unsqueeze(1)
        else:
            pictures = [decode_image(row["image"], name=str(row.get("id", "")) or None) for row in rows]
            batch["pixel_values"] = self.processor(images=pictures, return_tensors="pt")["pixel_values"]
        if self.relevance is not None:
            batch["labels"] = torch.from_numpy(self.relevance(rows, texts))
        if "row" in rows[0]:
            batch["row"] = torch.tensor([int(row["row"]) for row in rows])
        return batch


def _regions(rows: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> list[np.ndarray]:
    if "region_features_mirrored" not in rows[0]:
        return [row["region_features"] for row in rows]
    # Drawn from who is in the batch, and in which order, and not from the process's generator: that one is ahead by the
    # batches fetched beforehand, so that a training that is resumed within an epoch would draw anew.
    names = "\n".join(str(row["id"]) if "id" in row else text for row, text in zip(rows, texts, strict=True))
    mirrored = np.random.default_rng(zlib.crc32(names.encode())).random(len(rows)) < 0.5
    return [
        row["region_features_mirrored" if mirror else "region_features"]
        for row, mirror in zip(rows, mirrored, strict=True)
    ]
