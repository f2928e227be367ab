"""The line below tables: protocols, figure, chance, seeds and versions; and files of other versions of the package."""

import json
from dataclasses import asdict, replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cmfah_hf.errors import CMFAHError
from cmfah_hf.experiments import read_results
from cmfah_hf.experiments.provenance import _described, _ranges, provenance_of
from cmfah_hf.experiments.report import document_of, summarize, table_of
from cmfah_hf.experiments.results import SCHEMA

VALUES = {"both": [0.70, 0.72, 0.71]}
VERSIONS = json.dumps({"python": "3.11.2", "cmfah-hf": "0.1.0", "torch": "2.15.0"})


def write(path, results, change=lambda table: table):
    pq.write_table(change(pa.Table.from_pylist([asdict(one) for one in results], schema=SCHEMA)), path)
    return path


def test_the_line_of_a_table(make_results):
    rows = make_results(VALUES, versions=VERSIONS) + make_results(VALUES, encoding="pair", versions=VERSIONS)
    random = make_results(VALUES, ranking="random")
    random = [replace(one, value=0.1114) for one in random]
    expected = (
        "Protocol seen; database seen, its codes single, pair. MAP, expected over the orders of ties; by Hamming "
        "distance. Chance .111. Seeds 0-2; cmfah-hf 0.1.0, torch 2.15.0, python 3.11.2."
    )
    table = table_of(rows, every=[*rows, *random])
    assert table.note == expected
    assert table.markdown().endswith(f"|\n\n*{expected}*")
    assert table.latex().endswith(f"\\end{{tabular}}\n% {expected}")
    assert "Chance" not in table_of(rows).note
    document = json.loads(document_of(summarize(rows), provenance_of(rows, random)))
    assert document["provenance"]["chance"] == {"metric": "map", "by": {"": pytest.approx(0.1114)}}
    assert document["provenance"]["versions"]["torch"] == ["2.15.0"]
    assert "warning" not in document["provenance"]


def test_chance_is_named_by_what_it_differs_by(make_results):
    rows, random = [], []
    for data, chance in (("coco", 0.1), ("flickr", 0.554)):
        rows += make_results(VALUES, data=data, metric="precision@10")
        random += [replace(one, value=chance) for one in make_results(VALUES, data=data, ranking="random")]
    other = [replace(one, value=0.9) for one in make_results(VALUES, data="other", ranking="random")]
    line = provenance_of(rows, [*rows, *random, *other]).line()
    assert "Precision@10, expected over the orders of ties; by Hamming distance. " in line
    assert "Chance (MAP) .100 (coco), .554 (flickr)." in line
    own = provenance_of(rows, [replace(one, metric="precision@10") for one in random])
    assert "Chance .100 (coco), .554 (flickr)." in own.line()


def test_different_versions_in_one_table_are_warned_of(make_results):
    newer = json.dumps({**json.loads(VERSIONS), "torch": "2.16.0", "numpy": "2.1"})
    rows = make_results(VALUES, versions=VERSIONS) + make_results({"none": [0.5]}, versions=newer)
    found = provenance_of(rows)
    assert found.warning == "versions differ between rows: torch (2.15.0, 2.16.0)"
    assert found.line().endswith(
        "cmfah-hf 0.1.0, torch 2.15.0/2.16.0, python 3.11.2, numpy 2.1/none. Warning: versions differ between rows: "
        "torch (2.15.0, 2.16.0)."
    )
    assert found.to_dict()["warning"] == found.warning
    # Rows that do not differ in what decides figures are not warned of, nor are those without a record of versions.
    same = make_results(VALUES, versions=VERSIONS) + make_results({"none": [0.5]}, versions=json.dumps(
        {**json.loads(VERSIONS), "python": "3.12.0"}))  # fmt: skip
    assert provenance_of(same).warning is None
    assert "Seeds 0-2; versions unknown." in provenance_of(make_results(VALUES)).line()


@pytest.mark.parametrize(
    ("metric", "described"),
    [
        ("map", "MAP, expected over the orders of ties"),
        ("map@50", "MAP@50, expected over the orders of ties"),
        ("map_stable", "MAP, ties in the order of the database"),
        ("map_dcmh@50", "MAP over the first 50 relevant items, expected over the orders of ties"),
        ("pointing", "pointing"),
    ],
)
def test_metrics_are_described(metric, described):
    assert _described(metric) == described


def test_seeds_in_a_row_are_a_range():
    assert [_ranges(seeds) for seeds in ((0,), (0, 1), (0, 1, 2, 5), (3, 5, 6, 7))] == ["0", "0, 1", "0-2, 5", "3, 5-7"]


def test_a_file_of_an_earlier_version_is_read_without_its_missing_columns(make_results, tmp_path, caplog):
    results = make_results(VALUES, memory_mb=12.0)
    path = write(tmp_path / "old.parquet", results, lambda table: table.drop_columns("memory_mb"))
    assert read_results(path) == [replace(one, memory_mb=None) for one in results]
    assert "old.parquet was written by another version of the package: it has no memory_mb." in caplog.text


def test_a_file_of_a_later_version_is_read_without_its_further_columns(make_results, tmp_path, caplog):
    results = make_results(VALUES, memory_mb=12.0)

    def change(table):
        mixed = table.append_column("energy", pa.array([1.0] * len(table)))
        return mixed.select(reversed(mixed.column_names))

    assert read_results(write(tmp_path / "new.parquet", results, change)) == results
    assert "another version of the package: its energy is left out." in caplog.text
    caplog.clear()
    assert read_results(write(tmp_path / "own.parquet", results)) == results
    assert not caplog.records


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop_columns(["value", "split"]), "of this version: it has no split, value; run it again"),
        (lambda table: table.set_column(7, "seed", pa.array(["one"] * len(table))), "holds no results .*one"),
        (lambda table: table.set_column(14, "value", pa.nulls(len(table), pa.float64())), "value has no value in some"),
    ],
)
def test_other_files_are_refused_in_one_line(make_results, tmp_path, change, message):
    path = write(tmp_path / "other.parquet", make_results(VALUES), change)
    with pytest.raises(CMFAHError, match=message) as caught:
        read_results(path)
    assert len(str(caught.value).splitlines()) == 1
