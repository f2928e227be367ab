"""Preparation of NUS-WIDE: a small replica, and the error for each kind of defect."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmfah_hf.data import load_image_text
from cmfah_hf.data.releases import table as release_table
from cmfah_hf.data.releases.files import ReleaseFiles
from cmfah_hf.data.releases.nus_wide import prepare_nus_wide
from cmfah_hf.data.releases.nus_wide_files import MOST_FREQUENT
from cmfah_hf.data.releases.shards import Writing
from cmfah_hf.errors import DataError

PREFIX = "C:\\ImageData\\Flickr\\"


@pytest.fixture
def bare(replicas, tmp_path):
    """A replica without images, in folders, to be damaged by tests."""
    return replicas.make_nus_wide(tmp_path / "release", images=False)


def columns_of(replica, classes):
    names = replica.class_names if classes == 81 else MOST_FREQUENT[classes]
    return [replica.class_names.index(name) for name in names]


FORMS = [
    {"archives": False, "prefix": PREFIX, "end": "\r\n"},
    {"archives": True, "prefix": "", "end": "\n"},
    {"archives": True, "prefix": "./", "end": "\r\n"},
]


@pytest.mark.parametrize("form", FORMS, ids=["folders", "archives", "archives, Windows"])
@pytest.mark.parametrize(("classes", "needs_tag"), [(21, False), (21, True), (10, False), (81, True)])
def test_rows_match_the_files(replicas, tmp_path, form, classes, needs_tag):
    replica = replicas.make_nus_wide(tmp_path / "release", images=classes == 10, **form)
    (variant,) = [number for number, needs in replica.release.variants[classes].items() if needs is needs_tag]
    report = prepare_nus_wide(replica.root, tmp_path / "out", variant=variant, classes=classes, release=replica.release)
    labels = replica.labels[:, columns_of(replica, classes)]
    chosen = labels.any(1) & (replica.tags.any(1) | (not needs_tag))
    assert chosen.sum() == variant == report.rows["query"] + report.rows["database"]
    assert (report.tag_ones, report.label_ones) == (replica.tags[chosen].sum(), labels[chosen].sum())
    assert report.images == (classes == 10)
    names = sorted(replica.class_names[column] for column in columns_of(replica, classes))
    parts = load_image_text(tmp_path / "out", streaming=True, images=report.images)
    rows = {row["id"]: row for name in ("query", "database") for row in parts[name]}
    assert set(rows) == {replica.ids[row] for row in np.flatnonzero(chosen)}
    for number in np.flatnonzero(chosen):
        row = rows[replica.ids[number]]
        expected = {replica.class_names[column] for column in np.flatnonzero(replica.labels[number])}
        assert row["labels"] == sorted(expected & set(names))
        assert row["tags"] == [replica.tag_names[column] for column in np.flatnonzero(replica.tags[number])]
        assert row["text"] == " ".join(row["tags"])
    if not needs_tag:
        assert report.empty_texts == (~replica.tags[chosen].any(1)).sum() > 0


def test_5018_tags_are_those_of_the_row_in_its_order(bare, tmp_path):
    report = prepare_nus_wide(bare.root, tmp_path / "out", tags="5018", release=bare.release)
    final = (bare.root / "NUS_WID_Tags/Final_Tag_List.txt").read_text().split()
    expected = {}
    for number, line in enumerate((bare.root / "NUS_WID_Tags/All_Tags.txt").read_bytes().splitlines()):
        try:
            words = line.decode("utf-8").split()
        except UnicodeDecodeError:
            words = line.decode("latin-1").split()
        expected[bare.ids[number]] = [word for word in words[1:] if word in final]
    parts = load_image_text(tmp_path / "out", streaming=True, images=False)
    rows = {row["id"]: row["tags"] for name in ("query", "database") for row in parts[name]}
    assert rows == {row_id: expected[row_id] for row_id in rows}
    assert any("müll" in tags for tags in rows.values())
    assert sum("are Latin-1" in line for line in report.corrections) == 1


def test_tagged_rows_do_not_depend_on_the_tag_list(bare, tmp_path):
    variant = next(number for number, needs in bare.release.variants[21].items() if needs)
    reports = [
        prepare_nus_wide(bare.root, tmp_path / tags, variant=variant, tags=tags, release=bare.release)
        for tags in ("1k", "5018")
    ]
    assert reports[0].ids_sha256 == reports[1].ids_sha256
    assert reports[0].tag_ones < reports[1].tag_ones


def test_corrections_are_reported_once_in_the_log_and_on_the_card(replicas, tmp_path, caplog):
    replica = replicas.make_nus_wide(tmp_path / "release", images=False, prefix=PREFIX)
    report = prepare_nus_wide(replica.root, tmp_path / "out", release=replica.release)
    assert [record.getMessage() for record in caplog.records] == report.corrections
    expected = [
        "NUS-WIDE-urls.rar: is not read, and not needed",
        "ImageList/Imagelist.txt: 90 paths with backslashes",
        "ImageList/Imagelist.txt: 90 paths start with a folder of another machine",
        "ImageList/Imagelist.txt: 2 photo ids occur twice",
        "Labels_lake_Train.txt, line 21: -1130179 is neither 0 nor 1",
        "the release: holds no images",
    ]
    assert [line.startswith(start) for line, start in zip(report.corrections, expected, strict=True)] == [True] * 6
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert all(card.count(f"- {line}\n") == 1 for line in report.corrections)


def test_rows_of_one_photo_keep_their_own_labels(bare, tmp_path):
    prepare_nus_wide(bare.root, tmp_path / "out", queries=1, train=1, classes=81, release=bare.release)
    photo = bare.ids[0].rpartition("_")[2]
    parts = load_image_text(tmp_path / "out", streaming=True, images=False)
    rows = [row for name in ("query", "database") for row in parts[name] if row["id"].endswith(f"_{photo}")]
    assert len({row["id"] for row in rows}) == 2
    assert not set(rows[0]["labels"]) & set(rows[1]["labels"])


def change(path, old, new):
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


DEFECTS = {
    "no labels of a class": (
        lambda root: (root / "Groundtruth/AllLabels/Labels_sky.txt").rename(root / "Groundtruth/AllLabels/sky.txt"),
        r"AllLabels/Labels_sky\.txt \(the labels of 'sky', in Groundtruth\.zip as Groundtruth/AllLabels\) is missing",
    ),
    "no list file": (
        lambda root: (root / "ImageList/Imagelist.txt").unlink(),
        r"Imagelist\.txt \(the list of images, in ImageList\.zip\) is missing.*NUS-WIDE-urls\.rar cannot be read",
    ),
    "an invalid label": (
        lambda root: change(root / "Groundtruth/AllLabels/Labels_lake.txt", b"0\r\n", b"-1130179\r\n"),
        r"AllLabels/Labels_lake\.txt, line 1: '-1130179' is neither 0 nor 1",
    ),
    "a missing line": (
        lambda root: change(root / "Groundtruth/AllLabels/Labels_lake.txt", b"0\r\n", b""),
        r"Labels_lake\.txt: 89 lines instead of 90, as in Imagelist\.txt",
    ),
    "a label changed": (
        lambda root: change(root / "Groundtruth/AllLabels/Labels_lake.txt", b"0\r\n", b"1\r\n"),
        r"AllLabels: 117 ones of 21 classes instead of 116; .*--allow-other-counts",
    ),
    "a tag changed": (
        lambda root: change(root / "NUS_WID_Tags/AllTags1k.txt", b"0\t", b"1\t"),
        r"AllTags1k\.txt: 96 ones instead of 95",
    ),
    "two joined values": (
        lambda root: change(root / "NUS_WID_Tags/AllTags1k.txt", b"0\t0\t", b"00\t"),
        r"AllTags1k\.txt, line 1: '00' is neither 0 nor 1",
    ),
    "a missing value": (
        lambda root: change(root / "NUS_WID_Tags/AllTags1k.txt", b"0\t", b""),
        r"AllTags1k\.txt, line 1: 6 values instead of 7",
    ),
    "another path format": (
        lambda root: change(root / "ImageList/Imagelist.txt", b"actor\\0001_", b"actor\\photo"),
        r"Imagelist\.txt, line 2: 'actor\\\\photo\d+\.jpg' is not <folder>/<n>_<photo id>\.jpg",
    ),
    "a repeated path": (
        lambda root: change(root / "ImageList/Imagelist.txt", b"actor\\0001_100037", b"actor\\0000_100000"),
        r"Imagelist\.txt: the path actor/0000_100000\.jpg occurs twice",
    ),
    "another concept": (
        lambda root: change(root / "ConceptsList/Concepts81.txt", b"sky\r\n", b"heaven\r\n"),
        r"Concepts81\.txt: the concept 'sky' is not listed",
    ),
    "a repeated tag in the list": (
        lambda root: change(root / "NUS_WID_Tags/TagList1k.txt", b"tag1\r\n", b"tag3\r\n"),
        r"TagList1k\.txt: the tag 'tag3' occurs twice",
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_defects_are_named(bare, defect, tmp_path):
    spoil, message = DEFECTS[defect]
    spoil(bare.root)
    with pytest.raises(DataError, match=message) as caught:
        prepare_nus_wide(bare.root, tmp_path / "out", release=bare.release)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_rows_of_all_tags_for_other_images(bare):
    change(bare.root / "NUS_WID_Tags/All_Tags.txt", b"100037 ", b"100038 ")
    with pytest.raises(DataError, match=r"All_Tags\.txt, line 2: photo id '100038' instead of 100037, as line 2 of Im"):
        prepare_nus_wide(bare.root, None, tags="5018", release=bare.release)


def test_invalid_arguments(bare):
    for arguments, message in (
        ({"classes": 20}, "classes=20 is not known; give one of 10, 21, 81"),
        ({"tags": "5k"}, "tags='5k' is not known; give one of 1k, 5018"),
        ({"variant": 7, "classes": 10}, "variant=7 is not known with 10 classes; give one of 39, 20"),
        ({"queries": 0}, "0 queries and 21 training pairs cannot be taken from 60 rows"),
        ({"writing": Writing(rows_per_shard=0)}, "rows_per_shard=0: a file needs at least one row"),
    ):
        with pytest.raises(DataError, match=message):
            prepare_nus_wide(bare.root, None, release=bare.release, **arguments)
    with pytest.raises(DataError, match=r"Imagelist\.txt: 90 lines instead of 269,648"):
        prepare_nus_wide(bare.root, None)


@settings(max_examples=60)
@given(data=st.data(), chunk=st.integers(1, 40), width=st.integers(1, 5), rows=st.integers(1, 12))
def test_binary_matrices_with_any_spacing_and_block_size(tmp_path_factory, data, chunk, width, rows):
    values = np.array(data.draw(st.lists(st.integers(0, 1), min_size=rows * width, max_size=rows * width)))
    values = values.reshape(rows, width)
    blank, end = data.draw(st.sampled_from([" ", "\t", "  "])), data.draw(st.sampled_from(["\n", "\r\n", "\t\r\n"]))
    text = end.join(blank.join(map(str, row)) for row in values) + data.draw(st.sampled_from(["", end, end + "\n\n"]))
    root = tmp_path_factory.mktemp("ones")
    (root / "ones.txt").write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch, ReleaseFiles(root) as files:
        patch.setattr(release_table, "_CHUNK_BYTES", chunk)
        places, first = [], 0
        for count, ones in release_table.read_ones(files, files.need("ones.txt", "ones"), width):
            places += (ones + first * width).tolist()
            first += count
    assert first == rows
    assert places == np.flatnonzero(values).tolist()
