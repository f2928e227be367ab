"""Records of folders in index files: round trips, crafted files, and copies without them."""

import json
import os

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmfah_hf.errors import HashIndexError
from cmfah_hf.retrieval import HashIndex
from cmfah_hf.retrieval.storage.folder_records import FileRecord, FolderRecords, Root, table_of
from cmfah_hf.retrieval.storage.index_file import copy_without_folders

NAMES = st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=8) | st.just("photo-\udcff.jpg")
TIMES = st.integers(-1, 2**62)
RECORDS = st.builds(
    FileRecord,
    TIMES,
    TIMES,
    TIMES,
    st.binary(min_size=32, max_size=32),
    st.none() | st.binary(min_size=16, max_size=16),
    st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    st.booleans(),
    st.none() | NAMES,
)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("records") / "x.index"


def index_with(records):
    index = HashIndex(8, model="ab")
    index.add(np.arange(3, dtype=np.uint8)[:, None], ids=["a", "b", "c"], metadata={"n": [1, 2, 3]})
    index.folders = records
    return index


@given(files=st.dictionaries(NAMES, RECORDS, max_size=5), others=st.dictionaries(NAMES, RECORDS, max_size=2))
def test_records_come_back_as_they_were(file, files, others):
    roots = (Root("one", os.fsdecode(b"/home/\xff/one"), True, True, "train", ("year",)), Root("tw\u00f6", "/mnt/a b"))
    held = {"one": files, "tw\u00f6": others}
    index_with(FolderRecords(roots, table_of(roots, held), "owner/name", "0" * 40, "s", "r", "u")).save(file, True)
    for mmap in (False, True):
        found = HashIndex.load(file, mmap=mmap).folders
        assert (found.roots, found.files()) == (roots, held)
        assert (found.model, found.revision, found.model_state) == ("owner/name", "0" * 40, "s")
        assert (found.readers, found.updated) == ("r", "u")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: header.update(roots=3), "not a list"),
        (lambda header: header.update(model=3), "other things than text"),
        (lambda header: header["roots"].append(header["roots"][0]), "one name"),
        (lambda header: header["roots"][0].pop("path"), "not described"),
        (lambda header: header["roots"][0].update(hidden="no"), "hidden"),
        (lambda header: header["roots"][0].update(keep=[1]), "columns"),
        (lambda header: header["roots"].clear(), "does not have"),
    ],
)
def test_a_crafted_list_of_folders_is_refused(tmp_path, monkeypatch, change, message):
    roots = (Root("one", "/one"),)
    records = FolderRecords(roots, table_of(roots, {"one": {"a": FileRecord(1, 2, 3, b"0" * 32)}}))
    header = json.loads(records.header())
    change(header)
    monkeypatch.setattr(FolderRecords, "header", lambda _: json.dumps(header))
    index_with(records).save(tmp_path / "x.index")
    with pytest.raises(HashIndexError, match=message):
        HashIndex.load(tmp_path / "x.index")


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"name": [b"a"]}),
        table_of((), {}).append_column("more", pa.array([], pa.int64())),
        pa.Table.from_arrays(
            [pa.nulls(1, field.type) for field in table_of((), {}).schema], schema=table_of((), {}).schema
        ),
    ],
    ids=["other columns", "more columns", "nulls"],
)
def test_a_crafted_list_of_files_is_refused(tmp_path, table):
    index_with(FolderRecords((Root("one", "/one"),), table)).save(tmp_path / "x.index")
    with pytest.raises(HashIndexError, match="list of files has other columns"):
        HashIndex.load(tmp_path / "x.index")


def test_a_copy_without_folders_names_no_path(tmp_path):
    roots = (Root("one", "/home/somebody/one"),)
    index_with(FolderRecords(roots, table_of(roots, {"one": {"a": FileRecord(1, 2, 3, b"0" * 32)}}))).save(
        tmp_path / "x.index"
    )
    assert copy_without_folders(tmp_path / "x.index", tmp_path / "copy")
    assert b"somebody" not in (tmp_path / "copy").read_bytes()
    copy, own = HashIndex.load(tmp_path / "copy"), HashIndex.load(tmp_path / "x.index")
    assert (copy.ids.tolist(), copy.model, copy.folders) == (own.ids.tolist(), own.model, None)
    assert copy.metadata.equals(own.metadata)
    assert not copy_without_folders(tmp_path / "copy", tmp_path / "third")
    assert not (tmp_path / "third").exists()


@given(
    files=st.dictionaries(NAMES, RECORDS, max_size=5),
    others=st.dictionaries(NAMES, RECORDS, max_size=2),
    strangers=st.lists(NAMES | st.integers(), max_size=3),
    in_ids=st.booleans(),
)
def test_paths_of_items_are_those_of_their_files(files, others, strangers, in_ids):
    roots = (Root("one", os.fsdecode(b"/home/\xff/one"), in_ids),)
    held = {"one": files}
    if in_ids:
        roots, held = (*roots, Root("one/two", "/mnt/a b", True)), held | {"one/two": others}
    expected = dict.fromkeys(strangers)
    for root in roots:
        for name, record in held[root.name].items():
            place = name if record.place is None else record.place
            path = os.path.abspath(os.path.join(root.path, place))  # noqa: PTH100, PTH118
            is_path = "\0" not in path and not any(
                "\ud800" <= sign < "\udc80" or "\udcff" < sign <= "\udfff" for sign in path
            )
            expected[root.id_of(name)] = path if is_path else None
    ids = [*expected, *list(expected)[:1]]
    assert FolderRecords(roots, table_of(roots, held)).paths_of(ids) == [expected[item_id] for item_id in ids]


def test_records_without_places_are_read(tmp_path):
    roots = (Root("one", "/one"),)
    table = table_of(roots, {"one": {"b/a": FileRecord(1, 2, 3, b"0" * 32)}})
    index_with(FolderRecords(roots, table.drop_columns(["place"]))).save(tmp_path / "x.index")
    folders = HashIndex.load(tmp_path / "x.index").folders
    assert folders.table.equals(table)
    assert folders.paths_of(["b/a", "a"]) == ["/one/b/a", None]
