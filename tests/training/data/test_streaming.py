"""Training on streams: epochs without a length, resuming after a kill, two real processes, evaluation."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from datasets.table import embed_table_storage
from transformers import TrainerCallback

from cmfah_hf.data import load_image_text
from cmfah_hf.data.splits import in_validation
from cmfah_hf.errors import DataError
from cmfah_hf.expansion import GraphExpander, SkipGramEmbedding
from cmfah_hf.training import CMFAHTrainer, train
from cmfah_hf.training.data import streaming
from cmfah_hf.training.evaluate import evaluate_folder


def stream_of(pairs, shards: int = 4) -> datasets.IterableDataset:
    return pairs.with_format(None).to_iterable_dataset(shards)


# Preamble of a program that loads a conftest: the package and the tests' settings.
PATHS = os.pathsep.join(str(Path(__file__).parents[up]) for up in (3, 2))


class IdRecorder(TrainerCallback):
    """The ids that were trained on, one list per step."""

    def __init__(self, trainer: CMFAHTrainer):
        self.steps: list[list[str]] = []
        collate = trainer.data_collator

        def recording(rows):
            self.steps.append([row["id"] for row in rows])
            return collate(rows)

        trainer.data_collator = recording


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def test_epochs_of_a_stream_are_counted(make_pairs, make_trainer):
    trainer = make_trainer(train=stream_of(make_pairs(27)), num_train_epochs=3)
    seen = IdRecorder(trainer)
    trainer.train()
    assert trainer.state.global_step == 12
    assert trainer.state.epoch == 3
    expected = sorted(make_pairs(27)["id"])
    orders = []
    for epoch in range(3):
        steps = seen.steps[4 * epoch : 4 * epoch + 4]
        assert [len(step) for step in steps] == [8, 8, 8, 3]
        orders.append([name for step in steps for name in step])
        assert sorted(orders[-1]) == expected
    assert len(set(map(tuple, orders))) == 3
    assert trainer.training_state.tables.get("codes") is None


def test_max_steps_need_no_count(make_pairs, make_trainer, monkeypatch):
    from cmfah_hf.training.data import stream_loaders

    def fail(*args):
        raise AssertionError("the stream is counted")

    monkeypatch.setattr(stream_loaders, "count_rows", fail)
    trainer = make_trainer(train=stream_of(make_pairs(20)), max_steps=7)
    seen = IdRecorder(trainer)
    trainer.train()
    assert trainer.state.global_step == 7
    assert len({name for step in seen.steps[:2] for name in step}) == 16
    assert {name for step in seen.steps for name in step} == set(make_pairs(20)["id"])


def test_shuffling_of_a_stream_follows_the_settings(make_pairs, make_trainer):
    trainer = make_trainer(train=stream_of(make_pairs(24)), shuffle_buffer=0)
    seen = IdRecorder(trainer)
    trainer.train()
    assert [name for step in seen.steps for name in step] == make_pairs(24)["id"][:]


def test_metrics_of_streams_match_those_of_data_sets(make_model, make_pairs, make_trainer):
    train, validation, other = make_pairs(24), make_pairs(9, seed=1), make_pairs(13, seed=2)
    for database in (None, other):
        expected = make_trainer(make_model(), train, validation, database=database).evaluate()
        streams = [part and stream_of(part, 3) for part in (train, validation, database)]
        found = make_trainer(make_model(), *streams[:2], database=streams[2]).evaluate()
        for name, value in expected.items():
            if "map" in name:
                assert found[name] == pytest.approx(value, abs=1e-12), name
        assert 0 < found["eval_map"] < 1


PROGRAM = """
import importlib.util, json, os, signal, sys
from pathlib import Path
import datasets
from datasets.table import embed_table_storage
from transformers import TrainerCallback

spec = importlib.util.spec_from_file_location("conftest", sys.argv[1])
conftest = importlib.util.module_from_spec(spec)
spec.loader.exec_module(conftest)
call = lambda fixture: getattr(fixture, "__wrapped__", None) or fixture._get_wrapped_function()
make_config = call(conftest.make_config)()
make_model = call(conftest.make_model)(make_config)
make_pairs = call(conftest.make_pairs)()
processor = call(conftest.processor)(make_config)
make_trainer = call(conftest.make_trainer)(make_model, make_pairs, processor, Path(sys.argv[2]))
"""

KILLED = (
    PROGRAM
    + """
