"""Splits of the training pairs into training and validation, so that model selection never uses a query."""

import hashlib
from functools import partial
from typing import Any

import numpy as np

from cmfah_hf.data.images import decoding_off, decoding_on
from cmfah_hf.errors import DataError


def train_validation_split(
    dataset: Any, fraction: float = 0.1, size: int | None = None, seed: int = 0
) -> tuple[Any, Any]:
    """Splits a map-style data set at random, reproducibly by seed.

    Args:
        dataset: A `datasets.Dataset`.
        fraction: The validation fraction, between 0 and 1; at least one row.
        size: The number of validation rows, instead of `fraction`.
        seed: The seed of the permutation.

    Returns:
        `(train, validation)`, each in the order of the data set.

    Raises:
        DataError: If either part would be empty, or the fraction is out of range.
    """
    if size is None:
        _check_fraction(fraction)
        size = max(1, round(fraction * len(dataset)))
    if not 1 <= size < len(dataset):
        raise DataError(
            f"{len(dataset)} rows cannot be divided with {size} for validation; each part needs at least one row, so "
            "use more data or another size."
        )
    order = np.random.default_rng(seed).permutation(len(dataset))
    return dataset.select(np.sort(order[size:])), dataset.select(np.sort(order[:size]))


def hold_out_databases(train: Any, database: Any = None, fraction: float = 0.2, seed: int = 0) -> dict[str, Any]:
    """Splits training pairs so that neither test nor validation queries are ranked against a trained pair.

    Args:
        train: A `datasets.Dataset`, the training pairs with those that validate.
        database: The data set's own database, without the items of `train`, by `id`. None: cut from `train`.
        fraction: The fraction of `train` for each database that is cut from it.
        seed: As in `train_validation_split`.

    Returns:
        The rest of `train`, and the databases of the test queries (`database`) and of the validation queries
        (`validation_database`).
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


def hash_split(dataset: Any, fraction: float = 0.1, seed: int = 0, id_column: str = "id") -> tuple[Any, Any]:
    """Splits a data set by hashes of its ids, so that the part of a row depends on its id and the seed only.

    This works on streams, and rows stay in their part when others are added or removed, in any order and process.

    Args:
        dataset: A `Dataset` or `IterableDataset`.
        fraction: The expected validation fraction, between 0 and 1.
        seed: The seed of the hashes.
        id_column: The column of ids.

    Returns:
        `(train, validation)`, of the same kind.

    Raises:
        DataError: If the fraction is out of range, the column is missing, or (map-style only) a part is empty.
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
                f"{len(dataset)} rows are too few to be divided by their ids with fraction={fraction}; "
                "use more data or train_validation_split."
            )
        return dataset.select(np.flatnonzero(~chosen)), dataset.select(np.flatnonzero(chosen))

    raw = decoding_off(dataset)
    train, validation = (
        raw.filter(partial(is_on_side, fraction=fraction, seed=seed, validation=side), input_columns=[id_column])
        for side in (False, True)
    )
    return decoding_on(train, dataset.features), decoding_on(validation, dataset.features)


def in_validation(name: str, fraction: float, seed: int = 0) -> bool:
    """Whether the row with this id is in the validation part."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def is_on_side(name: str, fraction: float, seed: int, validation: bool) -> bool:
    """Whether the row with this id is in the validation part, or in the other one."""
    return in_validation(name, fraction, seed) == validation


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction < 1:
        raise DataError(f"fraction={fraction}: the validation fraction must be between 0 and 1.")
