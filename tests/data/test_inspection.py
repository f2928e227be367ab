"""Counts of an inspection, against manual counts of a folder with every kind of defect."""

import io
import json
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from cmfah_hf.data import convert_matrices, inspect_pairs, load_scenes, open_matrices, prepare_nus_wide
from cmfah_hf.data.inspection.plots import plot_inspection
from cmfah_hf.errors import DataError
from cmfah_hf.models.tokenization_cmfah import split_words

TRAIN = [
    ("a.png", "a dog on the beach", ["dog", "sea"]),
    ("b.png", "", ["dog"]),
    ("copy-of-a.png", "A Dog", ["dog", "sea", "sky"]),  # the same file
    ("again-a.png", "dog dog", []),  # the same pixels in another encoding
    ("broken.jpg", "night", ["sky"]),
    ("grey.png", "fog", None),
    ("grey-as-colour.png", "fog, sea!", ["sea"]),  # the same pixels after conversion to RGB
    ("none.png", None, ["sky"]),
]
QUERY = [("q.png", "beach", ["sea"]), ("leaked.png", "somewhere else", ["sky"])]


@pytest.fixture
def folder(make_folder):
    def rows(entries):
        return [{"file_name": name, "text": text, "labels": labels} for name, text, labels in entries]

    root = make_folder(rows(TRAIN), "pairs/train").parent
    make_folder(rows(QUERY), "pairs/query")
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    gray = Image.fromarray(rng.integers(0, 256, (5, 7), dtype=np.uint8))
    train = root / "train"
    image.save(train / "a.png")
    (train / "copy-of-a.png").write_bytes((train / "a.png").read_bytes())
    image.save(train / "again-a.png", compress_level=0)
    gray.save(train / "grey.png")
    gray.convert("RGB").save(train / "grey-as-colour.png")
    buffer = io.BytesIO()
    image.resize((60, 60)).save(buffer, "JPEG")
    (train / "broken.jpg").write_bytes(buffer.getvalue()[:300])
    (train / "none.png").write_text("no image")
    image.save(root / "query" / "leaked.png", optimize=True)
    return root


def test_counts_match_manual_counts(folder):
    found = inspect_pairs(folder)
    rows = [*TRAIN, *QUERY]
    assert (found.splits, found.items) == ({"train": 8, "query": 2}, 10)

    words = [split_words(text or "") for _, text, _ in rows]
    in_items = Counter(word for text in words for word in set(text))
    assert found.words.most_frequent == dict(sorted(in_items.items(), key=lambda entry: (-entry[1], entry[0])))
    assert (found.words.source, found.words.distinct) == ("text", len(in_items))
    assert found.words.once == sum(count == 1 for count in in_items.values())
    lengths = [len(text) for text in words]
    assert found.words.per_item == {
        "min": 0, "median": np.median(lengths), "mean": np.mean(lengths), "max": max(lengths), "empty": 2,
    }  # fmt: skip
    assert found.words.histogram == dict(sorted(Counter(lengths).items()))

    labels = [labels or [] for *_, labels in rows]
    counts = Counter(name for names in labels for name in names)
    assert found.labels.counts == counts
    assert found.labels.shares == {name: count / 10 for name, count in counts.items()}
    assert found.labels.mean_per_item == pytest.approx(sum(map(len, labels)) / 10)
    assert found.labels.per_item == dict(sorted(Counter(map(len, labels)).items()))
    pair_counts = Counter(pair for names in labels for pair in combinations(sorted(names), 2))
    assert {(first, second): count for first, second, count in found.labels.pairs} == pair_counts
    assert found.labels.by_split == {"train": {"dog": 3, "sea": 3, "sky": 3}, "query": {"sea": 1, "sky": 1}}

    assert found.images.sizes == {"12x9": 4, "6x4": 2, "7x5": 2}
    assert found.images.modes == {"RGB": 7, "L": 1}
    assert (found.images.readable, found.images.distinct_sizes, found.images.broken) == (8, 3, 2)
    broken = {entry["id"]: entry["reason"] for entry in found.images.broken_named}
    assert set(broken) == {"broken.jpg", "none.png"}
    assert broken["broken.jpg"].startswith("damaged or cut short")
    assert broken["none.png"].startswith("not an image")


def test_duplicates_and_leakage(folder):
    twice = inspect_pairs(folder).duplicates
    assert twice.same_bytes == [["train/a.png", "train/copy-of-a.png"]]
    # Groups are in the order of their first repetition.
    assert twice.same_pixels == [
        ["train/a.png", "train/copy-of-a.png", "train/again-a.png", "query/leaked.png"],
        ["train/grey.png", "train/grey-as-colour.png"],
    ]
    assert (twice.extra_bytes, twice.extra_pixels) == (1, 3)
    assert twice.leaks == {"query & train": 1}
    assert twice.leaking == [("query/leaked.png", "train/a.png")]
    assert twice.same_ids == {}
    found = inspect_pairs(folder)
    assert found.warnings[0] == "LEAKAGE: items of 'query' whose image is also in 'train': 1"
    assert found.warnings[1:] == [
        "images that cannot be read: 2",
        "items whose image occurs before in their split: 3",
        "items without text: 2",
    ]
    assert inspect_pairs(folder, split="query").duplicates.leaks == {}


