"""Image backbones other than VGG: timm models by name, transformers models by configuration or folder."""

import pytest
import torch
from transformers import AutoBackbone, Dinov2Config, ResNetConfig, VitDetConfig

from cmfah_hf.methods import CMFAHForPreTraining
from cmfah_hf.models import CMFAHImageModel, CMFAHModel

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


def check(model, folder, silence, pixels, channels):
    """Regions in reading order, gradients only outside the backbone, and a silent round trip."""
    embeddings = model.embeddings
    with torch.no_grad():
        feature_map = embeddings.backbone(pixels).feature_maps[-1]
        regions = embeddings.extract_regions(pixels)
        assert feature_map.shape[1] == channels == embeddings.projection.in_features
        assert torch.equal(regions, feature_map.flatten(2).transpose(1, 2))
        expected = model(pixels, output_attentions=True)
    assert expected.attentions[0].shape == (len(pixels), 1, regions.shape[1], 7)
    assert expected.hash_values.unique(dim=0).shape == expected.hash_values.shape

    model.train()
    model(pixels).hash_values.sum().backward()
    assert embeddings.projection.weight.grad.any()
    assert all(parameter.grad is None for parameter in embeddings.backbone.parameters())
    assert not any(module.training for module in embeddings.backbone.modules())

    model.eval().save_pretrained(folder)
    with silence():
        again = CMFAHImageModel.from_pretrained(folder)
    assert again.config.backbone is None
    settings = [config.backbone_config.to_dict() for config in (again.config, model.config)]
    # A saved model does not record the origin of its backbone: no file points elsewhere.
    assert settings[0]["_name_or_path"] == ""
    left_out = {"dtype": None, "_name_or_path": None}
    assert {**settings[0], **left_out} == {**settings[1], **left_out}
    with torch.no_grad():
        assert torch.equal(again(pixels).hash_values, expected.hash_values)
    return regions


def test_timm_by_name(make_model, silence, tmp_path):
    pytest.importorskip("timm")
    model = make_model(CMFAHImageModel, backbone="resnet10t")
    assert model.config.backbone is None
    assert model.config.backbone_config.model_type == "timm_backbone"
    assert check(model, tmp_path, silence, torch.randn(2, 3, 64, 64), channels=512).shape == (2, 4, 512)


def test_resnet_by_its_feature_maps(make_model, silence, tmp_path):
    backbone = ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8, 12], depths=[1, 1, 1], layer_type="basic", out_features=["stage2"]
    )
    model = make_model(CMFAHImageModel, backbone_config=backbone)
    # The second-to-last map: more regions, fewer channels.
    assert check(model, tmp_path, silence, torch.randn(2, 3, 32, 32), channels=8).shape == (2, 16, 8)


@pytest.mark.parametrize(
    "backbone",
    [
        Dinov2Config(
            hidden_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14, mlp_ratio=1
        ),
        VitDetConfig(
            hidden_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14, mlp_ratio=1
        ),
    ],
    ids=lambda backbone: backbone.model_type,
)
def test_vision_transformers(make_model, silence, tmp_path, backbone):
    model = make_model(CMFAHImageModel, backbone_config=backbone)
    assert check(model, tmp_path, silence, torch.randn(2, 3, 28, 28), channels=8).shape == (2, 4, 8)


def test_backbone_from_a_folder(make_model, silence, tmp_path):
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic")
    AutoBackbone.from_config(config).save_pretrained(tmp_path / "backbone")
    model = make_model(CMFAHImageModel, backbone=str(tmp_path / "backbone"))
    check(model, tmp_path / "tower", silence, torch.randn(2, 3, 32, 32), channels=6)


def test_training_with_a_timm_backbone(make_model, batch, labels, silence, tmp_path):
    pytest.importorskip("timm")
    model = make_model(CMFAHForPreTraining, backbone="resnet10t", freeze_backbone=False).train()
    model(**batch, labels=labels).loss.backward()
    backbone = model.cmfah.image_model.embeddings.backbone
    assert all(parameter.grad is not None for parameter in backbone.parameters())
    model.eval().save_pretrained(tmp_path)
    with silence():
        again = CMFAHModel.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(**batch).image_hash, model.cmfah(**batch).image_hash)
