"""`load_image_text`: folders, Parquet, addresses, column names, splits."""

from functools import partial

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cmfah_hf.data import load_image_text, make_scenes, resolve_data_path
from cmfah_hf.errors import DataError

PAIR = {"file_name": "a.png", "text": "a dog", "labels": ["dog"]}
PAIRS = [
    {"file_name": "a.png", "text": "a dog on the beach", "labels": ["dog", "beach"]},
    {"file_name": "sub/b.png", "text": ["cat", "sofa"], "labels": "cat"},
    {"file_name": "c.png", "text": None},
]


def uniform(rows):
    return [(row["id"], row["text"], row.get("labels")) for row in rows]


EXPECTED = [
    ("a.png", "a dog on the beach", ["dog", "beach"]),
    ("sub/b.png", "cat sofa", ["cat"]),
    ("c.png", "", []),
]


def test_flat_folder(make_folder):
    loaded = load_image_text(make_folder(PAIRS))
    assert list(loaded) == ["train"]
    assert loaded["train"].column_names == ["id", "image", "text", "labels"]
    assert uniform(loaded["train"]) == EXPECTED
    assert [row["image"].getpixel((0, 0)) for row in loaded["train"]] == [(0, 90, 30), (1, 90, 30), (2, 90, 30)]


def test_split_folders_with_any_names_and_different_columns(make_folder, tmp_path):
    make_folder(PAIRS, "root/query")
    make_folder([{"file_name": "a.png", "text": "x", "rating": 3}], "root/database")
    make_folder(PAIRS[:1], "root/train")
    make_folder(PAIRS[:1], "root/my_own")
    loaded = load_image_text(tmp_path / "root")
    assert list(loaded) == ["train", "query", "database", "my_own"]
    assert uniform(loaded["query"]) == EXPECTED
    assert "labels" not in loaded["database"].column_names
    assert loaded["database"][0]["rating"] == 3
    assert uniform(load_image_text(tmp_path / "root", split="query")) == EXPECTED


def test_a_stream_gives_the_same_rows_and_is_shared_by_workers(make_folder, rows_of):
    folder = make_folder([{"file_name": f"{i}.png", "text": f"t{i}", "boxes": [{"x": i}]} for i in range(40)])
    table = load_image_text(folder, split="train")
    stream = load_image_text(folder, split="train", streaming=True)
    assert isinstance(stream, datasets.IterableDataset)
    assert rows_of(stream) == rows_of(table)
    assert stream.num_shards > 1
    shards = [row["id"] for i in range(stream.num_shards) for row in stream.shard(stream.num_shards, i)]
    assert sorted(shards) == sorted(table["id"])


def test_slices_and_sums_of_splits(make_folder, tmp_path):
    make_folder([{"file_name": f"{i}.png", "text": str(i)} for i in range(10)], "root/train")
    make_folder([{"file_name": "q.png", "text": "q"}], "root/query")
    load = partial(load_image_text, tmp_path / "root")
    assert load(split="train[2:4]")["text"][:] == ["2", "3"]
    assert load(split="train[:10%]+query")["text"][:] == ["0", "q"]
    for streaming in (False, True):
        with pytest.raises(DataError, match=r"no split 'test'; present are: train, query\."):
            load(split="test", streaming=streaming)


def test_changed_metadata_is_reloaded(make_folder):
    folder = make_folder([{"file_name": "a.png", "text": "before"}])
    assert load_image_text(folder, split="train")["text"][:] == ["before"]
    make_folder([{"file_name": "a.png", "text": "after!"}])
    assert load_image_text(folder, split="train")["text"][:] == ["after!"]


def test_values_are_not_converted(make_folder):
    """Leading zeros in ids, tags that look like numbers, dates or nulls: type inference would change them all."""
    texts = ["2019", "2019-05-01", "null", "NA"]
    rows = [{"file_name": f"{i}.png", "id": f"00{i}", "text": text} for i, text in enumerate(texts)]
    csv = "file_name,id,text\n" + "".join(f"{row['file_name']},{row['id']},{row['text']}\n" for row in rows)
    for folder in (make_folder(rows, "json"), make_folder(csv, "csv", "metadata.csv", [r["file_name"] for r in rows])):
        loaded = load_image_text(folder, split="train")
        assert loaded["text"][:] == texts
        assert loaded["id"][:] == ["000", "001", "002", "003"]


def test_csv_with_lists_of_labels_and_commas_in_texts(make_folder):
    csv = '\ufefffile_name,text,labels\na.png,"a dog, running",dog|outdoor\nb.png,,"[""cat"", ""sofa""]"\nc.png,x,\n'
    loaded = load_image_text(make_folder(csv, name="metadata.csv", images=["a.png", "b.png", "c.png"]), split="train")
    assert uniform(loaded) == [
        ("a.png", "a dog, running", ["dog", "outdoor"]),
        ("b.png", "", ["cat", "sofa"]),
        ("c.png", "x", []),
    ]


