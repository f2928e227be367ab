"""Small dual encoders with random weights, one of each family, as folders that `transformers` saved."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AutoModel, BertConfig, BertModel, PreTrainedConfig, PreTrainedTokenizerFast, ViTConfig

_VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
_TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 300,
    "max_position_embeddings": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_BOTH = {"text_config": _TEXT, "vision_config": _VISION, "projection_dim": 24}
_WITHOUT_SIZE = {name: value for name, value in _VISION.items() if name != "image_size"} | {"num_patches": 16}
_STAGES = {"depths": [2, 1, 1], "num_group_tokens": [4, 4, 0], "num_output_groups": [4, 4, 0]}
_CONVOLUTIONS = {"image_size": 64, "width_coefficient": 0.25, "depth_coefficient": 0.1}
_JOINT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}

_BERT, _GEMMA = ("[PAD]", "[BOS]", "[EOS]", "[UNK]"), ("<pad>", "<bos>", "<eos>", "<unk>")

# The class of the configuration, and its arguments.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("CLIPConfig", _BOTH),
    "siglip": ("SiglipConfig", {"text_config": {**_TEXT, "projection_size": 32}, "vision_config": _VISION}),
    "siglip2": ("Siglip2Config", {"text_config": {**_TEXT, "projection_size": 32}, "vision_config": _WITHOUT_SIZE}),
    "altclip": ("AltCLIPConfig", {**_BOTH, "text_config": {**_TEXT, "max_position_embeddings": 20, "project_dim": 32}}),
    "chinese_clip": ("ChineseCLIPConfig", _BOTH),
    "metaclip_2": ("MetaClip2Config", _BOTH),
    "blip": ("BlipConfig", _BOTH),
    "owlvit": ("OwlViTConfig", _BOTH),
    "groupvit": ("GroupViTConfig", {**_BOTH, "vision_config": {**_VISION, **_STAGES}}),
    "flava": (
        "FlavaConfig",
        {
            "image_config": _VISION, "text_config": _TEXT, "multimodal_config": _JOINT, "hidden_size": 32,
            "projection_dim": 24,
        },
    ),
    "align": ("AlignConfig", {"text_config": _TEXT, "vision_config": _CONVOLUTIONS, "projection_dim": 80}),
}  # fmt: skip


def dual_encoder_config(family: str) -> PreTrainedConfig:
    """The configuration of a small dual encoder."""
    if family == "vision-text-dual-encoder":
        both = ViTConfig(**_VISION), BertConfig(**_TEXT)
        return transformers.VisionTextDualEncoderConfig.from_vision_text_configs(*both, projection_dim=24)
    name, arguments = FAMILIES[family]
    return getattr(transformers, name)(**arguments)


def write_dual_encoder(family: str, folder: Path, seed: int = 0) -> Path:
    """Saves a small dual encoder with its tokenizer and its image processor."""
    torch.manual_seed(seed)
    config = dual_encoder_config(family)
    AutoModel.from_config(config).save_pretrained(folder)
    _tokenizer(*(_GEMMA if family == "siglip2" else _BERT)).save_pretrained(folder)
    size = 64 if family == "align" else 32
    if family == "siglip2":
        image_processor = transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
    elif family in ("clip", "altclip", "metaclip_2"):
        sizes = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
        image_processor = transformers.CLIPImageProcessor(**sizes)
    else:
        image_processor = transformers.ViTImageProcessor(size={"height": size, "width": size})
    image_processor.save_pretrained(folder)
    return folder


def write_text_model(folder: Path) -> Path:
    """Saves a BERT of two layers and sixteen positions with its tokenizer."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(**sizes, vocab_size=300, max_position_embeddings=16)).save_pretrained(folder)
    _tokenizer(*_BERT).save_pretrained(folder)
    return folder


def _tokenizer(pad: str, bos: str, eos: str, unk: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [pad, bos, eos, unk]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=sorted(alphabet))
    tokenizer.train_from_iterator(["a dog on the beach", "a boat on the sea", "two birds in the sky"] * 3, trainer)
    pairs = [(bos, 1), (eos, 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A {eos}", special_tokens=pairs)
    names = {"pad_token": pad, "bos_token": bos, "eos_token": eos, "unk_token": unk}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=16, **names)
