"""Exports loaded into real databases and searched there."""

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest

from cmfah_hf.retrieval import EXPORTERS, milvus_query, pgvector_query
from cmfah_hf.retrieval.exporters import blocks as export_blocks


def canonical(exported, hash_values, k):
    """The `k` nearest by Hamming distance, then by id, by plain algebra: one list of `(id, distance)` per query."""
    bits = np.unpackbits(exported.codes, axis=1, bitorder="little")
    found = []
    for query in hash_values:
        distances = (bits != (query >= 0)).sum(1).tolist()
        found.append(sorted(zip(distances, exported.ids.tolist(), strict=True))[:k])
    return [[(item_id, distance) for distance, item_id in row] for row in found]


@pytest.mark.parametrize("strings", [True, False])
def test_postgres_answers_in_the_canonical_order(postgres, odd_index, tmp_path, monkeypatch, strings):
    monkeypatch.setattr(export_blocks, "BLOCK_ROWS", 128)
    name = "texts" if strings else "Numbers"
    exported = odd_index(strings=strings)
    EXPORTERS["pgvector"](exported, tmp_path / "out", name=name)
    postgres.run("--file", str(tmp_path / "out" / "load.sql"))
    rows = postgres.rows(f'SELECT * FROM "{name}"')
    assert len(rows) == len(exported)
    by_id = {row["id"]: row for row in rows}
    for item_id, expected in zip(exported.ids.tolist(), exported.metadata.to_pylist(), strict=True):
        row = {column: value for column, value in by_id[item_id].items() if column not in ("id", "code")}
        weights = row.pop("weight"), expected.pop("weight")
        assert np.float32(weights[0]) == np.float32(weights[1])
        assert row == expected
    hash_values = np.random.default_rng(5).normal(size=(3, 64))
    for query, wanted in zip(pgvector_query(hash_values), canonical(exported, hash_values, 60), strict=True):
        nearest = (
            f"""SELECT id, code <~> B'{query}' AS distance FROM "{name}" ORDER BY code <~> B'{query}', id LIMIT 60"""
        )
        assert [(row["id"], row["distance"]) for row in postgres.rows(nearest)] == wanted
    first = postgres.run("--file", str(tmp_path / "out" / "query.sql"), "--csv").splitlines()
    assert first[0].endswith(",0")
    postgres.run("--file", str(tmp_path / "out" / "index.sql"))
    plan = postgres.run("--command", f"SET enable_seqscan TO off; EXPLAIN {nearest}")
    assert f"{name}_code_idx" in plan
    # A second load finds the existing table and changes nothing.
    with pytest.raises(AssertionError, match="already exists"):
        postgres.run("--file", str(tmp_path / "out" / "load.sql"))
    assert len(postgres.rows(f'SELECT id FROM "{name}"')) == len(exported)


def test_postgres_accepts_unusual_values(postgres, index_with, tmp_path):
    import pyarrow as pa

    columns = {
        'odd "name"\n': pa.array([math.nan, math.inf, None]),
        "tags": pa.array([["a", None, "", "NULL", '"', "\\", "{}", ",", " x "], [], [None]]),
        "Select": pa.array([[1.5, math.nan], None, [-0.0]]),
        "nothing": pa.nulls(3),
        "flags": pa.array([[True, None], [False], []]),
    }
    EXPORTERS["pgvector"](index_with(["", "b", "B" * 2600], **columns), tmp_path / "out", name="odd")
    postgres.run("--file", str(tmp_path / "out" / "load.sql"))
    rows = postgres.rows("SELECT * FROM odd ORDER BY id")
    assert [row["id"] for row in rows] == ["", "B" * 2600, "b"]
    assert [row['odd "name"\n'] for row in rows] == ["NaN", None, "Infinity"]
    assert [row["tags"] for row in rows] == [columns["tags"].to_pylist()[at] for at in (0, 2, 1)]
    assert [row["Select"] for row in rows] == [[1.5, "NaN"], [-0.0], None]
    assert [row["flags"] for row in rows] == [[True, None], [], [False]]
    assert {row["nothing"] for row in rows} == {None}


@pytest.mark.parametrize("strings", [True, False])
def test_milvus_finds_the_same_distances(milvus, odd_index, tmp_path, monkeypatch, strings):
    import pymilvus

    monkeypatch.setattr(export_blocks, "BLOCK_ROWS", 128)
    # Milvus Lite does not support nulls, and fails when it returns a binary vector.
    exported = odd_index(strings=strings, plain=True)
    EXPORTERS["milvus"](exported, tmp_path / "out")
    collection = json.loads((tmp_path / "out" / "collection.json").read_text())
    schema = milvus.create_schema(auto_id=False, enable_dynamic_field=False)
    kinds = {"VarChar": "VARCHAR", "Int64": "INT64", "BinaryVector": "BINARY_VECTOR"}
    for field in collection["schema"]["fields"]:
        sizes = {name: int(size) for name, size in field["elementTypeParams"].items()}
        kind = pymilvus.DataType[kinds[field["dataType"]]]
        schema.add_field(field["fieldName"], kind, is_primary=field.get("isPrimary", False), **sizes)
    parameters = milvus.prepare_index_params()
    for index in collection["indexParams"]:
        parameters.add_index(index["fieldName"], index_type=index["indexType"], metric_type=index["metricType"])
    milvus.create_collection("cmfah", schema=schema, index_params=parameters)
    rows = pq.read_table(tmp_path / "out" / "part-00000.parquet").to_pylist()
    milvus.insert("cmfah", [{**row, "code": bytes(row["code"])} for row in rows])
    hash_values = np.random.default_rng(6).normal(size=(3, 64))
    found = milvus.search("cmfah", data=milvus_query(hash_values), limit=len(exported), output_fields=["id"])
    for hits, wanted in zip(found, canonical(exported, hash_values, len(exported)), strict=True):
        assert [hit["distance"] for hit in hits] == [distance for _, distance in wanted]
        assert {hit["id"]: hit["distance"] for hit in hits} == dict(wanted)
