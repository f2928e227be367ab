"""Collator: rows of a data set to a batch for a model."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from cmfah_hf.data.images.decoding import decode_image
from cmfah_hf.data.images.pixels import pixel_values_of
from cmfah_hf.data.rows.columns import IMAGE_FEATURES, TEXT_FEATURES
from cmfah_hf.data.similarity import LabelSimilarity, Similarity


class CaptionDraw:
    """Draws one caption of a row for each epoch, as a function of seed, epoch and the row's id.

    Over as many epochs as a row has captions, each is drawn once, beginning with one that seed and id choose.
    """

    def __init__(self, seed: int = 0):
        self.seed = seed
        # In shared memory, because the workers of a data loader hold copies of everything else.
        self._epoch = torch.tensor([0]).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        self._epoch[0] = epoch

    def __call__(self, row: Mapping[str, Any]) -> str:
        captions = captions_in(row)
        start = zlib.crc32(f"{self.seed} {row.get('id', row['text'])}".encode("utf-8", "surrogatepass"))
        return captions[(start + int(self._epoch)) % len(captions)]


class PairCollator:
    """Makes a batch of rows: images or their cached regions, texts, multi-hot labels, and row numbers.

    Of a row with several `captions`, the model reads one, and `similarity` all.

    Args:
        processor: A `CMFAHProcessor`.
        classes: The `C` class names, in the order of the model's labels. `None`: batches have no labels.
        text_column: The column of texts; rows without it use `text`.
        similarity: Computes the `labels` of a batch instead of multi-hot labels.
        expander: The `GraphExpander` that made `text_column`, if any; expands the caption that is read.
        draw: Chooses the caption of a row. None: the first.
        tokens: Gives the kept tokens of texts (a `TokenTable`), instead of the processor's inputs.
        text_features: Whether the model reads the rows' `text_features` instead of texts.

    Returns (of a call):
        `region_features` `(B, R, C)` if the rows have them (with `region_features_mirrored` too, those of the mirrored
        image with probability 1/2) or `image_features` (as one region), else `pixel_values` `(B, 3, H, W)`;
        `input_ids`, or `token_features` `(B, W, C)` if these are kept or given, and `attention_mask` `(B, W)`; `labels`
        `(B, C)`, zeros for a row without any, or the output of `similarity`; `row` `(B,)` if the rows have it.
    """

    def __init__(
        self,
        processor: Any,
        classes: Sequence[str] | None = None,
        text_column: str = "text",
        similarity: Similarity | None = None,
        expander: Any = None,
        draw: CaptionDraw | None = None,
        tokens: Callable[[Sequence[str]], dict[str, torch.Tensor]] | None = None,
        text_features: bool = False,
    ):
        if similarity is None and classes is not None:
            similarity = LabelSimilarity(classes)
        self.processor = processor
        self.classes = classes
        self.text_column = text_column
        self.similarity = similarity
        self.expander = expander
        self.draw = draw
        self.tokens = tokens
        self.text_features = text_features

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        texts = [str(row[self.text_column] if self.text_column in row else row["text"]) for row in rows]
        batch = self._texts(rows, texts)
        if "region_features" in rows[0]:
            batch["region_features"] = torch.from_numpy(np.stack(_regions(rows, texts)))
        elif IMAGE_FEATURES in rows[0]:
            batch["region_features"] = _given(rows, IMAGE_FEATURES)
        else:
            images = (decode_image(row["image"], name=str(row.get("id", "")) or None) for row in rows)
            batch["pixel_values"] = pixel_values_of(self.processor, images)
        if self.similarity is not None:
            batch["labels"] = torch.from_numpy(self.similarity(rows, texts))
        if "row" in rows[0]:
            batch["row"] = torch.tensor([int(row["row"]) for row in rows])
        return batch

    def _texts(self, rows: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> dict[str, torch.Tensor]:
        if self.text_features:
            return {"token_features": _given(rows, TEXT_FEATURES), "attention_mask": torch.ones(len(rows), 1).long()}
        read = self._read_texts(rows, texts)
        return dict(self.processor(text=read, return_tensors="pt") if self.tokens is None else self.tokens(read))

    def _read_texts(self, rows: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> list[str]:
        """The text of each row that the model reads: one caption if it has several, else its own."""
        places = [place for place, row in enumerate(rows) if captions_in(row)]
        if not places:
            return list(texts)
        chosen = [self.draw(rows[place]) if self.draw else captions_in(rows[place])[0] for place in places]
        read = list(texts)
        for place, caption in zip(places, expanded(chosen, self.expander, self.text_column), strict=True):
            read[place] = caption
        return read


def _given(rows: Sequence[Mapping[str, Any]], column: str) -> torch.Tensor:
    """Features in the rows as one position, `(B, 1, C)`."""
    return torch.from_numpy(np.stack([np.asarray(row[column], dtype=np.float32) for row in rows])).unsqueeze(1)


def captions_in(row: Mapping[str, Any]) -> list[str]:
    """The captions of a row; none if it has only its text."""
    captions = row.get("captions")
    return [] if captions is None else [str(caption) for caption in captions]


def expanded(texts: Sequence[str], expander: Any, text_column: str) -> list[str]:
    """The texts with the words that an expander adds in the column `text_column`; without one, unchanged."""
    return list(texts) if expander is None else expander({expander.text_column: list(texts)})[text_column]


def _regions(rows: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> list[np.ndarray]:
    if "region_features_mirrored" not in rows[0]:
        return [row["region_features"] for row in rows]
    # Drawn from the rows of the batch in their order. The process's generator is ahead by the prefetched batches, so a
    # training resumed within an epoch would draw other numbers.
    names = "\n".join(str(row["id"]) if "id" in row else text for row, text in zip(rows, texts, strict=True))
    mirrored = np.random.default_rng(zlib.crc32(names.encode())).random(len(rows)) < 0.5
    return [
        row["region_features_mirrored" if mirror else "region_features"]
        for row, mirror in zip(rows, mirrored, strict=True)
    ]
