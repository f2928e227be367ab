"""Killed and resumed runs: their logs, weights and metrics match those of the uninterrupted run."""

import inspect
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from dual_encoders import write_dual_encoder
from safetensors.torch import load_file
from transformers import Trainer

from cmfah_hf.data.collator import PairCollator
from cmfah_hf.methods import CMFAHForPreTraining
from cmfah_hf.training import checkpoint_store, checkpoints, train, vocabulary
from cmfah_hf.training import run as run_module
from cmfah_hf.training.checkpoints import newest_checkpoint
from cmfah_hf.training.trainer import CMFAHTrainer

logger = logging.getLogger(__name__)  # printed by a failing test

TIMING_KEYS = {
    f"{part}_{name}" for part in ("train", "eval") for name in ("runtime", "samples_per_second", "steps_per_second")
}
# 43 of 48 pairs make 6 steps per epoch, so saving every 4 steps falls within epochs and on their ends; the refit
# has 6 too. Dropout, mirrored regions and shuffling are random; warm-up and cosine change both learning rates.
SETTINGS = {
    "model": {"freeze_backbone": True, "dropout": 0.3, "normalize_features": True},
    "data": {"mirror": True, "refit": True, "query_split": None},
    "training": {
        "num_train_epochs": 3,
        "per_device_train_batch_size": 8,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 3,
        "early_stopping_patience": 3,
    },
}
STRATEGIES = {
    "epoch": {},
    "steps": {"save_strategy": "steps", "save_steps": 4, "eval_strategy": "steps", "eval_steps": 4},
}
BEST = {"save_strategy": "best"}


def arguments_of(strategy, folder):
    return [
        "--output_dir",
        str(folder),
        *(f"--{name}={value}" for name, value in STRATEGIES.get(strategy, BEST).items()),
    ]


def settings():
    return {name: dict(values) for name, values in SETTINGS.items()}


def logs(folder):
    """The log without its times."""
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [{name: value for name, value in log.items() if name not in TIMING_KEYS} for log in history]


def figures(folder):
    found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return {name: value for name, value in found.items() if name not in ("seconds", "query")}


def assert_same_outcome(one, other):
    assert logs(one) == logs(other)
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert figures(one) == figures(other)


