"""Split protocols of the literature: queries, training pairs, and the rest of the database."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cmfah_hf.errors import DataError

SPLITS = {
    "paper": "rows in an order drawn by the seed: first the queries, then the training pairs, then the rest",
    "dcmh": "rows in the release's order: first the queries, then the training pairs, then the rest (DCMH, AGAH)",
    "dadh": "rows in the release's order: first the training pairs, then the rest, last the queries (DADH, UCCH)",
}


@dataclass(frozen=True)
class Split:
    """Row numbers. The database is `train` and `rest` together; with `rest=None` it is `train`, without a split."""

    train: np.ndarray
    query: np.ndarray
    rest: np.ndarray | None


def choose_variant(variants: Mapping[int, bool], variant: int | str | None, condition: str = "") -> tuple[int, bool]:
    """The number of pairs of a variant (None: the first), and whether its pairs need a label and a tag."""
    pairs = next(iter(variants)) if variant is None else int(variant)
    if pairs not in variants:
        raise DataError(f"variant={variant} is not known{condition}; give one of {', '.join(map(str, variants))}.")
    return pairs, variants[pairs]


def split_rows(ids: Sequence[str], name: str, num_queries: int, num_train: int, seed: int = 0) -> Split:
    """Splits rows, by their unique ids in the release's order, by a protocol of the literature (see `SPLITS`).

    `"paper"` sorts by the BLAKE2b hash of seed and id, so the split depends on nothing else: not on the process, the
    machine or versions of libraries.
    """
    if name not in SPLITS:
        raise DataError(f"split={name!r} is not known; give one of {', '.join(SPLITS)}.")
    if num_queries < 1 or num_train < 1 or num_queries + num_train > len(ids):
        raise DataError(
            f"{num_queries:,} queries and {num_train:,} training pairs cannot be taken from {len(ids):,} rows; "
            "choose other numbers of 1 or more with --queries and --train."
        )
    order = np.arange(len(ids))
    if name == "paper":
        keys = [hashlib.blake2b(f"{seed}:{row_id}".encode(), digest_size=16).digest() for row_id in ids]
        order = np.array(sorted(order, key=keys.__getitem__))
    if name == "dadh":
        first = len(ids) - num_queries
        return Split(order[:num_train], order[first:], order[num_train:first])
    last = num_queries + num_train
    return Split(order[num_queries:last], order[:num_queries], order[last:])
