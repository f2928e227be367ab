"""Kept tokens of a frozen text encoder: equal codes, captions, and resumed runs."""

import json
import shutil
from collections import Counter
from pathlib import Path

import datasets
import pytest
import torch
from dual_encoders import write_dual_encoder, write_text_model
from safetensors.torch import load_file, save_file

from cmfah_hf.atomic import sha256_of
from cmfah_hf.data.collator import PairCollator
from cmfah_hf.models import CMFAHConfig, CMFAHModel, CMFAHProcessor
from cmfah_hf.models.text_encoder import CMFAHTextBackbone
from cmfah_hf.training import train
from cmfah_hf.training.data import kept_tokens
from cmfah_hf.training.data.kept_tokens import keep_tokens, texts_to_read

TEXTS = ["a dog on the beach", "", "sea", "a boat on the sea " * 9, "two birds", "a dog on the beach"]


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    """A BERT of two layers with sixteen positions, and its tokenizer."""
    return write_text_model(tmp_path_factory.mktemp("text") / "bert")


@pytest.fixture(scope="module", params=["bert", "clip", "siglip", "altclip", "flava"])
def encoder(request, text_folder, tmp_path_factory):
    """A model over a text backbone or a dual encoder, and its processor."""
    names = {"text_backbone": str(text_folder), "image_feature_dim": 8}
    if request.param != "bert":
        folder = tmp_path_factory.mktemp("encoders") / request.param
        names = {"dual_encoder": str(write_dual_encoder(request.param, folder))}
    config = CMFAHConfig(**names, hash_bits=16, hidden_size=24, num_concepts=4, use_lstm=False)
    processor = CMFAHProcessor.from_backbones(config)
    config.pad_token_id = processor.tokenizer.pad_token_id
    torch.manual_seed(0)
    return CMFAHModel(config).eval(), processor


@torch.no_grad()
def test_kept_tokens_give_the_same_codes_in_any_batch(encoder):
    model, processor = encoder
    table = keep_tokens(model.text_model, processor, TEXTS)
    assert len(table.spans) == 5
    for chosen in (TEXTS, TEXTS[1:2], TEXTS[::-1]):
        expected = model.get_text_hash(**processor(text=chosen, return_tensors="pt"))
        batch = table(chosen)
        assert batch.keys() == {"token_features", "attention_mask"}
        found = model.get_text_hash(**batch)
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
        assert not torch.equal(found, found[:1].expand_as(found)) or len(chosen) == 1
        assert model(**batch).text_hash is not None
    with pytest.raises(KeyError):
        table(["another text"])


