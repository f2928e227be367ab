"""Incomplete and inconsistent checkpoints: one-line errors of `CrossMediaRetriever.from_pretrained`."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import BertConfig

from cmfah_hf.errors import CheckpointError
from cmfah_hf.retrieval import CrossMediaRetriever


def another_architecture(folder: Path):
    BertConfig().save_pretrained(folder)


def other_bits(folder: Path):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "hash_bits": 32}), encoding="utf-8")


def lost_tensors(folder: Path):
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "image_model.hash_head" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def other_words(folder: Path):
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["vocab"]["anewword"] = len(tokenizer["model"]["vocab"])
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")


def without(name: str, message: str | None = None):
    def remove(folder: Path):
        (folder / name).unlink()

    return pytest.param(remove, message or name.partition(".")[0], id=f"without {name}")


def half_of(name: str):
    def cut(folder: Path):
        (folder / name).write_bytes((folder / name).read_bytes()[: (folder / name).stat().st_size // 2])

    return pytest.param(cut, "", id=f"half of {name}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(another_architecture, "a checkpoint of 'bert', not of 'cmfah'", id="another architecture"),
        pytest.param(other_bits, "the shapes of its tensors are not those of its config.json", id="other bits"),
        pytest.param(lost_tensors, "2 of the model's tensors are missing, 'image_model.hash_head", id="lost tensors"),
        pytest.param(other_words, "its tokenizer is not the one that its model was trained with", id="other words"),
        without("config.json"),
        without("model.safetensors"),
        without("expander.json"),
        without("expander.safetensors"),
        pytest.param(
            lambda folder: (folder / "tokenizer.json").unlink(), "CMFAHProcessor", id="without tokenizer.json"
        ),
        pytest.param(
            lambda folder: (folder / "processor_config.json").unlink(),
            "CMFAHProcessor",
            id="without processor_config.json",
        ),
        half_of("config.json"),
        half_of("model.safetensors"),
        half_of("tokenizer.json"),
        half_of("processor_config.json"),
        half_of("expander.json"),
        half_of("expander.safetensors"),
    ],
)
def test_an_incomplete_checkpoint_is_refused(trained, tmp_path, damage, message):
    folder = tmp_path / "damaged"
    shutil.copytree(trained.folder, folder, ignore=shutil.ignore_patterns("checkpoint-*", "plots"))
    damage(folder)
    with pytest.raises(CheckpointError) as caught:
        CrossMediaRetriever.from_pretrained(folder)
    assert str(caught.value).startswith(str(folder))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["nowhere", "./nowhere/at/all", "not a name"])
def test_a_missing_source_is_named(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError) as caught:
        CrossMediaRetriever.from_pretrained(source)
    assert str(caught.value).startswith(f"{source}: ")
    assert "\n" not in str(caught.value)
