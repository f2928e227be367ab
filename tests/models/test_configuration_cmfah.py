"""Configurations: accepted values, resolved backbones, error messages."""

import json
from unittest.mock import ANY

import pytest
from transformers import AutoConfig, BertConfig, Dinov2Config, ResNetConfig, TimmBackboneConfig

from cmfah_hf.models import CMFAHConfig


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hash_bits", 0),
        ("hash_bits", -8),
        ("hash_bits", 12),
        ("hash_bits", 63),
        ("attention", "all"),
        ("image_pooling", "median"),
        ("guidance", "tell"),
        ("text_pooling", ""),
        ("text_kernel_sizes", []),
        ("text_kernel_sizes", [3, 0]),
        ("dropout", -0.1),
        ("dropout", 1),
        ("num_concepts", 0),
        ("hidden_size", 0),
        ("num_hidden_layers", 0),
        ("text_filters", -1),
        ("word_dim", 0),
        ("vocab_size", 0),
        ("image_size", 0),
        ("backbone", None),
    ],
)
def test_out_of_range_values_are_named_in_one_line(name, value):
    with pytest.raises(ValueError, match=name) as raised:
        CMFAHConfig(**{name: value})
    assert "\n" not in str(raised.value)
    if value is not None:
        assert str(value) in str(raised.value)


def test_bounds_of_ranges_are_inclusive():
    config = CMFAHConfig(
        hash_bits=8,
        dropout=0,
        attention="none",
        num_concepts=0,
        text_kernel_sizes=(1,),
    )
    assert (config.hash_bits, config.num_concepts, config.text_kernel_sizes) == (8, 0, [1])


@pytest.mark.parametrize(
    ("attention", "image", "text"),
    [("both", True, True), ("image", True, False), ("text", False, True), ("none", False, False)],
)
def test_attention_side(attention, image, text):
    config = CMFAHConfig(attention=attention)
    assert (config.attends_image, config.attends_text) == (image, text)


def test_defaults_are_the_settings_of_the_paper():
    config = CMFAHConfig()
    assert (config.backbone, config.backbone_config) == ("vgg19", None)
    assert (config.word_dim, config.hidden_size, config.hash_bits) == (1000, 512, 64)
    paper = CMFAHConfig(guidance="add")
    assert (paper.image_temperature, paper.text_temperature) == (4, 9)
    assert (config.guidance, config.image_temperature, config.text_temperature) == ("select", 10, 10)


def test_a_backbone_by_name_is_resolved_once(tmp_path):
    pytest.importorskip("timm")
    config = CMFAHConfig(backbone="resnet10t")
    assert config.backbone is None
    assert isinstance(config.backbone_config, TimmBackboneConfig)
    assert config.backbone_config.backbone == "resnet10t"
    config.save_pretrained(tmp_path)
    again = CMFAHConfig.from_pretrained(tmp_path)
    assert again.backbone is None
    assert again.backbone_config.to_dict() == config.backbone_config.to_dict()


def test_a_backbone_by_folder_is_resolved_once(tmp_path):
    ResNetConfig(hidden_sizes=[8, 24], depths=[1, 1]).save_pretrained(tmp_path / "resnet")
    config = CMFAHConfig(backbone=str(tmp_path / "resnet"))
    assert config.backbone is None
    assert isinstance(config.backbone_config, ResNetConfig)
    assert config.backbone_config.hidden_sizes == [8, 24]


@pytest.mark.parametrize("backbone_config", [ResNetConfig(depths=[1, 1], hidden_sizes=[4, 8]), Dinov2Config()])
def test_round_trip_keeps_all_settings(tmp_path, backbone_config):
    config = CMFAHConfig(
        backbone_config=backbone_config,
        hash_bits=128,
        attention="image",
        text_kernel_sizes=(2, 4),
        objective={"_name": "cmfah", "similarity_weight": 0.25},
        id2label={0: "beach", 1: "dog"},
    )
    config.save_pretrained(tmp_path)
    for again in (CMFAHConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(again) is CMFAHConfig
        assert type(again.backbone_config) is type(backbone_config)
        assert again.id2label == {0: "beach", 1: "dog"}
        ours, theirs = config.to_dict(), again.to_dict()
        for where in (ours, theirs, ours["backbone_config"], theirs["backbone_config"]):
            for name in ("auto_map", "_name_or_path", "transformers_version"):
                where.pop(name, None)
        assert ours == theirs


def test_dict_as_backbone_config():
    settings = {"model_type": "resnet", "depths": [1, 1], "hidden_sizes": [4, 8]}
    config = CMFAHConfig(backbone_config=settings)
    assert isinstance(config.backbone_config, ResNetConfig)
    assert (config.backbone, config.backbone_config.hidden_sizes) == (None, [4, 8])


def test_configuration_of_another_architecture_is_refused(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a checkpoint of 'bert', not of 'cmfah'") as raised:
        CMFAHConfig.from_pretrained(tmp_path)
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_objective_settings_of_older_files_move_to_their_section(tmp_path):
    CMFAHConfig(id2label={0: "beach", 1: "dog"}).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    content = json.loads(file.read_text())
    del content["class_concepts"]
    file.write_text(json.dumps({**content, "label_weight": 8, "concept_weight": 0, "margin": 0.2}))
    config = CMFAHConfig.from_pretrained(tmp_path)
    assert config.objective == {"_name": "cmfah", "label_weight": 8, "concept_weight": 0, "margin": 0.2}
    assert (config.num_class_concepts, hasattr(config, "label_weight")) == (0, False)
    config.save_pretrained(tmp_path / "again")
    assert CMFAHConfig.from_pretrained(tmp_path / "again").to_dict() == {**config.to_dict(), "auto_map": ANY}


def test_towers_have_no_objective_settings():
    with pytest.raises(ValueError, match="label_weight is a setting of the objective"):
        CMFAHConfig(label_weight=8)
