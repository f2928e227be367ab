"""`cmfah push` against the Hub on the loopback: uploaded files, a single commit, resumed uploads."""

import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hub_server import User
from safetensors import safe_open
from safetensors.torch import load_file

from cmfah_hf.errors import CheckpointError, HashIndexError, HubError
from cmfah_hf.methods.pretraining import PRETRAINING_MODELS
from cmfah_hf.models import MODELS
from cmfah_hf.retrieval import CrossMediaRetriever, HashIndex
from cmfah_hf.retrieval.calibration import Calibration, ScoreMap

ROOT = Path(__file__).parents[2]


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def wait_until(condition, seconds: float = 240.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.02)


def test_uploaded_and_skipped_files(push_run, hub, trained, tmp_path):
    done = push_run(trained.folder)
    files = hub.files("org/model", "model")
    assert hub.history("org/model", "model") == ["Upload the model", "initial commit"]
    assert set(files) == {*done.files, ".gitattributes"}
    assert set(done.files) == {
        ".cmfah-hf.json", "README.md", "config.json", "model.safetensors", "pretraining.safetensors",
        "model.safetensors.index.pretraining.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
        "expander.json", "expander.safetensors", "skip_gram.json", "skip_gram.safetensors", "run.yaml", "metrics.json",
        "plots/precision_at_k.png", "plots/precision_recall.png", "plots/attention.png",
        *(path.name for path in (ROOT / "cmfah_hf" / "models").glob("*_cmfah.py")),
        "fused_cmfah.py", "image_modes.py", "safe_weights.py", "model_files.py",
        "configuration_files.py",
        "backbone_tokenizer.py", "codes.py", "image_encoder.py", "text_encoder.py", "dual_encoder.py",
        "encoder_output.py", "adapters.py", "named_encoders.py", "remote_code.py", "sentence_files.py",
            "image_settings.py", "similar_words.py", "text_reading.py", "tokenizer_files.py", "word_rules.py", "word_tokenizer.py",
    }  # fmt: skip
    for name in ("expander.safetensors", "metrics.json", "plots/attention.png"):
        assert files[name] == (trained.folder / name).read_bytes()
    # No paths of this machine, and no pickle.
    for name, content in files.items():
        assert str(trained.folder.parent).encode() not in content, name
        assert str(trained.scenes.parent).encode() not in content, name
        assert not content.startswith(b"PK\x03\x04"), name  # the first bytes of a file from torch.save
    assert {Path(name).suffix for name in done.files} == {".md", ".json", ".safetensors", ".yaml", ".py", ".png"}
    assert not list((tmp_path / "assets").rglob("*.safetensors"))  # the staging folder is removed
    assert not (trained.folder / "README.md").exists()

    again = push_run(trained.folder)
    assert (again.changed, again.commit) == (False, done.commit)


@pytest.mark.parametrize("method", ["cmfah", "scahn"])
def test_towers_and_objective_are_separate_files_and_load_together(push_run, hub, request, tmp_path, method):
    trained = request.getfixturevalue({"cmfah": "trained", "scahn": "trained_scahn"}[method])
    push_run(trained.folder)
    whole = load_file(trained.folder / "model.safetensors")
    for name in ("model.safetensors", "pretraining.safetensors"):
        (tmp_path / name).write_bytes(hub.files("org/model", "model")[name])
    towers, rest = load_file(tmp_path / "model.safetensors"), load_file(tmp_path / "pretraining.safetensors")
    assert {f"cmfah.{name}" for name in towers} | set(rest) == set(whole)
    own = {"label_graph", "contrast_queue", "image_hash_discriminator"} if method == "scahn" else set()
    assert {name.split(".")[0] for name in rest} == {"objective"}
    assert {name.split(".")[1] for name in rest} >= {"image_discriminator", "text_discriminator", "label_head", *own}
    assert all(torch.equal(tensor, whole[f"cmfah.{name}"]) for name, tensor in towers.items())
    assert all(torch.equal(tensor, whole[name]) for name, tensor in rest.items())

    hub.log.clear()
    model, report = MODELS[method].model.from_pretrained("org/model", output_loading_info=True)
    assert not any(report.values())
    sent = [request.path for request in hub.asked("GET", "/objects/", ok=True)]
    assert len(sent) == 1  # only the towers were downloaded
    whole_class = PRETRAINING_MODELS[method]
    again, report = whole_class.from_pretrained("org/model", variant="pretraining", output_loading_info=True)
    assert not any(report.values())
    expected = whole_class.from_pretrained(trained.folder).state_dict()
    assert again.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.state_dict().items())
    assert all(torch.equal(tensor, expected[f"cmfah.{name}"]) for name, tensor in model.state_dict().items())