def killed(work) -> None:
    """Runs the work in a process that must die by SIGKILL."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), status
    assert os.WTERMSIG(status) == signal.SIGKILL


def kill_at(call_number, owner, name):
    """Makes the process kill itself at the n-th call of a method, before the call does anything."""
    method, calls = getattr(owner, name), iter(range(1, 10_000))

    def counted(*args, **kwargs):
        if next(calls) == call_number:
            os.kill(os.getpid(), signal.SIGKILL)
        return method(*args, **kwargs)

    setattr(owner, name, counted)


@pytest.fixture(scope="module")
def uninterrupted(scenes_folder, write_config, tmp_path_factory):
    """A function from a strategy to the folder of its uninterrupted run."""
    from cmfah_hf.training import parse_run

    root, done = tmp_path_factory.mktemp("uninterrupted"), {}

    def make(strategy):
        if strategy not in done:
            changes = settings()
            changes["data"]["dataset"] = str(scenes_folder)
            config = write_config(root / f"{strategy}.yaml", **changes)
            steps, original = [], CMFAHTrainer.training_step

            def counted(self, *args, **kwargs):
                steps.append(self.args.output_dir)
                return original(self, *args, **kwargs)

            CMFAHTrainer.training_step = counted
            try:
                train(parse_run(config, arguments_of(strategy, root / strategy)))
            finally:
                CMFAHTrainer.training_step = original
            done[strategy] = root / strategy, steps
        return done[strategy]

    return make


@pytest.mark.slow
def test_fewer_checkpoints_change_nothing(uninterrupted, monkeypatch):
    """With `save_strategy="best"`, only epochs that are better are saved, and nothing of the refit."""
    written = []
    finish = checkpoint_store.finish_checkpoint
    monkeypatch.setattr(
        checkpoint_store, "finish_checkpoint", lambda staged, final: (written.append(final), finish(staged, final))
    )
    assert_same_outcome(uninterrupted("best")[0], uninterrupted("epoch")[0])
    maps = [log["eval_map"] for log in logs(uninterrupted("best")[0]) if "eval_map" in log]
    better = [epoch for epoch, found in enumerate(maps) if found > max(maps[:epoch], default=0)]
    in_best = [path for path in written if "best" in str(path)]
    assert [path.name for path in in_best] == [f"checkpoint-{6 * (epoch + 1)}" for epoch in better]


@pytest.mark.parametrize("part", ["first model", pytest.param("refit", marks=pytest.mark.slow)])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_run_killed_at_any_step_ends_like_the_uninterrupted_one(
    run_of, uninterrupted, strategy, part, monkeypatch, tmp_path, caplog
):
    whole, steps = uninterrupted(strategy)
    first = sum(not folder.endswith("refit") for folder in steps)
    seed = random.SystemRandom().randrange(1 << 30)
    chosen = random.Random(seed).randint(*((1, first) if part == "first model" else (first + 1, len(steps))))
    logger.warning("killed at step %d of %d, %d of them before the refit; seed %d", chosen, len(steps), first, seed)
    out = tmp_path / "out"

    def work():
        kill_at(chosen, CMFAHTrainer, "training_step")
        train(run_of(*arguments_of(strategy, out), **settings()))

    killed(work)
    assert not (out / "metrics.json").exists()
    words = {path: path.stat().st_mtime_ns for path in out.glob("*.safetensors")}
    assert {path.name for path in words} == {"expander.safetensors", "skip_gram.safetensors"}
    monkeypatch.setattr(vocabulary, "_fit_words", lambda *args: pytest.fail("the words are made again"))
    taken = []
    step = CMFAHTrainer.training_step
    monkeypatch.setattr(CMFAHTrainer, "training_step", lambda self, *args: taken.append(self) or step(self, *args))
    train(run_of(*arguments_of(strategy, out), "--resume_from_checkpoint", "true", **settings()))

    assert_same_outcome(out, whole)
    assert {path: path.stat().st_mtime_ns for path in words} == words
    # At most the steps since the last checkpoint are repeated.
    assert len(taken) <= len(steps) - chosen + 1 + 6
    if part == "refit":
        assert {Path(trainer.args.output_dir).name for trainer in taken} == {"refit"}
    assert not (out / "refit").exists()


def kill_between_rename_and_removal():
    put_aside = checkpoints._put_aside

    def renamed(folder):
        put_aside(folder)
        os.kill(os.getpid(), signal.SIGKILL)

    checkpoints._put_aside = renamed


def kill_while_the_second_is_flushed():
    flush_folder = checkpoints.flush_folder

    def flushed(folder):
        flush_folder(folder)  # the last step of the first one
        kill_at(10, checkpoints, "flush")

    checkpoints.flush_folder = flushed


MOMENTS = {
    "while it is written": lambda: kill_at(2, CMFAHTrainer, "_save_rng_state"),
    "while it is flushed": kill_while_the_second_is_flushed,
    "while an older one is removed": kill_between_rename_and_removal,
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_run_killed_while_a_checkpoint_is_written(run_of, uninterrupted, moment, tmp_path, caplog):
    whole, _ = uninterrupted("epoch")
    out = tmp_path / "out"

    def work():
        MOMENTS[moment]()
        train(run_of(*arguments_of("epoch", out), **settings()))

    killed(work)
    left = [path.name for path in (out / "unfinished").iterdir()]
    assert len(left) == 1
    last = newest_checkpoint(out)
    train(run_of(*arguments_of("epoch", out), "--resume_from_checkpoint", "last", **settings()))
    if left[0].startswith("checkpoint"):
        assert f"Skipped {out / 'unfinished' / left[0]}: its writing was interrupted." in caplog.text
        assert last.name != left[0]
    assert not (out / "unfinished").exists()
    assert_same_outcome(out, whole)


def test_run_killed_before_its_words_were_written(run_of, uninterrupted, tmp_path, caplog):
    whole, _ = uninterrupted("epoch")
    out = tmp_path / "out"

    def work():
        kill_at(1, vocabulary.SkipGramEmbedding, "save")
        train(run_of(*arguments_of("epoch", out), **settings()))

    killed(work)
    assert (out / "expander.json").is_file()
    assert not (out / "skip_gram.json").exists()
    train(run_of(*arguments_of("epoch", out), "--resume_from_checkpoint", "true", **settings()))
    assert "it has no checkpoint yet; the training starts from the beginning" in caplog.text
    assert_same_outcome(out, whole)


@pytest.mark.slow
def test_run_killed_after_its_last_step_only_finishes(run_of, uninterrupted, monkeypatch, tmp_path):
    """Killed between the refit's last checkpoint and the metrics: nothing is left to train."""
    whole, _ = uninterrupted("epoch")
    out = tmp_path / "out"

    def work():
        kill_at(1, run_module, "evaluate_pairs")
        train(run_of(*arguments_of("epoch", out), "--query_split", "query", **settings()))

    killed(work)
    monkeypatch.setattr(CMFAHTrainer, "training_step", lambda *args: pytest.fail("a step is taken"))
    train(run_of(*arguments_of("epoch", out), "--resume_from_checkpoint", "true", **settings()))
    assert_same_outcome(out, whole)


