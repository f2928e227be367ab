"""Splits of training pairs, by permutation and by id."""

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmfah_hf.data import hash_split, make_scenes, train_validation_split
from cmfah_hf.data.splits import in_validation
from cmfah_hf.errors import DataError


def numbers(count):
    return datasets.Dataset.from_dict({"id": [f"row-{i}" for i in range(count)], "n": list(range(count))})


@settings(max_examples=25)
@given(st.integers(2, 60), st.floats(0.01, 0.99), st.integers(0, 5))
def test_the_parts_are_an_ordered_partition(count, fraction, seed):
    data = numbers(count)
    size = max(1, round(fraction * count))
    if size == count:
        with pytest.raises(DataError, match=f"{count} rows cannot be divided with {size}"):
            train_validation_split(data, fraction, seed=seed)
        return
    train, validation = train_validation_split(data, fraction, seed=seed)
    assert len(validation) == size
    assert sorted(train["n"][:] + validation["n"][:]) == list(range(count))
    for part in (train, validation):
        assert part["n"][:] == sorted(part["n"])
    again, _ = train_validation_split(data, size=size, seed=seed)
    assert again["n"][:] == train["n"][:]


def test_another_seed_gives_another_split():
    parts = [train_validation_split(numbers(50), size=10, seed=seed)[1]["n"][:] for seed in range(3)]
    assert parts[0] != parts[1] != parts[2]
    assert any(part != list(range(10)) for part in parts)


@pytest.mark.parametrize(
    ("count", "options"),
    [(1, {}), (0, {}), (5, {"size": 5}), (5, {"size": 0}), (5, {"fraction": 0.0}), (5, {"fraction": 1})],
)
def test_too_small_or_out_of_range_fractions(count, options):
    with pytest.raises(DataError):
        train_validation_split(numbers(count), **options)


def test_hash_split_is_the_same_for_tables_and_streams_in_any_order():
    data = numbers(300)
    train, validation = hash_split(data, 0.2, seed=4)
    assert sorted(train["n"][:] + validation["n"][:]) == list(range(300))
    assert 30 < len(validation) < 95
    streams = hash_split(data.shuffle(seed=1).to_iterable_dataset(4), 0.2, seed=4)
    assert sorted(row["n"] for row in streams[0]) == train["n"][:]
    assert sorted(row["n"] for row in streams[1]) == validation["n"][:]
    # New rows do not move a row to the other side.
    more = hash_split(numbers(500), 0.2, seed=4)[1]
    assert [n for n in more["n"] if n < 300] == validation["n"][:]
    assert hash_split(data, 0.2, seed=5)[1]["n"][:] != validation["n"][:]
    # A larger part contains the smaller one.
    assert set(validation["n"]) <= set(hash_split(data, 0.5, seed=4)[1]["n"])


def test_the_hash_function_is_stable():
    """Fixed values: a new release must not move rows between training and validation."""
    sides = [in_validation(f"row-{i}", 0.3, seed=7) for i in range(12)]
    assert [i for i, side in enumerate(sides) if side] == [1, 4, 5, 6, 7]


def test_images_of_streams_survive_the_split(rows_of):
    scenes = make_scenes(12, image_size=32)
    train, validation = hash_split(scenes.to_iterable_dataset(), 0.4)
    assert train.features == scenes.features
    both = sorted(rows_of(train) + rows_of(validation), key=lambda row: row["id"])
    assert both == rows_of(scenes)


def test_hash_split_errors():
    with pytest.raises(DataError, match="no column 'id' to divide by; present are: n"):
        hash_split(numbers(5).remove_columns("id"))
    with pytest.raises(DataError, match="3 rows are too few"):
        hash_split(numbers(3), 1e-9)
    with pytest.raises(DataError, match=r"fraction=1\.5"):
        hash_split(numbers(3), 1.5)
