"""Towers over a dual encoder of each family: their codes, attention and files."""

import json
import shutil

import numpy as np
import pytest
import torch
from dual_encoders import FAMILIES, dual_encoder_config, write_dual_encoder
from PIL import Image
from safetensors import safe_open
from transformers import AutoModel

from cmfah_hf import CMFAHConfig, CMFAHImageModel, CMFAHModel, CMFAHProcessor, CMFAHTextModel
from cmfah_hf.models.dual_encoder import digest_of, read_encoder
from cmfah_hf.models.encoder_output import with_vector, without_vector
from cmfah_hf.models.model_files import ModelFileError

ALL = (*FAMILIES, "vision-text-dual-encoder")
IDS = torch.tensor([[1, 5, 6, 2, 0, 0], [1, 7, 8, 9, 10, 2]])
MASK = (IDS > 0).long()


def towers_of(family: str, **settings) -> CMFAHModel:
    torch.manual_seed(0)
    size = 64 if family == "align" else 32
    config = CMFAHConfig(
        dual_encoder_config=dual_encoder_config(family), hidden_size=24, num_concepts=4, image_size=size, **settings
    )
    return CMFAHModel(config).eval()


@pytest.mark.parametrize("family", ALL)
@torch.no_grad()
def test_every_family_encodes_attends_and_is_saved(family, tmp_path):
    model = towers_of(family)
    pixels = torch.randn(2, 3, model.config.image_size, model.config.image_size)
    images, texts = model.get_image_hash(pixels), model.get_text_hash(IDS, MASK)
    torch.testing.assert_close(model.get_text_hash(IDS[:1, :4], MASK[:1, :4]), texts[:1])  # padding changes nothing
    both = model(pixel_values=pixels, input_ids=IDS, attention_mask=MASK, output_attentions=True)
    rows, columns = model.image_model.embeddings.region_grid()
    assert both.attentions[0].shape == (2, 1, rows * columns, 6)
    kept = model.image_model.embeddings.extract_regions(pixels)
    torch.testing.assert_close(model.get_image_hash(region_features=kept), images)
    model.save_pretrained(tmp_path)
    loaded = CMFAHModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.get_image_hash(pixels), images)
    assert torch.equal(loaded.get_text_hash(IDS, MASK), texts)
    assert torch.equal(CMFAHImageModel.from_pretrained(tmp_path)(pixels).hash_values, images)
    assert torch.equal(CMFAHTextModel.from_pretrained(tmp_path)(IDS, MASK).hash_values, texts)


@pytest.mark.parametrize("family", ALL)
@torch.no_grad()
def test_vectors_are_those_of_the_encoder_itself(family):
    model, encoder = towers_of(family), None
    size = model.config.image_size
    pixels = torch.randn(2, 3, size, size)
    torch.manual_seed(1)
    encoder = AutoModel.from_config(dual_encoder_config(family)).eval()
    for tower in (model.image_model, model.text_model):
        own = tower.embeddings.backbone.encoder
        own.load_state_dict({name: encoder.state_dict()[name] for name in own.state_dict()})
    ids, mask = {"input_ids": IDS, "attention_mask": MASK}, {}
    images = {"pixel_values": pixels}
    if family in ("siglip", "siglip2"):  # trained with padding to the maximum length, and without a mask
        ids = {"input_ids": torch.nn.functional.pad(IDS, (0, 10))}
    if family == "siglip2":
        corners = [(8 * row, 8 * column) for row in range(4) for column in range(4)]
        patches = [  # rows, columns, channels of each patch
            [image[:, y : y + 8, x : x + 8].permute(1, 2, 0).flatten() for y, x in corners] for image in pixels
        ]
        images = {
            "pixel_values": torch.stack([torch.stack(image) for image in patches]),
            "pixel_attention_mask": torch.ones(2, 16, dtype=torch.long),
            "spatial_shapes": torch.tensor([[4, 4]] * 2),
        }
    for found, expected in (
        (model.image_model.embeddings(pixels).pooled, encoder.get_image_features(**images)),
        (model.text_model.embeddings(IDS, MASK).pooled, encoder.get_text_features(**ids, **mask)),
    ):
        vectors = expected.pooler_output
        vectors = vectors[:, 0] if vectors.ndim == 3 else vectors
        torch.testing.assert_close(found, torch.nn.functional.normalize(vectors), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ALL)
