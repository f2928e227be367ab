"""Encoders with code of their own: refused in one line, and run only by permission, from the commit that was read."""

import json
from pathlib import Path

import numpy as np
import pytest
from dual_encoders import write_dual_encoder
from huggingface_hub import HfApi
from PIL import Image

from cmfah_hf.cli import main
from cmfah_hf.errors import CheckpointError
from cmfah_hf.models import CMFAHConfig, CMFAHModel, CMFAHProcessor
from cmfah_hf.models.model_files import ModelFileError
from cmfah_hf.models.remote_code import RemoteCodeError, is_allowed, remote_code
from cmfah_hf.retrieval import CrossMediaRetriever
from cmfah_hf.training.compression import compress

CONFIGURATION = """
import pathlib
from transformers import CLIPConfig

pathlib.Path({trace!r}).touch()

class TinyConfig(CLIPConfig):
    model_type = "tiny_clip"
"""
MODEL = """
from transformers import CLIPModel
from .configuration_tiny import TinyConfig

class TinyModel(CLIPModel):
    config_class = TinyConfig

    def get_text_features(self, *arguments, **named):
        output = super().get_text_features(*arguments, **named)
        output.pooler_output = {sign} * output.pooler_output
        return output
"""


@pytest.fixture(autouse=True)
def token(monkeypatch):
    """The token of a user who may write."""
    monkeypatch.setenv("HF_TOKEN", "hf_writer")


@pytest.fixture
def encoder(hub, here, tmp_path):
    """`org/tiny`: a CLIP whose code, in its repository, negates the vectors of texts; a file is made if it runs."""
    folder = write_dual_encoder("clip", tmp_path / "encoder")
    config = json.loads((folder / "config.json").read_text()) | {
        "model_type": "tiny_clip",
        "auto_map": {"AutoConfig": "configuration_tiny.TinyConfig", "AutoModel": "modeling_tiny.TinyModel"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "configuration_tiny.py").write_text(CONFIGURATION.format(trace=str(tmp_path / "ran")))
    (folder / "modeling_tiny.py").write_text(MODEL.format(sign=-1))
    HfApi().create_repo("org/tiny")
    HfApi().upload_folder(repo_id="org/tiny", folder_path=folder)
    return folder


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(24):
        pixels = np.random.default_rng(number).integers(0, 255, (20, 30, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_code_of_an_encoder_is_refused_with_the_way_to_allow_it(encoder, images, tmp_path, capsys):
    for place in ("org/tiny", str(encoder)):
        with pytest.raises(SystemExit) as ended:
            main(["compress", place, str(images), "--output", str(tmp_path / "model")])
        error = capsys.readouterr().err.strip()
        assert ended.value.code == 2
        assert "\n" not in error
        assert f"{place} needs code of its own, which runs only with permission" in error
        assert error.endswith("allow it with trust_remote_code=True (--trust_remote_code).")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(CheckpointError, match="folder with code of its own, which no saved model can name"):
        compress(str(encoder), images, tmp_path / "model", bits=16, trust_remote_code=True)


@pytest.mark.parametrize("link", [True, False])
def test_allowed_code_runs_from_the_commit_that_the_model_names(encoder, images, tmp_path, link, capsys):
    model = tmp_path / "model"
    compress("org/tiny", images, model, bits=16, trust_remote_code=True, link=link)
    assert (tmp_path / "ran").exists()
    assert not is_allowed()
    plain = write_dual_encoder("clip", tmp_path / "plain")
    compress(str(plain), images, tmp_path / "of plain", bits=16)
    # Newer code of the repository changes nothing.
    (encoder / "modeling_tiny.py").write_text(MODEL.format(sign=1))
    HfApi().upload_folder(repo_id="org/tiny", folder_path=encoder)
    for loaded in (
        CMFAHModel.from_pretrained(model, trust_remote_code=True),
        CrossMediaRetriever.from_pretrained(model, trust_remote_code=True).model,
    ):
        inputs = CMFAHProcessor.from_pretrained(model)(text=["a dog"], return_tensors="pt")
        ours = loaded.text_model.embeddings(**inputs).pooled
        theirs = CMFAHModel.from_pretrained(tmp_path / "of plain").text_model.embeddings(**inputs).pooled
        np.testing.assert_allclose(ours.detach(), -theirs.detach(), atol=1e-6)
    with pytest.raises(CheckpointError, match=r"dual_encoder_config needs code of org/tiny at [0-9a-f]{8}, which runs"):
        CrossMediaRetriever.from_pretrained(model)
    search = ["search", str(model), "--text", "a dog", "-k", "1"]
    for arguments, code in ((search, 2), ([*search, "--trust_remote_code"], 0)):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == code


def test_saved_models_name_code_only_by_repository_and_commit(encoder, images, tmp_path):
    model = tmp_path / "model"
    compress("org/tiny", images, model, bits=16, trust_remote_code=True)
    (tmp_path / "ran").unlink()
    path = model / "config.json"
    sound = json.loads(path.read_text())
    named = sound["dual_encoder_config"]
    assert named["auto_map"]["AutoModel"] == "org/tiny--modeling_tiny.TinyModel"
    for change in (
        {"code_revision": "main"},
        {"code_revision": None},
        {"auto_map": {"AutoConfig": "configuration_tiny.TinyConfig"}},
        {"auto_map": {**named["auto_map"], "AutoModel": "../..--modeling_tiny.TinyModel"}},
        {"auto_map": {**named["auto_map"], "AutoConfig": f"{encoder}--configuration_tiny.TinyConfig"}},
    ):
        path.write_text(json.dumps({**sound, "dual_encoder_config": {**named, **change}}))
        with pytest.raises(ModelFileError, match="does not name its code by a repository and a commit"):
            CMFAHConfig.from_pretrained(model, trust_remote_code=True)
    assert not (tmp_path / "ran").exists()


def test_permission_ends_with_the_block():
    with remote_code():
        assert is_allowed()
        with remote_code(False):
            assert not is_allowed()
        with remote_code(None):
            assert is_allowed()
    assert not is_allowed()


def test_code_of_a_text_backbone(encoder, tmp_path):
    with pytest.raises(RemoteCodeError, match="org/tiny needs code of its own"):
        CMFAHConfig(text_backbone="org/tiny")


@pytest.mark.parametrize("of_user", [None, "hf_stranger"])
def test_gated_encoders_are_reported_in_one_line(encoder, hub, images, tmp_path, monkeypatch, of_user):
    HfApi().create_repo("org/gated")
    HfApi().upload_folder(repo_id="org/gated", folder_path=write_dual_encoder("clip", tmp_path / "plain"))
    hub.store.repositories["model", "org/gated"].gated = True
    monkeypatch.delenv("HF_TOKEN")
    if of_user is not None:
        monkeypatch.setenv("HF_TOKEN", of_user)
    with pytest.raises(CheckpointError, match="org/gated: it is gated; request access on its page") as raised:
        compress("org/gated", images, tmp_path / "model", bits=16)
    assert "\n" not in str(raised.value)
    assert str(Path(tmp_path)) not in str(raised.value)
