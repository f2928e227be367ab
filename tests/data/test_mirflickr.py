"""Preparation of MIRFlickr: a small replica, and the error for each kind of defect."""

import re
import zipfile

import numpy as np
import pytest

from cmfah_hf.data import load_image_text
from cmfah_hf.data.releases.files import ReleaseFiles
from cmfah_hf.data.releases.mirflickr import CLASSES, MIRFLICKR25K, prepare_mirflickr25k, read_mirflickr
from cmfah_hf.data.releases.table import Corrections, CountChecks
from cmfah_hf.errors import DataError


@pytest.fixture(params=[False, True], ids=["folders", "archives"])
def replica(request, replicas, tmp_path):
    return replicas.make_mirflickr(tmp_path / "release", archives=request.param)


@pytest.fixture
def bare(replicas, tmp_path):
    """A replica without images, in folders, to be damaged by tests."""
    return replicas.make_mirflickr(tmp_path / "release", images=False)


def matrix(lists, width):
    dense = np.zeros((len(lists), width), np.uint8)
    dense[np.repeat(np.arange(len(lists)), lists.lengths), lists.numbers] = 1
    return dense


def test_tables_match_the_files(replica):
    with ReleaseFiles(replica.root) as files:
        corrections = Corrections(files)
        table = read_mirflickr(files, replica.release, CountChecks(False, corrections))
    assert table.ids == replica.ids
    assert (table.tag_names, table.class_names) == (replica.tag_names, replica.class_names)
    np.testing.assert_array_equal(matrix(table.tags, len(replica.tag_names)), replica.tags)
    np.testing.assert_array_equal(matrix(table.labels, 24), replica.labels)
    assert len(corrections.lines) == 2
    assert re.match(r"\d+ files of tags \(the first is tags\d+\.txt\) are Latin-1", corrections.lines[0])
    assert corrections.lines[1].startswith("14 files *_r1.txt")


@pytest.mark.parametrize("needs_tag", [True, False])
def test_variants_select_rows_by_labels_and_tags(replica, tmp_path, needs_tag):
    (variant,) = [number for number, needs in replica.release.variants.items() if needs is needs_tag]
    report = prepare_mirflickr25k(replica.root, tmp_path / "out", variant=variant, release=replica.release)
    chosen = replica.labels.any(1) & (replica.tags.any(1) | (not needs_tag))
    assert report.rows == {"train": 14, "query": 8, "database": chosen.sum() - 8}
    assert (report.tag_ones, report.label_ones) == (replica.tags[chosen].sum(), replica.labels[chosen].sum())
    assert report.empty_texts == (~replica.tags[chosen].any(1)).sum()
    loaded = load_image_text(tmp_path / "out")
    rows = {row["id"]: row for name in ("query", "database") for row in loaded[name]}
    assert set(rows) == {replica.ids[row] for row in np.flatnonzero(chosen)}
    for number, row_id in enumerate(replica.ids):
        if row_id in rows:
            row = rows[row_id]
            assert row["labels"] == [CLASSES[column] for column in np.flatnonzero(replica.labels[number])]
            assert sorted(row["tags"]) == sorted(replica.tag_names[c] for c in np.flatnonzero(replica.tags[number]))
            assert row["text"] == " ".join(row["tags"])
            assert row["image"].size == (32, 24)
            assert row["image"].mode == ("L" if number == 7 else "RGB")


def test_tags_keep_the_order_of_the_photographer(replica, tmp_path):
    bytes_ = {}
    with ReleaseFiles(replica.root) as files:
        for number in range(60):
            bytes_[f"im{number + 1}"] = files.read(files.need(f"meta/tags/tags{number + 1}.txt", "tags"))
    prepare_mirflickr25k(replica.root, tmp_path / "out", release=replica.release)
    for row in load_image_text(tmp_path / "out", split="database"):
        try:
            lines = bytes_[row["id"]].decode("utf-8").split()
        except UnicodeDecodeError:
            lines = bytes_[row["id"]].decode("latin-1").split()
        assert row["tags"] == list(dict.fromkeys(line for line in lines if line in replica.tag_names))


def spoil(path, content):
    path.write_bytes(content)


def renamed(path, name):
    path.rename(path.with_name(name))


