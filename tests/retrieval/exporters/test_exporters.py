"""Exports read by independent code: pyarrow, json, and a second implementation of PostgreSQL's COPY format."""

import json
import re
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cmfah_hf.errors import HashIndexError, QueryError
from cmfah_hf.retrieval import EXPORTERS, index, milvus_query, pgvector_query, vespa_query
from cmfah_hf.retrieval.exporters import blocks as export_blocks
from cmfah_hf.retrieval.exporters import milvus
from cmfah_hf.retrieval.exporters.targets import Target

FORMATS = sorted(EXPORTERS)
FILES = {
    "milvus": ["collection.json", "part-00000.parquet"],
    "vespa": ["cmfah.sd", "feed.jsonl"],
    "pgvector": ["index.sql", "load.sql", "query.sql"],
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Every export here has several blocks; the last one is not full."""
    monkeypatch.setattr(export_blocks, "BLOCK_ROWS", 128)


@pytest.mark.parametrize("strings", [True, False])
@pytest.mark.parametrize("bits", [8, 64, 1024])
@pytest.mark.parametrize("target", FORMATS)
def test_ids_and_codes_keep_the_order_of_the_index(odd_index, tmp_path, target, bits, strings, read_export):
    exported = odd_index(bits=bits, strings=strings, plain=True)
    files = EXPORTERS[target](exported, tmp_path / "out")
    assert files == [tmp_path / "out" / name for name in FILES[target]]
    assert sorted(tmp_path.rglob("*")) == sorted([tmp_path / "out", *files])
    rows = read_export(target, tmp_path / "out")
    ids = [row["id"] if strings or target != "pgvector" else int(row["id"]) for row in rows]
    assert ids == exported.ids.tolist()
    assert [row["code"] for row in rows] == [code.tobytes() for code in exported.codes]


@pytest.mark.parametrize("target", FORMATS)
def test_hamming_distances_of_exported_codes_match_the_index(odd_index, tmp_path, target, read_export):
    exported = odd_index(strings=False, plain=True)
    EXPORTERS[target](exported, tmp_path / "out")
    rows = read_export(target, tmp_path / "out")
    hash_values = np.random.default_rng(1).normal(size=(4, 64))
    if target == "milvus":
        queries = [int.from_bytes(query, "little") for query in milvus_query(hash_values)]
        codes = {row["id"]: int.from_bytes(row["code"], "little") for row in rows}
    elif target == "vespa":
        bodies = [query["input.query(code)"] for query in vespa_query(hash_values)]
        assert all(-128 <= cell <= 127 for body in bodies for cell in body)
        queries = [int.from_bytes(np.array(body, np.int8).tobytes(), "little") for body in bodies]
        codes = {row["id"]: int.from_bytes(row["code"], "little") for row in rows}
    else:
        queries = [int(query[::-1], 2) for query in pgvector_query(hash_values)]
        codes = {int(row["id"]): int.from_bytes(row["code"], "little") for row in rows}
    expected = exported.search(hash_values, k=len(exported))
    for query, ids, distances in zip(queries, expected.ids.tolist(), expected.scores.tolist(), strict=True):
        assert [(query ^ codes[item_id]).bit_count() for item_id in ids] == distances


def test_queries_from_values_and_from_packed_codes_are_equal():
    hash_values = np.random.default_rng(0).normal(size=(3, 16))
    packed = np.packbits(hash_values >= 0, axis=1, bitorder="little")
    bits = ["".join(str(int(value >= 0)) for value in row) for row in hash_values]
    assert pgvector_query(hash_values) == pgvector_query(packed) == bits
    assert pgvector_query(hash_values[1]) == [bits[1]]
    assert milvus_query(hash_values) == milvus_query(packed) == [row.tobytes() for row in packed]
    assert vespa_query(hash_values, k=7) == vespa_query(packed, k=7)
    query = vespa_query(hash_values[2], k=7, name="images")[0]
    assert query == {
        "yql": "select * from images where {targetHits: 7, approximate: false}nearestNeighbor(code, code)",
        "hits": 7,
        "ranking": "hamming",
        "input.query(code)": packed[2].view(np.int8).tolist(),
    }
    json.dumps(query)
    for wrong in (np.zeros((2, 3, 8), np.uint8), np.full((1, 8), np.nan), np.ones((1, 12))):
        for make in (milvus_query, pgvector_query, vespa_query):
            with pytest.raises(HashIndexError):
                make(wrong)
    with pytest.raises(QueryError, match="cosine"):
        vespa_query(hash_values, metric="cosine")
    with pytest.raises(QueryError, match="k must"):
        vespa_query(hash_values, k=0)
    with pytest.raises(HashIndexError, match="uint8"):
        vespa_query(packed, metric="aqd")


def test_rank_profiles_of_vespa_match_the_index(odd_index, tmp_path, read_export):
    """The expressions of the schema, evaluated with NumPy over the feed."""
    exported = odd_index(strings=False)
    EXPORTERS["vespa"](exported, tmp_path / "out")
    schema = (tmp_path / "out" / "cmfah.sd").read_text(encoding="utf-8")
    profiles = dict(re.findall(r"rank-profile (\w+) \{(.*?)\n    \}", schema, re.DOTALL))
    assert "query(code) tensor<int8>(x[8])" in profiles["hamming"]
    assert "query(values) tensor<float>(x[64])" in profiles["aqd"]
    expression = re.search(r"expression: (.*)", profiles["aqd"])[1]
    assert expression == "2 * sum(query(values) * unpack_bits(attribute(code), float, little)) - sum(query(values))"
    hash_values = np.tanh(np.random.default_rng(2).normal(size=(3, 64)))
    expected = exported.search(hash_values, k=len(exported), metric="aqd")
    rows = {row["id"]: np.frombuffer(row["code"], np.uint8) for row in read_export("vespa", tmp_path / "out")}
    for query, ids, scores in zip(vespa_query(hash_values, metric="aqd"), expected.ids, expected.scores, strict=True):
        assert (query["ranking"], query["yql"]) == ("aqd", "select * from cmfah where true")
        values = np.array(query["input.query(values)"], np.float32)
        codes = np.stack([rows[item_id] for item_id in ids.tolist()])
        unpacked = np.unpackbits(codes, axis=1, bitorder="little").astype(np.float32)
        np.testing.assert_array_equal(2 * (unpacked * values).sum(1) - values.sum(), scores)


def test_the_schema_of_vespa_has_a_field_for_every_column(odd_index, tmp_path):
    EXPORTERS["vespa"](odd_index(bits=128), tmp_path / "out", name="images")
    schema = (tmp_path / "out" / "images.sd").read_text(encoding="utf-8")
    assert schema.startswith("schema images {\n    document images {\n")
    assert schema.count("{") == schema.count("}")
    assert dict(re.findall(r"field (\w+) type (\S+) \{", schema)) == {
        "id": "string",
        "code": "tensor<int8>(x[16])",
        "caption": "string",
        "kind": "string",
        "year": "long",
        "views": "long",
        "score": "double",
        "weight": "float",
        "seen": "bool",
        "tags": "array<string>",
        "boxes": "array<long>",
        "flags": "array<byte>",
    }
    inside = schema[: schema.index("    # The relevance")]
    assert "distance-metric: hamming" in inside
    first = json.loads((tmp_path / "out" / "feed.jsonl").read_text(encoding="utf-8").split("\n")[0])
    assert first["put"].startswith("id:images:images::")


@pytest.mark.parametrize("strings", [True, False])
def test_metadata_round_trips_through_parquet_and_json(odd_index, tmp_path, strings, read_export):
    exported = odd_index(strings=strings)
    expected = exported.metadata.to_pylist()
    EXPORTERS["milvus"](exported, tmp_path / "milvus")
    rows = read_export("milvus", tmp_path / "milvus")
    assert [{name: row[name] for name in expected[0]} for row in rows] == expected
    EXPORTERS["vespa"](exported, tmp_path / "vespa")
    for row, wanted in zip(read_export("vespa", tmp_path / "vespa"), expected, strict=True):
        given = {name: value for name, value in wanted.items() if value is not None}
        given["flags"] = [int(flag) for flag in given["flags"]]
        assert {name: value for name, value in row.items() if name not in ("id", "code")} == given


def test_milvus_collection_describes_its_files(odd_index, tmp_path):
    exported = odd_index()
    EXPORTERS["milvus"](exported, tmp_path / "out", name="images")
    collection = json.loads((tmp_path / "out" / "collection.json").read_text())
    assert collection["collectionName"] == "images"
    assert collection["indexParams"] == [
        {"fieldName": "code", "indexName": "code", "indexType": "BIN_FLAT", "metricType": "HAMMING"}
    ]
    fields = {field["fieldName"]: field for field in collection["schema"]["fields"]}
    schema = pq.read_schema(tmp_path / "out" / "part-00000.parquet")
    assert list(fields) == schema.names
    assert fields["code"] == {"fieldName": "code", "dataType": "BinaryVector", "elementTypeParams": {"dim": "64"}}
    assert schema.field("code").type == pa.list_(pa.uint8())
    assert [field["fieldName"] for field in fields.values() if field.get("isPrimary")] == ["id"]
    types = {
        "VarChar": pa.string(),
        "Int64": pa.int64(),
        "Double": pa.float64(),
        "Float": pa.float32(),
        "Bool": pa.bool_(),
    }
    longest = max(len(text.encode()) for text in exported.metadata["caption"].to_pylist() if text)
    assert longest <= int(fields["caption"]["elementTypeParams"]["max_length"]) < 4 * longest
    for name, field in fields.items():
        column = pq.read_table(tmp_path / "out" / "part-00000.parquet")[name]
        assert field.get("nullable", False) == (column.null_count > 0)
        if field["dataType"] == "Array":
            assert schema.field(name).type == pa.list_(types[field["elementDataType"]])
            assert int(field["elementTypeParams"]["max_capacity"]) >= max(len(v or []) for v in column.to_pylist())
        elif name != "code":
            assert schema.field(name).type == types[field["dataType"]]


def test_many_items_are_split_into_several_files_for_milvus(odd_index, tmp_path, monkeypatch, read_export):
    monkeypatch.setattr(milvus, "FILE_ROWS", 256)
    exported = odd_index(rows=600, plain=True)
    files = EXPORTERS["milvus"](exported, tmp_path / "out")
    assert [file.name for file in files[1:]] == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    assert [pq.read_metadata(file).num_rows for file in files[1:]] == [256, 256, 88]
    assert [row["id"] for row in read_export("milvus", tmp_path / "out")] == exported.ids.tolist()


def test_milvus_writer_gives_files_of_the_same_types(odd_index, tmp_path, read_export):
    pymilvus = pytest.importorskip("pymilvus", reason="no pymilvus")
    writers = pytest.importorskip("pymilvus.bulk_writer", reason="no pymilvus[bulk_writer]")
    exported = odd_index(rows=20)
    EXPORTERS["milvus"](exported, tmp_path / "out")
    fields = json.loads((tmp_path / "out" / "collection.json").read_text())["schema"]["fields"]
    kinds = {"VarChar": "VARCHAR", "Int64": "INT64", "Double": "DOUBLE", "Float": "FLOAT", "Bool": "BOOL"}
    kinds |= {"Array": "ARRAY", "BinaryVector": "BINARY_VECTOR"}
    schema = pymilvus.MilvusClient.create_schema()
    for field in fields:
        options = {name: int(value) for name, value in field["elementTypeParams"].items()}
        if field["dataType"] == "Array":
            options["element_type"] = pymilvus.DataType[kinds[field["elementDataType"]]]
        options |= {"is_primary": field.get("isPrimary", False), "nullable": field.get("nullable", False)}
        schema.add_field(field["fieldName"], pymilvus.DataType[kinds[field["dataType"]]], **options)
    schema.verify()
    writer = writers.LocalBulkWriter(schema, str(tmp_path / "theirs"), file_type=writers.BulkFileType.PARQUET)
    for row in read_export("milvus", tmp_path / "out"):
        writer.append_row(row)
    writer.commit()
    (theirs,) = (tmp_path / "theirs").rglob("*.parquet")
    theirs, ours = pq.read_table(theirs), pq.read_table(tmp_path / "out" / "part-00000.parquet")
    # Which of Arrow's two string types it uses depends on the installed version of pandas.
    types = {field.name: str(field.type).replace("large_string", "string") for field in theirs.schema}
    assert {field.name: str(field.type) for field in ours.schema} == types
    assert ours.to_pylist() == theirs.to_pylist()


def test_statements_for_postgres(odd_index, tmp_path, read_export):
    exported = odd_index(bits=16)
    EXPORTERS["pgvector"](exported, tmp_path / "out", name="images")
    load = (tmp_path / "out" / "load.sql").read_text(encoding="utf-8")
    assert '"id" text COLLATE "C" NOT NULL,\n    "code" bit(16) NOT NULL,\n    "caption" text,' in load
    assert '"weight" real,\n    "seen" boolean,\n    "tags" text[],\n    "boxes" bigint[],' in load
    assert load.endswith('\\.\n\nALTER TABLE "images" ADD PRIMARY KEY ("id");\nCOMMIT;\nANALYZE "images";\n')
    rows = read_export("pgvector", tmp_path / "out")
    expected = exported.metadata.to_pylist()
    for name, convert in {"caption": str, "kind": str, "year": int, "views": int, "score": float}.items():
        assert [row[name] and convert(row[name]) for row in rows] == [row[name] for row in expected]
    assert [np.float32(row["weight"]) for row in rows] == [np.float32(row["weight"]) for row in expected]
    assert [row["seen"] for row in rows][:5] == ["true", None, "true", "false", None]
    assert (rows[1]["tags"], rows[4]["tags"], rows[5]["tags"]) == ('{"it\'s"}', "{}", None)
    assert rows[6]["tags"] == '{"back\\\\slash","\\\\N"}'
    assert (rows[3]["boxes"], rows[5]["flags"]) == ("{3,-3}", "{true,false}")
    assert 'CREATE INDEX ON "images" USING hnsw ("code" bit_hamming_ops);' in (tmp_path / "out/index.sql").read_text()
    bits = "".join(str(byte >> i & 1) for byte in exported.codes[0].tolist() for i in range(8))
    assert f"""ORDER BY ("code" <~> B'{bits}'), "id"\nLIMIT 10;""" in (tmp_path / "out/query.sql").read_text()


@pytest.mark.parametrize("target", FORMATS)
def test_memory_does_not_grow_with_the_items(odd_index, tmp_path, monkeypatch, target):
    check, held = Target.checked_values, []

    def watched(*arguments):
        held.append(pa.total_allocated_bytes())
        return check(*arguments)

    monkeypatch.setattr(Target, "checked_values", watched)

    def peaks(rows):
        """The peak memory of Python and, column by column, of Arrow, without the index."""
        # Integer ids, because an index creates a Python object for each string id.
        exported = odd_index(rows=rows, strings=False)
        assert exported.ids.size == len(exported.codes) == rows  # first create the index's own arrays
        before = pa.total_allocated_bytes()
        held.clear()
        tracemalloc.start()
        EXPORTERS[target](exported, tmp_path / f"{target}{rows}")
        python = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return python, max(held) - before

    peaks(512)  # load lazily imported modules
    few, many = peaks(1024), peaks(8192)
    # 7,168 more items of about 200 bytes each.
    assert many[0] - few[0] < 100_000, (few, many)
    assert many[1] - few[1] < 100_000, (few, many)


def test_a_column_of_nulls_is_exported_as_strings(index_with, tmp_path, read_export):
    exported = index_with([1, 2], nothing=pa.nulls(2))
    EXPORTERS["milvus"](exported, tmp_path / "milvus")
    assert pq.read_table(tmp_path / "milvus" / "part-00000.parquet")["nothing"].to_pylist() == [None, None]
    EXPORTERS["pgvector"](exported, tmp_path / "pgvector")
    assert [row["nothing"] for row in read_export("pgvector", tmp_path / "pgvector")] == [None, None]
    assert '"nothing" text' in (tmp_path / "pgvector" / "load.sql").read_text()
    EXPORTERS["vespa"](exported, tmp_path / "vespa")
    assert all("nothing" not in row for row in read_export("vespa", tmp_path / "vespa"))


def test_values_that_only_postgres_can_hold(index_with, tmp_path):
    exported = index_with(
        ["", "b"],
        **{
            'odd "name"\n': pa.array([float("nan"), float("-inf")]),
            "tags": pa.array([["x", None], [None]]),
            "halves": pa.array(np.array([0.5, 1], np.float16)),
        },
    )
    EXPORTERS["pgvector"](exported, tmp_path / "out")
    text = (tmp_path / "out" / "load.sql").read_text()
    assert '"odd ""name""\n" double precision' in text
    assert '\n\t00000000\tnan\t{"x",NULL}\t0.5\nb\t00000000\t-inf\t{NULL}\t1\n\\.\n' in text


def test_exporters_support_every_ranking_of_the_index(odd_index):
    """Every ranking of the index has a query, and every format has a function for it."""
    assert set(index.METRICS) == {"hamming", "aqd"}
    for metric in index.METRICS:
        assert vespa_query(np.ones((1, 8)), metric=metric)[0]["ranking"] == metric
