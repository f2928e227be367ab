"""Streamed Parquet against the same files as a data set: rows, row numbers across files, unread columns."""

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader

from cmfah_hf.data import load_image_text, make_scenes
from cmfah_hf.data.data_root import DataRoot
from cmfah_hf.data.internals import is_arrow
from cmfah_hf.data.rows.columns import USUAL_NAMES
from cmfah_hf.data.rows.uniform import uniform
from cmfah_hf.errors import DataError
from cmfah_hf.training.data.shards import count_rows
from cmfah_hf.training.data.streams import PairStream


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """13 scenes without ids in three files of at least two row groups."""
    folder = tmp_path_factory.mktemp("parquet")
    scenes = make_scenes(13, image_size=32).remove_columns("id")
    for number, (start, stop) in enumerate([(0, 5), (5, 7), (7, 13)]):
        path = folder / f"train-{number:05d}-of-00003.parquet"
        scenes.select(range(start, stop)).to_parquet(path, batch_size=2)
    assert pq.ParquetFile(path).num_row_groups == 3
    return folder


def as_list(rows):
    return rows


def test_rows_are_numbered_across_files_in_any_worker(files, rows_of):
    table = load_image_text(files, split="train")
    stream = load_image_text(files, split="train", streaming=True)
    assert is_arrow(stream)
    assert stream.features == table.features
    assert rows_of(stream) == rows_of(table)
    assert table["id"][:] == [str(number) for number in range(13)]
    # One shard per row group; its rows keep their numbers in a worker.
    assert stream.num_shards == 7
    loader = DataLoader(stream.remove_columns("image"), batch_size=4, num_workers=2, collate_fn=as_list)
    texts = {row["id"]: row["text"] for batch in loader for row in batch}
    assert texts == dict(zip(table["id"], table["text"], strict=True))
    assert count_rows(stream) == [2, 2, 1, 2, 2, 2, 2]


def test_every_column_matches_the_data_set(tmp_path, rows_of):
    features = {
        "image": datasets.Image(),
        "caption": datasets.List(datasets.Value("string")),
        "label": datasets.ClassLabel(names=["cat", "dog"]),
        "id": datasets.Value("int64"),
        "numbers": datasets.List(datasets.Value("int32")),
        "text_": datasets.Value("float32"),
    }
    images = make_scenes(4, image_size=32)["image"]
    rows = {
        "image": list(images),
        "caption": [["a", "b"], [], None, ["c"]],
        "label": [0, 1, -1, 1],
        "id": [7, 8, 9, 10],
        "numbers": [[1], [], [2, 3], None],
        "text_": [0.5, 1.5, None, 2.5],
    }
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).to_parquet(tmp_path / "train.parquet")
    table = load_image_text(tmp_path, split="train")
    stream = load_image_text(tmp_path, split="train", streaming=True)
    assert stream.features == table.features
    assert rows_of(stream) == rows_of(table)
    assert [row["labels"] for row in stream] == [["cat"], ["dog"], [], ["dog"]]


def test_texts_are_read_without_the_images(files, monkeypatch):
    wide = load_image_text(files, split="train", streaming=True)
    read, iter_batches = [], pq.ParquetFile.iter_batches

    def recording(self, *arguments, columns=None, **kwargs):
        read.append(columns)
        return iter_batches(self, *arguments, columns=columns, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", recording)
    narrow = load_image_text(files, split="train", streaming=True, images=False)
    read.clear()  # the first row shows whether rows name their images
    rows = list(narrow)
    assert read
    assert all("image" not in columns for columns in read)
    assert "image" not in narrow.column_names
    assert [row["id"] for row in rows] == [row["id"] for row in PairStream(wide)]
    assert count_rows(narrow) == count_rows(wide)
    with pytest.raises(DataError, match="Only a stream can be loaded without"):
        load_image_text(files, images=False)


def test_rows_of_other_sources_without_images(make_folder):
    folder = make_folder([{"file_name": f"{i}.png", "text": f"t{i}", "labels": ["a"]} for i in range(3)])
    narrow = load_image_text(folder, split="train", streaming=True, images=False)
    assert list(narrow) == [{"id": f"{i}.png", "text": f"t{i}", "labels": ["a"]} for i in range(3)]


def test_files_with_other_columns_and_empty_ones_are_named(tmp_path):
    scenes = make_scenes(3, image_size=32)
    scenes.to_parquet(tmp_path / "train-00000-of-00002.parquet")
    scenes.rename_column("text", "words").to_parquet(tmp_path / "train-00001-of-00002.parquet")
    stream = load_image_text(tmp_path, split="train", streaming=True)
    with pytest.raises(DataError, match=r"train-00001-of-00002.parquet: .*the same columns"):
        list(stream)
    scenes.select([]).to_parquet(tmp_path / "none" / "train.parquet")
    with pytest.raises(DataError, match="holds no rows"):
        load_image_text(tmp_path / "none", split="train", streaming=True)


def test_pairs_without_id_or_number_are_identified_by_content(tmp_path):
    import json

    pixels = [np.full((2, 2, 3), number).tolist() for number in range(4)]
    files = []
    for number in range(2):
        files.append(str(tmp_path / f"{number}.jsonl"))
        rows = [{"image": pixels[2 * number + i], "text": "same"} for i in range(2)]
        (tmp_path / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    raw = datasets.load_dataset("json", data_files=files, split="train", streaming=True, features=features)
    stream = uniform(raw, "json", USUAL_NAMES, DataRoot())
    ids = [row["id"] for shard in range(2) for row in stream.shard(2, shard)]
    assert len(set(ids)) == 4
    assert ids == [row["id"] for row in stream]
