"""Streams of each kind of source over nodes and workers: every row once, and resuming at the next row."""

import json
import shutil
import subprocess
import sys
from copy import deepcopy
from itertools import islice
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

from cmfah_hf.data import load_image_text, load_scenes, write_imagefolder
from cmfah_hf.training.data.shards import count_rows
from cmfah_hf.training.data.streams import PairStream

ROOT = Path(__file__).parents[2]
# One of several nodes: its ids from `datasets` and from `PairStream`, each with two workers; then the remaining rows of
# the streams with saved states.
NODE = """
import json, sys
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader
from cmfah_hf.data import load_image_text
from cmfah_hf.training.data.shards import count_rows
from cmfah_hf.training.data.streams import PairStream

def ids(dataset):
    return [row["id"] for row in DataLoader(dataset, batch_size=None, num_workers=2)]

if __name__ == "__main__":
    rank, out, left = int(sys.argv[1]), {}, {}
    for split in ("train", "single"):
        stream = load_image_text("org/scenes", split=split, streaming=True)
        counts = count_rows(stream)
        out[split] = {
            "shards": stream.num_shards,
            "datasets": ids(split_dataset_by_node(stream, rank, 2).select_columns(["id"])),
            "counted": ids(PairStream(stream, counts).part(num_processes=2, process_index=rank, training=False)),
            "uncounted": ids(PairStream(stream).part(num_processes=2, process_index=rank, training=False)),
        }
    for node, (_, state) in json.load(open(sys.argv[2])).items():
        stream = load_image_text("org/scenes", split="database", streaming=True)
        stream = stream if node == "None" else split_dataset_by_node(stream, int(node), 2)
        stream.load_state_dict(state)
        left[node] = [row["id"] for row in stream]
    print(json.dumps([out, left]))
"""


@pytest.fixture
def start(hub, tmp_path):
    """A function that starts a program against the Hub and returns a function that waits for its output."""

    def run(program: str, *arguments: str) -> subprocess.Popen:
        file = tmp_path / f"program-{len(program)}.py"
        file.write_text(program)
        environment = hub.environment(tmp_path / "home") | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, str(file), *arguments],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return run


def printed(process: subprocess.Popen):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


@pytest.fixture
def pushed(hub, prepared, tmp_path):
    """The data set on the Hub, with an additional split of one shard and one row group: fewer than readers."""
    folder = shutil.copytree(prepared.folder, tmp_path / "scenes")
    table = pq.read_table(folder / "data/train-00000-of-00002.parquet")
    pq.write_table(table, folder / "data/single-00000-of-00001.parquet", row_group_size=len(table))
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text(
        card.replace("  - split: query\n", "  - split: single\n    path: data/single-*.parquet\n  - split: query\n")
    )
    hub.add_folder("org/scenes", folder)
    ids = {split: [row[0] for row in rows] for split, rows in prepared.rows.items()}
    return ids | {"single": ids["train"][:7]}


@pytest.mark.slow
def test_two_nodes_with_two_workers_read_each_row_once_and_resume(here, pushed, start, tmp_path):
    before = {}
    for node in (None, 0, 1):
        stream = load_image_text("org/scenes", split="database", streaming=True)
        stream = stream if node is None else split_dataset_by_node(stream, node, 2)
        first = [row["id"] for row in islice(stream, 5)]
        before[str(node)] = [first, stream.state_dict()]
    (tmp_path / "state.json").write_text(json.dumps(before))
    processes = [start(NODE, str(rank), str(tmp_path / "state.json")) for rank in range(2)]
    nodes, left = zip(*map(printed, processes), strict=True)

    assert {split: node["shards"] for split, node in nodes[0].items()} == {"train": 5, "single": 1}
    for split in nodes[0]:
        expected = pushed[split]
        for way in ("datasets", "counted", "uncounted"):
            read = [node[split][way] for node in nodes]
            assert sorted(read[0] + read[1]) == sorted(expected), (split, way)
        # With counts the parts are runs of rows whose lengths differ by at most one, for any number of shards.
        counted = [node[split]["counted"] for node in nodes]
        assert abs(len(counted[0]) - len(counted[1])) <= 1
    for after in left:
        assert before["None"][0] + after["None"] == pushed["database"]
        halves = [before[node][0] + after[node] for node in ("0", "1")]
        assert sorted(halves[0] + halves[1]) == sorted(pushed["database"])


@pytest.mark.slow
def test_a_stream_survives_an_unreliable_hub(here, hub, pushed):
    stream = load_image_text("org/scenes", split="database", streaming=True)
    hub.fail("GET /objects/", status=503)
    hub.cut("GET /objects/", after=5_000)
    hub.fail("GET /datasets/org/scenes/resolve/", status=500)
    hub.log.clear()
    assert [row["id"] for row in stream] == pushed["database"]
    assert {0, 500, 503} <= {request.status for request in hub.log}


@pytest.fixture(params=["imagefolder", "parquet", "prepared folder", "scenes"])
def stream(request, prepared, tmp_path, datasets_cache) -> datasets.IterableDataset:
    if request.param == "scenes":
        return load_image_text("scenes", split="train", streaming=True, num_train=11, num_query=2, image_size=32)
    if request.param == "prepared folder":
        return load_image_text(prepared.folder, split="database", streaming=True)
    scenes = load_scenes(11, 2, image_size=32)["train"]
    if request.param == "imagefolder":
        return load_image_text(write_imagefolder(scenes, tmp_path / "own"), split="train", streaming=True)
    scenes.to_parquet(tmp_path / "train.parquet", batch_size=4)
    return load_image_text(tmp_path / "train.parquet", split="train", streaming=True)


def test_every_kind_of_source_is_divided_and_resumed(stream):
    assert isinstance(stream, datasets.IterableDataset)
    expected = [row["id"] for row in stream]
    assert len(set(expected)) == len(expected)

    def ids(dataset) -> list[str]:
        return [row["id"] for row in DataLoader(dataset, batch_size=None, num_workers=2)]

    nodes = [split_dataset_by_node(stream, rank, 2) for rank in range(2)]
    assert sorted(ids(nodes[0].select_columns(["id"])) + ids(nodes[1].select_columns(["id"]))) == sorted(expected)
    pairs = PairStream(stream, count_rows(stream))
    half = len(expected) // 2
    for rank, run in enumerate((expected[:half], expected[half:])):  # the workers of a loader alternate
        assert sorted(ids(pairs.part(num_processes=2, process_index=rank, training=False))) == sorted(run)
    for stop in (1, 4, len(expected) - 1):
        begun, resumed = deepcopy(stream), deepcopy(stream)
        first = [row["id"] for row in islice(begun, stop)]
        resumed.load_state_dict(json.loads(json.dumps(begun.state_dict())))
        assert first + [row["id"] for row in resumed] == expected