@torch.no_grad()
def test_vector_of_a_text_does_not_depend_on_its_batch(family, tmp_path):
    encoder = write_dual_encoder(family, tmp_path / "encoder")
    processor = CMFAHProcessor.from_backbones(CMFAHConfig(dual_encoder=str(encoder)))
    model, texts = towers_of(family), ["a dog", "two birds in the sky", "", "a boat on the sea, and two dogs"]
    together = model.text_model.embeddings(**processor(text=texts, return_tensors="pt"))
    for text, pooled, tokens, mask in zip(texts, together.pooled, together.positions, together.mask, strict=True):
        alone = model.text_model.embeddings(**processor(text=[text], return_tensors="pt"))
        torch.testing.assert_close(alone.pooled[0], pooled, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(alone.positions[0][alone.mask[0]], tokens[mask], atol=1e-5, rtol=1e-4)


def test_tokenizers_of_sentencepiece_are_read_from_their_json_alone(tmp_path):
    encoder = write_dual_encoder("siglip", tmp_path / "encoder")
    assert json.loads((encoder / "tokenizer_config.json").read_text())["tokenizer_class"] == "SiglipTokenizer"
    config = CMFAHConfig(dual_encoder=str(encoder))
    assert CMFAHProcessor.from_backbones(config)(text=["A dog"]).input_ids == [[5, 9, 2]]
    (encoder / "tokenizer.json").unlink()
    (encoder / "spiece.model").write_bytes(b"pieces")
    with pytest.raises(ModelFileError, match=r"has no tokenizer\.json") as refused:
        CMFAHProcessor.from_backbones(config)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("family", ALL)
def test_long_texts_use_all_positions(family, tmp_path):
    """Also if the tokenizer does not say how many there are; only those of XLM-RoBERTa begin after the padding's id."""
    encoder = write_dual_encoder(family, tmp_path / "encoder")
    for name, key in (("tokenizer_config.json", "model_max_length"), ("config.json", "pad_token_id")):
        content = json.loads((encoder / name).read_text())
        settings = content.get("text_config", content)
        settings[key] = 1 if key == "pad_token_id" else 10**30
        (encoder / name).write_text(json.dumps(content))
    config = CMFAHConfig(dual_encoder=str(encoder))
    processor = CMFAHProcessor.from_backbones(config)
    made = processor(text=["two birds in the sky " * 20], return_tensors="pt")
    assert made["input_ids"].shape[1] == (20 - 2 if family == "altclip" else 16)
    CMFAHModel(config).get_text_hash(**made)


@torch.no_grad()
def test_positions_count_beside_the_vectors_unless_they_are_switched_off():
    pixels = torch.randn(2, 3, 32, 32)
    model = towers_of("clip")
    head, embedded = model.image_model.hash_head, model.image_model.embeddings(pixels)
    features = model.image_model(pixels).features
    expected = features @ head.dense.weight.T + head.dense.bias
    expected += embedded.pooled @ head.vectors.weight.T + head.vectors.bias
    torch.testing.assert_close(model.get_image_hash(pixels), expected.tanh())
    alone = towers_of("clip", use_positions=False)
    head = alone.image_model.hash_head
    vectors = alone.image_model.embeddings(pixels).pooled
    assert head.dense is None
    torch.testing.assert_close(
        alone.get_image_hash(pixels), (vectors @ head.vectors.weight.T + head.vectors.bias).tanh()
    )


def test_kept_features_hold_positions_and_vectors_of_any_width():
    for channels, width in ((8, 5), (5, 8), (6, 6)):
        positions, vectors = torch.randn(2, 3, channels), torch.randn(2, width)
        kept = with_vector(positions, vectors)
        assert kept.shape == (2, 4, max(channels, width))
        found, pooled = without_vector(kept, channels, width)
        assert torch.equal(found, positions)
        assert torch.equal(pooled, vectors)
        with pytest.raises(ValueError, match="extract them again"):
            without_vector(kept[..., 1:], channels, width)


@pytest.mark.parametrize("family", ["clip", "siglip2", "chinese_clip"])
@torch.no_grad()
def test_processor_is_that_of_the_encoder_and_survives_saving(family, tmp_path):
    encoder = write_dual_encoder(family, tmp_path / "encoder")
    config = CMFAHConfig(dual_encoder=str(encoder), hidden_size=24, image_size=32)
    processor = CMFAHProcessor.from_backbones(config)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8))
    text = "a dog on the beach, " * 9
    made = processor(images=[image], text=[text, "a boat"], return_tensors="pt")
    assert made["pixel_values"].shape == (1, 3, 32, 32)
    assert made["input_ids"].shape == (2, 16)  # truncated to what the encoder takes
    assert made["input_ids"][0, 0] == 1
    assert made["input_ids"][0, -1] == 2
    processor.save_pretrained(tmp_path / "saved")
    again = CMFAHProcessor.from_pretrained(tmp_path / "saved")(
        images=[image], text=[text, "a boat"], return_tensors="pt"
    )
    assert all(torch.equal(made[name], again[name]) for name in made)
    assert processor.word_spans("a dog")[1][0] == "dog"
    CMFAHModel(config).get_text_hash(made["input_ids"], made["attention_mask"])


