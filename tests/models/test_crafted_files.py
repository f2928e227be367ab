"""Crafted model folders: no file outside the folder is read, no code runs, and nothing large is allocated."""

import io
import json
import shutil
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cmfah_hf.errors import CheckpointError
from cmfah_hf.hub.model_folder import write_model
from cmfah_hf.methods import CMFAHForPreTraining
from cmfah_hf.models import CMFAHConfig, CMFAHModel, CMFAHProcessor
from cmfah_hf.models.model_files import ModelFileError
from cmfah_hf.retrieval import CrossMediaRetriever

INDEX = "model.safetensors.index.json"
WORDS = ["beach", "dog", "sea", "sky"]


@pytest.fixture(scope="module")
def intact_folder(make_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    model = make_model(CMFAHForPreTraining, vocab_size=len(WORDS) + 2)
    model.save_pretrained(folder)
    CMFAHProcessor.from_vocabulary(model.config, WORDS).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(intact_folder, tmp_path) -> Path:
    return Path(shutil.copytree(intact_folder, tmp_path / "model"))


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


def edit_backbone(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    edit(folder / "config.json", backbone_config=config["backbone_config"] | changes)


def refusal(folder: Path, limit_s: float = 5) -> str:
    started = time.process_time()
    with pytest.raises(CheckpointError) as raised:
        CrossMediaRetriever.from_pretrained(folder)
    assert time.process_time() - started < limit_s
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_an_intact_folder_is_loaded(folder):
    assert CrossMediaRetriever.from_pretrained(folder).encode_texts(["a dog"]).shape == (1, 16)


# No file outside the folder


@pytest.mark.parametrize("place", ["../outside.safetensors", "absolute", "below/x.safetensors", "link"])
def test_weights_are_read_only_below_the_folder(folder, tmp_path, place):
    outside = tmp_path / "outside.safetensors"
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").rename(outside)
    if place == "link":
        place = "shard.safetensors"
        (folder / place).symlink_to(outside)
    name = str(outside) if place == "absolute" else place
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, name)}), "utf-8")
    assert any(reason in refusal(folder) for reason in ("only read from safetensors files", "leads out of"))


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_links_out_of_the_folder_are_refused(folder, tmp_path, name):
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    assert "leads out of" in refusal(folder)


def test_cache_snapshots_may_link_to_their_blobs(folder, tmp_path):
    repository = tmp_path / "models--owner--name"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for path in folder.iterdir():
        path.rename(repository / "blobs" / path.name)
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    assert CMFAHModel.from_pretrained(snapshot).config.hash_bits == 16
    assert len(CMFAHProcessor.from_pretrained(snapshot).tokenizer) == len(WORDS) + 2


def test_arguments_out_of_the_folder_are_refused(folder):
    with pytest.raises(ModelFileError, match="without slashes"):
        CMFAHModel.from_pretrained(folder, variant="x/../../outside")
    (folder / "below").mkdir()
    with pytest.raises(ModelFileError, match="leads out of"):
        CMFAHModel.from_pretrained(folder / "below", subfolder="..")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"backbone": "/etc", "backbone_config": None}, "looked up elsewhere"),
        ({"backbone": "owner/name", "backbone_config": None}, "looked up elsewhere"),
        ({"transformers_weights": "../outside.safetensors"}, "transformers_weights"),
        ({"configuration_files": ["config.4.0.0.json"]}, "other configuration files"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "quantization_config"),
        ({"_attn_implementation": "owner/kernel"}, "code on the Hub"),
        ({"attn_implementation": "kernels-community/flash-attn2"}, "code on the Hub"),
        ({"dtype": "load"}, "dtype is 'load'"),
        ({"from_pretrained": "x"}, "is no setting"),
    ],
)
def test_paths_in_a_configuration_are_refused(folder, changes, reason):
    edit(folder / "config.json", **changes)
    assert reason in refusal(folder)


