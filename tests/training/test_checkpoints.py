"""Checkpoints on disk: atomic, verified before use, rotated; and the state after a full disk."""

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from cmfah_hf.errors import CheckpointError
from cmfah_hf.training import checkpoints
from cmfah_hf.training.checkpoints import damage_of, find_checkpoint, newest_checkpoint, step_of


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept") / "out"


@pytest.fixture
def saved(kept, make_trainer, make_model, tmp_path):
    """The folder of a training of three epochs with all its checkpoints: 3, 6 and 9."""
    if not kept.is_dir():
        arguments = {"num_train_epochs": 3, "save_strategy": "epoch", "save_total_limit": None}
        make_trainer(make_model(), output_dir=str(kept), **arguments).train()
    shutil.copytree(kept, tmp_path / "out")
    return tmp_path / "out"


def names(folder):
    return sorted((path.name for path in folder.glob("checkpoint-*")), key=step_of)


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "cut": (
        lambda folder: os.truncate(folder / "model.safetensors", 100),
        "model.safetensors has 100 bytes instead of ",
    ),
    "removed": (lambda folder: (folder / "optimizer.pt").unlink(), "optimizer.pt is missing"),
    "flipped": (lambda folder: flip_a_byte(folder / "codes.safetensors"), "codes.safetensors is damaged"),
    "never finished": (
        lambda folder: (folder / "checkpoint.json").unlink(),
        "checkpoint.json, written last, is missing",
    ),
    "truncated list": (lambda folder: os.truncate(folder / "checkpoint.json", 40), "checkpoint.json is damaged"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_checkpoint_is_named_and_the_previous_one_used(saved, kind, caplog):
    assert [damage_of(saved / name) for name in names(saved)] == [None] * 3
    damage, words = DAMAGES[kind]
    last = saved / "checkpoint-9"
    damage(last)
    assert find_checkpoint("true", saved) == saved / "checkpoint-6"
    assert f"Skipped {last}: {words}" in caplog.text
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint(str(last), saved)
    assert str(caught.value).startswith(f"{last}: {words}")
    assert "\n" not in str(caught.value)
    assert last.is_dir()  # kept for inspection


def test_no_valid_checkpoint_is_an_error_and_no_checkpoint_a_fresh_start(saved, tmp_path, caplog):
    for name in names(saved):
        os.truncate(saved / name / "model.safetensors", 10)
    with pytest.raises(CheckpointError, match=r"checkpoint-9: model\.safetensors has 10 bytes .* start again"):
        newest_checkpoint(saved)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert find_checkpoint("last", empty) is None
    assert f"{empty}: it has no checkpoint yet; the training starts from the beginning." in caplog.text


@pytest.mark.parametrize("wanted", [None, False, "false", "False", "none", ""])
def test_values_that_disable_resuming(saved, wanted):
    assert find_checkpoint(wanted, saved) is None


@pytest.mark.parametrize("wanted", [True, "true", "True", "last"])
def test_values_that_select_the_last_checkpoint(saved, wanted):
    assert find_checkpoint(wanted, saved) == saved / "checkpoint-9"


def test_checkpoint_or_run_by_its_folder(saved, tmp_path):
    assert find_checkpoint(saved / "checkpoint-3", tmp_path) == saved / "checkpoint-3"
    assert find_checkpoint(str(saved), tmp_path) == saved / "checkpoint-9"
    with pytest.raises(CheckpointError, match=r"gone: this folder does not exist"):
        find_checkpoint(str(tmp_path / "gone"), saved)
    (tmp_path / "bare").mkdir()
    with pytest.raises(CheckpointError, match=r"bare: neither a checkpoint nor a folder with checkpoints"):
        find_checkpoint(str(tmp_path / "bare"), saved)


def test_newest_checkpoint_is_the_last_written(saved, make_trainer, make_model):
    """A second run in the folder of a longer first run."""
    make_trainer(make_model(), num_train_epochs=1, save_strategy="epoch", save_total_limit=None).train()
    assert names(saved) == ["checkpoint-3", "checkpoint-6", "checkpoint-9"]
    assert newest_checkpoint(saved) == saved / "checkpoint-3"
    make_trainer(make_model(), num_train_epochs=2, save_strategy="epoch", save_total_limit=2).train()
    assert names(saved) == ["checkpoint-3", "checkpoint-6"]


def test_old_checkpoints_are_removed_after_the_new_one_is_complete(make_trainer, make_model, monkeypatch, tmp_path):
    out, seen = tmp_path / "out", []
    put_aside = checkpoints._put_aside

    def removing(folder):
        others = [out / name for name in names(out) if name != folder.name]
        seen.append((folder.name, [other.name for other in others if damage_of(other) is None]))
        return put_aside(folder)

    monkeypatch.setattr(checkpoints, "_put_aside", removing)
    make_trainer(make_model(), num_train_epochs=4, save_strategy="epoch", save_total_limit=1).train()
    assert seen == [
        ("checkpoint-3", ["checkpoint-6"]),
        ("checkpoint-6", ["checkpoint-9"]),
        ("checkpoint-9", ["checkpoint-12"]),
    ]
    assert names(out) == ["checkpoint-12"]
    assert not (out / "unfinished").exists()


def test_best_checkpoint_is_not_removed(make_trainer, make_model, tmp_path):
    trainer = make_trainer(
        make_model(), num_train_epochs=5, eval_strategy="epoch", save_strategy="epoch", save_total_limit=2,
        load_best_model_at_end=True, metric_for_best_model="map", greater_is_better=True,
    )  # fmt: skip
    maps = iter([0.1, 0.9, 0.3, 0.4, 0.5])
    figures = ("hamming/i2t/map", "hamming/t2i/map", "random/map")
    trainer.task.evaluator = lambda *args: dict.fromkeys(figures, next(maps))
    trainer.train()
    assert names(tmp_path / "out") == ["checkpoint-6", "checkpoint-15"]
    state = json.loads((tmp_path / "out" / "checkpoint-6" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(tmp_path / "out" / "checkpoint-6")


def fill_by_hand(error):
    raise error


FULL = {
    "python": lambda: fill_by_hand(OSError(errno.ENOSPC, "No space left on device")),
    "safetensors": lambda: fill_by_hand(
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    ),
    # It accepts no data, so the exception is PyTorch's own.
    "torch": lambda: torch.save({"x": torch.zeros(100_000)}, "/dev/full"),
    "torch, little": lambda: torch.save({"x": 1}, "/dev/full"),
}


@pytest.mark.parametrize("library", FULL)
def test_full_disk_keeps_the_last_checkpoint_and_reports_one_line(make_trainer, make_model, tmp_path, library):
    trainer = make_trainer(make_model(), num_train_epochs=3, save_strategy="epoch", save_total_limit=1)
    rng = trainer._save_rng_state

    def full(folder):
        assert (tmp_path / "out" / "unfinished").is_dir()
        FULL[library]() if trainer.state.global_step > 3 else rng(folder)

    trainer._save_rng_state = full
    with pytest.raises(CheckpointError) as caught:
        trainer.train()
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'out'}: the checkpoint of step 6 could not be written (No space left on ")
    assert "checkpoint-3 is complete: make room, then resume with --resume_from_checkpoint last." in message
    assert "\n" not in message
    assert names(tmp_path / "out") == ["checkpoint-3"]
    assert damage_of(tmp_path / "out" / "checkpoint-3") is None
    assert not (tmp_path / "out" / "unfinished").exists()


def test_other_errors_are_not_reported_as_a_full_disk(make_trainer, make_model, tmp_path):
    trainer = make_trainer(make_model(), save_strategy="epoch")

    def broken(folder):
        raise RuntimeError("shapes do not fit")

    trainer._save_rng_state = broken
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        trainer.train()
    assert not (tmp_path / "out" / "unfinished").exists()


PROGRAM = "from cmfah_hf.cli import main; main()"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can mount a small disk")
def test_command_on_a_full_disk(scenes_folder, write_config, tmp_path, environment):
    """A disk with room for the words and a few checkpoints: exit code 2, one line, the last checkpoint valid."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        config = write_config(tmp_path / "run.yaml", data={"dataset": str(scenes_folder)})
        command = [sys.executable, "-c", PROGRAM, "train", str(config), "--output_dir", str(small / "out")]
        run = subprocess.run(
            [*command, "--num_train_epochs", "6", "--save_total_limit", "6"],
            env=environment, capture_output=True, text=True, timeout=200,
        )  # fmt: skip
        assert run.returncode == 2, run.stderr
        line = run.stderr.strip().splitlines()[-1]
        assert line.startswith(f"cmfah: {small / 'out'}: the checkpoint of step ")
        assert "is complete: make room, then resume with --resume_from_checkpoint last." in line
        assert "Traceback" not in run.stderr
        assert not (small / "out" / "unfinished").exists()
        last = newest_checkpoint(small / "out")
        assert last.name in line
        assert damage_of(last) is None
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_checkpoint_of_another_model_is_refused(saved, make_trainer, make_model):
    with pytest.raises(CheckpointError) as caught:
        make_trainer(make_model(hash_bits=32), num_train_epochs=4).train(resume_from_checkpoint="last")
    assert "checkpoint-9: a checkpoint of another model, whose hash_bits is 16 and not 32;" in str(caught.value)
    with pytest.raises(CheckpointError, match=r"whose margin is 0\.5 and not 0\.25"):
        make_trainer(make_model(margin=0.25), num_train_epochs=4).train(resume_from_checkpoint=True)
    classes = {0: "boat", 1: "car", 2: "cat", 3: "zebra"}
    with pytest.raises(CheckpointError, match=r"whose id2label is .*'tree'"):
        make_trainer(make_model(id2label=classes, label2id={name: i for i, name in classes.items()})).train("last")


def test_checkpoint_of_other_data_is_refused(saved, make_trainer, make_model, make_pairs):
    trainer = make_trainer(make_model(), make_pairs(30), num_train_epochs=5)
    with pytest.raises(CheckpointError, match=r"codes\.safetensors is of 24 training pairs, and there are 30 now"):
        trainer.train(resume_from_checkpoint=True)


def test_model_without_trainer_state_cannot_be_resumed(make_trainer, make_model):
    make_trainer(make_model(), save_strategy="epoch", save_only_model=True).train()
    with pytest.raises(CheckpointError, match=r"/optimizer\.pt is missing: the checkpoint only holds a model"):
        make_trainer(make_model(), num_train_epochs=2).train(resume_from_checkpoint=True)


def test_the_best_model_must_exist_and_be_valid(make_trainer, make_model, tmp_path):
    choosing = {
        "eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True,
        "metric_for_best_model": "map", "greater_is_better": True,
    }  # fmt: skip

    def trainer(**arguments):
        trainer = make_trainer(make_model(), **choosing, **arguments)
        maps = iter([0.9, 0.1, 0.2])
        trainer.task.evaluator = lambda *args: dict.fromkeys(
            ("hamming/i2t/map", "hamming/t2i/map", "random/map"), next(maps)
        )
        return trainer

    trainer(num_train_epochs=2).train()
    shutil.copytree(tmp_path / "out", tmp_path / "moved")
    shutil.rmtree(tmp_path / "out")
    out = tmp_path / "moved"
    os.truncate(out / "checkpoint-3" / "model.safetensors", 8)
    with pytest.raises(CheckpointError, match=r"moved/checkpoint-3: model\.safetensors has 8 bytes"):
        trainer(num_train_epochs=3, output_dir=str(out)).train(resume_from_checkpoint=True)
    shutil.rmtree(out / "checkpoint-3")
    with pytest.raises(CheckpointError, match="checkpoint-3: the best model so far is missing"):
        trainer(num_train_epochs=3, output_dir=str(out)).train(resume_from_checkpoint=True)


def test_every_file_is_listed_with_its_size(saved):
    listed = json.loads((saved / "checkpoint-9" / "checkpoint.json").read_text())["files"]
    found = {path.name: path.stat().st_size for path in (saved / "checkpoint-9").iterdir()}
    found.pop("checkpoint.json")
    assert {name: size for name, (size, _) in listed.items()} == found
    assert {"model.safetensors", "optimizer.pt", "progress.safetensors", "rng_state.pth", "trainer_state.json"} <= set(
        found
    )


def test_checksum_covers_all_of_a_large_file(tmp_path):
    """Larger than one read block, changed at either end."""
    save_file({"x": torch.zeros(600_000)}, tmp_path / "x.safetensors")
    before = checkpoints._checksum(tmp_path / "x.safetensors")
    content = bytearray((tmp_path / "x.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "y").write_bytes(content)
    assert len(content) > 2 << 20
    assert checkpoints._checksum(tmp_path / "y") != before
