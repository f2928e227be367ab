"""Looking at a data set before anything is trained on it: what is in it, what is broken, what is in it twice.

One pass over a stream. What is kept of a pair is its id and two digests of its picture; everything else is counts.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

from cmfah_hf.data.images import decode_image, decoding_off, read_image_bytes
from cmfah_hf.errors import DataError, ImageError

# The training pairs are searched too, so a database that holds them is as it should be.
_WITH_TRAINING = ("database", "rest")
_DIGEST_BYTES = 16


@dataclass
class WordCounts:
    """Words of the texts, or tags where the data set has such a column.

    Attributes:
        source: The column they are of: `text` (split into words) or `tags`.
        distinct: How many there are.
        once: How many of them occur in one item alone.
        most_frequent: Words with the number of items that they occur in, most frequent first.
        per_item: `{"min", "median", "mean", "max", "empty"}`: words an item; `empty` counts items without any.
        histogram: How many items have so many words.
    """

    source: str = "text"
    distinct: int = 0
    once: int = 0
    most_frequent: dict[str, int] = field(default_factory=dict)
    per_item: dict[str, float] = field(default_factory=dict)
    histogram: dict[int, int] = field(default_factory=dict)


@dataclass
class LabelCounts:
    """Labels: items a class (`counts`, most frequent first), its share of all items, labels an item, and pairs.

    `per_item` counts items by their number of labels; `pairs` are classes that occur together, `[first, second,
    items]`; `by_split` has the items a class of each split.
    """

    counts: dict[str, int] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    mean_per_item: float = 0.0
    per_item: dict[int, int] = field(default_factory=dict)
    pairs: list[tuple[str, str, int]] = field(default_factory=list)
    by_split: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass
class PictureCounts:
    """Pictures: `sizes` (as `"640x480"`) and `modes` with their numbers, both most frequent first; and the broken ones.

    `broken` counts those that cannot be read; `broken_named` holds the first of them, `{"split", "id", "reason"}`.
    """

    readable: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    distinct_sizes: int = 0
    modes: dict[str, int] = field(default_factory=dict)
    broken: int = 0
    broken_named: list[dict[str, str]] = field(default_factory=list)


@dataclass
class Duplicates:
    """Pictures that are there more than once, and ids.

    Attributes:
        same_bytes: Groups of items whose picture files are equal byte for byte, each a list of `split/id`.
        same_pixels: Groups whose pictures are equal pixel for pixel, and not all of whose files are.
        same_ids: Ids that one split has more than once, with how often, as `split/id`.
        extra_bytes, extra_pixels: How many items one could leave out, over all groups (`same_*` holds the first).
        leaks: By pair of splits, as `query & train`: items of the first whose picture is in the second too.
        leaking: Some of these, `[item, item]`.
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
    """What `inspect_pairs` found.

    `splits` counts the items of each. `items` are those that differ: a training pair that the database has under the
    same id is one item, and counts once in all but `splits` and `labels.by_split`. `labels` and `pictures` are None
    where there are none.
    """

    source: str
    splits: dict[str, int]
    items: int
    words: WordCounts
    labels: LabelCounts | None
    pictures: PictureCounts | None
    duplicates: Duplicates

    def as_dict(self) -> dict[str, Any]:
        """All of it as what JSON can hold."""
        return asdict(self)

    @property
    def warnings(self) -> list[str]:
        """What ought to be mended, a line each; leakage first."""
        lines = [
            f"LEAKAGE: items of {first!r} whose picture is in {second!r} too: {count:,}"
            for (first, second), count in ((pair.split(" & "), count) for pair, count in self.duplicates.leaks.items())
        ]
        counts = {
            "pictures that cannot be read": self.pictures.broken if self.pictures is not None else 0,
            "ids that occur more than once in their split": len(self.duplicates.same_ids),
            "items whose picture is there already, in their own split": self.duplicates.extra_pixels,
            f"items without {self.words.source}": self.words.per_item.get("empty", 0),
        }
        lines += [f"{what}: {count:,}" for what, count in counts.items() if count]
        return lines