@pytest.fixture
def text_tower(text_folder, tmp_path, monkeypatch):
    """A text tower over the BERT, its processor, and a cache of their own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    config = CMFAHConfig(text_backbone=str(text_folder), image_feature_dim=8, hash_bits=16, hidden_size=24)
    return CMFAHModel(config).text_model, CMFAHProcessor.from_backbones(config)


def test_tokens_are_computed_once_for_the_same_texts_and_weights(text_tower, texts_encoded):
    first = keep_tokens(*text_tower, TEXTS)
    for texts, encoded in ((TEXTS[::-1], 5), (TEXTS[:3], 8), (TEXTS[:3], 8)):
        again = keep_tokens(*text_tower, texts)
        assert texts_encoded["texts"] == encoded
        for name, values in again(texts).items():
            torch.testing.assert_close(values, first(texts)[name], atol=2e-3, rtol=0)
    text_tower[0].embeddings.backbone.embeddings.word_embeddings.weight.data += 1
    changed = keep_tokens(*text_tower, TEXTS[:3])
    assert texts_encoded["texts"] == 11
    assert not torch.equal(changed.tokens_NC, again.tokens_NC)


def _of_other_shape(file):
    save_file({"tokens": torch.zeros(3, 4), "spans": torch.zeros(5, 2)}, file)
    note = file.with_name("note.json")
    note.write_text(json.dumps(json.loads(note.read_text()) | {"sha256": sha256_of(file)}))


@pytest.mark.parametrize(
    "harm",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-1]),
        Path.unlink,
        lambda file: file.with_name("note.json").write_text("[]"),
        lambda file: file.with_name("note.json").unlink(),
        _of_other_shape,
    ],
    ids=["cut", "removed", "no note", "note removed", "other shape"],
)
def test_a_damaged_file_is_computed_again(text_tower, texts_encoded, caplog, tmp_path, harm):
    first = keep_tokens(*text_tower, TEXTS)
    (file,) = (tmp_path / "cache").glob("cmfah-tokens/*/tokens.safetensors")
    harm(file)
    again = keep_tokens(*text_tower, TEXTS)
    assert texts_encoded["texts"] == 10
    assert torch.equal(again.tokens_NC, first.tokens_NC)
    assert str(file.parent) in caplog.text
    assert "computed again" in caplog.text
    caplog.clear()
    keep_tokens(*text_tower, TEXTS)
    assert texts_encoded["texts"] == 10
    assert not caplog.text


def test_tables_of_one_encoder_are_joined(encoder):
    model, processor = encoder
    one, other = (keep_tokens(model.text_model, processor, texts) for texts in (TEXTS[:3], TEXTS[2:]))
    both = one.with_texts_of(other)
    assert both.spans.keys() == set(TEXTS)
    for table in (one, other):
        texts = list(table.spans)
        for name, found in both(texts).items():  # a text that both hold was encoded in two batches
            torch.testing.assert_close(found, table(texts)[name], atol=2e-3, rtol=0)


def test_tokens_of_another_encoder_are_refused(encoder):
    model, _ = encoder
    with pytest.raises(ValueError, match="extract them again"):
        model.get_text_hash(token_features=torch.zeros(1, 3, 99))
    with pytest.raises(ValueError, match="Give the text tower one of"):
        model.get_text_hash(torch.zeros(1, 3, dtype=torch.long), token_features=torch.zeros(1, 3, 16))


def test_tokens_that_are_too_large_are_not_kept(encoder, monkeypatch):
    model, processor = encoder
    monkeypatch.setattr(kept_tokens, "_MOST_BYTES", 10)
    assert keep_tokens(model.text_model, processor, TEXTS) is None
    assert keep_tokens(model.text_model, processor, []) is None


def test_every_caption_is_read(make_pairs, processor):
    rows = make_pairs(6)
    captions = [
        [f"{text} {word}" for word in ("sun", "sea")] if row % 2 else None for row, text in enumerate(rows["text"])
    ]
    pairs = rows.add_column("captions", captions)
    read = set(texts_to_read(pairs, "text", None))
    collator = PairCollator(processor)
    assert set(collator._read_texts(list(pairs), pairs["text"][:])) <= read
    assert read == {*(c for listed in captions if listed for c in listed), *rows["text"][::2]}
    assert set(texts_to_read(rows, "text", None)) == set(rows["text"])


@pytest.fixture
def settings(text_folder):
    model = {"text_backbone": str(text_folder), "freeze_backbone": True, "dropout": 0.3}
    return {
        "model": model,
        "data": {"refit": True},
        "training": {"num_train_epochs": 2, "per_device_train_batch_size": 12, "save_total_limit": None},
    }


@pytest.fixture
def texts_encoded(monkeypatch):
    """The number of texts that each text encoder has encoded in training mode and evaluation."""
    counts = Counter()
    forward = CMFAHTextBackbone._encode

    def counted(self, input_ids, embeds_BWE, mask_BW):
        counts["texts"] += len(embeds_BWE)
        return forward(self, input_ids, embeds_BWE, mask_BW)

    monkeypatch.setattr(CMFAHTextBackbone, "_encode", counted)
    return counts


@pytest.fixture
def captioned(with_captions):
    """The scenes with two captions each."""
    return with_captions(lambda number, text: [text, f"photo of {text}"])


@pytest.mark.parametrize("expand", ["false", "true"])
def test_a_run_encodes_each_text_once_and_learns_the_same(run_of, settings, captioned, texts_encoded, tmp_path, expand):
    settings["data"] |= {"dataset": str(captioned), "query_split": None}
    weights, counts = [], []
    for keep in ("true", "false"):
        texts_encoded.clear()
        out = tmp_path / keep
        train(run_of("--keep_tokens", keep, "--expand", expand, "--output_dir", str(out), **settings))
        weights.append(load_file(out / "model.safetensors"))
        counts.append(texts_encoded["texts"])
    assert counts[0] <= 2 * 48 < counts[1]  # both captions, in both models of the run
    kept, plain = weights
    assert kept.keys() == plain.keys()
    for name, tensor in kept.items():
        torch.testing.assert_close(tensor, plain[name], atol=2e-2, rtol=0, msg=name)


def test_a_resumed_run_ends_with_the_same_weights(run_of, settings, texts_encoded, tmp_path):
    whole = tmp_path / "whole"
    metrics = train(run_of("--output_dir", str(whole), **settings))
    resumed = tmp_path / "resumed"
    shutil.copytree(whole / "checkpoint-4", resumed / "checkpoint-4")
    for name in ("expander.safetensors", "skip_gram.safetensors"):
        if (whole / name).exists():
            shutil.copy(whole / name, resumed / name)
    again = train(run_of("--output_dir", str(resumed), "--resume_from_checkpoint", "true", **settings))
    drop = {"seconds"}
    assert {k: v for k, v in again.items() if k not in drop} == {k: v for k, v in metrics.items() if k not in drop}
    first, second = (load_file(folder / "model.safetensors") for folder in (whole, resumed))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
