"""Search for duplicate images and ids within and across splits, by digests."""

from collections import Counter
from collections.abc import Iterable
from itertools import combinations

from cmfah_hf.data.inspection.report import Duplicates

# The database contains the training pairs.
WITH_TRAINING = ("database", "rest")
DIGEST_BYTES = 16

# Split and id of a pair.
Item = tuple[str, str]


class DuplicateSearch:
    """Finds items with the same image, and ids that occur more than once.

    Attributes:
        in_database: Ids of training pairs that the database contains too; each is one item.
    """

    def __init__(self) -> None:
        self.in_database: set[str] = set()
        self._ids: Counter[Item] = Counter()
        self._by_bytes = _Groups()
        self._by_pixels = _Groups()

    def add_id(self, item: Item) -> None:
        self._ids[item] += 1

    def add_image(self, item: Item, file_digest: bytes, pixel_digest: bytes) -> None:
        self._by_bytes.add(file_digest, item)
        self._by_pixels.add(pixel_digest, item, file_digest)

    def result(self, named: int) -> Duplicates:
        """The duplicates, at most `named` of each kind by name."""
        found = Duplicates(
            same_ids={f"{split}/{name}": count for (split, name), count in self._ids.items() if count > 1}
        )
        same_bytes, found.extra_bytes = self._repeated(self._by_bytes)
        same_pixels, found.extra_pixels = self._repeated(self._by_pixels)
        # Groups of equal files are not listed again as groups of equal pixels.
        same_pixels = [group for group in same_pixels if len({file for _, file in group}) > 1]
        found.same_bytes, found.same_pixels = (
            [[f"{split}/{name}" for (split, name), _ in group] for group in groups[:named]]
            for groups in (same_bytes, same_pixels)
        )
        leaks: Counter[tuple[str, str]] = Counter()
        for group in self._by_pixels.repeated.values():
            for first, second, own, other in self._leaks([item for item, _ in group]):
                leaks[first, second] += len(own)
                found.leaking += [("/".join(item), "/".join(other)) for item in own]
        found.leaking = found.leaking[:named]
        found.leaks = {" & ".join(pair): count for pair, count in sorted(leaks.items())}
        return found

    def _repeated(self, groups: "_Groups") -> tuple[list[list[tuple[Item, bytes]]], int]:
        """The groups of which a split has more than one item, and the number of superfluous items."""
        found, extra = [], 0
        for group in groups.repeated.values():
            homes = {"database" if self._in_both(item) else item[0] for item, _ in group}  # it has the training pairs
            extra += len(group) - len(homes)
            if len(group) > len(homes):
                found.append(group)
        return found, extra

    def _leaks(self, group: list[Item]) -> Iterable[tuple[str, str, list[Item], Item]]:
        """Pairs of splits with the same image: their names, the items of the first, and an item of the second."""
        homes = [*group, *(("database", item[1]) for item in group if self._in_both(item))]
        for first, second in combinations(dict.fromkeys(split for split, _ in homes), 2):
            if "train" in (first, second) and set(WITH_TRAINING) & {first, second}:
                continue
            if second == "query":  # queries come first, as they must not be in any other split
                first, second = second, first
            own = [item for item in homes if item[0] == first]
            yield first, second, own, next(item for item in homes if item[0] == second)

    def _in_both(self, item: Item) -> bool:
        return item[0] == "train" and item[1] in self.in_database


class _Groups:
    """Items by a digest of their content, each with the digest of its file."""

    def __init__(self) -> None:
        self._first: dict[bytes, tuple[Item, bytes]] = {}
        self.repeated: dict[bytes, list[tuple[Item, bytes]]] = {}

    def add(self, digest: bytes, item: Item, file_digest: bytes = b"") -> None:
        if digest in self._first:
            self.repeated.setdefault(digest, [self._first[digest]]).append((item, file_digest))
        else:
            self._first[digest] = item, file_digest