class Kill(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)

for name, (settings, step, _) in json.loads(sys.argv[3]).items():
    if not os.fork():
        train = make_pairs(28, region_features_mirrored=make_pairs(28, seed=7)["region_features"])
        stream = train.with_format(None).to_iterable_dataset(3)
        settings["output_dir"] = str(Path(sys.argv[2]) / name)
        settings |= {"save_strategy": "steps", "save_steps": 3, "callbacks": [Kill(step)]}
        make_trainer(make_model(dropout=0.3), stream, **settings).train()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == -signal.SIGKILL
"""
)


def run_program(program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", program, str(Path(__file__).parents[1] / "conftest.py"), *arguments],
        env={
            **os.environ,
            "PYTHONPATH": PATHS,
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=200,
    )


# By name: settings, the step at which a run is killed, and the mid-epoch checkpoint from which it resumes.
SETTINGS = {
    "epochs": ({"num_train_epochs": 4}, 8, 6),
    "workers": (
        {
            "num_train_epochs": 4,
            "dataloader_num_workers": 2,
            "gradient_accumulation_steps": 3,
            "shuffle_buffer": 10,
        },
        5,
        3,
    ),
    "steps": ({"max_steps": 14}, 8, 6),
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """A folder with the output of each of these runs when it was killed."""
    folder = tmp_path_factory.mktemp("killed")
    result = run_program(KILLED, str(folder), json.dumps(SETTINGS))
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_killed_run_resumes_at_the_same_place(name, killed, make_model, make_pairs, make_trainer, tmp_path):
    settings, step, last = SETTINGS[name]
    checkpoint = killed / name / f"checkpoint-{last}"
    assert not (killed / name / f"checkpoint-{last + 3}").exists()

    def trainer_of(folder):
        train = make_pairs(28, region_features_mirrored=make_pairs(28, seed=7)["region_features"])
        model = make_model(dropout=0.3)
        # Random draws before the run do not matter: a checkpoint restores all generators.
        torch.manual_seed(99 if folder == "resumed" else 0)
        return make_trainer(
            model,
            stream_of(train, 3),
            output_dir=str(tmp_path / folder),
            save_strategy="steps",
            save_steps=3,
            **settings,
        )

    whole = trainer_of("whole")
    torch.manual_seed(whole.args.seed)
    whole.train()
    resumed = trainer_of("resumed")
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.state.global_step == whole.state.global_step > step
    expected, found = weights(whole), weights(resumed)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


TWO_PROCESSES = (
    PROGRAM
    + """
import torch

train, validation = make_pairs(45), make_pairs(11, seed=1)
# Shards of 30, 1 and 14 rows.
parts = [train.select(range(30)), train.select([30]), train.select(range(31, 45))]
def generate(files):
    for part in files:
        for row in part:
            yield row
stream = datasets.IterableDataset.from_generator(
    generate, gen_kwargs={"files": [part.with_format(None) for part in parts]}, features=train.features
)
trainer = make_trainer(make_model(), stream, validation.with_format(None).to_iterable_dataset(3), num_train_epochs=3,
    eval_strategy="epoch", per_device_train_batch_size=5, dataloader_num_workers=2)
steps = []
class Note:
    def __init__(self, collate):
        self.collate = collate
    def __call__(self, rows):
        return {**self.collate(rows), "row": torch.tensor([int(row["id"].split("-")[1]) for row in rows])}
trainer.data_collator = Note(trainer.data_collator)
step = trainer.training_step
def noting(model, inputs, *arguments):
    steps.append(inputs["row"].tolist())
    return step(model, inputs, *arguments)
trainer.training_step = noting
trainer.train()
out = {
    "steps": steps,
    "weights": sum(tensor.double().abs().sum().item() for tensor in trainer.model.state_dict().values()),
    "map": [log["eval_map"] for log in trainer.state.log_history if "eval_map" in log],
    "samples": trainer.evaluate()["eval_map_random"],
}
if trainer.args.process_index == 0:
    trainer.save_model(sys.argv[2] + "/saved")
