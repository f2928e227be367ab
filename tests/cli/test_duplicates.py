"""`cmfah duplicates`, and folded answers of `cmfah search`."""

import numpy as np
import pytest

from cmfah_hf.retrieval import CrossMediaRetriever, HashIndex
from cmfah_hf.retrieval.storage.folder_records import FileRecord, FolderRecords, Root, table_of

CODES = np.array([[0, 0], [1, 0], [255, 255], [0, 0], [0xF0, 0xF0], [255, 127]], np.uint8)


@pytest.fixture
def index_of_two_folders(tmp_path):
    index = HashIndex(16)
    index.add(CODES, ["a/1.jpg", "b/2.jpg", "a/3.jpg", "b/sub/4.jpg", "a/5.jpg", "elsewhere"])
    roots = (Root("a", "/photos/a", True), Root("b", "/photos/b\x1b", True))
    record = FileRecord(1, 1, 1, b"\0" * 32)
    files = {
        "a": dict.fromkeys(("1.jpg", "3.jpg", "5.jpg"), record),
        "b": dict.fromkeys(("2.jpg", "sub/4.jpg"), record),
    }
    index.folders = FolderRecords(roots, table_of(roots, files))
    index.save(tmp_path / "x.index")
    return tmp_path / "x.index"


def test_groups_with_paths(cmfah, index_of_two_folders):
    outcome = cmfah("duplicates", index_of_two_folders, "--bits", 1, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.document == {
        "index": str(index_of_two_folders),
        "bits": 1,
        "items": 6,
        "groups": 2,
        "duplicates": 3,
        "results": [
            {
                "ids": ["a/1.jpg", "b/2.jpg", "b/sub/4.jpg"],
                "paths": ["/photos/a/1.jpg", "/photos/b\x1b/2.jpg", "/photos/b\x1b/sub/4.jpg"],
            },
            {"ids": ["a/3.jpg", "elsewhere"], "paths": ["/photos/a/3.jpg", None]},
        ],
    }
    table = cmfah("duplicates", index_of_two_folders, "--bits", 1).out.splitlines()
    assert [line.split() for line in table[2:-1]] == [
        ["1", "a/1.jpg", "/photos/a/1.jpg"],
        ["1", "b/2.jpg", r"/photos/b\x1b/2.jpg"],
        ["1", "b/sub/4.jpg", r"/photos/b\x1b/sub/4.jpg"],
        ["2", "a/3.jpg", "/photos/a/3.jpg"],
        ["2", "elsewhere", "-"],
    ]
    assert table[-1] == f"{index_of_two_folders}: 6 items, 2 groups, 3 near-duplicates to spare."


def test_no_groups_and_numbers_as_ids(cmfah, tmp_path):
    index = HashIndex(16)
    index.add(CODES)
    index.save(tmp_path / "x.index")
    assert cmfah("duplicates", tmp_path / "x.index", "--bits", 0, "--json").document["results"] == [
        {"ids": [0, 3], "paths": [None, None]}
    ]
    HashIndex(16).save(tmp_path / "empty.index")
    assert cmfah("duplicates", tmp_path / "empty.index").out == (
        f"{tmp_path}/empty.index: 0 items, 0 groups, 0 near-duplicates to spare.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.index"], "absent.index is not a file"),
        (["x.index", "--bits", "-1"], "bits must be a whole number of bits from 0 to 16, not -1."),
        (["x.index", "--bits", "17"], "from 0 to 16, not 17."),
    ],
)
def test_what_is_refused(cmfah, index_of_two_folders, monkeypatch, arguments, message):
    monkeypatch.chdir(index_of_two_folders.parent)
    outcome = cmfah("duplicates", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err
    assert outcome.err.count("\n") == 1


def test_a_search_folds_near_duplicates(cmfah, trained, tmp_path):
    retriever = CrossMediaRetriever.from_pretrained(trained.folder)
    images = sorted((trained.scenes / "train").glob("*.png"))[:6]
    retriever.add_images([*images, *images], ids=[f"{number:02}" for number in range(12)])
    retriever.images.save(tmp_path / "x.index")
    outcome = cmfah("search", trained.folder, tmp_path / "x.index", "-t", "boat", "--unique", 0, "-k", 3, "--json")
    expected = retriever.search(text="boat", k=3, unique=0)
    found = [(hit["id"], hit["score"], hit["folded"]) for hit in outcome.document["results"]]
    assert found == [(hit["id"], hit["score"], hit["folded"]) for hit in expected.hits()]
    assert all(hit["folded"] for hit in outcome.document["results"])
    count = sum(len(hit["folded"]) for hit in outcome.document["results"])
    assert outcome.err == f"Folded {count} near-duplicates into better answers.\n"
    refused = cmfah("search", trained.folder, tmp_path / "x.index", "-t", "boat", "--unique", -1)
    assert (refused.code, refused.out) == (2, "")
    assert "unique must be a whole number of bits from 0 to 16, not -1." in refused.err