def test_a_downloaded_model_can_be_pushed_again(push_run, hub, trained, tmp_path):
    from huggingface_hub import snapshot_download

    folder = shutil.copytree(trained.folder, tmp_path / "calibrated", ignore=shutil.ignore_patterns("checkpoint-*"))
    curve = ScoreMap(np.array([-1.0, 1.0]), np.array([0.1, 0.9]), 40, "isotonic", {"ece": 0.021, "ece@10": 0.043})
    fingerprint = CrossMediaRetriever.from_pretrained(folder).fingerprint
    Calibration(fingerprint, 16, "labels", {"aqd/t2i": curve}).save(folder / "calibration.json")
    push_run(folder)
    pulled = Path(snapshot_download("org/model", local_dir=tmp_path / "pulled"))
    push_run(pulled, "org/copy")
    own, copy = hub.files("org/model", "model"), hub.files("org/copy", "model")
    assert {name for name in own if own[name] != copy.get(name)} == set()
    retriever = CrossMediaRetriever.from_pretrained("org/copy")
    assert retriever.calibration.model == retriever.fingerprint == fingerprint
    assert "| text to image, AQD | .021 | .043 | none | none |" in own["README.md"].decode()


def test_a_run_is_reproduced_from_the_pushed_settings(push_run, hub, trained, tmp_path):
    from cmfah_hf.training import parse_run

    push_run(trained.folder, dataset_id="org/scenes")
    file = tmp_path / "run.yaml"
    file.write_bytes(hub.files("org/model", "model")["run.yaml"])
    ours, theirs = parse_run(trained.config, ["--output_dir", "x"]), parse_run(file, ["--output_dir", "x"])
    assert theirs.data.dataset == "org/scenes"
    theirs.data.dataset = ours.data.dataset
    assert theirs.data == ours.data
    assert theirs.model == ours.model
    mine, its = ours.training.to_dict(), theirs.training.to_dict()
    assert {name for name in mine if mine[name] != its[name]} <= {"use_cpu", "disable_tqdm", "dataloader_pin_memory"}


def test_the_token_is_in_no_settings(scenes_folder, write_config, tmp_path):
    from cmfah_hf.training import parse_run
    from cmfah_hf.training.settings.configuration import write_settings

    given = ["--hub_token", "hf_secret", "--hub_model_id", "org/secret", "--report_to", "none", "--seed", "7"]
    run = parse_run(write_config(tmp_path / "c.yaml", data={"dataset": "scenes"}), [*given, "--output_dir", "/my/disk"])
    text = write_settings(run, tmp_path).read_text()
    assert not re.search("secret|/my/disk|hub_|use_cpu", text)
    assert yaml.safe_load(text)["training"]["seed"] == 7
    assert yaml.safe_load(text)["data"]["dataset"] == "scenes"


@pytest.mark.slow
def test_a_killed_push_resumes_with_the_missing_files(hub, trained, push_run, tmp_path):
    hub.add("org/model", {"config.json": b"the former state", "images.index": b"former"}, "model")
    before = hub.files("org/model", "model")
    stalled = f"/objects/{sha256_of(trained.folder / 'skip_gram.safetensors')}"
    hub.slow(f"PUT {stalled}", seconds=60)
    environment = hub.environment(tmp_path / "home", "hf_writer") | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", "from cmfah_hf.cli import main; main()", "push", str(trained.folder)]
    process = subprocess.Popen([*command, "--repo-id", "org/model"], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: len(hub.asked("PUT", ok=True)) >= 3 or process.poll() is not None)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -9
    assert hub.files("org/model", "model") == before  # readers still see the previous state

    sent = {request.path for request in hub.asked("PUT", ok=True)}
    hub.faults.clear()
    hub.log.clear()
    done = push_run(trained.folder)
    asked = {request.path for request in hub.asked("PUT")}
    assert stalled in asked
    assert not asked & sent  # only the missing files
    assert hub.history("org/model", "model") == ["Upload the model", "Add files", "initial commit"]
    assert set(hub.files("org/model", "model")) == {
        *done.files,
        ".gitattributes",
    }  # the previous index was removed in the same commit


def test_an_unreliable_hub_is_retried(push_run, hub, trained):
    hub.fail("POST /api/repos/create", status=502)
    hub.fail("PUT /objects/", status=503)
    hub.cut("PUT /objects/", after=700)
    hub.lose_answer("POST /api/models/org/model/commit")
    done = push_run(trained.folder)
    assert hub.history("org/model", "model") == ["Upload the model", "initial commit"]
    assert set(hub.files("org/model", "model")) == {*done.files, ".gitattributes"}


