"""The folder of a run: refused paths, one training at a time, and atomic file replacement."""

import json
import multiprocessing
import os
import re
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cmfah_hf.errors import CheckpointError, CMFAHError, DataError
from cmfah_hf.training import train
from cmfah_hf.training.run_folder import held, replacing_files
from cmfah_hf.training.trainer import CMFAHTrainer

TOKEN = "hf_" + "AbCdEfGh" * 4


@pytest.mark.parametrize("kind", ["file", "pipe", "below a file", "name"])
def test_unusable_folders_are_refused_before_any_computation(run_of, make_trainer, tmp_path, kind, monkeypatch):
    from cmfah_hf.training import run as run_module

    monkeypatch.setattr(run_module, "prepare", lambda *args: pytest.fail("the data is read"))
    place = tmp_path / "place"
    os.mkfifo(place) if kind == "pipe" else place.write_text("kept")
    output = {"below a file": place / "out", "name": tmp_path / ("x" * 300)}.get(kind, place)
    for start in (
        lambda: train(run_of("--output_dir", str(output))),
        lambda: make_trainer(output_dir=str(output)),
    ):
        with pytest.raises(CheckpointError, match=rf"^{re.escape(str(output))}: .*; name another --output_dir\.$"):
            start()
    assert kind == "pipe" or place.read_text() == "kept"


def test_devices_are_refused_as_folders(run_of):
    with pytest.raises(CheckpointError, match=r"^/dev/null: something other than a folder is there"):
        train(run_of("--output_dir", "/dev/null"))
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


HOLDER = """
import sys, time
from cmfah_hf.training.run_folder import held
with held(sys.argv[1], sys.argv[2]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("name", ["training", "checkpoints"])
def test_two_trainings_in_one_folder(run_of, make_trainer, tmp_path, environment, monkeypatch, name):
    from cmfah_hf.training import run_folder

    out = tmp_path / "out"
    monkeypatch.setattr(run_folder, "_LINGERING_S", 0.2)
    command = [sys.executable, "-c", HOLDER, str(out), name]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError) as caught:
            train(run_of()) if name == "training" else make_trainer(output_dir=str(out)).train()
        assert f"{out / name} is being written" in str(caught.value)
        assert f"by process {holder.pid} on {socket.gethostname()}" in str(caught.value)
        assert "\n" not in str(caught.value)
        holder.kill()
    # The lock of the dead process does not block the next run, and is removed.
    train(run_of()) if name == "training" else make_trainer(output_dir=str(out)).train()
    assert not [path.name for path in out.rglob(".*") if path.name.endswith(".lock")]


def _hold(folder, counter, errors):
    try:
        for _ in range(20):
            with held(folder, "training"):
                counter.value += 1  # not atomic without the lock
    except CheckpointError as error:
        errors.put(str(error))


def test_lock_is_exclusive(tmp_path):
    context = multiprocessing.get_context("fork")
    counter, errors = context.Value("i", 0, lock=False), context.Queue()
    processes = [context.Process(target=_hold, args=(tmp_path, counter, errors)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert errors.empty()
    assert counter.value == 60


def test_training_without_a_batch_is_an_error(make_trainer, make_pairs):
    """Fewer pairs than one batch with drop_last: an untrained model would be saved."""
    trainer = make_trainer(train=make_pairs(5), dataloader_drop_last=True)
    with pytest.raises(DataError, match="There is no batch to train on"):
        trainer.train()


@pytest.mark.parametrize("validates", [False, True])
def test_diverged_training_saves_no_model(run_of, tmp_path, validates):
    off = () if validates else ("--eval_strategy=no", "--save_strategy=no", "--load_best_model_at_end=false")
    with pytest.raises(CMFAHError):
        train(run_of("--learning_rate=1e38", "--optim=sgd", "--max_grad_norm=0", "--num_train_epochs=3", *off))
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert not (tmp_path / "out" / "metrics.json").exists()


@pytest.mark.parametrize("broken", [False, True])
def test_files_are_replaced_atomically(tmp_path, broken):
    (tmp_path / "a").write_text("old")
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "mine").write_text("kept")
    try:
        with replacing_files(tmp_path) as staged:
            (staged / "a").write_text("new")
            (staged / "b").mkdir()
            (staged / "b" / "c").write_text("new")
            if broken:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert (tmp_path / "a").read_text() == ("old" if broken else "new")
    assert (tmp_path / "b" / "c").exists() != broken
    assert sorted(path.name for path in (tmp_path / "unfinished").iterdir()) == ["mine"]


def test_links_are_followed_and_the_umask_applies(run_of, tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    for name in ("metrics.json", "run.yaml", "model.safetensors"):
        (elsewhere / name).write_text("old")
        (out / name).symlink_to(elsewhere / name)
    before = os.umask(0o027)
    try:
        train(run_of())
    finally:
        os.umask(before)
    for name in ("metrics.json", "run.yaml", "model.safetensors"):
        assert (out / name).is_symlink()
        assert (elsewhere / name).read_bytes() != b"old"
    assert json.loads((elsewhere / "metrics.json").read_text())["hash_bits"] == 16
    written = [*out.glob("checkpoint-*/*"), out / "processor_config.json", out / "training_args.json"]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in written}
    assert len(written) > 10
    assert modes == {0o640}
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]
    assert not (out / "unfinished").exists()


def test_no_file_of_a_training_holds_the_token(make_trainer, make_model, tmp_path, monkeypatch):
    """Not even briefly: the process may be killed while the parent's pickle of the arguments exists."""
    seen, save = [], torch.save

    def recording(value, path, *args, **kwargs):
        save(value, path, *args, **kwargs)
        seen.append(TOKEN.encode() in open(path, "rb").read())  # noqa: PTH123, SIM115

    monkeypatch.setattr(torch, "save", recording)
    trainer = make_trainer(make_model(), hub_token=TOKEN, save_strategy="epoch")
    trainer.train()
    trainer.save_model()
    assert trainer.args.hub_token == TOKEN
    assert seen
    assert not any(seen)
    assert not [
        path for path in (tmp_path / "out").rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()
    ]


def test_run_killed_while_its_model_is_written_keeps_the_earlier_one(make_trainer, make_model, tmp_path):
    out = tmp_path / "out"
    make_trainer(make_model()).save_model()
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    child = os.fork()
    if child == 0:
        write = CMFAHTrainer.__mro__[1]._save

        def killed(self, *args):
            write(self, *args)
            os.kill(os.getpid(), 9)

        CMFAHTrainer.__mro__[1]._save = killed
        make_trainer(make_model(seed=5)).save_model()
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == 9
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    trainer = make_trainer(make_model(seed=5))
    trainer.save_model()
    assert not (out / "unfinished").exists()
    assert (out / "model.safetensors").read_bytes() != before["model.safetensors"]
    assert time.time() - (out / "model.safetensors").stat().st_mtime < 60
