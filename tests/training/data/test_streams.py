"""Training streams against plain lists: process and worker parts, order, resuming, gaps."""

import io
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from cmfah_hf.data import hash_split
from cmfah_hf.data.internals import is_arrow, stream_fingerprint
from cmfah_hf.errors import DataError
from cmfah_hf.training.data.shards import count_rows, read_shard, split_stream
from cmfah_hf.training.data.streams import (
    PairStream,
    add_text_column,
    without_gaps,
)


def numbers(sizes: list[int], first: int = 0) -> datasets.IterableDataset:
    """A stream of consecutive numbers as ids, with shards of these sizes."""
    bounds = np.cumsum([first, *sizes]).tolist()

    def generate(ranges):
        for start, stop in ranges:
            for number in range(start, stop):
                yield {"id": str(number), "text": f"word{number}"}

    features = datasets.Features({"id": datasets.Value("string"), "text": datasets.Value("string")})
    ranges = [(bounds[i], bounds[i + 1]) for i in range(len(sizes))]
    return datasets.IterableDataset.from_generator(generate, gen_kwargs={"ranges": ranges}, features=features)


def as_list(rows):
    return rows


def names_of(found: list[list]) -> list:
    return [name for batch in found for name in batch]


def batches(part, workers: int = 0) -> list[list[str | None]]:
    loader = DataLoader(part, batch_size=part.batch_size, num_workers=workers, collate_fn=as_list)
    return [[row and row["id"] for row in batch] for batch in loader]


def epoch_of(stream, batch_size, num_processes, workers=0, epoch=0, skipped=0):
    """The batches of every process."""
    found = []
    for process in range(num_processes):
        part = stream.part(batch_size, num_processes, process)
        part.set_epoch(epoch)
        part.start_at(epoch, skipped)
        found.append(batches(part, workers))
    return found


@pytest.mark.parametrize("sizes", [[10, 10, 10, 10], [40], [37, 1, 2], [3, 0, 30, 7], [1] * 40])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shuffle_buffer", [0, 9])
def test_two_processes_cover_each_pair_once_in_equal_batches(sizes, workers, shuffle_buffer):
    stream = PairStream(numbers(sizes), sizes, shuffle_buffer)
    for epoch in (0, 1):
        first, second = epoch_of(stream, 6, 2, workers, epoch)
        assert Counter(name for batch in [*first, *second] for name in batch) == Counter(map(str, range(40)))
        assert len(first) == len(second) == 4
        assert sorted(map(len, first)) == sorted(map(len, second)) == [2, 6, 6, 6]


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) >= 4),
    batch_size=st.integers(1, 7),
    num_processes=st.integers(1, 4),
    shuffle_buffer=st.integers(0, 20),
    epoch=st.integers(0, 3),
)
def test_no_duplicates_and_fewer_losses_than_processes(sizes, batch_size, num_processes, shuffle_buffer, epoch):
    stream = PairStream(numbers(sizes), sizes, shuffle_buffer, seed=5)
    found = epoch_of(stream, batch_size, num_processes, epoch=epoch)
    seen = [name for process in found for batch in process for name in batch]
    assert len(seen) == len(set(seen))
    assert set(seen) <= set(map(str, range(sum(sizes))))
    assert sum(sizes) - len(seen) < num_processes
    assert len({len(process) for process in found}) == 1
    for process in range(num_processes):
        part = stream.part(batch_size, num_processes, process)
        assert len(part) == sum(map(len, found[process]))


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) >= 4),
    shuffle_buffer=st.integers(0, 20),
    skipped=st.integers(0, 12),
    epoch=st.integers(0, 1),
)
def test_a_stream_resumes_with_the_same_batches(sizes, shuffle_buffer, skipped, epoch):
    stream = PairStream(numbers(sizes), sizes, shuffle_buffer, seed=5)
    for number, whole in enumerate(epoch_of(stream, 3, 2, epoch=epoch)):
        part = stream.part(3, 2, number)
        part.set_epoch(epoch)
        part.start_at(epoch, skipped)
        rest = batches(part)
        assert list(map(len, rest)) == list(map(len, whole))
        assert rest[skipped:] == whole[skipped:]
        assert all(name is None for batch in rest[:skipped] for name in batch)
        part.set_epoch(epoch + 1)  # the skipped batches
        assert batches(part) == epoch_of(stream, 3, 2, epoch=epoch + 1)[number]


