"""Adapters that peft makes and saves: loaded again, they give the same codes if they hold what training changes."""

import logging

import pytest
import torch
from dual_encoders import write_dual_encoder

from cmfah_hf.models import CMFAHConfig, CMFAHModel, SCAHNConfig, SCAHNModel, modules_to_save
from cmfah_hf.space.settings import bundled_space

peft = pytest.importorskip("peft", reason="peft is not installed")

logger = logging.getLogger(__name__)

PROJECTIONS = r".*embeddings\.projection"


def trained(model, **settings):
    """An adapter of a model after a few steps, with the pairs that it has seen."""
    torch.manual_seed(0)
    side, length = model.config.image_size, 6
    inputs = {"pixel_values": torch.randn(24, 3, side, side), "input_ids": torch.randint(3, 30, (24, length))}
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, **settings)).train()
    optimizer = torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(8):
        found = adapted(**inputs)
        (found.image_hash - found.text_hash).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return adapted.eval(), inputs


def different_signs(adapted, inputs, model, folder) -> int:
    """Signs of codes that differ once the adapter is saved and loaded on top of the model."""
    adapted.save_pretrained(folder)
    again = peft.PeftModel.from_pretrained(model, folder).eval()
    with torch.no_grad():
        first, second = adapted(**inputs), again(**inputs)
    count = sum(
        int(((a >= 0) != (b >= 0)).sum())
        for a, b in ((first.image_hash, second.image_hash), (first.text_hash, second.text_hash))
    )
    logger.info("%d of %d signs differ", count, 2 * first.image_hash.numel())
    return count


def embedded() -> CMFAHModel:
    return CMFAHModel.from_pretrained(bundled_space() / "model")


def heads(model) -> list[str]:
    return [name for name in modules_to_save(model) if name.endswith("hash_head")]


@pytest.mark.filterwarnings("ignore:Unable to fetch remote file", "ignore:Could not find a config file")
def test_a_loaded_adapter_gives_the_same_codes_only_with_all_that_was_trained(tmp_path):
    adapted, inputs = trained(embedded(), target_modules=PROJECTIONS)
    alone = different_signs(adapted, inputs, embedded(), tmp_path / "alone")
    adapted, inputs = trained(embedded(), target_modules=PROJECTIONS, modules_to_save=heads(embedded()))
    with_heads = different_signs(adapted, inputs, embedded(), tmp_path / "heads")
    assert alone > 100
    assert with_heads > 100  # the batch norms of the encoder
    adapted, inputs = trained(embedded(), target_modules=PROJECTIONS, modules_to_save=modules_to_save(embedded()))
    assert different_signs(adapted, inputs, embedded(), tmp_path / "all") == 0
    assert len(list((tmp_path / "all").glob("*.safetensors"))) == 1


@pytest.mark.filterwarnings("ignore:Unable to fetch remote file", "ignore:Could not find a config file")
@pytest.mark.parametrize(("model_class", "config_class"), [(CMFAHModel, CMFAHConfig), (SCAHNModel, SCAHNConfig)])
def test_adapters_of_a_pretrained_encoder(model_class, config_class, tmp_path):
    encoder = str(write_dual_encoder("clip", tmp_path / "clip"))

    def model():
        torch.manual_seed(0)
        settings = {"hidden_size": 24, "num_concepts": 4, "hash_bits": 16}
        trains = {"freeze_backbone": False, "freeze_text_backbone": False}
        return model_class(config_class(dual_encoder=encoder, **settings, **trains))

    names = modules_to_save(model())
    assert names == ["image_model.hash_head", "text_model.hash_head"]
    adapted, inputs = trained(model(), target_modules=["q_proj", "v_proj"], modules_to_save=names)
    assert any(".lora_B." in name and p.abs().sum() > 0 for name, p in adapted.named_parameters())
    assert different_signs(adapted, inputs, model(), tmp_path / "adapter") == 0
