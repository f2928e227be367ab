"""WebDataset shards as a source: columns, splits, streams, and shards that are damaged."""

import json
import tarfile
from itertools import chain

import datasets
import numpy as np
import pytest
from datasets.distributed import split_dataset_by_node
from image_files import image, image_file
from shards import write_shard

from cmfah_hf.data import load_image_text, prepare_folder
from cmfah_hf.data.loading import is_data_set
from cmfah_hf.data.tar_samples import expanded
from cmfah_hf.errors import DataError


@pytest.fixture(autouse=True)
def cache(datasets_cache):
    """Rows are cached for this test run only."""


@pytest.fixture
def shards(tmp_path):
    """Three shards of four samples: an image, a caption, and a JSON with labels and an address."""
    for shard in range(3):
        samples = {}
        for number in range(4):
            document = json.dumps({"labels": ["dog", f"shard{shard}"], "url": "http://example.invalid/x.jpg", "key": 1})
            own = {"png": image_file("png", 10 * shard + number), "txt": f"dog {shard} {number}", "json": document}
            samples[f"{number:05d}"] = own
        write_shard(tmp_path / "shards" / f"x-{shard:03d}.tar", samples)
    return tmp_path / "shards"


def test_columns_and_rows(shards):
    loaded = load_image_text(shards, split="train")
    assert loaded.column_names == ["id", "image", "text", "labels", "url", "key"]
    assert loaded["id"][:5] == ["x-000/00000", "x-000/00001", "x-000/00002", "x-000/00003", "x-001/00000"]
    assert loaded[6]["text"] == "dog 1 2"
    assert loaded[6]["labels"] == ["dog", "shard1"]
    np.testing.assert_array_equal(np.asarray(loaded[6]["image"]), np.asarray(image(12)))
    # `datasets` reads the same samples.
    files = sorted(map(str, shards.glob("*.tar")))
    reference = datasets.load_dataset("webdataset", data_files=files, split="train", streaming=True)
    for own, other in zip(loaded, reference, strict=True):
        assert (own["text"], own["labels"]) == (other["txt"], other["json"]["labels"])
        assert own["image"].tobytes() == other["png"].tobytes()


def test_streams_are_sharded_and_have_the_same_rows(shards):
    pattern = str(shards / "x-{000..002}.tar")
    stream = load_image_text(pattern, split="train", streaming=True)
    assert stream.num_shards == 3
    expected = load_image_text(pattern, split="train")["id"]
    assert [row["id"] for row in stream] == list(expected)
    parts = [[row["id"] for row in split_dataset_by_node(stream, rank, 3)] for rank in range(3)]
    assert sorted(chain.from_iterable(parts)) == sorted(expected)
    assert all(len({name.partition("/")[0] for name in part}) == 1 for part in parts)
    without = load_image_text(pattern, split="train", streaming=True, images=False)
    further = {"url": "http://example.invalid/x.jpg", "key": 1}
    assert next(iter(without)) == {"id": "x-000/00000", "text": "dog 0 0", "labels": ["dog", "shard0"], **further}
    state = iter(stream)
    first = [next(state)["id"] for _ in range(5)]
    saved = stream.state_dict()
    again = load_image_text(pattern, split="train", streaming=True)
    again.load_state_dict(saved)
    assert first + [row["id"] for row in again] == list(expected)


def test_splits_classes_captions_and_named_columns(tmp_path):
    write_shard(tmp_path / "a" / "train-0.tar", {"d/1": {"jpg": image_file("jpg"), "cls": "3\n"}})
    write_shard(tmp_path / "a" / "query-0.tar", {"2": {"jpg": image_file("jpg"), "seg.png": b"x", "CLS": "4"}})
    loaded = load_image_text(tmp_path / "a")
    assert {name: (part["id"][0], part["labels"][0], part["text"][0]) for name, part in loaded.items()} == {
        "train": ("d/1", ["3"], ""),
        "query": ("2", ["4"], ""),
    }
    captions = {"captions": ["a dog runs fast", "the brown dog"], "alt": "alternative", "uid": "seven"}
    file = write_shard(tmp_path / "b.tar", {"1": {"webp": image_file("webp"), "json": json.dumps(captions)}})
    row = load_image_text(file, split="train")[0]
    assert row["captions"] == captions["captions"]
    row = load_image_text(file, split="train", text_column="alt", id_column="uid", image_column="webp")[0]
    assert (row["id"], row["text"]) == ("seven", "alternative")
    with pytest.raises(DataError, match=r"there is no column 'x' for the text; present are: image, captions, alt, uid"):
        load_image_text(file, text_column="x")
    with pytest.raises(DataError, match=r"no image 'jpg' in the first samples \(their files: webp, json\)"):
        load_image_text(file, image_column="jpg")
    images = write_shard(tmp_path / "c.tar", {"1": {"jpg": image_file("jpg")}, "2": {"jpg": image_file("jpg")}})
    assert load_image_text(images, split="train")["text"][:] == ["", ""]


