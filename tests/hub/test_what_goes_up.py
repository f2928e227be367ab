"""What of a run's folder goes up, whatever lies in it: nothing foreign, nothing of a person or a machine."""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from cmfah_hf.errors import CheckpointError
from cmfah_hf.hub import push_model


@pytest.fixture
def push_run(here, monkeypatch):
    """A function that pushes a run from this process."""
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    return lambda folder, repo_id="org/model", **settings: push_model(folder, repo_id, progress=False, **settings)


def test_no_code_template_or_pickle_of_a_folder_goes_up(push_run, hub, trained, tmp_path, monkeypatch):
    """Neither runs it, nor is anybody asked whether it may run."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    folder = shutil.copytree(trained.folder, tmp_path / "hostile")
    trap = f"from pathlib import Path\nPath({str(tmp_path / 'sprung')!r}).touch()\nclass Trap: pass\n"
    for name in ("trap.py", "modeling_cmfah.py", "processing_cmfah.py", "configuration_cmfah.py"):
        (folder / name).write_text(trap)
    (folder / "chat_template.jinja").write_text("{{ trap }}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "x.jinja").write_text("{{ trap }}")
    for name in ("pytorch_model.bin", "training_args.bin", "trap.pkl"):
        (folder / name).write_bytes(b"trap")
    for name in ("config.json", "tokenizer_config.json", "processor_config.json"):
        content = json.loads((folder / name).read_text())
        own = (
            "AutoConfig",
            "AutoModel",
            "AutoModelForPreTraining",
            "AutoProcessor",
            "AutoTokenizer",
            "AutoImageProcessor",
        )
        content |= {
            "auto_map": dict.fromkeys(own, "trap.Trap") | {"AutoTokenizer": ["trap.Trap", None]},
            "custom_pipelines": {"trap": {"impl": "trap.Trap", "type": "text", "pt": ["AutoModel"]}},
            "chat_template": "{{ trap }}", "quantization_config": {"quant_method": "trap"}, "unknown": "trap",
        }  # fmt: skip
        for part in ("backbone_config", "image_processor"):
            if part in content:
                content[part]["auto_map"] = dict.fromkeys(own, "trap.Trap")
        (folder / name).write_text(json.dumps(content))
    push_run(folder)
    assert not (tmp_path / "sprung").exists()
    for name, content in hub.files("org/model", "model").items():
        assert b"trap" not in content.lower(), name
    push_run(trained.folder, "org/plain")
    hostile, plain = (hub.files(f"org/{name}", "model") for name in ("model", "plain"))
    assert hostile.keys() == plain.keys()
    assert {name for name in plain if hostile[name] != plain[name]} <= {"README.md", ".cmfah-hf.json"}


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "plots/attention.png", "expander.json", "README.md", "run.yaml"]
)
@pytest.mark.parametrize("kind", ["link", "pipe", "device"])
def test_only_regular_files_below_the_folder_go_up(push_run, hub, trained, tmp_path, name, kind):
    folder = shutil.copytree(trained.folder, tmp_path / "run")
    outside = shutil.copytree(trained.folder, tmp_path / "outside")
    (outside / "README.md").write_text("outside")
    (folder / name).unlink(missing_ok=True)
    if kind == "link":
        (folder / name).symlink_to(outside / name)
    elif kind == "pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match=r"leads out of |is not a regular file|has no ") as raised:
        push_run(folder)
    assert str(folder / name) in str(raised.value)
    assert hub.store.repositories == {}


def test_what_is_foreign_in_a_folder_stays_there(push_run, hub, trained, tmp_path):
    folder = shutil.copytree(trained.folder, tmp_path / "run")
    (folder / "notes.txt").write_text("mine")
    (folder / "id_rsa").symlink_to("/etc/passwd")
    os.mkfifo(folder / "pipe")
    with (folder / "huge.bin").open("wb") as file:
        file.truncate(2**40)
    push_run(folder)
    push_run(trained.folder, "org/plain")
    assert hub.files("org/model", "model").keys() == hub.files("org/plain", "model").keys()
    (folder / "plots" / "attention.png").write_bytes(b"#!/bin/sh")
    with pytest.raises(CheckpointError, match="is not a PNG image"):
        push_run(folder)


@pytest.mark.parametrize(
    ("dataset", "source", "named", "license", "on_the_hub"),
    [
        (
            "scenes",
            ("scenes", "scenes"),
            "Data: `scenes`, drawn by code",
            "The data: not needed (synthetic scenes).",
            None,
        ),
        ("scenes", None, "Data: `scenes`, drawn by code", "The data: not needed (synthetic scenes).", None),
        (
            "org/pairs",
            ("hub", "org/pairs"),
            "Data: [org/pairs](",
            "The data's license is unknown",
            ["org/pairs"],
        ),
        ("data/pairs", ("local", "pairs"), "Data: `pairs`", "The data: cc-by-4.0.", None),
        ("data/pairs", None, "Data: `pairs`", "The data: cc-by-4.0.", None),
        # What a run of before the record was told says nothing of where it was found, nor does a false record.
        ("org/pairs", None, "The run does not name its data.", "The data's license is unknown", None),
        ("data/my-images", None, "The run does not name its data.", "The data's license is unknown", None),
        ("data/my-images", ("local", "my-images"), "Data: `my-images`", "The data's license is unknown", None),
        ("../images/mine", ("local", "mine"), "Data: `mine`", "The data's license is unknown", None),
        ("../images/mine", None, "Data: `mine`", "The data's license is unknown", None),
        ("C:\\images", ("local", "C:\\images"), "Data: `images`", "The data's license is unknown", None),
        ("C:\\images", None, "Data: `images`", "The data's license is unknown", None),
        ("images/", ("local", "images"), "Data: `images`", "The data's license is unknown", None),
        ("images/", ("hub", "images/"), "The run does not name its data.", "The data's license is unknown", None),
        ("../x", ("hub", "../x"), "The run does not name its data.", "The data's license is unknown", None),
        ("..", ("local", ".."), "The run does not name its data.", "The data's license is unknown", None),
    ],
)
def test_the_card_links_to_the_hub_what_was_loaded_from_there_and_nothing_else(
    trained, tmp_path, monkeypatch, dataset, source, named, license, on_the_hub
):
    """`data/pairs` looks like a Hub id, and is a folder below CMFAH_DATA with a card of its own."""
    from cmfah_hf.hub import make_model_card
    from cmfah_hf.hub.finished_run import read_run
    from cmfah_hf.hub.model_folder import write_settings

    monkeypatch.setenv("CMFAH_DATA", str(tmp_path))
    (tmp_path / "data" / "pairs").mkdir(parents=True)
    (tmp_path / "data" / "pairs" / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n\n# Pairs\n")
    folder = shutil.copytree(trained.folder, tmp_path / "run")
    settings = yaml.safe_load((folder / "run.yaml").read_text())
    settings["data"]["dataset"] = dataset
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics.pop("source", None)
    if source is not None:
        metrics["source"] = {"kind": source[0], "name": source[1], "revision": None}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    run = read_run(folder)
    card = make_model_card(run, "org/model")
    assert named in card.text
    assert license in card.text
    assert card.data.datasets == on_the_hub
    assert ("huggingface.co/datasets" in str(card)) == (on_the_hub is not None)
    assert "The model has no license" in card.text
    write_settings(run, tmp_path, None)
    told = yaml.safe_load((tmp_path / "run.yaml").read_text())["data"]["dataset"]
    assert told == (dataset if on_the_hub else Path(dataset.replace("\\", "/")).name.replace("..", "") or "data")


def test_nothing_of_a_person_or_a_machine_goes_up(push_run, hub, trained, tmp_path):
    secret = "hf_" + "Abcdefgh" * 4
    folder = shutil.copytree(trained.folder, tmp_path / "jane-doe")
    settings = yaml.safe_load((folder / "run.yaml").read_text())
    settings["data"] |= {
        "dataset": "../jane-doe/images",
        "knowledge": "/home/jane-doe/wiki",
        "words_from": ["~/jane-doe/w"],
    }
    settings["training"] |= {
        "hub_token": secret, "hub_model_id": "jane-doe/x", "output_dir": "/home/jane-doe/out", "run_name": "jane-doe",
        "deepspeed": "/home/jane-doe/ds.json", "logging_dir": "jane-doe", "report_to": secret,
    }  # fmt: skip
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics |= {
        "source": {"kind": "local", "name": "C:\\Users\\jane-doe\\p"},
        "host": "/net/jane-doe/x",
        "note": secret,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((folder / name).read_text())
        content |= {"_name_or_path": "/home/jane-doe/model", "name_or_path": "/home/jane-doe/model", "x": "jane-doe"}
        (folder / name).write_text(json.dumps(content))
    push_run(folder)
    for name, content in hub.files("org/model", "model").items():
        assert b"jane-doe" not in content, name
        assert secret.encode() not in content, name
