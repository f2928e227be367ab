"""Encoders of the Hub by revision, and those whose main branch has no safetensors."""

import json

import numpy as np
import pytest
import torch
from dual_encoders import write_dual_encoder, write_tokenizer
from PIL import Image
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from cmfah_hf.errors import CheckpointError
from cmfah_hf.models import CMFAHConfig, CMFAHModel, CMFAHProcessor
from cmfah_hf.retrieval import CrossMediaRetriever
from cmfah_hf.training.backbone import load_backbone_weights, load_text_backbone_weights
from cmfah_hf.training.compression import compress

TITLE = "Adding `safetensors` variant of this model"
WEIGHTS = "model.safetensors"


def files_of(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def encoders(here, tmp_path):
    """The files of two CLIPs."""
    return [files_of(write_dual_encoder("clip", tmp_path / f"clip-{seed}", seed)) for seed in range(2)]


@pytest.fixture
def images(tmp_path):
    (tmp_path / "images").mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 255, (20, 20, 30, 3), np.uint8)):
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    return tmp_path / "images"


@pytest.fixture
def pickled(hub, encoders):
    """A CLIP whose main branch has its weights only as a pickle."""
    files = {name: content for name, content in encoders[0].items() if name != WEIGHTS}
    hub.add("org/clip", files | {"pytorch_model.bin": b"a pickle"}, "model")
    return encoders[0][WEIGHTS]


def source_of(folder) -> list[str]:
    config = json.loads((folder / "config.json").read_text())
    return [config["encoder_source"], config["encoder_revision"]]


def test_an_encoder_is_compressed_at_a_revision(hub, encoders, images, tmp_path):
    hub.add("org/clip", encoders[0], "model")
    commit = hub.open_pull_request("org/clip", encoders[1], "Other weights", "anyone", "model").oid
    compress("org/clip@refs/pr/1", images, tmp_path / "model", bits=16)
    assert source_of(tmp_path / "model") == ["org/clip", commit]
    (facts,) = json.loads((tmp_path / "model" / "metrics.json").read_text())["encoders"]
    assert (facts["name"], facts["revision"]) == ("org/clip", commit)
    compress(str(tmp_path / "clip-1"), images, tmp_path / "same", bits=16)
    found, same = (CrossMediaRetriever.from_pretrained(tmp_path / name) for name in ("model", "same"))
    np.testing.assert_allclose(found.encode_texts(["a dog"]), same.encode_texts(["a dog"]), atol=1e-6)
    with pytest.raises(CheckpointError, match=r"org/clip@nothing: no such revision"):
        compress("org/clip@nothing", images, tmp_path / "other", bits=16)


def test_encoders_of_a_training_stay_at_the_commit_of_their_revision(hub, encoders, tmp_path):
    hub.add("org/clip", encoders[0], "model")
    first = hub.open_pull_request("org/clip", encoders[1], "Other weights", "anyone", "model").oid
    config = CMFAHConfig(dual_encoder="org/clip@refs/pr/1", image_size=32)
    place = config.dual_encoder_config.name_or_path
    assert place == f"org/clip@{first}"
    assert CMFAHProcessor.from_backbones(config)(text=["a dog"]).input_ids[0][0] == 1
    model = CMFAHModel(config)
    load_backbone_weights(model.image_model, place)
    load_text_backbone_weights(model.text_model)
    expected = load_file(tmp_path / "clip-1" / WEIGHTS)
    for tower in (model.image_model, model.text_model):
        for name, tensor in tower.embeddings.backbone.encoder.state_dict().items():
            assert torch.equal(tensor, expected[name])


def test_a_text_backbone_has_a_revision_too(hub, here, tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(**sizes, vocab_size=300)).save_pretrained(tmp_path / "bert")
    write_tokenizer("BertTokenizer", tmp_path / "bert")
    hub.add("org/bert", {"README.md": b"moved"}, "model")
    hub.open_pull_request("org/bert", files_of(tmp_path / "bert"), "The model", "anyone", "model")
    config = CMFAHConfig(text_backbone="org/bert@refs/pr/1", image_feature_dim=4)
    CMFAHProcessor.from_backbones(config)
    model = CMFAHModel(config)
    load_text_backbone_weights(model.text_model)
    expected = load_file(tmp_path / "bert" / WEIGHTS)
    table = model.text_model.get_input_embeddings().weight
    assert torch.equal(table, expected["embeddings.word_embeddings.weight"])


def test_pickles_are_replaced_by_the_conversion_of_the_hub(hub, pickled, encoders, images, tmp_path):
    hub.open_pull_request("org/clip", {WEIGHTS: encoders[1][WEIGHTS]}, TITLE, "anyone", "model")
    other = {"pytorch_model.bin": b"other weights", WEIGHTS: encoders[1][WEIGHTS]}
    hub.open_pull_request("org/clip", other, TITLE, "SFconvertbot", "model")
    commit = hub.open_pull_request("org/clip", {WEIGHTS: pickled}, TITLE, "SFconvertbot", "model").oid
    hub.add("org/clip", {"README.md": b"# A later commit"}, "model")
    compress("org/clip", images, tmp_path / "model", bits=16)
    assert source_of(tmp_path / "model") == ["org/clip", commit]
    assert not any("pytorch_model.bin" in request.path and request.method == "GET" for request in hub.log)
    config = CMFAHConfig(dual_encoder="org/clip", image_size=32)
    model = CMFAHModel(config)
    load_text_backbone_weights(model.text_model)
    expected = load_file(tmp_path / "clip-0" / WEIGHTS)
    for name, tensor in model.text_model.embeddings.backbone.encoder.state_dict().items():
        assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize("answer", ["none", "of others", "disabled"])
def test_pickles_without_a_conversion_are_refused_in_one_line(answer, hub, pickled, images, tmp_path):
    if answer == "of others":
        hub.open_pull_request("org/clip", {WEIGHTS: pickled}, TITLE, "anyone", "model")
    if answer == "disabled":
        hub.reply("/discussions", b"{}", status=403)
    with pytest.raises(CheckpointError, match=r"pickles are never loaded.*give another revision.*refs/pr/1") as refused:
        compress("org/clip", images, tmp_path / "model", bits=16)
    assert "\n" not in str(refused.value)
    with pytest.raises(CheckpointError, match="no weights as safetensors in its revision"):
        compress("org/clip@main", images, tmp_path / "model", bits=16)
