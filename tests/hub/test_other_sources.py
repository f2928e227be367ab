"""Sources other than prepared folders: written in the layout, pushed, and loaded again."""

import errno

import datasets
import pyarrow.parquet as pq
import pytest

from cmfah_hf.data import load_image_text, make_scenes, write_imagefolder
from cmfah_hf.errors import DataError, HubError
from cmfah_hf.hub import dataset_folder, push_dataset


@pytest.fixture
def imagefolder(tmp_path):
    scenes = make_scenes(7, image_size=32)
    return write_imagefolder({"train": scenes.select(range(5)), "query": scenes.select(range(5, 7))}, tmp_path / "own")


def undecoded(dataset: datasets.Dataset) -> list[dict]:
    return list(dataset.cast_column("image", datasets.Image(decode=False)))


def test_an_imagefolder_becomes_shards_with_its_original_bytes(here, hub, imagefolder, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_folder, "_ROWS_OF_GROUP", 2)
    monkeypatch.setattr(dataset_folder, "_BYTES_OF_SHARD", 8_000)
    done = push_dataset(imagefolder, "org/own", token="hf_writer", progress=False)
    assert done.splits == {"train": 5, "query": 2}
    files = hub.files("org/own")
    shards = sorted(path for path in files if path.endswith(".parquet"))
    count = sum(path.startswith("data/train-") for path in shards)
    assert count > 1
    assert shards[-count:] == [f"data/train-{number:05d}-of-{count:05d}.parquet" for number in range(count)]
    for path in [*shards, "README.md"]:
        (tmp_path / "got" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "got" / path).write_bytes(files[path])

    # By `datasets` alone: types and bytes.
    plain = datasets.load_dataset(str(tmp_path / "got"))
    scenes = make_scenes(7, image_size=32)
    assert isinstance(plain["train"].features["labels"].feature, datasets.ClassLabel)
    names = plain["train"].features["labels"].feature.names
    got = [*undecoded(plain["train"]), *undecoded(plain["query"])]
    expected = undecoded(scenes)
    assert [row["image"]["bytes"] for row in got] == [row["image"]["bytes"] for row in expected]
    assert [[names[number] for number in row["labels"]] for row in got] == [row["labels"] for row in expected]
    assert [(row["id"], row["text"]) for row in got] == [(row["id"], row["text"]) for row in expected]
    # By this package: equal to the source.
    for split in ("train", "query"):
        ours, source = (list(load_image_text(f, split=split)) for f in (tmp_path / "got", imagefolder))
        assert [{k: row[k] for k in ("id", "text", "labels")} for row in ours] == [
            {k: row[k] for k in ("id", "text", "labels")} for row in source
        ]


def test_an_unchanged_source_is_not_uploaded_again_and_leaves_no_files(here, hub, imagefolder, datasets_cache):
    push_dataset(imagefolder, "org/own", token="hf_writer", progress=False)
    assert len(hub.asked("PUT")) == 2
    assert not push_dataset(imagefolder, "org/own", token="hf_writer", progress=False).changed
    push_dataset(imagefolder, "org/copy", token="hf_writer", progress=False)
    assert len(hub.asked("PUT")) == 2
    left = [path for path in (datasets_cache / "cmfah-push").iterdir() if path.is_dir()]
    assert left == []


def test_scenes_and_single_parquet_files_are_pushed(here, hub, tmp_path):
    make_scenes(4, image_size=32).to_parquet(tmp_path / "query.parquet")
    assert push_dataset(tmp_path / "query.parquet", "org/one", token="hf_writer", progress=False).splits == {"train": 4}
    scenes = make_scenes(3, image_size=32).remove_columns("labels")
    (tmp_path / "bare").mkdir()
    scenes.to_parquet(tmp_path / "bare" / "query.parquet")
    assert push_dataset(tmp_path / "bare", "org/bare", token="hf_writer", progress=False).splits == {"query": 3}
    assert "data/query-00000-of-00001.parquet" in hub.files("org/bare")


@pytest.mark.parametrize("streaming", [False, True])
def test_pushed_captions_stay_lists(here, hub, tmp_path, streaming):
    captions = [["a boat on the sea", "the sea at night"], ["a red car"], []]
    scenes = make_scenes(3, image_size=32).remove_columns("text").add_column("sentences", captions)
    scenes.to_parquet(tmp_path / "train.parquet")
    push_dataset(tmp_path / "train.parquet", "org/captions", token="hf_writer", progress=False)
    name = "data/train-00000-of-00001.parquet"
    (tmp_path / "got.parquet").write_bytes(hub.files("org/captions")[name])
    found = list(load_image_text(tmp_path / "got.parquet", split="train", streaming=streaming))
    assert [row["captions"] for row in found] == captions
    assert [row["text"] for row in found] == [" ".join(texts) for texts in captions]


def test_a_source_with_duplicate_ids_is_refused(here, hub, tmp_path):
    scenes = make_scenes(2, image_size=32)
    datasets.concatenate_datasets([scenes, scenes]).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"row 2 .* occurs twice"):
        push_dataset(tmp_path / "train.parquet", "org/twice", token="hf_writer")
    assert hub.store.repositories == {}


def test_only_one_push_at_a_time_writes_a_source(here, hub, imagefolder, datasets_cache, monkeypatch):
    def nested(*arguments, **settings):
        push_dataset(imagefolder, "org/own", token="hf_writer", progress=False)

    monkeypatch.setattr("cmfah_hf.hub.pushing.publish", nested)
    with pytest.raises(HubError, match="another process is pushing it to org/own"):
        push_dataset(imagefolder, "org/own", token="hf_writer", progress=False)


def test_a_full_disk_is_named_and_leaves_no_files(here, hub, imagefolder, datasets_cache, monkeypatch):
    def full(*arguments, **settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(HubError, match=r"cannot be written as shards to .*No space left on device"):
        push_dataset(imagefolder, "org/own", token="hf_writer", progress=False)
    assert [path for path in (datasets_cache / "cmfah-push").iterdir() if path.is_dir()] == []
    assert hub.store.repositories == {}