@pytest.mark.parametrize("counted", [True, False])
def test_a_stream_resumes_with_the_same_batches_in_workers(counted):
    sizes = [11, 20, 2, 15]
    stream = PairStream(numbers(sizes), sizes if counted else None, 8)

    def first(count, skipped):
        part = stream.part(4, 1, 0)
        part.start_at(0, skipped)
        loader = iter(DataLoader(part, batch_size=4, num_workers=2, collate_fn=as_list))
        return [[row and row["id"] for row in next(loader)] for _ in range(count)]

    whole, rest = first(12, 0), first(12, 5)
    assert rest[5:] == whole[5:]
    assert all(name is None for batch in rest[:5] for name in batch)


def test_skipped_rows_are_not_read(monkeypatch):
    from cmfah_hf.training.data import shards

    sizes = [100] * 20
    read = []

    def counted(dataset, shard, start=0, epoch=0):
        for row in read_shard(dataset, shard, start, epoch):
            read.append(row["id"])
            yield row

    monkeypatch.setattr(shards, "read_shard", counted)
    part = PairStream(numbers(sizes), sizes, 80).part(10)
    part.start_at(0, 150)
    assert len([name for batch in batches(part) for name in batch if name]) == 500
    # The rest, the remainder of the partial block, and the read-ahead in those shards.
    assert len(read) < 500 + 80 + 8 * 64