def inspect_pairs(
    source: str | os.PathLike,
    split: str | None = None,
    named: int = 20,
    progress: Callable[[str], Any] = lambda split: None,
    **load_kwargs: Any,
) -> Inspection:
    """Look at every pair of a data set once.

    Args:
        source: What `load_image_text` takes.
        split: One split, instead of all.
        named: How many broken pictures, duplicates, words and pairs of classes are named; all are counted.
        progress: Called with the split's name after each pair.
        **load_kwargs: For `load_image_text`, such as `text_column`.

    Returns:
        An `Inspection`. Memory grows by some 500 bytes an item, for its id and its picture's digests, and by the words.

    Raises:
        DataError: If the data set cannot be loaded, or holds nothing.
    """
    from cmfah_hf.data.loading import load_image_text

    try:
        loaded = load_image_text(source, split=split, streaming=True, **load_kwargs)
    except DataError as error:
        try:  # tables of tags and labels are data sets too
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
    """All the counts of one pass."""

    def __init__(self, named: int):
        self.named = named
        self.splits: Counter[str] = Counter()
        self.words: Counter[str] = Counter()
        self.word_lengths: Counter[int] = Counter()
        self.word_source = "text"
        self.labels: Counter[str] = Counter()
        self.label_lengths: Counter[int] = Counter()
        self.label_pairs: Counter[tuple[str, str]] = Counter()
        self.labelled = 0
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.modes: Counter[str] = Counter()
        self.broken = 0
        self.broken_named: list[dict[str, str]] = []
        self.has_pictures = False
        self.ids: Counter[tuple[str, str]] = Counter()
        self.training: dict[str, bytes] = {}
        self.twins: set[str] = set()
        self.labels_by_split: dict[str, Counter[str]] = {}
        self.by_bytes = _Twice()
        self.by_pixels = _Twice()

    def begin(self, split: str, columns: Iterable[str]) -> None:
        self.splits[split] += 0
        if "tags" in columns:
            self.word_source = "tags"

    def __call__(self, split: str, example: Mapping[str, Any]) -> None:
        self.splits[split] += 1
        # Of a source without ids, the stream numbers the rows.
        name = str(example.get("id", self.splits[split] - 1))
        self.ids[split, name] += 1
        labels = sorted(set(example.get("labels") or ()))
        if "labels" in example:
            self.labels_by_split.setdefault(split, Counter()).update(labels)
        if self._is_training_pair(split, name, example):
            self.twins.add(name)
            return
        self._text(example)
        if "labels" in example:
            self.labelled += 1
            self.labels.update(labels)
            self.label_lengths[len(labels)] += 1
            self.label_pairs.update(combinations(labels, 2))
        if "image" in example:
            self.has_pictures = True
            self._picture(split, name, example["image"])

    def _is_training_pair(self, split: str, name: str, example: Mapping[str, Any]) -> bool:
        """Whether an item of the database is a training pair: the same id, text and picture file."""
        if split != "train" and (split not in _WITH_TRAINING or name not in self.training):
            return False
        digest = hashlib.sha256(repr((example.get("text"), example.get("labels"))).encode("utf-8", "surrogatepass"))
        with suppress(ImageError):
            digest.update(read_image_bytes(example["image"], name) if "image" in example else b"")
        if split == "train":
            self.training[name] = digest.digest()[:_DIGEST_BYTES]
            return False
        return self.training[name] == digest.digest()[:_DIGEST_BYTES]

    def _text(self, example: Mapping[str, Any]) -> None:
        from cmfah_hf.models.tokenization_cmfah import split_words

        tags = example.get("tags")
        words = list(tags) if isinstance(tags, list) else split_words(example.get("text") or "")
        self.word_lengths[len(words)] += 1
        self.words.update(set(words))

    def _picture(self, split: str, name: str, value: Any) -> None:
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
        own = hashlib.sha256(content).digest()[:_DIGEST_BYTES]
        shown = hashlib.sha256(repr(pixels.size).encode() + pixels.tobytes()).digest()[:_DIGEST_BYTES]
        item = split, name
        self.by_bytes.add(own, item)
        self.by_pixels.add(shown, item, own)

    def finished(self, source: str) -> Inspection:
        items = sum(self.splits.values()) - len(self.twins)
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
            labels=self._label_counts() if self.labelled else None,
            pictures=self._picture_counts() if self.has_pictures else None,
            duplicates=self._duplicates(),
        )

    def _label_counts(self) -> LabelCounts:
        return LabelCounts(
            counts=dict(_most_frequent(self.labels)),
            shares={name: count / self.labelled for name, count in _most_frequent(self.labels)},
            mean_per_item=self.labels.total() / self.labelled,
            per_item=dict(sorted(self.label_lengths.items())),
            pairs=[(*pair, count) for pair, count in _most_frequent(self.label_pairs, self.named)],
            by_split={split: dict(_most_frequent(counts)) for split, counts in self.labels_by_split.items()},
        )

    def _picture_counts(self) -> PictureCounts:
        sizes = _most_frequent(self.sizes, self.named)
        return PictureCounts(
            readable=self.sizes.total(),
            sizes={f"{width}x{height}": count for (width, height), count in sizes},
            distinct_sizes=len(self.sizes),
            modes=dict(_most_frequent(self.modes)),
            broken=self.broken,
            broken_named=self.broken_named,
        )

    def _duplicates(self) -> Duplicates:
        found = Duplicates(
            same_ids={f"{split}/{name}": count for (split, name), count in self.ids.items() if count > 1}
        )
        for twice, wanted in ((self.by_bytes, "bytes"), (self.by_pixels, "pixels")):
            groups = []
            for group in twice.groups():
                extra = self._repetitions(group)
                setattr(found, f"extra_{wanted}", getattr(found, f"extra_{wanted}") + extra)
                # Of what is the same byte for byte, it goes without saying that the pixels are.
                if extra and (wanted == "bytes" or twice.has_other_bytes(group)):
                    groups.append([f"{split}/{name}" for split, name in group])
            setattr(found, f"same_{wanted}", groups[: self.named])
        leaks: Counter[tuple[str, str]] = Counter()
        for group in self.by_pixels.groups():
            homes = [*group, *(("database", name) for split, name in group if split == "train" and name in self.twins)]
            for first, second in combinations(dict.fromkeys(split for split, _ in homes), 2):
                if "train" in (first, second) and set(_WITH_TRAINING) & {first, second}:
                    continue
                if second == "query":  # the queries are what must be in no other split
                    first, second = second, first
                own = [item for item in homes if item[0] == first]
                leaks[first, second] += len(own)
                other = next(item for item in homes if item[0] == second)
                found.leaking += [("/".join(item), "/".join(other)) for item in own]
        found.leaking = found.leaking[: self.named]
        found.leaks = {" & ".join(pair): count for pair, count in sorted(leaks.items())}
        return found

    def _repetitions(self, group: list[tuple[str, str]]) -> int:
        """How many items could go, such that each split has the picture once; training pairs are in the database."""
        homes = Counter("database" if split == "train" and name in self.twins else split for split, name in group)
        return sum(count - 1 for count in homes.values())