def test_further_fields_of_json_are_columns(tmp_path, caplog):
    documents = [
        {"year": 1999, "size": 1, "is": True, "place": "Rome", "mixed": 1, "id": 7, "list": [1], "big": 2**70},
        {"year": None, "size": 2.5, "mixed": "x"},
        *[{} for _ in range(20)],
        {"year": 2012, "size": 3, "is": "yes", "place": 5, "mixed": [1], "late": 1, "list": [2], "big": 1},
        {"year": 0.5, "size": "x", "is": None, "late": None},
    ]
    samples = {
        f"{number:02d}": {"jpg": image_file("jpg", number), "txt": "a", "json": json.dumps(own)}
        for number, own in enumerate(documents)
    }
    file = write_shard(tmp_path / "x.tar", samples)
    loaded = load_image_text(file, split="train")
    assert (
        f"{file}: left out values of fields that the first samples lack or have of another kind: is 1, mixed 1, "
        "late 1, year 1, size 1."
    ) in caplog.text
    stream = load_image_text(file, split="train", streaming=True, images=False)
    names = ["year", "size", "is", "place", "mixed", "original_id", "big"]
    assert loaded.column_names == ["id", "image", "text", *names]
    assert stream.column_names == ["id", "text", *names]
    rows = [{name: row[name] for name in names} for row in stream]
    assert rows == [{name: row[name] for name in names} for row in loaded.remove_columns("image")]
    assert list(rows[0].values()) == [1999, 1.0, True, "Rome", "1", 7, str(2**70)]
    assert list(rows[1].values()) == [None, 2.5, None, None, "x", None, None]
    assert list(rows[5].values()) == [None] * 7
    assert list(rows[-2].values()) == [2012, 3.0, None, "5", None, None, "1"]
    assert list(rows[-1].values()) == [None] * 7


def test_queries_are_held_out_of_shards(shards):
    before = {path: path.read_bytes() for path in shards.iterdir()}
    everything = load_image_text(shards, split="train")["id"][:]
    report = prepare_folder(shards, queries=0.4)
    assert (report.images, report.shards, report.unchanged) == (12, 3, False)
    loaded = load_image_text(shards)
    assert {name: len(part) for name, part in loaded.items()} == report.splits
    assert sorted([*loaded["train"]["id"], *loaded["query"]["id"]]) == sorted(everything)
    queries = loaded["query"]["id"][:]
    assert {row["id"] for row in load_image_text(shards, split="query", streaming=True)} == set(queries)
    assert loaded["train"].features == loaded["query"].features
    # The same for a pattern, further shards and a second call, which takes over the share.
    assert load_image_text(str(shards / "x-{000..002}.tar"), split="query")["id"][:] == queries
    write_shard(shards / "x-003.tar", {f"{n}": {"png": image_file("png", n), "txt": "a"} for n in range(20)})
    again = prepare_folder(shards)
    assert (again.unchanged, again.images) == (True, 32)
    grown = load_image_text(shards, split="query")["id"][:]
    assert len(grown) == again.splits["query"] > len(queries)
    assert [name for name in grown if not name.startswith("x-003")] == queries
    assert {path: path.read_bytes() for path in before} == before
    with pytest.raises(DataError, match=r"drawn with --queries 0\.4 and --seed 0; leave these out"):
        prepare_folder(shards, seed=1)
    assert not prepare_folder(shards, seed=1, overwrite=True).unchanged
    assert load_image_text(shards, split="query")["id"][:] != grown
    with pytest.raises(DataError, match="32 would be queries and 0 training pairs"):
        prepare_folder(shards, queries=0.9999, overwrite=True)
    with pytest.raises(DataError, match="divided where they are; leave out the output"):
        prepare_folder(shards, shards.parent / "out")
    (shards / "cmfah-shards.json").write_text('{"queries": 2}')
    with pytest.raises(DataError, match=r"shards\.json: is no division of shards"):
        load_image_text(shards)
    (shards / "cmfah-shards.json").unlink()
    write_shard(shards / "query-0.tar", {"1": {"png": image_file("png"), "txt": "a"}})
    with pytest.raises(DataError, match="have the splits train, query already"):
        prepare_folder(shards)


