"""Inspection of a data set before training: one pass over a stream that counts words, labels, images and duplicates.

An id and two digests are kept of each pair; everything else is counts.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from itertools import combinations
from typing import Any

import numpy as np

from cmfah_hf.data.images import decode_image, decoding_off, read_image_bytes
from cmfah_hf.data.inspection.duplicates import DIGEST_BYTES, WITH_TRAINING, DuplicateSearch
from cmfah_hf.data.inspection.report import ImageCounts, Inspection, LabelCounts, WordCounts
from cmfah_hf.errors import DataError, ImageError


def inspect_pairs(
    source: str | os.PathLike,
    split: str | None = None,
    named: int = 20,
    progress: Callable[[str], Any] = lambda split: None,
    **load_kwargs: Any,
) -> Inspection:
    """Inspects a data set in one pass.

    Args:
        source: A source of `load_image_text`.
        split: One split, instead of all.
        named: Maximum number of broken images, duplicates, words and pairs of classes to list; all are counted.
        progress: Called with the split's name after each pair.
        **load_kwargs: For `load_image_text`, such as `text_column`.

    Returns:
        The report. Memory grows by about 500 bytes per item, for its id and its image's digests, and by the words.

    Raises:
        DataError: If the data set cannot be loaded, or is empty.
    """
    from cmfah_hf.data.loading import load_image_text

    try:
        loaded = load_image_text(source, split=split, streaming=True, **load_kwargs)
    except DataError as error:
        try:  # a data set may have no images
            loaded = load_image_text(source, split=split, streaming=True, **{**load_kwargs, "images": False})
        except DataError:
            raise error from None
    parts = loaded if isinstance(loaded, dict) else {split or "train": loaded}
    count = _Counting(named)
    for name, part in parts.items():
        count.begin(name, part.column_names or [])
        for example in decoding_off(part):
            count(name, example)
            progress(name)
    if not sum(count.splits.values()):
        raise DataError(f"{os.fspath(source)}: holds no pairs; check the source.")
    return count.finished(os.fspath(source))


class _Counting:
    """The counts of one pass."""

    def __init__(self, named: int):
        self.named = named
        self.splits: Counter[str] = Counter()
        self.words: Counter[str] = Counter()
        self.word_lengths: Counter[int] = Counter()
        self.word_source = "text"
        self.captions: Counter[int] = Counter()
        self.labels: Counter[str] = Counter()
        self.label_lengths: Counter[int] = Counter()
        self.label_pairs: Counter[tuple[str, str]] = Counter()
        self.labeled = 0
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.modes: Counter[str] = Counter()
        self.broken = 0
        self.broken_named: list[dict[str, str]] = []
        self.has_images = False
        self.training: dict[str, bytes] = {}
        self.labels_by_split: dict[str, Counter[str]] = {}
        self.duplicates = DuplicateSearch()

    def begin(self, split: str, columns: Iterable[str]) -> None:
        self.splits[split] += 0
        if "tags" in columns:
            self.word_source = "tags"

    def __call__(self, split: str, example: Mapping[str, Any]) -> None:
        self.splits[split] += 1
        # Rows of a source without ids are numbered.
        name = str(example.get("id", self.splits[split] - 1))
        self.duplicates.add_id((split, name))
        labels = sorted(set(example.get("labels") or ()))
        if "labels" in example:
            self.labels_by_split.setdefault(split, Counter()).update(labels)
        if self._is_training_pair(split, name, example):
            self.duplicates.in_database.add(name)
            return
        self._text(example)
        if example.get("captions") is not None:
            self.captions[len(example["captions"])] += 1
        if "labels" in example:
            self.labeled += 1
            self.labels.update(labels)
            self.label_lengths[len(labels)] += 1
            self.label_pairs.update(combinations(labels, 2))
        if "image" in example:
            self.has_images = True
            self._image(split, name, example["image"])

    def _is_training_pair(self, split: str, name: str, example: Mapping[str, Any]) -> bool:
        """Whether an item of the database is a training pair: the same id, text and image file."""
        if split != "train" and (split not in WITH_TRAINING or name not in self.training):
            return False
        digest = hashlib.sha256(repr((example.get("text"), example.get("labels"))).encode("utf-8", "surrogatepass"))
        with suppress(ImageError):
            digest.update(read_image_bytes(example["image"], name) if "image" in example else b"")
        if split == "train":
            self.training[name] = digest.digest()[:DIGEST_BYTES]
            return False
        return self.training[name] == digest.digest()[:DIGEST_BYTES]

    def _text(self, example: Mapping[str, Any]) -> None:
        from cmfah_hf.models.tokenization_cmfah import split_words

        tags = example.get("tags")
        words = list(tags) if isinstance(tags, list) else split_words(example.get("text") or "")
        self.word_lengths[len(words)] += 1
        self.words.update(set(words))

    def _image(self, split: str, name: str, value: Any) -> None:
        from cmfah_hf.models.image_modes import to_rgb

        try:
            content = read_image_bytes(value, f"{split}/{name}")
            image = decode_image(content, f"{split}/{name}")
            pixels = to_rgb(image)
        except ImageError as error:
            self.broken += 1
            if len(self.broken_named) < self.named:
                reason = str(error).removeprefix(f"{split}/{name}: ")
                self.broken_named.append({"split": split, "id": name, "reason": reason})
            return
        self.sizes[image.size] += 1
        self.modes[image.mode] += 1
        file_digest = hashlib.sha256(content).digest()[:DIGEST_BYTES]
        pixel_digest = hashlib.sha256(repr(pixels.size).encode() + pixels.tobytes()).digest()[:DIGEST_BYTES]
        self.duplicates.add_image((split, name), file_digest, pixel_digest)

    def finished(self, source: str) -> Inspection:
        items = sum(self.splits.values()) - len(self.duplicates.in_database)
        return Inspection(
            source=source,
            splits=dict(self.splits),
            items=items,
            words=WordCounts(
                source=self.word_source,
                distinct=len(self.words),
                once=sum(1 for count in self.words.values() if count == 1),
                most_frequent=dict(_most_frequent(self.words, self.named)),
                per_item=_summary(self.word_lengths),
                histogram=dict(sorted(self.word_lengths.items())),
            ),
            labels=self._label_counts() if self.labeled else None,
            images=self._image_counts() if self.has_images else None,
            duplicates=self.duplicates.result(self.named),
            captions=dict(sorted(self.captions.items())),
        )

    def _label_counts(self) -> LabelCounts:
        return LabelCounts(
            counts=dict(_most_frequent(self.labels)),
            shares={name: count / self.labeled for name, count in _most_frequent(self.labels)},
            mean_per_item=self.labels.total() / self.labeled,
            per_item=dict(sorted(self.label_lengths.items())),
            pairs=[(*pair, count) for pair, count in _most_frequent(self.label_pairs, self.named)],
            by_split={split: dict(_most_frequent(counts)) for split, counts in self.labels_by_split.items()},
        )

    def _image_counts(self) -> ImageCounts:
        sizes = _most_frequent(self.sizes, self.named)
        return ImageCounts(
            readable=self.sizes.total(),
            sizes={f"{width}x{height}": count for (width, height), count in sizes},
            distinct_sizes=len(self.sizes),
            modes=dict(_most_frequent(self.modes)),
            broken=self.broken,
            broken_named=self.broken_named,
        )


def _most_frequent(counts: Counter, most: int | None = None) -> list[tuple[Any, int]]:
    """Entries by descending count, ties by name."""
    return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))[:most]


def _summary(lengths: Counter[int]) -> dict[str, float]:
    if not lengths.total():
        return {}
    values = np.fromiter(lengths.elements(), np.int64, lengths.total())
    middle, mean = float(np.median(values)), float(values.mean())
    return {"min": min(lengths), "median": middle, "mean": mean, "max": max(lengths), "empty": lengths[0]}
