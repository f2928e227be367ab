"""Training on streams: epochs without a length, going on after a kill, two real processes, figures as of a data set."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from cmfah_hf.data.streams import PairStream
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
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 9:
            os.kill(os.getpid(), signal.SIGKILL)

settings = json.loads(sys.argv[3])
steps = settings.pop("max_steps", -1)
train = make_pairs(28, region_features_mirrored=make_pairs(28, seed=7)["region_features"])
make_trainer(
    make_model(dropout=0.3), train.with_format(None).to_iterable_dataset(3), callbacks=[Kill()], max_steps=steps,
    save_strategy="steps", save_steps=3, **settings
).train()
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


@pytest.mark.parametrize(
    "settings",
    [
        {"num_train_epochs": 4},
        {"num_train_epochs": 4, "dataloader_num_workers": 2, "gradient_accumulation_steps": 2, "shuffle_buffer": 10},
        {"max_steps": 14},
    ],
    ids=["epochs", "workers", "steps"],
)
def test_a_killed_run_goes_on_at_the_same_place(settings, make_model, make_pairs, make_trainer, tmp_path):
    killed = run_program(KILLED, str(tmp_path), json.dumps(settings))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    checkpoints = sorted((tmp_path / "out").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    if not checkpoints[-1].joinpath("trainer_state.json").is_file():
        checkpoints.pop()
    assert checkpoints[-1].name in ("checkpoint-6", "checkpoint-9")

    def trainer_of(folder):
        train = make_pairs(28, region_features_mirrored=make_pairs(28, seed=7)["region_features"])
        # Other draws before the run must not matter: a checkpoint brings the state of all that is drawn.
        torch.manual_seed(int(folder == "resumed") * 99)
        model = make_model(dropout=0.3)
        return make_trainer(
            model, stream_of(train, 3), output_dir=str(tmp_path / folder), save_strategy="steps", save_steps=3, **settings
        )

    whole = trainer_of("whole")
    whole.train()
    resumed = trainer_of("resumed")
    resumed.train(resume_from_checkpoint=str(checkpoints[-1]))
    assert resumed.state.global_step == whole.state.global_step
    expected, found = weights(whole), weights(resumed)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