def test_paths_in_a_backbone_are_refused(folder):
    edit_backbone(folder, _name_or_path="/etc")
    assert CMFAHModel.from_pretrained(folder).config.backbone_config.name_or_path == ""
    edit(folder / "config.json", backbone_config={"model_type": "timm_backbone", "backbone": "hf-hub:owner/name"})
    assert "timm" in refusal(folder)
    edit(folder / "config.json", backbone_config={"model_type": "bert"})
    assert "no image backbone" in refusal(folder)


# No pickles


class Trap:
    def __init__(self, executed: Path):
        self.executed = executed

    def __reduce__(self):
        return Path.touch, (self.executed,)


def test_an_index_cannot_name_a_pickle(folder, tmp_path):
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    torch.save({"weights": Trap(tmp_path / "executed")}, folder / "x.bin")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "x.bin")}), "utf-8")
    assert "x.bin" in refusal(folder)
    (folder / INDEX).unlink()
    (folder / "x.bin").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelFileError, match="pickles are never loaded"):
        CMFAHModel.from_pretrained(folder / "pytorch_model.bin", config=CMFAHConfig.from_pretrained(folder))
    with pytest.raises(ValueError, match="never loaded"):
        CMFAHModel.from_pretrained(folder, gguf_file="pytorch_model.bin")
    assert not (tmp_path / "executed").exists()


# No code from the folder


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer_config.json"])
def test_code_of_the_folder_never_runs(folder, tmp_path, monkeypatch, name):
    """As `yes | cmfah search` would answer. References to code are not saved again either."""
    (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'executed')!r}).touch()\n", "utf-8")
    classes = (
        "AutoConfig",
        "AutoModel",
        "AutoTokenizer",
        "AutoProcessor",
        "AutoImageProcessor",
        "AutoModelForPreTraining",
    )
    changes = {"auto_map": dict.fromkeys(classes, "evil.Evil") | {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    if name == "processor_config.json":
        settings = json.loads((folder / name).read_text("utf-8"))["image_processor"]
        changes |= {"image_processor": settings | changes, "processor_class": "EvilProcessor", "chat_template": "{{x}}"}
    if name == "tokenizer_config.json":
        changes |= {"tokenizer_class": "EvilTokenizer", "processor_class": "EvilProcessor", "chat_template": "{{x}}"}
    edit(folder / name, **changes, custom_pipelines={"cross-modal-retrieval": {"impl": "evil.Evil"}})
    (folder / "chat_template.jinja").write_text("{{ x }}", "utf-8")
    monkeypatch.setattr("sys.stdin", io.StringIO("yes\n" * 100))
    assert CrossMediaRetriever.from_pretrained(folder).encode_texts(["a dog"]).shape == (1, 16)
    (tmp_path / "pushed").mkdir()
    write_model(folder, tmp_path / "pushed")
    assert not (tmp_path / "executed").exists()
    assert sys.stdin.read() == "yes\n" * 100
    for path in (tmp_path / "pushed").iterdir():
        assert "evil" not in path.name
        assert "template" not in path.name
        assert path.suffix != ".json" or "evil" not in path.read_text("utf-8")


# Nothing large, nothing deeply nested, no unexpected type


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: edit_backbone(folder, depths=[1_000_000, 1]),
        lambda folder: edit_backbone(folder, depths=[3_000, 1]),
        lambda folder: edit_backbone(folder, hidden_sizes=[10**6, 10**6]),
        lambda folder: edit_backbone(folder, hidden_act="none"),
        lambda folder: edit_backbone(folder, depths="x"),
        lambda folder: edit(folder / "config.json", hidden_size=10**6),
        lambda folder: edit(folder / "config.json", hidden_size="16"),
        lambda folder: edit(folder / "config.json", vocab_size=10**6),
        lambda folder: edit(folder / "config.json", num_hidden_layers=4_000),
        lambda folder: edit(folder / "config.json", hash_bits=8 * 10**6),
        lambda folder: edit(folder / "config.json", image_size=10**6),
        lambda folder: edit(folder / "config.json", num_labels=10**9),
        lambda folder: edit(folder / "config.json", pad_token_id=-1),
        lambda folder: edit(folder / "config.json", text_kernel_sizes=5),
        lambda folder: edit(folder / "config.json", id2label={"x": "dog"}),
        lambda folder: edit(folder / "config.json", image_temperature=float("nan")),
        lambda folder: edit(folder / "config.json", backbone_config=[]),
        lambda folder: (folder / "config.json").write_text("[]"),
        lambda folder: (folder / "config.json").write_text('{"a":' * 100_000),
        lambda folder: (folder / "config.json").write_text('{"model_type": "cmfah", "margin": 1e400}'),
        lambda folder: (folder / "config.json").write_text('{"model_type": "cmfah", "x": ' + "9" * 5_000 + "}"),
        lambda folder: (folder / "config.json").write_text('{"model_type": "cmfah", "x": "\\ud800"}'),
        lambda folder: (folder / "config.json").write_text('{"model_type": ["cmfah"]}'),
    ],
)  # fmt: skip
def test_a_configuration_is_refused_before_anything_is_built(folder, change):
    change(folder)
    refusal(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"size": {"height": 10**6, "width": 10**6}},
        {"size": {"height": -1, "width": 32}},
        {"size": 32},
        {"image_mean": [0.5, 0.5]},
        {"image_std": [0.0, 0.5, 0.5]},
        {"image_std": ["x", 0.5, 0.5]},
        {"rescale_factor": 1e30},
        {"resample": 99},
        {"do_resize": "no"},
        {"device": "cuda:9"},
        {"image_processor_type": "Path"},
        {"image_processor_type": None},
    ],
)
def test_image_settings_are_checked(folder, changes):
    path = folder / "processor_config.json"
    edit(path, image_processor=json.loads(path.read_text("utf-8"))["image_processor"] | changes)
    assert "processor_config.json" in refusal(folder)