Path(sys.argv[2], f"out-{trainer.args.process_index}.json").write_text(json.dumps(out))
"""
)


@pytest.mark.slow
def test_two_processes_over_uneven_shards(make_pairs, make_model, make_trainer, tmp_path):
    from cmfah_hf.methods import CMFAHForPreTraining

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-c", TWO_PROCESSES, str(Path(__file__).parents[1] / "conftest.py"), str(tmp_path)]
    environment = {
        **os.environ,
        **common,
        "PYTHONPATH": PATHS,
        "OMP_NUM_THREADS": "1",
    }
    processes = [
        subprocess.Popen(
            command,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        texts = [process.communicate(timeout=200)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], texts
    first, second = (json.loads((tmp_path / f"out-{rank}.json").read_text()) for rank in range(2))
    assert len(first["steps"]) == len(second["steps"]) == 15
    for epoch in range(3):
        seen = [row for out in (first, second) for step in out["steps"][5 * epoch : 5 * epoch + 5] for row in step]
        assert len(seen) == len(set(seen)) >= 44
        assert set(seen) <= set(range(45))
    assert first["weights"] == second["weights"]
    assert first["map"] == second["map"]
    # The joint metrics of both processes are those of a single process.
    model = CMFAHForPreTraining.from_pretrained(tmp_path / "saved")
    expected_metrics = make_trainer(model, make_pairs(45), make_pairs(11, seed=1)).evaluate()
    assert expected_metrics["eval_map"] == pytest.approx(first["map"][-1], abs=1e-9)
    assert expected_metrics["eval_map_random"] == pytest.approx(first["samples"], abs=1e-9)


@pytest.fixture(scope="module")
def parquet(scenes_folder, tmp_path_factory) -> Path:
    """The scenes as Parquet files with images: training pairs in three files, queries in one."""
    folder = tmp_path_factory.mktemp("parquet")
    loaded = {
        name: pairs.with_format("arrow").map(embed_table_storage, batched=True).with_format(None)
        for name, pairs in load_image_text(scenes_folder).items()
    }
    for number in range(3):
        part = loaded["train"].shard(3, number, contiguous=True)
        part.to_parquet(folder / f"train-{number:05d}-of-00003.parquet", batch_size=8)
    loaded["query"].to_parquet(folder / "query-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize("kind", ["pixels of a folder", "regions of Parquet"])
def test_a_run_on_streams(kind, parquet, scenes_folder, run_of, tmp_path):
    dataset = scenes_folder if kind.endswith("folder") else parquet
    frozen = kind.startswith("regions")
    run = run_of(
        *("--streaming", "true"),
        model={"freeze_backbone": frozen},
        data={"dataset": str(dataset), "refit": True, "mirror": frozen, "validation_fraction": 0.3},
        training={"num_train_epochs": 2},
    )
    metrics = train(run)
    ids = load_image_text(dataset, split="train")["id"]
    validation = sum(in_validation(name, 0.3, 0) for name in ids)
    assert (metrics["train_pairs"], metrics["validation_pairs"]) == (48 - validation, validation)
    assert 0 < metrics["validation"] < 1
    # The model evaluated on the same data, not streamed.
    expected = evaluate_folder(str(tmp_path / "out"), str(dataset))
    assert expected["queries"] == 16
    assert expected["database"] == 48
    for name, value in metrics["query"].items():
        # Cached regions are half precision, so a bit near the threshold may flip.
        assert value == pytest.approx(expected[name], abs=2e-2 if frozen else 1e-9), name


def test_words_and_classes_of_a_stream_match_the_data_set(parquet, run_of, tmp_path):
    found = []
    for value in ("true", "false"):
        changes = {"dataset": str(parquet), "validation_split": "query"}
        train(run_of("--streaming", value, "--output_dir", str(tmp_path / value), data=changes))
        config = json.loads((tmp_path / value / "config.json").read_text())
        embedding, expander = SkipGramEmbedding.load(tmp_path / value), GraphExpander.load(tmp_path / value)
        found.append((config["id2label"], embedding.vocabulary, embedding.vectors, expander.graph.transitions))
    (classes, words, vectors, graph), (own_classes, own_words, own_vectors, own_graph) = found
    assert classes == own_classes
    assert words == own_words
    np.testing.assert_array_equal(vectors, own_vectors)
    assert (graph != own_graph).nnz == 0


@pytest.mark.slow
def test_resumed_run_does_not_read_the_texts_again(parquet, run_of, tmp_path, monkeypatch):
    # All checkpoints are kept: the best one before the resumed one must exist.
    training = {"num_train_epochs": 3, "save_total_limit": 3}
    settings = {"data": {"dataset": str(parquet)}, "training": training}
    expected = train(run_of("--streaming", "true", "--output_dir", str(tmp_path / "whole"), **settings))
    train(run_of("--streaming", "true", **settings))
    checkpoint = tmp_path / "out" / "checkpoint-6"
    assert checkpoint.is_dir()

    def fail(*arguments):
        raise AssertionError("the texts are read again")

    monkeypatch.setattr(streaming, "read_notes", fail)
    resumed = train(run_of("--streaming", "true", "--resume_from_checkpoint", str(checkpoint), **settings))
    assert resumed["query"] == expected["query"]


def test_duplicate_ids_are_named(parquet, run_of, tmp_path):
    rows = load_image_text(parquet, split="train")
    names = rows["id"][:]
    names[40] = names[3]
    rows = rows.remove_columns("id").add_column("id", names)
    rows.select(range(20)).to_parquet(tmp_path / "twice" / "train-00000-of-00002.parquet")
    rows.select(range(20, 48)).to_parquet(tmp_path / "twice" / "train-00001-of-00002.parquet")
    with pytest.raises(DataError, match=f"the id {names[3]!r} occurs twice"):
        train(run_of("--streaming", "true", data={"dataset": str(tmp_path / "twice"), "query_split": None}))


def test_ids_are_compared_across_files(tmp_path):
    names = [f"image {number}" for number in range(3000)]
    ids = streaming._Ids(tmp_path)
    for first in range(0, 3000, 700):
        ids.add(names[first : first + 700])
    assert ids.repeated() is None
    ids.add(["image 1234"])
    assert ids.repeated() == streaming._digest("image 1234")


MEMORY = """
import resource, sys
from cmfah_hf.data import load_image_text
from cmfah_hf.data.internals import stream_arrow
from cmfah_hf.training.data.shards import count_rows
from cmfah_hf.training.data.streams import PairStream
import datasets
from pathlib import Path
from torch.utils.data import DataLoader

