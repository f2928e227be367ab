"""LoRA: adapters of encoders in training and checkpoints, and ordinary weights at the end."""

import json

import pytest
import torch
from dual_encoders import write_dual_encoder

from cmfah_hf.errors import CMFAHError
from cmfah_hf.models import CMFAHConfig, CMFAHModel
from cmfah_hf.models.adapters import adapt_encoders, merge_adapters
from cmfah_hf.training import train

pytest.importorskip("peft", reason="peft is not installed")

INPUTS = {
    "pixel_values": torch.randn(2, 3, 32, 32, generator=torch.manual_seed(0)),
    "input_ids": torch.tensor([[1, 5, 6, 2]] * 2),
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return str(write_dual_encoder("clip", tmp_path_factory.mktemp("encoder") / "clip"))


def towers(encoder, **settings):
    torch.manual_seed(0)
    frozen = {"freeze_backbone": False, "freeze_text_backbone": False}
    return CMFAHModel(
        CMFAHConfig(dual_encoder=encoder, hidden_size=24, num_concepts=4, **{**frozen, **settings})
    ).eval()


def codes(model):
    with torch.no_grad():
        return model(**INPUTS).image_hash, model(**INPUTS).text_hash


def test_adapters_change_nothing_at_first_and_are_all_of_the_encoder_that_is_trained(encoder):
    model = towers(encoder)
    expected = codes(model)
    adapt_encoders(model, 3)
    torch.testing.assert_close(codes(model), expected)
    for mode in (False, True):
        model.train(mode)
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad == (".backbone." not in name or ".lora_" in name), name
    ranks = {p.shape[0] for name, p in model.named_parameters() if ".lora_A." in name}
    assert ranks == {3}


def test_merged_adapters_give_the_same_codes_with_ordinary_weights(encoder, tmp_path):
    model, plain = towers(encoder), towers(encoder)
    adapt_encoders(model, 3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.normal_(std=0.3)
    adapted = codes(model)
    assert not torch.allclose(adapted[0], codes(plain)[0], atol=1e-3)
    # A layer by hand: W + B A.
    layer = model.image_model.get_submodule("embeddings.backbone.encoder.visual_projection")
    by_hand = layer.base_layer.weight + layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    model.save_pretrained(tmp_path / "adapted")
    again = CMFAHModel.from_pretrained(tmp_path / "adapted")
    assert again.config.lora_rank == 3
    torch.testing.assert_close(codes(again), adapted)
    trained = {name for name, p in again.train().named_parameters() if p.requires_grad}
    assert trained == {name for name, p in model.train().named_parameters() if p.requires_grad}
    merge_adapters(model.eval())
    torch.testing.assert_close(codes(model), adapted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.image_model.embeddings.backbone.encoder.visual_projection.weight, by_hand)
    assert model.state_dict().keys() == plain.state_dict().keys()
    model.save_pretrained(tmp_path / "merged")
    assert json.loads((tmp_path / "merged" / "config.json").read_text()).get("lora_rank") is None
    torch.testing.assert_close(codes(CMFAHModel.from_pretrained(tmp_path / "merged")), codes(model))


def test_ranks_that_cannot_be_used(encoder, make_model, run_of):
    with pytest.raises(ValueError, match="both encoders are frozen"):
        towers(encoder, freeze_backbone=True, freeze_text_backbone=True, lora_rank=2)
    with pytest.raises(ValueError, match="lora_rank is 0"):
        towers(encoder, lora_rank=0)
    with pytest.raises(ValueError, match="adapts linear layers, and the encoder has none"):
        adapt_encoders(make_model(freeze_backbone=False), 2)
    with pytest.raises(CMFAHError, match="both encoders are frozen"):
        run_of("--lora_rank", "2", model={"freeze_backbone": True}).model_config()
    with pytest.raises(CMFAHError, match="the encoder has none; leave it out"):
        train(run_of("--lora_rank", "2", model={"freeze_backbone": False}))