DEFECTS = {
    "no annotation file": (
        lambda root: renamed(root / "mirflickr25k_annotations_v080/sky.txt", "Sky-v2.txt"),
        r"sky\.txt \(the images of class 'sky', in mirflickr25k_annotations_v080\.zip\) is missing.*present are: ",
    ),
    "no common tags": (
        lambda root: (root / "mirflickr/doc/common_tags.txt").unlink(),
        r"doc/common_tags\.txt \(the common tags, in mirflickr25k\.zip\) is missing",
    ),
    "no tags of an image": (
        lambda root: (root / "mirflickr/meta/tags/tags33.txt").unlink(),
        r"meta/tags/tags33\.txt \(the tags of image 33 of 60, .*present are: mirflickr/meta/tags/tags1\.txt",
    ),
    "number without an image": (
        lambda root: spoil(root / "mirflickr25k_annotations_v080/dog.txt", b"3\r\n61\r\n"),
        r"dog\.txt, line 2: '61' is not the number of an image \(1 to 60\)",
    ),
    "no number": (
        lambda root: spoil(root / "mirflickr25k_annotations_v080/dog.txt", b"im3\n"),
        r"dog\.txt, line 1: 'im3' is not the number of an image",
    ),
    "a missing annotation": (
        lambda root: spoil(root / "mirflickr25k_annotations_v080/dog.txt", b""),
        r"annotations: \d+ labels over all rows instead of 121; .*--allow-other-counts",
    ),
    "a missing common tag": (
        lambda root: spoil(root / "mirflickr/doc/common_tags.txt", b"nikon 20\r\nexplore 20\r\n"),
        r"common_tags\.txt: 2 tags instead of 10",
    ),
    "no count next to a tag": (
        lambda root: spoil(root / "mirflickr/doc/common_tags.txt", b"nikon 20\nexplore\n"),
        r"common_tags\.txt, line 2: 'explore' is not a tag with its count",
    ),
    "a repeated tag": (
        lambda root: spoil(root / "mirflickr/doc/common_tags.txt", b"nikon 20\nnikon 3\n"),
        r"common_tags\.txt, line 2: 'nikon' occurs twice",
    ),
    "an extra tag": (
        lambda root: spoil(root / "mirflickr/meta/tags/tags1.txt", b"nikon"),
        r"meta/tags: 136 common tags over all rows instead of 135",
    ),
    "a damaged archive": (
        lambda root: spoil(root / "more.zip", b"PK\x03\x04 cut short"),
        r"more\.zip: damaged or cut short",
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_defects_are_named(bare, defect, tmp_path):
    change, message = DEFECTS[defect]
    change(bare.root)
    with pytest.raises(DataError, match=message) as caught:
        prepare_mirflickr25k(bare.root, tmp_path / "out", release=bare.release)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_other_counts_are_allowed_on_request_and_listed_on_the_card(bare, tmp_path):
    (bare.root / "mirflickr25k_annotations_v080/dog.txt").write_bytes(b"1\n")
    report = prepare_mirflickr25k(bare.root, tmp_path / "out", allow_other_counts=True, release=bare.release)
    lines = [line for line in report.corrections if "this copy differs from the release" in line]
    assert re.match(r"the release, annotations: \d+ labels over all rows instead of 121", lines[0])
    card = (tmp_path / "out" / "README.md").read_text()
    assert all(f"- {line}" in card for line in report.corrections)
    assert "--allow-other-counts" in card
    assert str(tmp_path) not in card


def test_invalid_arguments(bare):
    with pytest.raises(DataError, match=r"variant=20014 is not known; give one of 43, 53"):
        prepare_mirflickr25k(bare.root, None, variant=20014, release=bare.release)
    with pytest.raises(DataError, match=r"split='random' is not known; give one of paper, dcmh, dadh"):
        prepare_mirflickr25k(bare.root, None, split="random", release=bare.release)
    with pytest.raises(DataError, match=r"40 queries and 14 training pairs cannot be taken from 43 rows"):
        prepare_mirflickr25k(bare.root, None, queries=40, release=bare.release)
    with pytest.raises(DataError, match=r"nowhere: there is no such folder"):
        prepare_mirflickr25k(bare.root / "nowhere", None)


def test_the_full_release_is_expected_by_default(bare):
    with pytest.raises(DataError, match=r"common_tags\.txt: 10 tags instead of 1,386"):
        prepare_mirflickr25k(bare.root, None)
    assert MIRFLICKR25K.variants == {20_015: True, 24_581: False}


def test_a_folder_is_preferred_to_an_archive(replicas, tmp_path):
    replica = replicas.make_mirflickr(tmp_path / "release", images=False)
    with zipfile.ZipFile(replica.root / "old.zip", "w") as archive:
        archive.writestr("dog.txt", "rubbish")
    assert prepare_mirflickr25k(replica.root, None, release=replica.release).label_ones > 0