def read(stream):
    part = PairStream(stream, count_rows(stream), shuffle_buffer=100).part(20)
    rows = sum(len(batch) for batch in DataLoader(part, batch_size=20, collate_fn=lambda rows: rows))
    return rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

regions = datasets.Array2D((100, 512), "float16")
features = datasets.Features({"id": datasets.Value("string"), "region_features": regions})
for folder in sys.argv[1:]:
    for name in ("short", "long"):
        path = Path(folder, name)
        if folder.endswith("parquet"):
            stream = load_image_text(path, split="train", streaming=True)
        else:
            stream = stream_arrow(sorted(map(str, path.glob("*.arrow"))), features)
        print(*read(stream))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_a_stream(tmp_path):
    from datasets.arrow_writer import ArrowWriter

    from cmfah_hf.data import make_scenes

    rng = np.random.default_rng(0)
    scenes = make_scenes(50, image_size=32).remove_columns("id")
    blobs = [rng.bytes(100_000) for _ in range(50)]
    regions = datasets.Features(
        {"id": datasets.Value("string"), "region_features": datasets.Array2D((100, 512), "float16")}
    )
    for name, count in (("short", 8), ("long", 48)):
        for number in range(count):
            part = scenes.add_column("blob", blobs)
            path = tmp_path / "parquet" / name / f"train-{number:05d}-of-{count:05d}.parquet"
            part.to_parquet(path, batch_size=25)
            path = tmp_path / "arrow" / name / f"{number:03d}.arrow"
            path.parent.mkdir(parents=True, exist_ok=True)
            with ArrowWriter(path=str(path), features=regions, writer_batch_size=25) as writer:
                for row in range(50):
                    writer.write({"id": f"{number} {row}", "region_features": rng.random((100, 512), np.float32)})
                writer.finalize()
    folders = [str(tmp_path / kind) for kind in ("parquet", "arrow")]
    result = subprocess.run(
        [sys.executable, "-c", MEMORY, *folders],
        env={**os.environ, "PYTHONPATH": PATHS},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert result.returncode == 0, result.stderr
    found = [[float(value) for value in line.split()] for line in result.stdout.splitlines()]
    assert [rows for rows, _ in found] == [400, 2400, 400, 2400]
    (_, short), (_, long), _, (_, longest) = found
    # 200 MB more of each were read; the short stream already filled the buffer and the eight open shards.
    assert long - short < 40
    assert longest - long < 80