@pytest.mark.parametrize(
    ("token", "part"),
    [
        ("hf_wrong", "the Hub rejects the token"),
        ("hf_stranger", "the token may not write there"),
        ("hf_reader", "the token may not write there"),
    ],
)
def test_missing_permission_is_reported(push_run, hub, trained, token, part):
    with pytest.raises(HubError, match=part) as raised:
        push_run(trained.folder, token=token)
    assert token not in str(raised.value)
    assert hub.store.repositories == {}
    assert hub.store.objects == {}


def test_private_and_branches(push_run, hub, trained):
    done = push_run(trained.folder, private=True, revision="v2")
    assert (done.private, done.revision) == (True, "v2")
    assert hub.store.repositories["model", "org/model"].private
    assert set(hub.files("org/model", "model")) == {".gitattributes"}
    card = hub.files("org/model", "model", "v2")["README.md"].decode()
    assert 'from_pretrained("org/model", revision="v2")' in card
    assert "hf download org/model run.yaml --local-dir . --revision v2" in card


def test_unusable_folders_and_indexes_are_refused_before_any_upload(push_run, hub, trained, tmp_path):
    index = HashIndex(bits=32)
    index.add(torch.ones(1, 32), ids=["a"])
    index.save(tmp_path / "wide.index")
    with pytest.raises(HashIndexError, match="codes of 32 bits, where 16 were expected"):
        push_run(trained.folder, images_index=tmp_path / "wide.index")
    index = HashIndex(bits=16, model="0" * 32)
    index.add(torch.ones(1, 16), ids=["a"])
    index.save(tmp_path / "foreign.index")
    with pytest.raises(HashIndexError, match=r"foreign\.index holds codes of another model"):
        push_run(trained.folder, images_index=tmp_path / "foreign.index")
    with pytest.raises(HashIndexError, match=r"none\.index"):
        push_run(trained.folder, images_index=tmp_path / "none.index")
    with pytest.raises(CheckpointError, match="no such folder"):
        push_run(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"a folder without config\.json"):
        push_run(tmp_path)
    for name, change, part in (
        (
            "weights",
            lambda f: (f / "model.safetensors").write_bytes(b"\0" * 9),
            "the model or processor cannot be loaded",
        ),
        ("pickle", as_pickle, "no weights as safetensors"),
        ("words", lambda f: (f / "tokenizer.json").unlink(), "the model or processor cannot be loaded"),
        ("figures", lambda f: (f / "metrics.json").write_text("{"), "metrics.json is not valid JSON"),
        ("settings", lambda f: (f / "run.yaml").write_text("a: [\n"), "run.yaml is not valid YAML"),
        ("calibration", lambda f: (f / "calibration.json").write_text("{}"), "calibration.json is no calibration"),
    ):
        folder = shutil.copytree(trained.folder, tmp_path / name)
        change(folder)
        with pytest.raises(CheckpointError) as raised:
            push_run(folder)
        assert part in str(raised.value)
        assert "\n" not in str(raised.value)
    assert hub.store.repositories == {}


def as_pickle(folder: Path) -> None:
    with safe_open(folder / "model.safetensors", "pt") as file:
        torch.save({name: file.get_tensor(name) for name in file.keys()}, folder / "pytorch_model.bin")  # noqa: SIM118
    (folder / "model.safetensors").unlink()


def test_a_custom_card_is_uploaded_unchanged(push_run, hub, trained, tmp_path):
    folder = shutil.copytree(trained.folder, tmp_path / "own")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# Mine\n")
    push_run(folder, attention_image=False)
    files = hub.files("org/model", "model")
    assert files["README.md"] == (folder / "README.md").read_bytes()
    assert "plots/attention.png" not in files


def test_the_command(hub, trained, here, capsys, monkeypatch):
    from cmfah_hf.cli import main

    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    with pytest.raises(SystemExit) as left:
        main(["push", str(trained.folder), "--repo-id", "org/model", "--license", "mit", "--no-attention", "--json"])
    assert not left.value.code
    done = json.loads(capsys.readouterr().out)
    assert done["commit"] == hub.store.repositories["model", "org/model"].branches["main"]
    assert sorted(done["files"]) == done["files"]
    files = hub.files("org/model", "model")
    assert done["size"] == sum(len(files[name]) for name in done["files"])
    monkeypatch.setenv("HF_TOKEN", "hf_member")
    hub.store.users["hf_member"] = User("member", ("org",), may_write=False)
    with pytest.raises(SystemExit) as left:
        main(["push", str(trained.folder), "--repo-id", "org/model"])
    assert left.value.code == 2
    assert "the token may not write there" in capsys.readouterr().err
