"""Errors of exporters: items that a database cannot hold, foreign folders, invalid names."""

import numpy as np
import pyarrow as pa
import pytest

from cmfah_hf.errors import HashIndexError
from cmfah_hf.retrieval import EXPORTERS, HashIndex
from cmfah_hf.retrieval.exporters import blocks as export_blocks

FORMATS = sorted(EXPORTERS)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(export_blocks, "BLOCK_ROWS", 128)


@pytest.mark.parametrize("target", FORMATS)
def test_a_folder_is_written_atomically_and_replaced_only_on_request(
    odd_index, index_with, tmp_path, target, read_export
):
    folder = tmp_path / "deep" / "out"
    EXPORTERS[target](odd_index(rows=200), folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(HashIndexError, match="out holds an export already"):
        EXPORTERS[target](index_with([1]), folder)
    # The last item of the second block is one that no database can hold.
    broken = index_with([f"n{i}" for i in range(199)] + ["\udcff"])
    for path in (folder, tmp_path / "deep" / "new"):
        with pytest.raises(HashIndexError, match="lone surrogate"):
            EXPORTERS[target](broken, path, overwrite=True)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert list((tmp_path / "deep").iterdir()) == [folder]
    EXPORTERS[target](index_with([1]), folder, overwrite=True)
    assert [row["id"] for row in read_export(target, folder)] == ["1" if target == "pgvector" else 1]
    assert list((tmp_path / "deep").iterdir()) == [folder]
    (folder / "thesis.doc").write_text("years of work")
    with pytest.raises(HashIndexError, match=r"'thesis\.doc', which is not part of an export"):
        EXPORTERS[target](index_with([1]), folder, overwrite=True)
    assert (folder / "thesis.doc").read_text() == "years of work"
    with pytest.raises(HashIndexError, match=r"thesis\.doc is a file"):
        EXPORTERS[target](index_with([1]), folder / "thesis.doc", overwrite=True)
    (tmp_path / "empty").mkdir()
    assert (
        len(EXPORTERS[target](index_with([1]), tmp_path / "empty")) == {"milvus": 2, "vespa": 2, "pgvector": 3}[target]
    )


ALL = ("milvus", "vespa", "pgvector")
REFUSED = {
    "surrogate": (ALL, {"ids": ["a", "b\udcff"]}, r"Id 'b\\udcff': a lone surrogate, which \w+ cannot hold; give"),
    "null byte": (("vespa", "pgvector"), {"ids": ["a", "b\0"]}, r"Id 'b\\x00': a control character"),
    "control": (("vespa",), {"ids": ["a", "b\x1b"]}, r"Id 'b\\x1b': a control character, which Vespa"),
    "noncharacter": (("vespa",), {"ids": ["a", "\U0001ffff"]}, r"a control character, which Vespa"),
    "long id": (ALL, {"ids": ["a", "é" * 33_000]}, r"Id 'é+': more than \d\d?,\d00|535 bytes"),
    "key": (("pgvector",), {"ids": ["a", "b" * 2_601]}, r"Id 'b+': more than 2,600 bytes, which PostgreSQL"),
    "null byte in a column": (
        ("vespa", "pgvector"),
        {"ids": ["a", "b"], "caption": ["x", "y\0"]},
        "Item 'b', column 'caption': a control character, which",
    ),
    "null byte in a list": (
        ("vespa", "pgvector"),
        {"ids": [4, 9, 8], "tags": [None, ["x", "y"], ["z", "\0"]]},
        "Item 8, column 'tags': a control character",
    ),
    "long text": (("milvus",), {"ids": [7], "caption": ["x" * 65_536]}, "Item 7, .* more than 65,535 bytes"),
    "nan": (("milvus", "vespa"), {"ids": [4, 9], "score": [1.0, np.nan]}, "Item 9, column 'score': NaN or an infinity"),
    "infinity": (("milvus", "vespa"), {"ids": [4, 9], "score": [[1.0], [2.0, -np.inf]]}, "Item 9, .*: NaN or an"),
    "null in a list": (("milvus", "vespa"), {"ids": [4, 9], "tags": [["x"], ["y", None]]}, "Item 9, .*: a null in a"),
    "long list": (("milvus",), {"ids": [4, 9], "n": [[1], [2] * 4_097]}, "Item 9, .*: a list of more than 4,096"),
    "large integer": (
        ALL,
        {"ids": [4, 9], "n": pa.array([1, 2**63], pa.uint64())},
        r"Item 9, column 'n': an integer of 2\^63 or more",
    ),
    "struct": (ALL, {"ids": [1], "box": [{"x": 1}]}, "Column 'box' holds struct"),
    "list of lists": (ALL, {"ids": [1], "box": [[[1]]]}, "Column 'box' holds list<"),
    "column id": (ALL, {"ids": [1], "ID": ["x"]}, "cannot have a column 'ID' next to 'id' and 'code'"),
    "blank in a name": (("milvus", "vespa"), {"ids": [1], "my tags": ["x"]}, "cannot have a column 'my tags'"),
    "keyword": (("milvus",), {"ids": [1], "json_contains_any": ["x"]}, "Milvus cannot have a column"),
    "reserved": (("vespa",), {"ids": [1], "summary": ["x"]}, "Vespa cannot have a column 'summary'"),
    "system column": (("pgvector",), {"ids": [1], "ctid": ["x"]}, "PostgreSQL cannot have a column 'ctid'"),
    "long name": (("pgvector",), {"ids": [1], "n" * 64: ["x"]}, "PostgreSQL cannot have a column 'n+'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_values_that_a_database_cannot_hold_are_named(index_with, tmp_path, case, read_export):
    targets, columns, message = REFUSED[case]
    columns = dict(columns)
    ids = columns.pop("ids")
    columns = {name: values if isinstance(values, pa.Array) else pa.array(values) for name, values in columns.items()}
    for target in FORMATS:
        if target in targets:
            with pytest.raises(HashIndexError, match=message) as error:
                EXPORTERS[target](index_with(ids, **columns), tmp_path / target)
            assert "\n" not in str(error.value)
            assert list(tmp_path.glob(f".{target}*")) == []
            assert not (tmp_path / target).exists()
        else:  # values within the limits are accepted
            EXPORTERS[target](index_with(ids, **columns), tmp_path / target)
            assert [str(row["id"]) for row in read_export(target, tmp_path / target)] == [str(item) for item in ids]


@pytest.mark.parametrize("target", FORMATS)
def test_empty_indexes_and_invalid_names_are_refused(index_with, tmp_path, target):
    with pytest.raises(HashIndexError, match="The index is empty"):
        EXPORTERS[target](HashIndex(8), tmp_path / "out")
    for name in ("", "a b", 'a"; DROP', "9a", "a-b", "ä", "a" * 49, "a\n"):
        with pytest.raises(HashIndexError, match=r"The name .* does not fit"):
            EXPORTERS[target](index_with([1]), tmp_path / "out", name=name)
    assert list(tmp_path.iterdir()) == []
