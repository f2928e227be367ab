"""Small dual encoders with random weights, one of each family, as folders that `transformers` saved."""

import json
import string
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
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
# With weights of the usual size, the vectors of all images are equal.
_CONVOLUTIONS = {"image_size": 64, "width_coefficient": 0.25, "depth_coefficient": 0.1, "initializer_range": 0.3}
_JOINT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}

# The class that the `tokenizer_config.json` of published models names, and the special tokens with the ids 0 to 4.
TOKENIZERS = {
    **dict.fromkeys(("clip", "owlvit", "groupvit"), "CLIPTokenizer"),
    **dict.fromkeys(("altclip", "metaclip_2"), "XLMRobertaTokenizer"),
    "siglip": "SiglipTokenizer", "siglip2": "GemmaTokenizer",
}  # fmt: skip
_SPECIAL = {
    "BertTokenizer": ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"),
    "CLIPTokenizer": ("[PAD]", "[BOS]", "[EOS]", "[UNK]", "[MASK]"),
    "XLMRobertaTokenizer": ("<pad>", "<s>", "</s>", "<unk>", "<mask>"),
    "SiglipTokenizer": ("<pad>", "<s>", "</s>", "<unk>", "<mask>"),
    "GemmaTokenizer": ("<pad>", "<bos>", "<eos>", "<unk>", "<mask>"),
}
_TEXTS = ["a dog on the beach", "a boat on the sea", "two birds in the sky"]
_WORDS = sorted({word for text in _TEXTS for word in text.split()})

# The class of the configuration, and its arguments.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("CLIPConfig", _BOTH),
    "siglip": ("SiglipConfig", {"text_config": {**_TEXT, "projection_size": 32}, "vision_config": _VISION}),
    "siglip2": ("Siglip2Config", {"text_config": {**_TEXT, "projection_size": 32}, "vision_config": _WITHOUT_SIZE}),
    "altclip": ("AltCLIPConfig", {**_BOTH, "text_config": {**_TEXT, "max_position_embeddings": 20, "project_dim": 32}}),
    "chinese_clip": ("ChineseCLIPConfig", _BOTH),
    "metaclip_2": ("MetaClip2Config", _BOTH),
    "blip": ("BlipConfig", {**_BOTH, "vision_config": {**_VISION, "initializer_range": 0.02}}),
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
    write_tokenizer(TOKENIZERS.get(family, "BertTokenizer"), folder)
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
    write_tokenizer("BertTokenizer", folder)
    return folder


def write_tokenizer(kind: str, folder: Path) -> None:
    """Saves a small tokenizer of a class of `transformers`."""
    pad, bos, eos, unk, mask = special = _SPECIAL[kind]
    names = {"pad_token": pad, "unk_token": unk, "mask_token": mask, "model_max_length": 16}
    if kind == "CLIPTokenizer":
        names |= {"bos_token": bos, "eos_token": eos}
        tokenizer = transformers.CLIPTokenizer(*_byte_pairs(special), **names)
    elif kind == "BertTokenizer":
        names |= {"cls_token": bos, "sep_token": eos}
        tokenizer = transformers.BertTokenizer(_word_pieces(special), **names)
    elif kind == "XLMRobertaTokenizer":
        names |= {"bos_token": bos, "eos_token": eos, "cls_token": bos, "sep_token": eos}
        tokenizer = transformers.XLMRobertaTokenizer(_unigrams(special), **names)
    elif kind == "SiglipTokenizer":
        backend = Tokenizer(models.Unigram(_unigrams(special), unk_id=3))
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Strip()])
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.post_processor = processors.TemplateProcessing(single=f"$A {eos}", special_tokens=[(eos, 2)])
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, **names)
    else:
        backend = Tokenizer(models.BPE(unk_token=None))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=300, special_tokens=list(special), initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
        )
        backend.train_from_iterator(_TEXTS * 3, trainer)
        pairs = [(bos, 1), (eos, 2)]
        backend.post_processor = processors.TemplateProcessing(single=f"{bos} $A {eos}", special_tokens=pairs)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos, **names)
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": kind}
    path.write_text(json.dumps(settings), encoding="utf-8")


def _byte_pairs(special: tuple[str, ...]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary of letters and of the words of the texts, and the merges that lead to these."""
    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    vocabulary = [*special, *letters, *(f"{letter}</w>" for letter in letters)]
    merges: dict[tuple[str, str], None] = {}
    for word in _WORDS:
        *parts, last = word
        parts.append(f"{last}</w>")
        while len(parts) > 1:
            merges[parts[0], parts[1]] = None
            parts[:2] = ["".join(parts[:2])]
    vocabulary += dict.fromkeys("".join(pair) for pair in merges)
    return {token: number for number, token in enumerate(vocabulary)}, list(merges)


def _word_pieces(special: tuple[str, ...]) -> dict[str, int]:
    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters), *(word for word in _WORDS if len(word) > 1)]
    return {piece: number for number, piece in enumerate(pieces)}


def _unigrams(special: tuple[str, ...]) -> list[tuple[str, float]]:
    """Special tokens, words and letters with their log probabilities."""
    words = [f"\u2581{word}" for word in _WORDS]
    letters = ["\u2581", *string.ascii_letters, *string.digits, *string.punctuation]
    return [*((token, 0.0) for token in special), *((word, -3.0) for word in words), *((one, -6.0) for one in letters)]