def test_order_depends_on_epoch_and_seed():
    sizes = [30, 30, 30, 30]

    def order(seed, epoch):
        return names_of(epoch_of(PairStream(numbers(sizes), sizes, 40, seed), 10, 1, epoch=epoch)[0])

    orders = [order(0, 0), order(0, 1), order(1, 0)]
    assert order(0, 1) == orders[1]
    assert len({tuple(names) for names in orders}) == 3
    for names in orders:
        assert sorted(map(int, names)) == list(range(120))
        # Several shards at once, so that a batch is not a run of one file.
        assert all(len({int(name) // 30 for name in names[first : first + 10]}) > 1 for first in range(0, 80, 10))


def test_without_a_buffer_the_order_is_that_of_the_stream():
    sizes = [4, 0, 7]
    found = epoch_of(PairStream(numbers(sizes), sizes, 0), 3, 1, epoch=2)[0]
    assert names_of(found) == [str(number) for number in range(11)]


@pytest.mark.parametrize("sizes", [[5, 3, 4, 8], [20]])
def test_without_counts_every_part_restarts_at_its_end(sizes):
    stream = PairStream(numbers(sizes), None, 4)
    with pytest.raises(TypeError):
        len(stream)
    found = []
    for process in range(2):
        loader = iter(DataLoader(stream.part(2, 2, process), batch_size=2, num_workers=2, collate_fn=as_list))
        found.append({row["id"] for _ in range(40) for row in next(loader)})
    assert found[0] | found[1] == set(map(str, range(20)))
    assert not found[0] & found[1] or len(sizes) > 1  # whole shards move to other parts in the new order


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_yields_every_row_once(counted, workers):
    sizes = [5, 0, 16]
    stream = PairStream(numbers(sizes), sizes if counted else None)
    found = [name for p in range(3) for b in batches(stream.part(4, 3, p, training=False), workers) for name in b]
    assert sorted(map(int, found)) == list(range(21))
    assert [row["id"] for row in stream] == [str(number) for number in range(21)]


def test_concatenated_streams():
    one, two = PairStream(numbers([3, 4]), [3, 4], 5), PairStream(numbers([6], first=7), [6])
    both = one.followed_by(two)
    assert len(both) == 13
    assert sorted(map(int, names_of(epoch_of(both, 4, 1)[0]))) == list(range(13))


def test_counting():
    sizes = [7, 0, 130]
    assert count_rows(numbers(sizes)) == sizes
    shares = [count_rows(numbers(sizes), 2, process) for process in (0, 1)]
    assert np.sum(shares, axis=0).tolist() == sizes
    assert all(min(pair) == 0 for pair in zip(*shares, strict=True))
    table = Dataset.from_dict({"id": list("abcde"), "text": list("vwxyz")}).to_iterable_dataset(2)
    assert count_rows(table) == [3, 2]


def test_wrong_counts_and_too_few_pairs_are_named():
    with pytest.raises(DataError, match="2 shards, and 3 counts"):
        PairStream(numbers([1, 2]), [1, 2, 3])
    with pytest.raises(DataError, match="3 pairs are too few for 4 processes"):
        PairStream(numbers([3]), [3]).part(1, 4, 0)


def test_missing_rows_leave_gaps_and_are_named(caplog):
    found = epoch_of(PairStream(numbers([5, 6]), [8, 6], 0), 4, 1)[0]
    assert [name for batch in found for name in batch if name] == [str(number) for number in range(11)]
    assert [len(batch) for batch in found] == [4, 4, 4, 2]
    assert "3 rows fewer than were counted" in caplog.text


def image(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def images(contents: list[bytes], shards: int) -> datasets.IterableDataset:
    features = {"id": datasets.Value("string"), "image": datasets.Image(), "text": datasets.Value("string")}
    rows = {
        "id": [f"im{i}" for i in range(len(contents))],
        "image": [{"path": None, "bytes": content} for content in contents],
        "text": ["a b"] * len(contents),
    }
    return Dataset.from_dict(rows, features=datasets.Features(features)).to_iterable_dataset(shards)


def test_unreadable_images_leave_gaps_and_are_named(caplog):
    contents = [image(i) for i in range(9)]
    contents[2] = contents[2][:-40]
    contents[7] = b"no image"
    stream = images(contents, 3)
    # After a further stage too: nothing is decoded before the rows are shuffled.
    stream = add_text_column(stream, lambda batch: {"longer": [f"{text} c" for text in batch["text"]]}, "longer")
    part = PairStream(stream, [3, 3, 3], 5).part(2)
    rows = [row for batch in DataLoader(part, batch_size=2, collate_fn=as_list) for row in batch]
    assert sorted(row["id"] for row in rows if row) == [f"im{i}" for i in range(9) if i not in (2, 7)]
    assert rows.count(None) == 2
    assert "Left out: im2: damaged or cut short" in caplog.text
    assert "Left out: im7: not an image" in caplog.text
    for row in filter(None, rows):
        expected = Image.open(io.BytesIO(contents[int(row["id"][2:])]))
        assert row["image"].tobytes() == expected.tobytes()
        assert row["longer"] == "a b c"
    assert len(list(PairStream(stream))) == 7


def test_unreadable_images_leave_no_batch_empty():
    contents = [b"no", b"no", image(0), image(1), b"no", b"no"]
    part = PairStream(images(contents, 1), [6], 0).part(2)
    found = [[row and row["id"] for row in b] for b in DataLoader(part, batch_size=2, collate_fn=as_list)]
    assert [sum(name is not None for name in batch) >= 1 for batch in found] == [True] * len(found)
    with pytest.raises(DataError, match="No image of a batch"):
        list(PairStream(images([b"no"] * 4, 1), [4], 0).part(2))


def test_a_collator_without_gaps():
    collate = without_gaps(lambda rows: {"ids": [row["id"] for row in rows]})
    assert collate([None, {"id": "a"}, None, {"id": "b"}]) == {"ids": ["a", "b"]}
    assert collate([None, None]) == {}


def regions(count: int, shards: int) -> datasets.IterableDataset:
    values = np.arange(count * 6, dtype=np.float16).reshape(count, 2, 3)
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "text": datasets.Value("string"),
            "region_features": datasets.Array2D((2, 3), "float16"),
            "region_features_mirrored": datasets.Array2D((2, 3), "float16"),
        }
    )
    names = [str(number) for number in range(count)]
    columns = {"id": names, "text": names, "region_features": values, "region_features_mirrored": -values}
    return Dataset.from_dict(columns, features=features).to_iterable_dataset(shards)


def test_training_draws_either_mirror_side_and_evaluation_one():
    stream = PairStream(regions(80, 4), [20] * 4, 16)

    def seen(skipped):
        part = stream.part(8)
        part.start_at(0, skipped)
        return list(DataLoader(part, batch_size=8, collate_fn=as_list))

    whole, rest = seen(0), seen(4)
    for row in (row for batch in whole for row in batch):
        expected = np.arange(6, dtype=np.float16).reshape(2, 3) + 6 * int(row["id"])
        np.testing.assert_array_equal(row["region_features"], expected)
        np.testing.assert_array_equal(row["region_features_mirrored"], -expected)
        assert row["region_features"].dtype == row["region_features_mirrored"].dtype == np.float16
    # The collator draws the same sides after an interruption.
    assert [[row["id"] for row in batch] for batch in whole[4:]] == [[row["id"] for row in batch] for batch in rest[4:]]
    # Evaluation is never mirrored.
    assert all((row["region_features"] >= 0).all() and len(row) == 3 for row in stream)


def test_an_additional_column_leaves_tables_unchanged():
    stream = add_text_column(regions(5, 2), lambda batch: {"longer": [f"{t}!" for t in batch["text"]]}, "longer")
    assert is_arrow(stream)
    assert stream.features["longer"] == datasets.Value("string")
    rows = [row for shard in range(2) for row in read_shard(stream, shard)]
    assert [row["longer"] for row in rows] == [f"{number}!" for number in range(5)]
    np.testing.assert_array_equal(rows[4]["region_features"].ravel(), np.arange(24, 30))
    assert not is_arrow(add_text_column(numbers([3]), lambda batch: {"more": batch["text"]}, "more"))


@pytest.mark.parametrize("make", [lambda: regions(60, 3), lambda: numbers([20, 40])])
def test_sides_match_the_split_by_hash(make):
    table = Dataset.from_dict({"id": [str(number) for number in range(60)]})
    expected = [part["id"][:] for part in hash_split(table, 0.3, seed=2)]
    assert [[row["id"] for row in PairStream(side)] for side in split_stream(make(), 0.3, 2)] == expected
    assert all(side.features == make().features for side in split_stream(make(), 0.3, 2))


PROGRAM = """
import sys
from cmfah_hf.data import load_image_text
from cmfah_hf.data.internals import stream_fingerprint
from cmfah_hf.training.data.shards import split_stream
for folder in sys.argv[1:]:
    stream = load_image_text(folder, split="train", streaming=True, image_folders=sys.argv[1:2])
    next(iter(stream))
    print(stream_fingerprint(stream), *[stream_fingerprint(side) for side in split_stream(stream, 0.5, 0)])
"""


@pytest.mark.slow
def test_fingerprint_of_a_stream_depends_on_its_content(tmp_path):
    from cmfah_hf.data import load_image_text

    def prints(folder):
        stream = load_image_text(folder, split="train", streaming=True, image_folders=[pairs])
        return [stream_fingerprint(part) for part in (stream, *split_stream(stream, 0.5, 0))]

    pairs = folder = tmp_path / "pairs"
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (6, 4), (number, 90, 30)).save(folder / f"{number}.png")
    rows = [json.dumps({"file_name": f"{number}.png", "text": f"t{number}"}) for number in range(4)]
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    parquet = tmp_path / "parquet"
    load_image_text(folder, split="train").to_parquet(parquet / "train.parquet")
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), str(parquet)],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": str(Path(__file__).parents[3]), "HF_HOME": str(tmp_path)},
    )
    assert result.returncode == 0, result.stderr
    own = prints(folder), prints(parquet)
    assert [line.split() for line in result.stdout.splitlines()] == list(own)
    assert len({*own[0], *own[1]}) == 6
    for number, path in enumerate((folder / "metadata.jsonl", parquet / "train.parquet")):
        path.write_bytes(path.read_bytes() + (b"\n" if number == 0 else b""))
        assert not set(prints(path.parent)) & set(own[number])
