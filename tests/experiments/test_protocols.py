"""The protocols `seen` and `unseen`: training pairs, and the database of the queries."""

import datasets
import pytest

from cmfah_hf.data.splits import hold_out_databases
from cmfah_hf.errors import CMFAHError, DataError
from cmfah_hf.training import DataArguments, parse_run
from cmfah_hf.training.preparation import read_pairs


def pairs_of(numbers):
    return datasets.Dataset.from_dict({"id": [f"item-{number}" for number in numbers]})


def test_parts_are_disjoint():
    parts = hold_out_databases(pairs_of(range(50)), fraction=0.2, seed=3)
    ids = {name: part["id"] for name, part in parts.items()}
    assert {name: len(own) for name, own in ids.items()} == {"train": 32, "database": 10, "validation_database": 8}
    assert len({one for own in ids.values() for one in own}) == 50
    again = hold_out_databases(pairs_of(range(50)), fraction=0.2, seed=3)
    assert {name: part["id"] for name, part in again.items()} == ids
    other = hold_out_databases(pairs_of(range(50)), fraction=0.2, seed=4)
    assert other["database"]["id"] != ids["database"]


def test_own_database_of_a_data_set_is_kept_without_the_training_pairs():
    parts = hold_out_databases(pairs_of(range(20)), pairs_of(range(10, 30)), fraction=0.25)
    assert parts["database"]["id"] == [f"item-{number}" for number in range(20, 30)]
    assert len(parts["train"]) + len(parts["validation_database"]) == 20
    with pytest.raises(DataError, match="Every item of the database is a training pair"):
        hold_out_databases(pairs_of(range(20)), pairs_of(range(10)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"protocol": "paired"}, "protocol is 'paired'; choose one of seen, unseen"),
        ({"protocol": "unseen", "streaming": True}, "a stream does not have"),
        ({"database_fraction": 1.0}, "database_fraction is 1.0"),
    ],
)
def test_incompatible_settings(settings, message):
    with pytest.raises(CMFAHError, match=message):
        DataArguments(**settings)


def test_parts_of_a_run(scenes_folder, write_config, tmp_path):
    config = write_config(tmp_path / "run.yaml", data={"dataset": str(scenes_folder)})
    parts = {}
    for protocol in ("seen", "unseen"):
        run = parse_run(config, ["--output_dir", str(tmp_path / "out"), "--protocol", protocol])
        pairs = read_pairs(run, tmp_path)
        parts[protocol] = {name: set(rows["id"]) for name, rows in pairs.splits.items()}
        parts[protocol]["all"] = set(pairs.all["id"])
    assert set(parts["seen"]) == {"train", "validation", "query", "all"}
    unseen = parts["unseen"]
    assert set(unseen) == {"train", "validation", "validation_database", "database", "query", "all"}
    assert not unseen["database"] & unseen["all"]
    assert unseen["database"] | unseen["all"] == parts["seen"]["all"]
    assert unseen["all"] == unseen["train"] | unseen["validation"] | unseen["validation_database"]
    assert unseen["query"] == parts["seen"]["query"]