def test_metadata_in_parquet(make_folder, tmp_path):
    folder = make_folder("", images=["a.png"])
    (folder / "metadata.jsonl").unlink()
    pq.write_table(pa.table({"file_name": ["a.png"], "tags": [["x", "y"]]}), folder / "metadata.parquet")
    assert uniform(load_image_text(folder, split="train")) == [("a.png", "x y", None)]


def test_alternative_column_names(make_folder):
    rows = [
        {"file_name": "a.png", "text": "long", "headline": "short", "labels": ["x"], "topic": "news;sport", "key": 7}
    ]
    folder = make_folder(rows)
    loaded = load_image_text(folder, split="train", text_column="headline", labels_column="topic", id_column="key")
    assert uniform(loaded) == [("7", "short", ["news", "sport"])]
    assert loaded[0]["original_text"] == "long"
    assert loaded[0]["original_labels"] == ["x"]
    with pytest.raises(DataError, match="no column 'nope' for the text; present are: file_name, text, headline"):
        load_image_text(folder, text_column="nope")


def test_a_metadata_file_selects_its_folder(make_folder):
    assert uniform(load_image_text(make_folder(PAIRS) / "metadata.jsonl", split="train")) == EXPECTED


def test_data_variable_applies_to_relative_paths_only(make_folder, tmp_path, monkeypatch):
    make_folder(PAIRS, "store/pairs")
    monkeypatch.setenv("CMFAH_DATA", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    assert resolve_data_path("pairs") == tmp_path / "store" / "pairs"
    assert uniform(load_image_text("pairs", split="train")) == EXPECTED
    make_folder(PAIRS[:1])
    assert resolve_data_path("pairs").absolute() == tmp_path / "pairs"  # a path in the current folder wins
    assert str(resolve_data_path("/nowhere/pairs")) == "/nowhere/pairs"
    assert str(resolve_data_path("nothing")) == "nothing"


@pytest.fixture
def parquet_folder(tmp_path):
    scenes = make_scenes(6, image_size=32)
    folder = tmp_path / "parquet"
    (folder / "data").mkdir(parents=True)
    (folder / "database").mkdir()
    scenes.select(range(2)).to_parquet(folder / "data" / "train-00000-of-00002.parquet")
    scenes.select(range(2, 3)).to_parquet(folder / "data" / "train-00001-of-00002.parquet")
    scenes.select(range(3, 4)).to_parquet(folder / "query.parquet")
    scenes.select(range(4, 6)).to_parquet(folder / "database" / "anything.parquet")
    return folder, scenes


def test_parquet_folder(parquet_folder, rows_of):
    folder, scenes = parquet_folder
    loaded = load_image_text(folder)
    assert {name: len(part) for name, part in loaded.items()} == {"train": 3, "query": 1, "database": 2}
    assert list(loaded) == ["train", "query", "database"]
    assert rows_of(datasets.concatenate_datasets(list(loaded.values()))) == rows_of(scenes)
    assert loaded["train"].features == scenes.features
    stream = load_image_text(folder, streaming=True)
    for name, part in loaded.items():
        assert stream[name].features == part.features
        assert rows_of(stream[name]) == rows_of(part)


def test_parquet_file_by_path_and_address(parquet_folder, rows_of):
    folder, scenes = parquet_folder
    expected = rows_of(scenes.select([3]))
    file = folder / "query.parquet"
    for source in (file, file.as_uri()):
        for streaming in (False, True):
            assert rows_of(load_image_text(source, split="train", streaming=streaming)) == expected
    with pytest.raises(DataError, match="only addresses of Parquet files"):
        load_image_text(folder.as_uri())


def test_a_missing_library_is_named(monkeypatch):
    def no_aiohttp(*args, **kwargs):
        raise ImportError('HTTPFileSystem requires "requests" and "aiohttp" to be installed')

    monkeypatch.setattr(datasets, "load_dataset", no_aiohttp)
    with pytest.raises(DataError, match=r'http://x/y\.parquet: a library is missing .*"aiohttp".*pip'):
        load_image_text("http://x/y.parquet")


def test_parquet_of_others_with_class_numbers_paths_and_no_ids(tmp_path):
    """A typical data set on the Hub: `img`, lists of captions, `ClassLabel`, embedded images without names."""
    Image.new("RGB", (3, 3), "red").save(tmp_path / "red.png")
    png = (tmp_path / "red.png").read_bytes()
    features = datasets.Features(
        {
            "note": datasets.Value("int32"),
            "img": datasets.Image(),
            "captions": datasets.List(datasets.Value("string")),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "classes": datasets.List(datasets.ClassLabel(names=["x", "y", "z"])),
        }
    )
    columns = {
        "note": [5, 6, 7],
        "img": [{"bytes": png, "path": None}] * 3,
        "captions": [["one", "two"], [], None],
        "label": [1, -1, None],
        "classes": [[2, 0], [], None],
    }
    file = tmp_path / "foreign.parquet"
    datasets.Dataset.from_dict(columns, features=features).to_parquet(file)
    for streaming in (False, True):
        rows = list(load_image_text(file, split="train", streaming=streaming))
        assert uniform(rows) == [("0", "one two", ["dog"]), ("1", "", []), ("2", "", [])]
        assert list(rows[0]) == ["id", "image", "text", "labels", "note", "classes"]
        assert [row["note"] for row in rows] == [5, 6, 7]
        assert rows[0]["image"].getpixel((1, 1)) == (255, 0, 0)
        rows = load_image_text(file, split="train", streaming=streaming, labels_column="classes")
        assert [row["labels"] for row in rows] == [["z", "x"], [], []]


def test_parquet_of_raw_bytes_or_of_paths(tmp_path):
    Image.new("RGB", (3, 3), "red").save(tmp_path / "red.png")
    png = (tmp_path / "red.png").read_bytes()
    pq.write_table(pa.table({"image": [png], "text": ["bytes"]}), tmp_path / "bytes.parquet")
    pq.write_table(pa.table({"image": [str(tmp_path / "red.png")], "text": ["path"]}), tmp_path / "path.parquet")
    for name in ("bytes", "path"):
        for streaming in (False, True):
            (row,) = load_image_text(tmp_path / f"{name}.parquet", split="train", streaming=streaming)
            assert row["text"] == name
            assert row["image"].getpixel((1, 1)) == (255, 0, 0)


def write_parquet(path, **columns):
    size = len(next(iter(columns.values())))
    buffer = path.with_suffix(".png")
    Image.new("RGB", (2, 2)).save(buffer)
    pq.write_table(pa.table({"image": [buffer.read_bytes()] * size, **columns}), path)
    return path


def test_parquet_without_a_required_column_names_the_others(tmp_path):
    file = write_parquet(tmp_path / "x.parquet", words=["a"], views=[1])
    for streaming in (False, True):
        with pytest.raises(
            DataError, match=r"x\.parquet.*no column looks like the text.*present are: image, words, views"
        ) as caught:
            load_image_text(file, streaming=streaming)
        assert "text_column=" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert load_image_text(file, text_column="words", split="train")["text"][:] == ["a"]


def test_parquet_with_a_duplicate_id_names_both_rows(tmp_path):
    file = write_parquet(tmp_path / "x.parquet", text=["a", "b", "c"], id=[4, 5, 4])
    with pytest.raises(DataError, match=r"rows 0 and 2 .* same id '4'.*id_column=False"):
        load_image_text(file)
    assert load_image_text(file, id_column=False, split="train")["id"][:] == ["0", "1", "2"]


def test_invalid_labels_name_their_row(tmp_path):
    file = write_parquet(tmp_path / "x.parquet", text=["a", "b"], labels=[None, {"name": "x"}])
    with pytest.raises(DataError, match="row 1: labels must be names, not a dict"):
        load_image_text(file)


def test_damaged_and_empty_parquet(tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"bad\.parquet: cannot be loaded"):
        load_image_text(tmp_path / "bad.parquet")
    file = write_parquet(tmp_path / "none.parquet", text=["a"])
    pq.write_table(pq.read_table(file).slice(0, 0), file)
    with pytest.raises(DataError, match=r"none\.parquet"):
        load_image_text(file)


@pytest.mark.parametrize("name", ["no/such/folder", "./missing", "/nowhere/at/all", "with space", "missing.parquet"])
def test_missing_paths_never_reach_the_network(name, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: pytest.fail("sent a request to the Hub"))
    with pytest.raises(DataError, match="there is no such folder or file") as caught:
        load_image_text(name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_metadata_reports_what_to_write(tmp_path):
    (tmp_path / "train").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "train" / "a.png")
    with pytest.raises(DataError, match=r'write a metadata\.jsonl .*\{"file_name": "im1\.jpg"') as caught:
        load_image_text(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_unsupported_file_type(tmp_path):
    (tmp_path / "pairs.zip").write_bytes(b"")
    with pytest.raises(DataError, match=r"pairs\.zip: neither a folder nor a Parquet file"):
        load_image_text(tmp_path / "pairs.zip")


def test_scenes_by_name(rows_of):
    loaded = load_image_text("scenes", num_train=3, num_query=2, image_size=32)
    assert {name: len(part) for name, part in loaded.items()} == {"train": 3, "query": 2}
    stream = load_image_text("scenes", split="query", streaming=True, num_train=3, num_query=2, image_size=32)
    assert rows_of(stream) == rows_of(loaded["query"])