@pytest.mark.slow
def test_words_of_an_earlier_run_in_the_folder_are_not_reused(run_of, scenes_folder, tmp_path):
    """Otherwise a run killed between the two would resume with one run's graph and the other's vectors."""
    out = tmp_path / "out"
    train(run_of("--output_dir", str(out), data={"dataset": str(scenes_folder), "word_epochs": 3}))
    (out / "model.safetensors").unlink()

    def work():
        kill_at(1, vocabulary.SkipGramEmbedding, "save")
        train(run_of("--output_dir", str(out)))

    killed(work)
    train(run_of("--output_dir", str(out), "--resume_from_checkpoint", "true"))
    train(run_of("--output_dir", str(tmp_path / "fresh")))
    for name in ("skip_gram.safetensors", "model.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes(), name


@pytest.mark.slow
def test_command_killed_from_outside_at_a_random_moment(
    scenes_folder, write_config, uninterrupted, tmp_path, environment
):
    whole, _ = uninterrupted("steps")
    out = tmp_path / "out"
    changes = settings()
    changes["data"]["dataset"] = str(scenes_folder)
    config = write_config(tmp_path / "run.yaml", **changes)
    program = [sys.executable, "-c", "from cmfah_hf.cli import main; main()"]
    command = [*program, "train", str(config), *arguments_of("steps", out), "--resume_from_checkpoint", "true"]
    seed = random.SystemRandom().randrange(1 << 30)
    wait = random.Random(seed).uniform(0.0, 2.0)
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 120
        while not (out / "skip_gram.json").exists() and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(wait)
        process.kill()
    there = sorted(path.name for path in out.iterdir())
    logger.warning("killed %.2f s after the words, seed %d; there were %s", wait, seed, there)
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
    assert_same_outcome(out, whole)


class ScriptedEvaluator:
    """An evaluator with predefined MAPs."""

    def __init__(self, maps):
        self.maps = iter(maps)

    def __call__(self, *hashes_and_labels):
        return dict.fromkeys(("hamming/i2t/map", "hamming/t2i/map", "random/map"), next(self.maps))


@pytest.fixture
def choosing_trainer(make_trainer, make_model):
    def make(maps, **arguments):
        trainer = make_trainer(
            make_model(), eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True,
            metric_for_best_model="map", greater_is_better=True, num_train_epochs=9, **arguments,
        )  # fmt: skip
        trainer.task.evaluator = ScriptedEvaluator(maps)
        return trainer

    return make


def test_an_early_stopped_run_stays_stopped_until_patience_is_raised(choosing_trainer, tmp_path):
    stopped = choosing_trainer([0.5, 0.4, 0.3], early_stopping_patience=2)
    stopped.train()
    assert stopped.state.global_step == 9
    again = choosing_trainer([], early_stopping_patience=2)
    again.train(resume_from_checkpoint=True)
    assert (again.state.global_step, again.state.best_metric) == (9, 0.5)
    further = choosing_trainer([0.45, 0.4], early_stopping_patience=4)
    further.train(resume_from_checkpoint=True)
    assert further.state.global_step == 15  # preceded by 0.4 and 0.3, then 0.45 and 0.4


def test_max_steps_within_an_epoch_are_not_exceeded(make_trainer, make_model):
    arguments = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    make_trainer(make_model(), **arguments).train()
    again = make_trainer(make_model(), **arguments)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4


def test_checkpoint_of_the_last_step_of_an_epoch_includes_its_end(make_trainer, make_model, tmp_path):
    """Its log and its codes, though steps decide when to save."""
    trainer = make_trainer(
        make_model(), num_train_epochs=2, save_strategy="steps", save_steps=3, save_total_limit=None,
        logging_strategy="epoch",
    )  # fmt: skip
    trainer.train()
    for step in (3, 6):
        folder = tmp_path / "out" / f"checkpoint-{step}"
        assert (folder / "codes.safetensors").is_file()
        history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        assert [log["step"] for log in history if "loss" in log] == list(range(3, step + 1, 3))


def test_best_and_last_checkpoints_are_found_after_the_run_was_moved(choosing_trainer, tmp_path):
    choosing_trainer([0.2, 0.9, 0.3, 0.4], max_steps=12).train()
    shutil.move(tmp_path / "out", tmp_path / "moved")
    moved = choosing_trainer([0.5], max_steps=15, output_dir=str(tmp_path / "moved"))
    moved.train(resume_from_checkpoint=True)
    assert moved.state.global_step == 15
    assert moved.state.best_model_checkpoint == str(tmp_path / "moved" / "checkpoint-6")


def test_mirroring_depends_on_the_batch_and_not_on_the_generator(processor):
    plain, mirrored = np.zeros((4, 16), np.float16), np.ones((4, 16), np.float16)
    both = {"region_features": plain, "region_features_mirrored": mirrored}
    rows = [{"id": f"p{i}", "text": "", **both} for i in range(64)]
    collator = PairCollator(processor)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = collator(rows)["region_features"]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(collator(rows)["region_features"], first)
    others = [collator(rows[start:] + rows[:start])["region_features"].mean(dim=(1, 2)) for start in range(1, 40)]
    assert len({tuple(other.tolist()) for other in others}) == 39  # another order, other draws
    assert 0.45 < torch.stack(others).float().mean() < 0.55


def test_trainer_still_writes_checkpoints_to_its_own_folder():
    """If `Trainer` begins to stage checkpoints or to choose the folder elsewhere, ours must change."""
    source = inspect.getsource(Trainer._save_checkpoint)
    assert source.count("self._get_output_dir(") == 1
    assert not any(word in source for word in ("staging", "tmp-", "rename"))


@pytest.mark.parametrize("optimizer", [pytest.param("sgd", marks=pytest.mark.slow), "adamw_torch"])
def test_a_killed_run_resumes_with_the_learning_rate_of_encoders(run_of, optimizer, tmp_path):
    changes = {
        "model": {"freeze_backbone": False, "dropout": 0.3},
        "data": {"query_split": None},
        "training": {"num_train_epochs": 2, "per_device_train_batch_size": 16, "lr_scheduler_type": "cosine"},
    }
    options = ["--optim", optimizer, "--learning_rate", "0.01", "--encoder_learning_rate", "0.001"]

    def run(folder, *arguments):
        sections = {name: dict(values) for name, values in changes.items()}
        train(run_of("--output_dir", str(folder), *options, *arguments, **sections))

    run(tmp_path / "whole")

    def work():
        kill_at(5, CMFAHTrainer, "training_step")  # of three in an epoch
        run(tmp_path / "out")

    killed(work)
    assert newest_checkpoint(tmp_path / "out") is not None
    run(tmp_path / "out", "--resume_from_checkpoint", "true")
    assert_same_outcome(tmp_path / "out", tmp_path / "whole")
    run(tmp_path / "other", "--encoder_learning_rate", "null")
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != (
        tmp_path / "out" / "model.safetensors"
    ).read_bytes()


def test_a_killed_run_with_adapters_resumes_and_saves_an_ordinary_model(run_of, tmp_path):
    pytest.importorskip("peft", reason="peft is not installed")
    encoder = str(write_dual_encoder("clip", tmp_path / "clip"))
    changes = {
        "model": {"dual_encoder": encoder, "freeze_backbone": False, "freeze_text_backbone": False},
        "data": {"query_split": None},
        "training": {"num_train_epochs": 2, "per_device_train_batch_size": 16, "learning_rate": 0.05},
    }

    def run(folder, *arguments):
        sections = {name: dict(values) for name, values in changes.items()}
        train(run_of("--output_dir", str(folder), "--lora_rank", "2", *arguments, **sections))

    run(tmp_path / "whole")

    def work():
        kill_at(5, CMFAHTrainer, "training_step")  # of three in an epoch
        run(tmp_path / "out")

    killed(work)
    found = newest_checkpoint(tmp_path / "out")
    assert any(".lora_A." in name for name in load_file(found / "model.safetensors"))
    run(tmp_path / "out", "--resume_from_checkpoint", "true")
    assert_same_outcome(tmp_path / "out", tmp_path / "whole")
    model = CMFAHForPreTraining.from_pretrained(tmp_path / "out")
    assert model.config.lora_rank is None
    ours = dict(model.cmfah.image_model.embeddings.backbone.encoder.named_parameters())
    theirs = load_file(f"{encoder}/model.safetensors")
    # Linear layers have changed; all else of the encoder is as it was.
    for name, parameter in ours.items():
        is_linear = parameter.ndim == 2 and "embedding" not in name
        assert torch.equal(parameter, theirs[name]) != is_linear, name