@torch.no_grad()
def test_an_encoder_in_half_precision_is_read_in_that_of_the_model(tmp_path):
    encoder = write_dual_encoder("clip", tmp_path / "encoder")
    AutoModel.from_pretrained(encoder).half().save_pretrained(encoder)
    config = CMFAHConfig(dual_encoder=str(encoder), hidden_size=24, image_size=32)
    assert {tensor.dtype for tensor in read_encoder(config.dual_encoder_config, str(encoder), {}).values()} == {
        torch.float32
    }
    model = CMFAHModel(config).eval()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    model.save_pretrained(tmp_path / "model")
    loaded = CMFAHModel.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert loaded.get_text_hash(IDS, MASK).dtype == torch.bfloat16
    assert loaded.get_image_hash(torch.randn(2, 3, 32, 32)).dtype == torch.bfloat16


def test_other_models_are_no_dual_encoders(tmp_path):
    from transformers import BertConfig, ViTConfig

    for config in (BertConfig(num_hidden_layers=1), ViTConfig(num_hidden_layers=1)):
        with pytest.raises(ValueError, match=r"encodes no .*; give a dual encoder"):
            CMFAHModel(CMFAHConfig(dual_encoder_config=config))


def test_weights_of_a_named_encoder_are_fetched_and_checked(tmp_path, monkeypatch):
    encoder = write_dual_encoder("clip", tmp_path / "encoder")
    other = write_dual_encoder("clip", tmp_path / "other", seed=1)
    config = CMFAHConfig(dual_encoder=str(encoder), hidden_size=24, image_size=32)
    tensors = read_encoder(config.dual_encoder_config, str(encoder), {})
    model = CMFAHModel(config).eval()
    for tower in (model.image_model, model.text_model):
        own = tower.embeddings.backbone.encoder
        own.load_state_dict({name: tensors[name] for name in own.state_dict()})
    config.encoder_source, config.encoder_revision, config.encoder_digest = "org/clip", "a" * 40, digest_of(tensors)
    model.save_pretrained(tmp_path / "model")
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as saved:
        assert not any("backbone" in name for name in saved.keys())  # noqa: SIM118  # no mapping
    place = encoder

    def fetched(source, hub):
        return [place / "model.safetensors"] if source == "org/clip" else original(source, hub)

    from cmfah_hf.models import dual_encoder

    original = dual_encoder.encoder_weights
    monkeypatch.setattr(dual_encoder, "encoder_weights", fetched)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model.get_image_hash(pixels)
        assert torch.equal(CMFAHModel.from_pretrained(tmp_path / "model").get_image_hash(pixels), expected)
        tower = CMFAHImageModel.from_pretrained(tmp_path / "model")
        assert torch.equal(tower(pixels).hash_values, expected)
        tower.save_pretrained(tmp_path / "tower")
        assert torch.equal(CMFAHImageModel.from_pretrained(tmp_path / "tower")(pixels).hash_values, expected)
    trained = CMFAHModel.from_pretrained(tmp_path / "model", freeze_backbone=False)
    trained.save_pretrained(tmp_path / "trained")  # with the weights of the encoder, which may have changed
    place = other
    with torch.no_grad():
        assert torch.equal(CMFAHModel.from_pretrained(tmp_path / "trained").get_image_hash(pixels), expected)
    with pytest.raises(ModelFileError, match="not those of the encoder"):
        CMFAHModel.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder_source": "/etc/passwd"},
        {"encoder_source": "../clip"},
        {"encoder_source": "org/..clip"},
        {"encoder_revision": "main"},
        {"encoder_digest": None},
        {"encoder_subfolder": "../clip"},
        {"encoder_subfolder": "a..b"},
        {"dual_encoder": "org/clip"},
    ],
)
def test_saved_models_name_encoders_by_commit_and_digest_alone(changes, tmp_path):
    model = towers_of("clip")
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    content = json.loads(file.read_text())
    content |= {"encoder_source": "org/clip", "encoder_revision": "a" * 40, "encoder_digest": "b" * 32, **changes}
    file.write_text(json.dumps(content))
    with pytest.raises(ModelFileError, match=str(next(iter(changes)))):
        CMFAHModel.from_pretrained(tmp_path)
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"text_config": {"hidden_size": 10**9}},
        {"vision_config": {"num_hidden_layers": 10**5}},
        {"vision_config": {"model_type": "timm_wrapper", "architecture": "hf-hub:org/model"}},
        {"text_config": {"quantization_config": {"quant_method": "gptq"}}},
        {"text_config": {"_attn_implementation": "org/kernel"}},
        {"vision_config": {"depths": {"a": 1}}},
        {"model_type": "bert"},
        {"model_type": "no-such-model"},
    ],
    ids=lambda changes: str(next(iter(changes.items())))[:50],
)
def test_crafted_configurations_are_refused(changes, tmp_path):
    towers_of("clip").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    content = json.loads(file.read_text())
    encoder = content["dual_encoder_config"]
    for name, value in changes.items():
        encoder[name] = {**encoder[name], **value} if isinstance(value, dict) else value
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"config|encoder") as refused:
        CMFAHModel.from_pretrained(tmp_path)
    assert "\n" not in str(refused.value)
