"""Training on streams: epochs without a length, going on after a kill, two real processes, figures as of a data set."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from transformers import TrainerCallback

from cmfah_hf.training import CMFAHTrainer


def stream_of(pairs, shards: int = 4) -> datasets.IterableDataset:
    return pairs.with_format(None).to_iterable_dataset(shards)


class Seen(TrainerCallback):
    """The ids that were trained on, a list a step."""

    def __init__(self, trainer: CMFAHTrainer):
        self.steps: list[list[str]] = []
        collate = trainer.data_collator

        def noting(rows):
            self.steps.append([row["id"] for row in rows])
            return collate(rows)

        trainer.data_collator = noting


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def test_epochs_of_a_stream_are_counted(make_pairs, make_trainer):
    trainer = make_trainer(train=stream_of(make_pairs(27)), num_train_epochs=3)
    seen = Seen(trainer)
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
    assert trainer.codes is None


def test_steps_of_a_stream_need_no_count(make_pairs, make_trainer, monkeypatch):
    from cmfah_hf.training import stream_loaders

    def fail(*args):
        raise AssertionError("the stream is counted")

    monkeypatch.setattr(stream_loaders, "count_rows", fail)
    trainer = make_trainer(train=stream_of(make_pairs(20)), max_steps=7)
    seen = Seen(trainer)
    trainer.train()
    assert trainer.state.global_step == 7
    assert len({name for step in seen.steps[:2] for name in step}) == 16
    assert {name for step in seen.steps for name in step} == set(make_pairs(20)["id"])


def test_a_stream_is_shuffled_as_said(make_pairs, make_trainer):
    trainer = make_trainer(train=stream_of(make_pairs(24)), shuffle_buffer=0)
    seen = Seen(trainer)
    trainer.train()
    assert [name for step in seen.steps for name in step] == make_pairs(24)["id"][:]


def test_evaluation_on_streams_gives_the_figures_of_data_sets(make_model, make_pairs, make_trainer):
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
        [sys.executable, "-c", program, str(Path(__file__).with_name("conftest.py")), *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
        capture_output=True,
        text=True,
        timeout=200,
    )


# By name: the settings, the step at which a run is killed, and the checkpoint, inside an epoch, that it goes on from.
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
    """A folder with what each of these runs left when it was killed."""
    folder = tmp_path_factory.mktemp("killed")
    result = run_program(KILLED, str(folder), json.dumps(SETTINGS))
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.parametrize("name", SETTINGS)
def test_a_killed_run_goes_on_at_the_same_place(name, killed, make_model, make_pairs, make_trainer, tmp_path):
    settings, step, last = SETTINGS[name]
    checkpoint = killed / name / f"checkpoint-{last}"
    assert not (killed / name / f"checkpoint-{last + 3}").exists()

    def trainer_of(folder):
        train = make_pairs(28, region_features_mirrored=make_pairs(28, seed=7)["region_features"])
        model = make_model(dropout=0.3)
        # Other draws before the run do not matter: a checkpoint brings the state of all that is drawn from.
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


def test_two_processes_over_uneven_shards(make_pairs, make_model, make_trainer, tmp_path):
    from cmfah_hf.models import CMFAHForPreTraining

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-c", TWO_PROCESSES, str(Path(__file__).with_name("conftest.py")), str(tmp_path)]
    environment = {**os.environ, **common, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
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
    # What both measured together is what one measures alone.
    model = CMFAHForPreTraining.from_pretrained(tmp_path / "saved")
    alone = make_trainer(model, make_pairs(45), make_pairs(11, seed=1)).evaluate()
    assert alone["eval_map"] == pytest.approx(first["map"][-1], abs=1e-9)
    assert alone["eval_map_random"] == pytest.approx(first["samples"], abs=1e-9)
