"""The query split: pairs that are held out of the training, without copies of them in it."""

import hashlib
import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence

from cmfah_hf.errors import DataError


def hold_out(
    names: Sequence[str],
    labels: Mapping[str, Sequence[str]],
    described: Sequence[str],
    copies: Mapping[str, str],
    share: float,
    seed: int,
) -> set[str]:
    """Images to hold out: about this share of the described ones, and of each class.

    Identical files, and files of one name with other endings, such as a raw image and its JPEG, stay together. An image
    counts for the rarest of its classes. The draw is a hash of seed and name, so it is the same on any machine.

    Args:
        names: The names of all images.
        labels: The classes of each image.
        described: The images with a text or a class, of which queries are drawn.
        copies: A digest by name of the images that have identical files.
        share: The share, from 0 to below 1.
        seed: The seed of the draw.
    """
    if not 0 <= share < 1:
        raise DataError(f"queries={share}: the share of queries must be at least 0 and below 1.")
    groups = _groups(names, copies)
    counts = Counter(label for own in labels.values() for label in own)
    wanted = set(described)
    strata: dict[str, list[list[str]]] = {}
    for group in groups:
        if not wanted.issuperset(group):
            continue
        classes = sorted(
            {label for name in group for label in labels.get(name, ())}, key=lambda own: (counts[own], own)
        )
        strata.setdefault(classes[0] if classes else "", []).append(group)
    total = sum(map(len, strata.values()))
    sizes = _shared_out({name: len(own) for name, own in strata.items()}, round(share * total), share)
    return {
        name
        for stratum, own in strata.items()
        for group in sorted(own, key=lambda own: _draw(own[0], seed))[: sizes[stratum]]
        for name in group
    }


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


def _shared_out(sizes: Mapping[str, int], total: int, share: float) -> dict[str, int]:
    """Numbers that sum up to `total`, as near as possible to the share of each class, which keeps one item."""
    exact = {name: share * size for name, size in sizes.items()}
    taken = {name: min(int(part), sizes[name] - 1) for name, part in exact.items()}
    by_rest = sorted(sizes, key=lambda name: (taken[name] - exact[name], name))
    for name in by_rest:
        if sum(taken.values()) >= total:
            break
        taken[name] += taken[name] < sizes[name] - 1
    return taken


def _draw(name: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}:{name}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