def test_a_database_that_contains_the_training_pairs(tmp_path):
    """A prepared research split: no leakage between train and database, and no pair counts twice."""
    import h5py

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (10, 6, 6, 3), dtype=np.uint8)
    images[9] = images[0]  # a query's image is in the remainder
    images[8] = images[7]  # and a training pair's image
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.update({"images": images, "tags": np.eye(10, 4), "labels": np.ones((10, 2))})
    split = {"queries": "first", "num_queries": 2, "num_train": 6}
    found = inspect_pairs(tmp_path / "x.h5", **split)
    assert (found.splits, found.items) == ({"train": 6, "query": 2, "database": 8}, 10)
    assert found.labels.counts == {"class00": 10, "class01": 10}
    assert found.labels.by_split["database"] == {"class00": 8, "class01": 8}
    # Row 7 is a training pair and 8 a database pair: the database has the image twice.
    assert found.duplicates.same_bytes == [["train/7", "database/8"]]
    assert found.duplicates.extra_bytes == 1
    assert found.duplicates.leaks == {"query & database": 1}
    with h5py.File(tmp_path / "x.h5", "a") as file:
        file["images"][3] = images[1]
    assert inspect_pairs(tmp_path / "x.h5", **split).duplicates.leaks == {"query & database": 2, "query & train": 1}
    out = tmp_path / "out"
    convert_matrices(open_matrices(tmp_path / "x.h5"), out, **split)
    assert inspect_pairs(out).duplicates.leaks.keys() >= {"query & train"}


def test_without_labels_and_without_images(tmp_path):
    import h5py

    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.update({"XAll": np.ones((6, 3)), "YAll": np.eye(6, 4)})
    found = inspect_pairs(tmp_path / "x.h5")
    assert (found.labels, found.images) == (None, None)
    assert (found.words.source, found.words.per_item["empty"]) == ("tags", 2)
    assert found.words.most_frequent == {f"tag0{i}": 1 for i in range(4)}


def test_tables_prepared_without_images(replicas, tmp_path):
    replica = replicas.make_nus_wide(tmp_path / "release", images=False)
    report = prepare_nus_wide(replica.root, tmp_path / "out", queries=5, train=10, release=replica.release)
    found = inspect_pairs(tmp_path / "out")
    assert found.images is None
    assert found.splits == report.rows
    assert found.items == report.rows["query"] + report.rows["database"]
    assert sum(found.labels.by_split["query"].values()) >= report.rows["query"]


def test_duplicate_ids(tmp_path):
    scenes = load_scenes(4, 2, image_size=32)["train"]
    rows = scenes.remove_columns("id").add_column("id", ["x", "y", "x", "x"])
    rows.to_parquet(tmp_path / "train.parquet")
    found = inspect_pairs(tmp_path)
    assert found.duplicates.same_ids == {"train/x": 3}
    assert "ids that occur more than once in their split: 1" in found.warnings


def test_empty_folder(tmp_path):
    with pytest.raises(DataError, match="there is no such folder"):
        inspect_pairs(tmp_path / "gone")


def test_plots_of_the_counts(folder, tmp_path):
    files = plot_inspection(inspect_pairs(folder), tmp_path / "plots")
    assert [file.name for file in files] == ["labels.png", "words.png", "words_per_item.png"]
    for file in files:
        pixels = np.asarray(Image.open(file).convert("RGB"))
        assert min(pixels.shape[:2]) > 200
        blue = (abs(pixels.astype(int) - (0, 0x72, 0xB2)).sum(axis=2) < 12).mean()
        assert 0.02 < blue < 0.6, file


def test_bar_lengths_are_the_counts(folder, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *given, **kw: (figures.append(self), save(self, *given, **kw)))
    found = inspect_pairs(folder)
    plot_inspection(found, tmp_path)
    labels, words, lengths = (figure.axes[0] for figure in figures)
    assert [bar.get_width() for bar in labels.patches] == list(found.labels.counts.values())
    assert [label.get_text() for label in labels.get_yticklabels()] == list(found.labels.counts)
    assert [bar.get_width() for bar in words.patches] == list(found.words.most_frequent.values())
    assert sum(bar.get_height() for bar in lengths.patches) == found.items


def test_the_command_prints_writes_and_outputs_json(folder, tmp_path, capsys, monkeypatch):
    from cmfah_hf.cli import main

    monkeypatch.setenv("COLUMNS", "160")

    def run(*arguments):
        with pytest.raises(SystemExit) as left:
            main(["data", "inspect", *map(str, arguments)])
        return left.value.code or 0, capsys.readouterr()

    code, streams = run(folder, "--output", tmp_path / "seen")
    assert code == 0
    for line in ("LEAKAGE: items of 'query' whose", "broken.jpg", "train/a.png, train/copy-of-a.png", "12x9", "fog"):
        assert line in streams.out
    written = json.loads((tmp_path / "seen" / "inspection.json").read_text(encoding="utf-8"))
    code, streams = run(folder, "--json")
    assert code == 0
    assert json.loads(streams.out) == written
    assert written["duplicates"]["leaks"] == {"query & train": 1}
    assert sorted(path.suffix for path in (tmp_path / "seen").iterdir()) == [".json", ".png", ".png", ".png"]
    code, streams = run(tmp_path / "gone")
    assert (code, streams.out) == (2, "")
    assert streams.err.startswith("cmfah: ")
    assert streams.err.count("\n") == 1
