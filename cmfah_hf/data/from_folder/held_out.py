"""The query split: pairs that are held out of the training, without copies of them in it."""

import hashlib
import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from cmfah_hf.errors import DataError


@dataclass
class _Stratum:
    """The groups of images that count for one class.

    Attributes:
        size: Their number.
        held: The number of those that were held out before.
        free: Those without an image that was divided before.
    """

    size: int = 0
    held: int = 0
    free: list[list[str]] = field(default_factory=list)


def hold_out(
    names: Sequence[str],
    labels: Mapping[str, Sequence[str]],
    described: Sequence[str],
    copies: Mapping[str, str],
    share: float,
    seed: int,
    former: Mapping[str, bool] = MappingProxyType({}),
) -> set[str]:
    """Images to hold out: about this share of the described ones, and of each class.

    Identical files, and files of one name with other endings, such as a raw image and its JPEG, stay together. An image
    counts for the rarest of its classes. The draw is a hash of seed and name, so it is the same on any machine.

    Images that were divided before stay where they are, and their copies join them; of the others, as many are drawn as
    the share of all still lacks.

    Args:
        names: The names of all images.
        labels: The classes of each image.
        described: The images with a text or a class, of which queries are drawn.
        copies: A digest by name of the images that have identical files.
        share: The share, from 0 to below 1.
        seed: The seed of the draw.
        former: Whether an image was held out, for the images that were divided before.

    Returns:
        The names of all images that are held out, also before.
    """
    if not 0 <= share < 1:
        raise DataError(f"queries={share}: the share of queries must be at least 0 and below 1.")
    counts = Counter(label for own in labels.values() for label in own)
    wanted = set(described)
    strata: dict[str, _Stratum] = {}
    held_out: set[str] = set()
    for group in _groups(names, copies):
        before = {former[name] for name in group if name in former}
        if True in before:
            held_out.update(name for name in group if former.get(name, True))
        if not wanted.issuperset(group):
            continue
        classes = sorted(
            {label for name in group for label in labels.get(name, ())}, key=lambda own: (counts[own], own)
        )
        stratum = strata.setdefault(classes[0] if classes else "", _Stratum())
        stratum.size += 1
        stratum.held += True in before
        if not before:
            stratum.free.append(group)
    numbers = _shared_out(strata, share)
    held_out.update(
        name
        for label, own in strata.items()
        for group in sorted(own.free, key=lambda group: _draw(group[0], seed))[: numbers[label]]
        for name in group
    )
    return held_out


def _groups(names: Sequence[str], copies: Mapping[str, str]) -> list[list[str]]:
    """Images that stay together: of one name up to the ending, or with identical files."""
    from scipy.cluster.hierarchy import DisjointSet

    together = DisjointSet(names)
    first: dict[tuple[str, str], str] = {}
    for name in names:
        together.merge(name, first.setdefault(("stem", posixpath.splitext(name)[0]), name))
        if name in copies:
            together.merge(name, first.setdefault(("copy", copies[name]), name))
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(together[name], []).append(name)
    return list(groups.values())


def _shared_out(strata: Mapping[str, _Stratum], share: float) -> dict[str, int]:
    """The number to draw of each class, as near as possible to what its share lacks; each class keeps one item."""
    total = round(share * sum(own.size for own in strata.values())) - sum(own.held for own in strata.values())
    lacking = {name: max(0.0, share * own.size - own.held) for name, own in strata.items()}
    most = {name: max(0, min(len(own.free), own.size - own.held - 1)) for name, own in strata.items()}
    taken = {name: min(int(part), most[name]) for name, part in lacking.items()}
    by_rest = sorted(strata, key=lambda name: (taken[name] - lacking[name], name))
    for name in by_rest:
        if sum(taken.values()) >= total:
            break
        taken[name] += taken[name] < most[name]
    return taken


def _draw(name: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}:{name}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
