"""Checkpoints with unusable files but a matching file list: skipped, or reported."""

import io
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cmfah_hf.errors import CheckpointError
from cmfah_hf.training import checkpoints
from cmfah_hf.training.checkpoint_contents import _check_metadata
from cmfah_hf.training.checkpoints import damage_of, find_checkpoint


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept") / "out"


@pytest.fixture
def saved(kept, make_trainer, make_model, tmp_path):
    """The folder of a training of two epochs with its checkpoints: 3 and 6."""
    if not kept.is_dir():
        arguments = {"num_train_epochs": 2, "save_strategy": "epoch", "save_total_limit": None, "optim": "adamw_torch"}
        make_trainer(make_model(), output_dir=str(kept), **arguments).train()
    shutil.copytree(kept, tmp_path / "out")
    return tmp_path / "out"


def rewrite_file_list(folder: Path) -> None:
    """Rewrites the file list to match the current files."""
    written = json.loads((folder / "checkpoint.json").read_text())["written"]
    files = {
        path.relative_to(folder).as_posix(): [path.stat().st_size, checkpoints._checksum(path)]
        for path in folder.rglob("*")
        if path.is_file() and path.name != "checkpoint.json"
    }
    (folder / "checkpoint.json").write_text(json.dumps({"format_version": 1, "written": written, "files": files}))


def change_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rename_a_tensor(path: Path) -> None:
    tensors = load_file(path)
    first = sorted(tensors)[0]
    tensors[f"{first}x"] = tensors.pop(first)
    save_file(tensors, path, metadata={"format": "pt"})


def only_a_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("/tmp/cmfah-was-here"),)


def compressed(path: Path) -> None:
    content = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for record in old.infolist():
            new.writestr(record.filename, old.read(record))


