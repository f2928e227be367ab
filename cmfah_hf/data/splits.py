"""Cutting a validation part from the training pairs, so that model selection never sees a query."""

import hashlib

import numpy as np

from cmfah_hf.data.images import decoding_off, decoding_on
from cmfah_hf.errors import DataError


def train_validation_split(dataset, fraction: float = 0.1, size: int | None = None, seed: int = 0):
    """Divide a map-style data set at random; the same seed divides it the same way.

    Args:
        dataset: A `datasets.Dataset`.
        fraction: The part for validation, between 0 and 1; at least one row.
        size: The number of rows for validation, instead of `fraction`.
        seed: The seed of the permutation.

    Returns:
        `(train, validation)`, each in the data set's own order.

    Raises:
        DataError: If either part would be empty, or the fraction is out of range.
    """
    if size is None:
        _check_fraction(fraction)
        size = max(1, round(fraction * len(dataset)))
    if not 1 <= size < len(dataset):
        raise DataError(
            f"{len(dataset)} rows cannot be divided with {size} for validation; each part needs a row at least, so "
            "take more data or a smaller part."
        )
    order = np.random.default_rng(seed).permutation(len(dataset))
    return dataset.select(np.sort(order[size:])), dataset.select(np.sort(order[:size]))


def hold_out_databases(train, database=None, fraction: float = 0.2, seed: int = 0) -> dict:
    """Divide training pairs so that neither test nor validation queries are ranked against a pair that was trained on.

    Args:
        train: A `datasets.Dataset`, the training pairs with those that validate.
        database: The data set's own database, of which only the items that are not in `train`, by `id`, are kept.
            None: cut from `train`.
        fraction: The part of `train` for each database that is cut from it.
        seed: As in `train_validation_split`.

    Returns:
        `train`: what is left; `database`: what the test queries are ranked against; `validation_database`: what the
        validation queries are ranked against.

    Raises:
        DataError: If a part would be empty.
    """
    if database is None:
        train, database = train_validation_split(train, fraction, seed=seed)
    else:
        trained_on = set(train["id"])
        rows = [row for row, name in enumerate(database["id"]) if name not in trained_on]
        if not rows:
            raise DataError("Every item of the database is a training pair; give --database_split none to cut one.")
        database = database.select(rows)
    train, validation_database = train_validation_split(train, fraction, seed=seed)
    return {"train": train, "database": database, "validation_database": validation_database}


def hash_split(dataset, fraction: float = 0.1, seed: int = 0, id_column: str = "id"):
    """Divide a data set by its ids: each row's side depends on its own id and the seed alone.

    That works on a stream, and a row stays on its side when others come or go, in any order and any process.

    Args:
        dataset: A `Dataset` or `IterableDataset`.
        fraction: The expected part for validation, between 0 and 1.
        seed: Another seed divides differently.
        id_column: The column of ids.

    Returns:
        `(train, validation)`, of the same kind.

    Raises:
        DataError: If the fraction is out of range, there is no such column, or (map-style only) a part is empty.
    """
    import datasets

    _check_fraction(fraction)
    if dataset.column_names is not None and id_column not in dataset.column_names:
        raise DataError(
            f"there is no column {id_column!r} to divide by; present are: {', '.join(dataset.column_names)}."
        )
    if not isinstance(dataset, datasets.IterableDataset):
        chosen = np.array([in_validation(name, fraction, seed) for name in dataset[id_column]], dtype=bool)
        if chosen.all() or not chosen.any():
            raise DataError(
                f"{len(dataset)} rows are too few to be divided by their ids with a part of {fraction} for validation; "
                "take more data or train_validation_split."
            )
        return dataset.select(np.flatnonzero(~chosen)), dataset.select(np.flatnonzero(chosen))

    raw = decoding_off(dataset)
    train, validation = (raw.filter(_Side(fraction, seed, keep), input_columns=[id_column]) for keep in (False, True))
    return decoding_on(train, dataset.features), decoding_on(validation, dataset.features)


def in_validation(name: str, fraction: float, seed: int = 0) -> bool:
    """Whether the row with this id belongs to the validation part."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


class _Side:
    """The filter of a stream that keeps one side."""

    def __init__(self, fraction: float, seed: int, keep: bool):
        self.fraction, self.seed, self.keep = fraction, seed, keep

    def __call__(self, name: str) -> bool:
        return in_validation(name, self.fraction, self.seed) == self.keep


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction < 1:
        raise DataError(f"fraction={fraction}: the part for validation lies between 0 and 1.")
