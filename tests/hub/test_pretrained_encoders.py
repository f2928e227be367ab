"""Pushed models that were trained over pretrained encoders: a head over a pinned commit, and the facts in the card."""

import json
from pathlib import Path

import pytest
import torch
from dual_encoders import write_dual_encoder, write_text_model
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file
from transformers import ResNetBackbone, ResNetConfig, ViTImageProcessor

from cmfah_hf.hub import push_model
from cmfah_hf.methods.pretraining import CMFAHForPreTraining
from cmfah_hf.retrieval import CrossMediaRetriever
from cmfah_hf.training import bundled_configuration, parse_run, train
from cmfah_hf.training.compression import compress

LICENSED = "---\nlicense: other\nlicense_name: apple-ascl\nlicense_link: https://example.org/a|b\n---\n# An encoder\n"


@pytest.fixture(autouse=True)
def token(monkeypatch):
    """The token of a user who may write."""
    monkeypatch.setenv("HF_TOKEN", "hf_writer")


def upload(folder: Path, repo_id: str, card: str = LICENSED) -> str:
    (folder / "README.md").write_text(card, encoding="utf-8")
    HfApi().create_repo(repo_id)
    return HfApi().upload_folder(repo_id=repo_id, folder_path=folder).oid


def write_image_model(folder: Path) -> Path:
    torch.manual_seed(0)
    sizes = {"layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    ResNetBackbone(ResNetConfig(**sizes)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def trained_over(encoder: str, scenes: Path, output: Path, *further: str) -> dict:
    arguments = {
        "dataset": scenes, "hash_bits": 16, "hidden_size": 24, "num_concepts": 4, "shared_mlp_size": 8,
        "num_train_epochs": 1, "per_device_train_batch_size": 20, "output_dir": output, "report_to": "none",
    }  # fmt: skip
    given = [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
    configuration = bundled_configuration("clip-unlabeled.yaml")
    return train(parse_run(configuration, [*given, "--dual_encoder", encoder, *further]))


def trained_over_two(images: str, texts: str, scenes: Path, output: Path, write_config) -> dict:
    model = {"backbone": images, "backbone_config": None, "freeze_backbone": True, "text_backbone": texts}
    changes = {"model": model, "data": {"dataset": str(scenes), "expand": False}, "training": {"num_train_epochs": 1}}
    return train(parse_run(write_config(output.parent / "two.yaml", **changes), ["--output_dir", str(output)]))


@pytest.mark.parametrize("kind", ["dual", "two", "compressed"])
def test_no_pushed_file_names_the_folder_of_an_encoder(kind, hub, here, scenes_folder, write_config, tmp_path):
    place, output = tmp_path / "private-place", tmp_path / "model"
    if kind == "two":
        images, texts = write_image_model(place / "images"), write_text_model(place / "texts")
        trained_over_two(str(images), str(texts), scenes_folder, output, write_config)
    elif kind == "dual":
        trained_over(str(write_dual_encoder("clip", place / "both")), scenes_folder, output)
    else:
        compress(str(write_dual_encoder("clip", place / "both")), scenes_folder, output, bits=16)
    push_model(
        output, "org/model", images_index=None if kind != "compressed" else output / "images.index", progress=False
    )
    files = hub.files("org/model", "model")
    for name, content in files.items():
        assert b"private-place" not in content, name
    names = {"two": ["images", "texts"]}.get(kind, ["both"])
    assert all(f"`{name}`" in files["README.md"].decode() for name in names)
    assert "base_model" not in files["README.md"].decode()


def test_trained_head_names_the_commit_of_its_encoder(hub, here, scenes_folder, tmp_path):
    commit = upload(write_dual_encoder("clip", tmp_path / "encoder"), "org/clip")
    metrics = trained_over("org/clip", scenes_folder, tmp_path / "model")
    facts = {"of": "images and texts", "name": "org/clip", "revision": commit}
    assert metrics["encoders"] == [facts | {"license": "apple-ascl (https://example.org/a|b)"}]
    assert hub.asked("GET", f"/org/clip/resolve/{commit}/README.md")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["encoder_source"], config["encoder_revision"]) == ("org/clip", commit)
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    assert not [name for name in tensors if "embeddings.backbone" in name]

    push_model(tmp_path / "model", "org/model", progress=False)
    local = CrossMediaRetriever.from_pretrained(tmp_path / "model")
    assert CrossMediaRetriever.from_pretrained("org/model").fingerprint == local.fingerprint
    whole = CMFAHForPreTraining.from_pretrained("org/model", variant="pretraining")
    own = CMFAHForPreTraining.from_pretrained(tmp_path / "model").state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in whole.state_dict().items())
    weights = load_file(tmp_path / "encoder" / "model.safetensors")
    half = local.model.text_model.embeddings.backbone.encoder.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in half.items())

    card = ModelCard.load("org/model")
    assert (card.data.base_model, card.data.license) == ("org/clip", None)
    for part in (
        f"| commit of the encoder | {commit} |",
        r"| license of the encoder | apple-ascl (https://example.org/a\|b) |",
        "fetched from the commit above",
        "from the vectors of the encoder and the pairs of the data",
        " validation pairs; " if metrics["refit"] else " validation pairs. ",
    ):
        assert part in card.text
    assert "selected the epoch" not in card.text