DAMAGES = {
    "garbage as state": (lambda f: (f / "trainer_state.json").write_bytes(b"\x80garbage"), "trainer_state.json"),
    "nested state": (lambda f: (f / "trainer_state.json").write_text("[" * 100_000), "trainer_state.json"),
    "a list as state": (lambda f: (f / "trainer_state.json").write_text("[]"), "trainer_state.json is not the state"),
    "another step": (lambda f: change_json(f / "trainer_state.json", global_step=5), "trainer_state.json is of step 5"),
    "a text as step": (lambda f: change_json(f / "trainer_state.json", global_step="6"), "an invalid 'global_step'"),
    "logs": (lambda f: change_json(f / "trainer_state.json", log_history=[3]), "has an invalid 'log_history'"),
    "best": (lambda f: change_json(f / "trainer_state.json", best_global_step=4), "has an invalid 'best_global_step'"),
    "callbacks": (
        lambda f: change_json(f / "trainer_state.json", stateful_callbacks={"x": 1}),
        "has an invalid 'stateful_callbacks'",
    ),
    "unknown key": (lambda f: change_json(f / "trainer_state.json", what=1), "trainer_state.json is not the state"),
    "optimizer": (lambda f: (f / "optimizer.pt").write_bytes(b"x" * 999), "optimizer.pt is damaged"),
    "truncated optimizer": (lambda f: os.truncate(f / "optimizer.pt", 700), "optimizer.pt is damaged"),
    "optimizer of a list": (lambda f: torch.save([1], f / "optimizer.pt"), "optimizer.pt does not hold what its name"),
    "compressed": (lambda f: compressed(f / "optimizer.pt"), "optimizer.pt is damaged, it is compressed"),
    "code": (lambda f: torch.save(Evil(), f / "optimizer.pt"), "optimizer.pt is damaged, or holds more than tensors"),
    "code in schedule": (lambda f: torch.save({"a": Evil()}, f / "scheduler.pt"), "scheduler.pt is damaged, or holds"),
    "plain pickle": (
        lambda f: (f / "scheduler.pt").write_bytes(pickle.dumps({"last_epoch": 1})),
        "scheduler.pt is dam",
    ),
    "generators": (lambda f: torch.save({"python": 3}, f / "rng_state.pth"), "rng_state.pth does not hold what its"),
    "second player": (
        lambda f: torch.save({"optimizer": {}}, f / "discriminator_optimizer.pt"),
        "discriminator_optimizer.pt does not hold what its name says",
    ),
    "configuration": (lambda f: (f / "config.json").write_text("[]"), "config.json is not that of a model"),
    "no model": (lambda f: change_json(f / "config.json", hash_bits=[]), "config.json makes no model"),
    "header": (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 64), "model.safetensors is damaged"),
    "tensor": (lambda f: rename_a_tensor(f / "model.safetensors"), "model.safetensors is of another model"),
    "progress": (lambda f: save_file({"x": torch.zeros(1)}, f / "progress.safetensors"), "progress.safetensors does"),
    "codes": (lambda f: (f / "codes.safetensors").write_bytes(b""), "codes.safetensors is damaged"),
    "only a pickle": (only_a_pickle, "pytorch_model.bin is a pickle, and weights are loaded from model.safetensors"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_unusable_files_are_detected_despite_a_matching_list(saved, kind, caplog):
    damage, words = DAMAGES[kind]
    last = saved / "checkpoint-6"
    damage(last)
    rewrite_file_list(last)
    assert find_checkpoint("last", saved) == saved / "checkpoint-3"
    assert f"Skipped {last}: " in caplog.text
    assert words in caplog.text
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint(str(last), saved)
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{last}: ")
    assert "\n" not in str(caught.value)
    assert not Path("/tmp/cmfah-was-here").exists()


def change_list(folder: Path, **changes) -> None:
    content = json.loads((folder / "checkpoint.json").read_text())
    content["files"] |= changes
    (folder / "checkpoint.json").write_text(json.dumps(content))


LISTS = {
    "list": lambda f: (f / "checkpoint.json").write_text("[]"),
    "nested": lambda f: (f / "checkpoint.json").write_text('{"files":' * 50_000),
    "entries": lambda f: change_list(f, **{"config.json": "x"}),
    "elsewhere": lambda f: change_list(f, **{"../checkpoint-3/config.json": [1, 2]}),
    "absolute": lambda f: change_list(f, **{"/dev/zero": [0, 0]}),
    "not listed": lambda f: torch.save({}, f / "scaler.pt"),
    "time": lambda f: (f / "checkpoint.json").write_text('{"written": "x", "files": {}}'),
}


@pytest.mark.parametrize("kind", LISTS)
def test_invalid_lists(saved, kind, caplog):
    LISTS[kind](saved / "checkpoint-6")
    assert find_checkpoint("last", saved) == saved / "checkpoint-3"
    with pytest.raises(CheckpointError, match=r"^[^\n]*checkpoint-6: [^\n]*; this checkpoint cannot be used"):
        find_checkpoint(str(saved / "checkpoint-6"), saved)


def test_a_run_resumes_from_the_checkpoint_before_the_damaged_one(saved, make_trainer, make_model, caplog):
    (saved / "checkpoint-6" / "rng_state.pth").write_bytes(b"nothing")
    rewrite_file_list(saved / "checkpoint-6")
    trainer = make_trainer(make_model(), num_train_epochs=2, save_strategy="epoch", optim="adamw_torch")
    trainer.train(resume_from_checkpoint="last")
    assert trainer.state.global_step == 6
    assert "Skipped" in caplog.text
    assert damage_of(saved / "checkpoint-6") is None


def test_another_optimizer_or_schedule_is_refused(saved, make_trainer, make_model):
    with pytest.raises(CheckpointError, match=r"optimizer\.pt: the state of another optimizer or model"):
        make_trainer(make_model(), num_train_epochs=3, optim="sgd").train("last")
    arguments = {"num_train_epochs": 3, "optim": "adamw_torch", "eval_strategy": "epoch"}
    trainer = make_trainer(make_model(), lr_scheduler_type="reduce_lr_on_plateau", **arguments)
    with pytest.raises(CheckpointError, match=r"scheduler\.pt: the schedule of another lr_scheduler_type"):
        trainer.train("last")


def test_metadata_of_a_sharded_checkpoint_unpickles_only_data(tmp_path):
    """PyTorch reads it by `pickle.load`."""
    import torch.distributed.checkpoint as sharded

    model = torch.nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    sharded.save(states, checkpoint_id=tmp_path, no_dist=True)
    file = tmp_path / ".metadata"
    _check_metadata(file)
    for content in (pickle.dumps(Evil()), b"cos\nsystem\n(S'true'\ntR.", b"", b"garbage"):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"^is damaged, or holds more than metadata"):
            _check_metadata(file)
    pickled = b"\x80\x04\x8c\x27torch.distributed.checkpoint.filesystem\x8c\x09os.system\x93\x8c\x04true\x85R."
    file.write_bytes(pickled)
    with pytest.raises(CheckpointError, match="more than metadata"):
        _check_metadata(file)
    assert not Path("/tmp/cmfah-was-here").exists()