def replaced(**changes):
    return lambda path: edit(path, **changes)


def numbered(**numbers):
    def change(path: Path) -> None:
        model = json.loads(path.read_text("utf-8"))["model"]
        edit(path, model=model | {"vocab": model["vocab"] | numbers})

    return change


@pytest.mark.parametrize(
    "change",
    [
        numbered(dog=-1),
        numbered(dog=2**40),
        numbered(dog=2),
        numbered(dog=True),
        replaced(normalizer={"type": "Replace", "pattern": {"Regex": "."}, "content": "x " * 10_000}),
        replaced(normalizer={"type": "Prepend", "prepend": "x" * 10_000_000}),
        replaced(
            pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Removed", "invert": True}
        ),
        replaced(decoder={"type": "WordPiece", "prefix": "##", "cleanup": True}),
        replaced(added_tokens=[]),
        replaced(model={"type": "BPE", "vocab": {}, "merges": []}),
        lambda path: path.write_text("[]"),
        lambda path: path.write_text("[" * 100_000),
    ],
)
def test_a_tokenizer_of_another_kind_is_refused(folder, change):
    change(folder / "tokenizer.json")
    assert "tokenizer.json" in refusal(folder)


# Weights


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(folder, value):
    tensors = load_file(folder / "model.safetensors")
    tensors["cmfah.text_model.hash_head.dense.bias"][3] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    reason = refusal(folder)
    assert "cmfah.text_model.hash_head.dense.bias" in reason
    assert "not finite" in reason


def test_finite_weights_with_an_overflowing_sum_are_accepted(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["cmfah.text_model.hash_head.dense.weight"][:] = 3e38
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    CMFAHModel.from_pretrained(folder)


def test_weights_of_another_type_are_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"I32"'))
    assert "torch.int32" in refusal(folder)
    path.write_bytes(path.read_bytes().replace(b'"I32"', b'"U32"'))
    refusal(folder)