class _Twice:
    """Items by a digest of their content; only where it comes again is more than the first one kept."""

    def __init__(self) -> None:
        self._first: dict[bytes, tuple[str, str]] = {}
        self._again: dict[bytes, list[tuple[str, str]]] = {}
        self._bytes: dict[tuple[str, str], bytes] = {}
        self._first_bytes: dict[bytes, bytes] = {}

    def add(self, digest: bytes, item: tuple[str, str], own: bytes = b"") -> None:
        if digest not in self._first:
            self._first[digest] = item
            if own:
                self._first_bytes[digest] = own
            return
        group = self._again.setdefault(digest, [self._first[digest]])
        group.append(item)
        if own:
            self._bytes[self._first[digest]] = self._first_bytes[digest]
            self._bytes[item] = own

    def groups(self) -> Iterable[list[tuple[str, str]]]:
        return self._again.values()

    def has_other_bytes(self, group: list[tuple[str, str]]) -> bool:
        return len({self._bytes[item] for item in group}) > 1


def _most_frequent(counts: Counter, most: int | None = None) -> list[tuple[Any, int]]:
    """By number, and by name where that is the same."""
    return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))[:most]


def _summary(lengths: Counter[int]) -> dict[str, float]:
    total = lengths.total()
    if not total:
        return {}
    middle = [_at(lengths, (total - 1) // 2), _at(lengths, total // 2)]
    return {
        "min": min(lengths),
        "median": sum(middle) / 2,
        "mean": sum(length * count for length, count in lengths.items()) / total,
        "max": max(lengths),
        "empty": lengths[0],
    }


def _at(lengths: Counter[int], place: int) -> int:
    """The length at this place of the sorted lengths."""
    for length in sorted(lengths):
        place -= lengths[length]
        if place < 0:
            return length
    raise IndexError(place)
