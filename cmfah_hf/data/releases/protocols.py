"""Which rows are queries, which are trained on, and which are only searched."""

import hashlib
from collections.abc import Sequence
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
    """Row numbers. What is searched, the database, is `train` and `rest` together."""

    train: np.ndarray
    query: np.ndarray
    rest: np.ndarray


def split_rows(ids: Sequence[str], name: str, num_queries: int, num_train: int, seed: int = 0) -> Split:
    """Divide rows after a protocol of the literature.

    The draw of `"paper"` sorts by the BLAKE2b hash of seed and id, so it is the same in any process, on any machine
    and with any version of a library, and hangs on nothing but the ids.

    Args:
        ids: Of all rows, unique, in the release's order.
        name: `"paper"`, `"dcmh"` or `"dadh"`, as in `SPLITS`.
        num_queries: Rows that are queries.
        num_train: Rows of the others that are trained on.
        seed: Of `"paper"`.

    Raises:
        DataError: If there is no such protocol, or there are too few rows.
    """
    if name not in SPLITS:
        raise DataError(f"split={name!r} is not known; take one of {', '.join(SPLITS)}.")
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