@pytest.mark.parametrize("reason", ["asked", "other images"])
def test_weights_are_saved_if_asked_or_if_they_are_others(reason, hub, here, scenes_folder, tmp_path):
    commit = upload(write_dual_encoder("clip", tmp_path / "encoder"), "org/clip")
    other = write_dual_encoder("clip", tmp_path / "other", seed=1)
    further = ["--link", "false"] if reason == "asked" else ["--backbone_weights", str(other)]
    metrics = trained_over("org/clip", scenes_folder, tmp_path / "model", *further)
    assert metrics["encoders"][0]["revision"] == commit
    assert json.loads((tmp_path / "model" / "config.json").read_text()).get("encoder_source") is None
    weights = load_file((other if reason != "asked" else tmp_path / "encoder") / "model.safetensors")
    half = CrossMediaRetriever.from_pretrained(tmp_path / "model").model.image_model.embeddings.backbone.encoder
    assert all(torch.equal(tensor, weights[name]) for name, tensor in half.state_dict().items())
    push_model(tmp_path / "model", "org/model", progress=False)
    card = ModelCard.load("org/model")
    assert card.data.base_model == "org/clip"
    assert "in this repository" in card.text


def test_resumed_training_names_its_encoder_only_if_it_is_still_that_of_the_hub(hub, here, scenes_folder, tmp_path):
    upload(write_dual_encoder("clip", tmp_path / "encoder"), "org/clip")
    further = ("--num_train_epochs", "2", "--save_total_limit", "9")
    trained_over("org/clip", scenes_folder, tmp_path / "whole", *further)
    first = min((tmp_path / "whole").glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    assert any("embeddings.backbone" in name for name in load_file(first / "model.safetensors"))

    further += ("--resume_from_checkpoint", str(first))
    trained_over("org/clip", scenes_folder, tmp_path / "resumed", *further)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    HfApi().upload_folder(repo_id="org/clip", folder_path=write_dual_encoder("clip", tmp_path / "other", seed=1))
    trained_over("org/clip", scenes_folder, tmp_path / "later", *further)
    assert json.loads((tmp_path / "later" / "config.json").read_text()).get("encoder_source") is None
    weights = load_file(tmp_path / "encoder" / "model.safetensors")
    half = CrossMediaRetriever.from_pretrained(tmp_path / "later").model.text_model.embeddings.backbone.encoder
    assert all(torch.equal(tensor, weights[name]) for name, tensor in half.state_dict().items())


def test_card_names_both_encoders_of_a_model(hub, here, scenes_folder, write_config, tmp_path):
    commits = [
        upload(write_image_model(tmp_path / "images"), "org/resnet", "---\nlicense: mit\n---\n"),
        upload(write_text_model(tmp_path / "texts"), "org/minilm"),
    ]
    trained_over_two("org/resnet", "org/minilm", scenes_folder, tmp_path / "model", write_config)
    push_model(tmp_path / "model", "org/model", progress=False)
    card = ModelCard.load("org/model")
    assert card.data.base_model == ["org/resnet", "org/minilm"]
    for part in (
        "| encoder of images | `org/resnet` |",
        f"| commit of the encoder of images | {commits[0]} |",
        "| license of the encoder of images | mit |",
        f"| commit of the encoder of texts | {commits[1]} |",
        "| license of the encoder of texts | apple-ascl ",
    ):
        assert part in card.text
