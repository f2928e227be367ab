"""Dual encoders in folders of sentence-transformers: their vectors, and folders that are refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from dual_encoders import write_dual_encoder
from PIL import Image

from cmfah_hf.errors import CheckpointError
from cmfah_hf.models import CMFAHConfig, CMFAHModel, CMFAHProcessor
from cmfah_hf.models.model_files import ModelFileError
from cmfah_hf.training.backbone import load_backbone_weights, load_text_backbone_weights
from cmfah_hf.training.dual_encoders import image_vectors, load_dual_encoder, text_vectors

TEXTS = ["A dog on the beach", "the sea", "two birds in the sky and a dog on the beach and a boat on the sea"]


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 30 + i, 3)).astype(np.uint8)) for i in range(3)]


def into_subfolder(folder, name="0_CLIPModel", **settings):
    """Moves the transformer of a folder into its own, as earlier versions saved it, and changes its settings."""
    inner = folder / name
    inner.mkdir()
    for path in [path for path in folder.iterdir() if path.is_file()]:
        path.rename(inner / path.name)
    for own in ("modules.json", "config_sentence_transformers.json"):
        if (inner / own).exists():
            (inner / own).rename(folder / own)
    module = {"idx": 0, "name": "0", "path": name, "type": "sentence_transformers.models.CLIPModel"}
    (folder / "modules.json").write_text(json.dumps([module]))
    if settings:
        (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module", params=["clip", "vision-text-dual-encoder"])
def saved(request, images, tmp_path_factory):
    """A folder that sentence-transformers saved, with a normalization, and its vectors of images and texts."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize, Transformer

    root = tmp_path_factory.mktemp("sentences")
    encoder = write_dual_encoder(request.param, root / "encoder")
    module = Transformer(str(encoder), max_seq_length=12)
    sentences = SentenceTransformer(modules=[module, Normalize()], device="cpu")
    sentences.save_pretrained(str(root / "saved"), create_model_card=False)
    return root / "saved", sentences.encode(images), sentences.encode(TEXTS)


def test_vectors_are_those_of_the_sentence_transformer(saved, images, tmp_path):
    folder, of_images, of_texts = saved
    old = into_subfolder(shutil.copytree(folder, tmp_path / "old"))
    for place in (folder, old):
        model, processor = load_dual_encoder(str(place), 16)
        assert processor.tokenizer.model_max_length == 12
        assert image_vectors(model, processor, images) == pytest.approx(of_images, abs=1e-5)
        assert text_vectors(model, processor, TEXTS) == pytest.approx(of_texts, abs=1e-5)


def test_training_begins_at_its_weights(saved, images, tmp_path):
    folder, of_images, of_texts = saved
    old = into_subfolder(shutil.copytree(folder, tmp_path / "old"))
    config = CMFAHConfig(dual_encoder=str(old), hidden_size=24, num_concepts=4)
    processor = CMFAHProcessor.from_backbones(config)
    config.pad_token_id = processor.tokenizer.pad_token_id
    model = CMFAHModel(config).eval()
    load_backbone_weights(model.image_model, str(old))
    load_text_backbone_weights(model.text_model)
    assert image_vectors(model, processor, images) == pytest.approx(of_images, abs=1e-5)
    assert text_vectors(model, processor, TEXTS) == pytest.approx(of_texts, abs=1e-5)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    shutil.rmtree(old)
    again = CMFAHModel.from_pretrained(tmp_path / "model"), CMFAHProcessor.from_pretrained(tmp_path / "model")
    assert image_vectors(*again, images) == pytest.approx(of_images, abs=1e-5)


def test_the_default_prompt_begins_texts(tmp_path):
    folder = into_subfolder(
        write_dual_encoder("clip", tmp_path / "clip"), prompts={"query": "the sea "}, default_prompt_name="query"
    )
    parts = load_dual_encoder(str(folder), 16)
    assert parts[1].text_prompt == "the sea "
    plain = load_dual_encoder(str(write_dual_encoder("clip", tmp_path / "plain")), 16)
    assert np.array_equal(text_vectors(*parts, ["two birds"]), text_vectors(*plain, ["the sea two birds"]))


@pytest.mark.parametrize(
    ("kinds", "settings", "reason"),
    [
        (["Transformer", "Pooling", "Normalize"], {}, "its modules are Transformer, Pooling, Normalize, and vectors"),
        (["CLIPModel", "Dense"], {}, "its modules are CLIPModel, Dense, and vectors"),
        (["Router"], {}, "its modules are Router, and vectors"),
        (["CMFAHSentenceModule"], {}, "its modules are CMFAHSentenceModule, and vectors"),
        ([], {}, "its modules are none, and vectors"),
        (
            ["Transformer"],
            {"modality_config": {"text": {"method": "forward"}}},
            "its texts have no vectors by get_text",
        ),
        (
            ["Transformer"],
            {"modality_config": {"text": {"method": "get_text_features"}, "message": {"method": "forward"}}},
            "its images have no vectors by get_image_features; give a dual encoder",
        ),
        (["Transformer"], {"modality_config": []}, "its texts have no vectors"),
        (["Transformer"], {"max_seq_length": "x"}, "max_seq_length is x"),
    ],
)
def test_other_sentence_transformers_are_refused_in_one_line(tmp_path, kinds, settings, reason):
    folder = write_dual_encoder("clip", tmp_path / "clip")
    modules = [{"idx": i, "name": str(i), "path": "" if i == 0 else kind, "type": kind} for i, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelFileError, match=reason):
        CMFAHConfig(dual_encoder=str(folder))
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_dual_encoder(str(folder), 16)
    assert "\n" not in str(caught.value)


def test_a_model_of_texts_alone_is_refused(tmp_path):
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    BertModel(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=30)).save_pretrained(
        tmp_path
    )
    module = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
    (tmp_path / "modules.json").write_text(json.dumps([module]))
    with pytest.raises(CheckpointError, match="a bert model encodes no images; give a dual encoder"):
        load_dual_encoder(str(tmp_path), 16)