def test_a_folder_with_images_holds_no_shards(shards):
    assert is_data_set(shards)
    (shards / "photo.jpg").write_bytes(image_file("jpg"))
    assert not is_data_set(shards)
    with pytest.raises(DataError, match="holds neither a metadata file nor Parquet files nor shards"):
        load_image_text(shards)


def test_samples_without_an_image_are_counted(tmp_path, caplog):
    good = {"jpg": image_file("jpg"), "txt": "a"}
    file = write_shard(tmp_path / "x.tar", {"1": good, "2": {"json": '{"status": "failed"}'}, "3": good})
    assert [row["id"] for row in load_image_text(file, split="train", streaming=True)] == ["1", "3"]
    assert f"{file}: left out 1 samples without an image." in caplog.text


def texts_of(file):
    """The texts of a shard up to an error, and its message."""
    texts = []
    try:
        for row in load_image_text(file, split="train", streaming=True):
            texts.append(row["text"])
    except DataError as error:
        return texts, str(error)
    return texts, None


def test_every_cut_is_an_error_that_names_the_shard(shards, tmp_path, caplog):
    content = (shards / "x-000.tar").read_bytes()
    whole = [row["text"] for row in load_image_text(shards / "x-000.tar", split="train", streaming=True)]
    file = tmp_path / "cut.tar"
    refused = 0
    with tarfile.open(shards / "x-000.tar") as tar:
        members = tar.getmembers()
        borders = {member.offset for member in members} | {tar.offset}
    for cut in range(0, tar.offset + 1, 256):
        file.write_bytes(content[:cut])
        caplog.clear()
        rows, problem = texts_of(file)
        if problem is None:  # programs may leave out the end mark: only a cut between two files looks like that
            assert cut in borders
            assert "has no end mark, so it may be cut short" in caplog.text
        else:
            refused += 1
            assert str(file) in problem
            assert "cut short" in problem or "no image" in problem
        assert rows in (whole[: len(rows)], [*whole[: len(rows) - 1], ""])
    assert refused > 20


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ({"1": {"txt": "a"}}, r"no image in the first samples \(their files: txt\)"),
        ({"1": {"jpg": b"x", "json": "[1]"}}, "sample '1': its JSON is a list; write one object"),
        ({"1": {"jpg": b"x", "json": "{"}}, "sample '1': its JSON is not valid JSON"),
        ({"1": {"jpg": b"x", "txt": b"\xff"}}, "sample '1': its text is not UTF-8"),
        ({"1": {"jpg": b"x", "json": '{"text": {"a": 1}}'}}, "x.tar, sample '1': a text must be a string"),
        ({}, "no image in the first samples"),
    ],
)
def test_bad_samples_are_named(tmp_path, samples, message):
    file = write_shard(tmp_path / "x.tar", samples)
    with pytest.raises(DataError, match=message) as caught:
        load_image_text(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_repeated_names_are_refused(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("1.jpg", "2.jpg", "1.txt"):
            tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(DataError, match="the files of the sample '1' are in two places"):
        load_image_text(tmp_path / "x.tar")
    write_shard(tmp_path / "many" / "a" / "x.tar", {"1": {"jpg": b"x"}})
    write_shard(tmp_path / "many" / "a" / "b" / "x.tar", {"1": {"jpg": b"x"}})
    with pytest.raises(DataError, match="two shards have the same name"):
        load_image_text(tmp_path / "many")


def test_patterns(shards):
    assert expanded("x-{08..11}-{0..1}.tar")[:3] == ["x-08-0.tar", "x-08-1.tar", "x-09-0.tar"]
    assert expanded("plain.tar") == ["plain.tar"]
    for pattern in ("x-{5..1}.tar", "x-{0..999999}.tar", "{0..9999}{0..9999}.tar"):
        with pytest.raises(DataError, match=r"(empty or too long|more than 100,000)"):
            expanded(pattern)
    with pytest.raises(DataError, match=r"x-003\.tar: there is no such file"):
        load_image_text(str(shards / "x-{000..005}.tar"))
