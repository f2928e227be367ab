"""Text encoders: a text model of transformers in place of word vectors, its tokenizer, and refused files."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    T5Config,
)

from cmfah_hf.methods import CMFAHForPreTraining
from cmfah_hf.models import CMFAHConfig, CMFAHModel, CMFAHProcessor, CMFAHTextModel
from cmfah_hf.models.configuration_files import checked_settings
from cmfah_hf.models.model_files import ModelFileError
from cmfah_hf.models.sentence_files import PLAIN, SentenceSettings, sentence_settings
from cmfah_hf.retrieval.fingerprint import fingerprint_of
from cmfah_hf.training.backbone import load_text_backbone_weights

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "dog", "##s", "sea", "a", "on", "the", ",", "be", "##ach"]
TINY = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 16}


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    """A BERT of one layer with twelve positions, and its WordPiece tokenizer."""
    folder = tmp_path_factory.mktemp("text") / "bert"
    BertModel(BertConfig(**TINY, max_position_embeddings=12)).save_pretrained(folder)
    backend = Tokenizer(models.WordPiece({piece: row for row, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(make_model, text_folder):
    return make_model(CMFAHModel, text_backbone=str(text_folder))


@pytest.fixture(scope="module")
def processor(model):
    return CMFAHProcessor.from_backbones(model.config)


def test_text_model_is_resolved_once_and_sets_the_sizes(model):
    config = model.config
    assert config.text_backbone is None
    assert isinstance(config.text_backbone_config, BertConfig)
    assert (config.vocab_size, config.word_dim, config.pad_token_id, config.unk_token_id) == (16, 8, 0, None)
    assert not any("pooler" in name for name in model.state_dict())


def test_words_are_located_by_character_offsets(processor):
    inputs = processor(text=["The dogs, on the beach"], return_tensors="pt")
    assert inputs.input_ids.tolist() == [[2, 9, 4, 5, 10, 8, 9, 11, 12, 3]]
    assert processor.word_spans("The dogs, on the beach") == [
        ("the", [1]),
        ("dogs", [2, 3]),
        ("on", [5]),
        ("the", [6]),
        ("beach", [7, 8]),
    ]
    assert set(processor(text="dog", return_tensors="pt")) == {"input_ids", "attention_mask"}


def test_texts_of_any_length_are_encoded_and_long_ones_truncated(processor, model):
    assert processor.has_known_tokens("zebra")
    assert not processor.has_known_tokens("  ")
    assert processor.known_words("A zebra!") == ["a", "zebra"]
    inputs = processor(text=["dog " * 300, "", "zebra"], return_tensors="pt")
    assert inputs.input_ids.shape == (3, 12)
    codes = model.get_text_hash(**inputs)
    assert codes.isfinite().all()
    assert processor.word_spans("dog " * 300)[-1] == ("dog", [10])


@torch.no_grad()
def test_padding_and_other_items_of_the_batch_change_nothing(processor, model, batch):
    texts = ["dogs on the sea", "a dog", ""]
    batched = model.get_text_hash(**processor(text=texts, return_tensors="pt"))
    single = torch.cat([model.get_text_hash(**processor(text=[text], return_tensors="pt")) for text in texts])
    torch.testing.assert_close(batched, single, atol=1e-6, rtol=1e-5)
    empty = model.get_text_hash(torch.zeros(2, 0, dtype=torch.long))
    torch.testing.assert_close(empty, model.text_model.hash_head.dense.bias.tanh().expand(2, -1))
    inputs = processor(text=texts[:2], return_tensors="pt")
    pairs = model(batch["pixel_values"][:2], **inputs, output_attentions=True)
    assert [weights.shape[2:] for weights in pairs.attentions] == [(16, 7), (7, 16)]


def test_frozen_text_model_does_not_change(make_model, text_folder, batch, labels, processor):
    inputs = processor(text=["a dog", "the sea", "dogs", "beach"], return_tensors="pt")
    for freeze in (True, False):
        whole = make_model(CMFAHForPreTraining, text_backbone=str(text_folder), freeze_text_backbone=freeze).train()
        whole(batch["pixel_values"], **inputs, labels=labels).loss.backward()
        encoder = whole.cmfah.text_model.embeddings
        assert encoder.projection.weight.grad.any()
        assert [p.grad is None for p in encoder.backbone.parameters()] == [freeze] * len(
            list(encoder.backbone.parameters())
        )
        assert encoder.backbone.training is not freeze


def sentence_folder(text_folder, folder, modules=("Transformer", "Pooling", "Normalize"), **files):
    """The text model as sentence-transformers saves it, with its transformer in a folder of its own."""
    shutil.copytree(text_folder, folder / "0_Transformer")
    path = folder / "0_Transformer" / "tokenizer.json"
    cased = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "lowercase": False}
    path.write_text(json.dumps({**json.loads(path.read_text()), "normalizer": cased}))
    listed = [
        {"idx": number, "name": str(number), "path": f"{number}_{kind}", "type": f"sentence_transformers.models.{kind}"}
        for number, kind in enumerate(modules)
    ]
    contents = {
        "modules.json": listed,
        "config_sentence_transformers.json": {"prompts": {"query": "on the: "}, "default_prompt_name": "query"},
        "0_Transformer/sentence_bert_config.json": {"max_seq_length": 9, "do_lower_case": True},
        **{name.replace("__", "/"): content for name, content in files.items()},
    }
    for name, content in contents.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@torch.no_grad()
def test_sentence_transformers_folders_bring_prompt_length_and_case(make_config, text_folder, tmp_path):
    folder = sentence_folder(text_folder, tmp_path / "sentences")
    model = CMFAHTextModel(make_config(text_backbone=str(folder), vocab_size=16))
    processor = CMFAHProcessor.from_backbones(model.config)
    load_text_backbone_weights(model)
    texts = ["A DOG", "the beach, a dog on the sea", ""]
    inputs = processor(text=texts, return_tensors="pt")
    # As sentence-transformers encodes texts: prompt and text, in lower case, with the tokenizer of the subfolder.
    reference = AutoTokenizer.from_pretrained(folder / "0_Transformer")
    prompted = [f"on the: {text}".lower() for text in texts]
    expected = reference(prompted, padding=True, truncation=True, max_length=9, return_tensors="pt")
    assert torch.equal(inputs.input_ids, expected.input_ids)
    assert inputs.input_ids.shape == (3, 9)
    tokens = model.embeddings._encode(inputs.input_ids, None, inputs.attention_mask.bool())
    hidden = AutoModel.from_pretrained(folder / "0_Transformer")(**expected).last_hidden_state
    mask = inputs.attention_mask.bool()
    torch.testing.assert_close(tokens[mask], hidden[mask], atol=1e-6, rtol=1e-5)
    # Words are those of the text, at the positions behind the prompt.
    assert processor.word_spans("A DOG") == [("a", [4]), ("dog", [5])]
    assert not processor.has_known_tokens(" ")
    assert torch.equal(processor(text="A DOG", return_tensors="pt").input_ids[0], inputs.input_ids[0, :7])


def test_prompts_are_saved_and_part_of_the_fingerprint(make_model, text_folder, tmp_path):
    folder = sentence_folder(text_folder, tmp_path / "sentences")
    model = make_model(CMFAHModel, text_backbone=str(folder))
    processor = CMFAHProcessor.from_backbones(model.config)
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    again = CMFAHProcessor.from_pretrained(tmp_path / "saved")
    assert again.text_prompt == "on the: "
    texts = ["A DOG", "the sea " * 20]
    assert again(text=texts, padding=True).input_ids == processor(text=texts, padding=True).input_ids
    loaded = CMFAHModel.from_pretrained(tmp_path / "saved")
    assert fingerprint_of(loaded, again) == fingerprint_of(model, processor)
    again.text_prompt = ""
    assert "text_prompt" not in again.to_dict()
    assert fingerprint_of(loaded, again) != fingerprint_of(model, processor)
    path = tmp_path / "saved" / "processor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "text_prompt": ["a"]}))
    with pytest.raises(ModelFileError, match="a prompt is"):
        CMFAHProcessor.from_pretrained(tmp_path / "saved")


@pytest.mark.parametrize(
    ("modules", "files", "reason"),
    [
        (("Transformer", "Dense"), {}, "tokens come from Transformer, Dense"),
        (("Transformer", "LSTM", "Pooling"), {}, "tokens come from Transformer, LSTM"),
        (("StaticEmbedding",), {}, "tokens come from StaticEmbedding"),
        ((), {}, "tokens come from no module"),
        ((), {"modules.json": {}}, "holds no JSON list"),
        ((), {"modules.json": [{"type": "Transformer", "path": "../elsewhere"}]}, "a folder of its own"),
        (("Transformer",), {"config_sentence_transformers.json": {"default_prompt_name": "x"}}, "none of its prompts"),
        (
            ("Transformer",),
            {"config_sentence_transformers.json": {"default_prompt_name": "x", "prompts": {"x": "y" * 2_000}}},
            "at most 1,000",
        ),
        (
            ("Transformer",),
            {"0_Transformer__sentence_bert_config.json": {"max_seq_length": -1}},
            "max_seq_length is -1",
        ),
        (("Transformer",), {"0_Transformer__sentence_bert_config.json": "[1"}, "is not valid JSON"),
    ],
)
def test_unsupported_sentence_transformers_folders_are_refused(text_folder, tmp_path, modules, files, reason):
    folder = sentence_folder(text_folder, tmp_path / "sentences", modules, **files)
    with pytest.raises(ModelFileError, match=reason) as raised:
        CMFAHConfig(text_backbone=str(folder))
    assert "\n" not in str(raised.value)


def test_modules_behind_the_pooling_do_not_matter(text_folder, tmp_path):
    folder = sentence_folder(text_folder, tmp_path / "sentences", ("Transformer", "Pooling", "Dense", "Normalize"))
    (folder / "config_sentence_transformers.json").unlink()
    assert sentence_settings(str(folder)) == SentenceSettings("0_Transformer", 9, lowercase=True, prompt="")
    assert sentence_settings(str(text_folder)) == PLAIN


def test_round_trip_is_silent_and_names_no_other_source(processor, model, silence, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with silence():
        again = CMFAHModel.from_pretrained(tmp_path)
        tower = CMFAHTextModel.from_pretrained(tmp_path)
    same = CMFAHProcessor.from_pretrained(tmp_path)
    assert again.config.text_backbone_config.name_or_path == ""
    same.check_model(again.config)
    inputs = same(text=["dogs on the beach", ""], return_tensors="pt")
    expected = model.get_text_hash(**processor(text=["dogs on the beach", ""], return_tensors="pt"))
    assert torch.equal(again.get_text_hash(**inputs), expected)
    assert torch.equal(tower(**inputs).hash_values, expected)
    with pytest.raises(ValueError, match="its tokenizer is not the one"):
        CMFAHProcessor.from_vocabulary(model.config, ["dog"], [0.5] * 3, [0.5] * 3).check_model(model.config)
    with pytest.raises(ValueError, match="its tokenizer is not the one"):
        same.check_model(CMFAHConfig(vocab_size=13))


@pytest.mark.parametrize(
    "backbone",
    [
        RobertaConfig(**TINY, max_position_embeddings=14, pad_token_id=1),
        T5Config(vocab_size=16, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2),
    ],
    ids=lambda backbone: backbone.model_type,
)
@torch.no_grad()
def test_other_text_models(make_model, backbone):
    model = make_model(CMFAHTextModel, text_backbone_config=backbone)
    ids = torch.tensor([[5, 9, 3, 7], [4, 6, 2, 2]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    codes = model(ids, mask).hash_values
    assert codes.isfinite().all()
    torch.testing.assert_close(codes[1:], model(ids[1:, :2], mask[1:, :2]).hash_values, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Removed", "invert": False}),
        ("pre_tokenizer", {"type": "Delimiter"}),
        ("normalizer", {"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 10**4}),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "x" * 100}]}),
        ("model", {"type": "BPE", "dropout": 0.5, "vocab": {}, "merges": []}),
        ("model", None),
        ("post_processor", {"type": "BertProcessing"}),
    ],
)
def test_tokenizers_with_unsupported_parts_are_refused(processor, tmp_path, part, change):
    processor.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), part: change}))
    with pytest.raises(ModelFileError) as raised:
        CMFAHProcessor.from_pretrained(tmp_path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("model_max_length", 10**30), ("model_max_length", None), ("padding_side", "top"), ("sep_token", "gone")],
)
def test_unsupported_settings_of_tokenizers_are_refused(processor, tmp_path, name, value):
    processor.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(ModelFileError, match=name):
        CMFAHProcessor.from_pretrained(tmp_path)


def test_patterns_of_known_tokenizers_pass(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    clip = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    split = pre_tokenizers.Split(Regex(clip), behavior="removed", invert=True)
    backend = Tokenizer.from_str(path.read_text())
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.BertPreTokenizer()])
    path.write_text(backend.to_str())
    assert CMFAHProcessor.from_pretrained(tmp_path)(text=["dogs"]).input_ids == [[2, 4, 5, 3]]


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"text_backbone": "owner/name"}, "looked up elsewhere"),
        ({"text_backbone_config": {"model_type": "no_such"}}, "no text model"),
        ({"text_backbone_config": {"model_type": "bert", "auto_map": {"AutoModel": "x.Y"}}}, "holds further settings"),
        ({"text_backbone_config": {"model_type": "bert", "num_hidden_layers": 10**9}}, "is the most"),
    ],
)
def test_unsupported_configurations_are_refused(settings, part):
    with pytest.raises(ModelFileError, match=part):
        checked_settings(settings, CMFAHConfig, "config.json")


def test_model_without_text_model_has_no_such_tokenizer(make_config):
    with pytest.raises(ValueError, match="use from_vocabulary"):
        CMFAHProcessor.from_backbones(make_config())
    with pytest.raises(OSError, match="is no text model, in a folder or on the Hub"):
        CMFAHConfig(text_backbone="/nowhere/at-all")


@pytest.mark.slow
def test_configuration_alone_loads_no_model():
    code = "from cmfah_hf import CMFAHConfig; import sys; print([m for m in sys.modules if 'modeling_cmfah' in m])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.stdout.strip() == "[]", run.stderr


@torch.no_grad()
def test_codes_of_either_modality_from_the_full_output_of_the_processor(make_model, batch):
    word_model = make_model(CMFAHModel)
    assert torch.equal(word_model.get_image_hash(**batch), word_model.get_image_hash(batch["pixel_values"]))
    text = word_model.get_text_hash(batch["input_ids"], batch["attention_mask"])
    assert torch.equal(word_model.get_text_hash(**batch), text)
