"""Small models of every kind of tower with random weights, for exports."""

from collections.abc import Callable
from typing import Any

import torch
from dual_encoders import FAMILIES, dual_encoder_config
from transformers import BertConfig, Dinov2Config, ResNetConfig, RobertaConfig

from cmfah_hf.models import MODELS, CMFAHConfig, CMFAHModel, FeatureHashConfig, SCAHNConfig

_TEXT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 40}


def _of_words(kind: type[CMFAHConfig] = CMFAHConfig, **settings: Any) -> CMFAHConfig:
    """Over a ResNet of two stages and a table of word vectors."""
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    words = {"vocab_size": 40, "word_dim": 12, "text_filters": 6, "text_kernel_sizes": [1, 2, 3]}
    return kind(
        **{"backbone_config": backbone, "image_size": 32, "hidden_size": 16, "num_concepts": 7, "hash_bits": 32}
        | words
        | settings
    )


def _of_dual(family: str) -> CMFAHConfig:
    size = 64 if family == "align" else 32
    encoder = dual_encoder_config(family)
    return CMFAHConfig(dual_encoder_config=encoder, hidden_size=24, num_concepts=4, image_size=size, hash_bits=32)


_VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}

# The configuration of each, by a name for the ids of tests.
CONFIGURATIONS: dict[str, Callable[[], CMFAHConfig]] = {
    "cmfah": _of_words,
    "cmfah-lstm-add": lambda: _of_words(use_lstm=True, guidance="add", num_hidden_layers=2),
    "cmfah-mean-bits": lambda: _of_words(image_pooling="mean", text_pooling="mean_max", bit_queries=True),
    "cmfah-mlp-none": lambda: _of_words(shared_mlp_size=24, attention="none"),
    "cmfah-vgg11": lambda: _of_words(backbone_config=None, backbone="vgg11", image_size=64),
    # Its padding depends on the sizes of its inputs.
    "cmfah-same-padding": lambda: _of_words(
        backbone_config=None, backbone="tf_mobilenetv3_small_minimal_100", image_size=64
    ),
    "cmfah-bert": lambda: _of_words(text_backbone_config=BertConfig(**_TEXT, max_position_embeddings=24)),
    "cmfah-roberta-dinov2": lambda: _of_words(
        backbone_config=Dinov2Config(**_VIT, image_size=32, patch_size=8),
        text_backbone_config=RobertaConfig(**_TEXT, max_position_embeddings=24),
    ),
    "scahn": lambda: _of_words(SCAHNConfig),
    "scahn-lstm": lambda: _of_words(SCAHNConfig, use_lstm=True),
    "feature-hash": lambda: _of_words(FeatureHashConfig, mlp_sizes=[24]),
    **{family: lambda family=family: _of_dual(family) for family in (*FAMILIES, "vision-text-dual-encoder")},
}


def exported_model(name: str) -> CMFAHModel:
    """The model of a configuration, in evaluation mode, with weights and statistics that all matter."""
    torch.manual_seed(0)
    config = CONFIGURATIONS[name]()
    model = MODELS[config.model_type].model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.add_(0.1 * torch.rand(buffer.shape))
    return model
