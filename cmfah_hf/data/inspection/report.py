"""Report of an inspection: counts of words, labels, images and duplicates, and warnings."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class WordCounts:
    """Words of the texts, or tags if the data set has such a column.

    Attributes:
        source: Their column: `text` (split into words) or `tags`.
        distinct: Number of distinct words.
        once: Number of words that occur in a single item.
        most_frequent: Words with their number of items, most frequent first.
        per_item: `{"min", "median", "mean", "max", "empty"}` of words per item; `empty` counts items without any.
        histogram: Number of items by number of words.
    """

    source: str = "text"
    distinct: int = 0
    once: int = 0
    most_frequent: dict[str, int] = field(default_factory=dict)
    per_item: dict[str, float] = field(default_factory=dict)
    histogram: dict[int, int] = field(default_factory=dict)


@dataclass
class LabelCounts:
    """Labels.

    Attributes:
        counts: Items of each class, most frequent first.
        shares: Its share of all items.
        mean_per_item: Mean number of labels of an item.
        per_item: Number of items by number of labels.
        pairs: Classes that occur together, `(first, second, items)`.
        by_split: Items of each class by split.
    """

    counts: dict[str, int] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    mean_per_item: float = 0.0
    per_item: dict[int, int] = field(default_factory=dict)
    pairs: list[tuple[str, str, int]] = field(default_factory=list)
    by_split: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass
class ImageCounts:
    """Images.

    Attributes:
        readable: Number of images that can be read.
        sizes: Sizes, as `"640x480"`, with their numbers of images, most frequent first.
        distinct_sizes: Number of distinct sizes.
        modes: Modes of Pillow, likewise.
        broken: Number of images that cannot be read.
        broken_named: The first of these, `{"split", "id", "reason"}`.
    """

    readable: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    distinct_sizes: int = 0
    modes: dict[str, int] = field(default_factory=dict)
    broken: int = 0
    broken_named: list[dict[str, str]] = field(default_factory=list)


@dataclass
class Duplicates:
    """Images and ids that occur more than once.

    Attributes:
        same_bytes: Groups of items with identical image files, each a list of `split/id`.
        same_pixels: Groups with identical pixels but different files.
        same_ids: Ids that occur more than once in a split, as `split/id`, with their counts.
        extra_bytes, extra_pixels: Number of superfluous items over all groups (`same_*` has the first groups).
        leaks: By pair of splits, as `query & train`: items of the first whose image is also in the second.
        leaking: Some of these, `(item, item)`.
    """

    same_bytes: list[list[str]] = field(default_factory=list)
    same_pixels: list[list[str]] = field(default_factory=list)
    same_ids: dict[str, int] = field(default_factory=dict)
    extra_bytes: int = 0
    extra_pixels: int = 0
    leaks: dict[str, int] = field(default_factory=dict)
    leaking: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Inspection:
    """The result of `inspect_pairs`.

    Attributes:
        source: The data set.
        splits: Number of items of each split.
        items: Number of distinct items: a training pair that the database has with the same id is one item, and counts
            once in everything but `splits` and `labels.by_split`.
        words: Words or tags.
        labels: Labels, or None.
        images: Images, or None.
        duplicates: Duplicates.
    """

    source: str
    splits: dict[str, int]
    items: int
    words: WordCounts
    labels: LabelCounts | None
    images: ImageCounts | None
    duplicates: Duplicates

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self)

    @property
    def warnings(self) -> list[str]:
        """Problems to fix, one per line; leakage first."""
        lines = [
            f"LEAKAGE: items of {first!r} whose image is also in {second!r}: {count:,}"
            for (first, second), count in ((pair.split(" & "), count) for pair, count in self.duplicates.leaks.items())
        ]
        counts = {
            "images that cannot be read": self.images.broken if self.images is not None else 0,
            "ids that occur more than once in their split": len(self.duplicates.same_ids),
            "items whose image occurs before in their split": self.duplicates.extra_pixels,
            f"items without {self.words.source}": self.words.per_item.get("empty", 0),
        }
        lines += [f"{what}: {count:,}" for what, count in counts.items() if count]
        return lines
