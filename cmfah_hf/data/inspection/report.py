"""Report of an inspection: counts of words, labels, images and duplicates, and warnings."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class WordCounts:
    """Words of the texts, or tags if the data set has such a column."""

    source: str = "text"  # `text` (split into words) or `tags`
    distinct: int = 0
    once: int = 0  # words that occur in a single item
    most_frequent: dict[str, int] = field(default_factory=dict)  # with their number of items
    per_item: dict[str, float] = field(default_factory=dict)  # min, median, mean, max, empty
    histogram: dict[int, int] = field(default_factory=dict)  # items by number of words


@dataclass
class LabelCounts:
    """Labels of the items."""

    counts: dict[str, int] = field(default_factory=dict)  # items of each class, most frequent first
    shares: dict[str, float] = field(default_factory=dict)  # of all items
    mean_per_item: float = 0.0
    per_item: dict[int, int] = field(default_factory=dict)  # items by number of labels
    pairs: list[tuple[str, str, int]] = field(default_factory=list)  # classes that occur together: first, second, items
    by_split: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass
class ImageCounts:
    """Images of the items."""

    readable: int = 0
    sizes: dict[str, int] = field(default_factory=dict)  # as `640x480`, most frequent first
    distinct_sizes: int = 0
    modes: dict[str, int] = field(default_factory=dict)  # of Pillow, likewise
    broken: int = 0  # images that cannot be read
    broken_named: list[dict[str, str]] = field(default_factory=list)  # the first of these: split, id, reason


@dataclass
class Duplicates:
    """Images and ids that occur more than once; items are named as `split/id`."""

    same_bytes: list[list[str]] = field(default_factory=list)  # the first groups of identical files
    same_pixels: list[list[str]] = field(default_factory=list)  # identical pixels, other files
    same_ids: dict[str, int] = field(default_factory=dict)  # with their counts
    extra_bytes: int = 0  # superfluous items over all groups
    extra_pixels: int = 0
    leaks: dict[str, int] = field(default_factory=dict)  # items by pair of splits, as `query & train`
    leaking: list[tuple[str, str]] = field(default_factory=list)  # the first of these, and an item of the other split


@dataclass
class Inspection:
    """The result of `inspect_pairs`.

    A training pair that the database has with the same id is one item, and counts once in everything but `splits` and
    `labels.by_split`.
    """

    source: str  # the data set
    splits: dict[str, int]  # items of each split
    items: int
    words: WordCounts
    labels: LabelCounts | None
    images: ImageCounts | None
    duplicates: Duplicates
    captions: dict[int, int] = field(default_factory=dict)  # items by number of captions; empty without `captions`

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
