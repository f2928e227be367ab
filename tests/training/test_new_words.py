"""`benchmarks/new_words.py`: its words, and precision of words that no caption has, on a few scenes."""

import importlib
import json
import os
import string
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from cmfah_hf.data import load_image_text
from cmfah_hf.retrieval import CrossMediaRetriever
from cmfah_hf.training import parse_run, train
from cmfah_hf.training.data.pairs import read_pairs
from cmfah_hf.training.evaluate import encode_pairs

ROOT = Path(__file__).parents[2]
PAIRS = Path(os.environ.get("CMFAH_DATA", "")) / "data" / "coco-pairs"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module("new_words")
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def test_there_are_enough_distinct_words(script):
    for language in ("en", *script.TRANSLATED):
        words, meanings = script.queries(language)
        assert len(set(words)) == len(words) >= (100 if language == "en" else 50)
        assert all(meanings)
        names = [name for meaning in meanings for name in meaning]
        assert language == "en" or script.words_in_captions(words, names) == []  # captions have the names of classes


@pytest.mark.photographs
@pytest.mark.skipif(
    not os.environ.get("CMFAH_DATA") or not PAIRS.is_dir(), reason="CMFAH_DATA names no folder with data/coco-pairs"
)
def test_no_training_caption_has_one_of_the_words(script):
    lines = (PAIRS / "train" / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert script.words_in_captions(["puppy", "dog"], [row["text"] for row in rows]) == ["puppy", "dog"]
    for language in ("en", *script.TRANSLATED):
        words, meanings = script.queries(language)
        assert script.words_in_captions(words, [row["text"] for row in rows]) == []
        assert {name for meaning in meanings for name in meaning} <= {label for row in rows for label in row["labels"]}


@pytest.fixture
def multilingual_encoder(script, tmp_path):
    """A folder with a small random BERT, cased, whose tokens are the characters of all queries."""
    words = [word for language in ("en", *script.TRANSLATED) for word in script.queries(language)[0]]
    characters = sorted({*"".join(words), *string.ascii_letters})
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{each}" for each in characters)]
    tokenizer = BertTokenizerFast(vocab={token: number for number, token in enumerate(tokens)}, do_lower_case=False)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(**sizes, vocab_size=len(tokens), max_position_embeddings=64)
    BertModel(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


@pytest.mark.slow
def test_a_multilingual_encoder_is_trained_and_asked_in_all_languages(
    script, multilingual_encoder, scenes_folder, write_config, tmp_path, monkeypatch
):
    tiny = write_config(
        tmp_path / "tiny.yaml",
        model={"freeze_backbone": True}, data={"dataset": str(scenes_folder), "expand": False},
        training={"num_train_epochs": 1},
    )  # fmt: skip
    configurations, document = [], tmp_path / "figures.json"
    monkeypatch.setattr(script, "bundled_configuration", lambda name: configurations.append(name) or tiny)
    monkeypatch.setenv("CMFAH_TEXT_ENCODER", str(multilingual_encoder))
    monkeypatch.setattr(sys, "argv", ["new_words.py", str(tmp_path / "out"), "--output", str(document)])
    script.main()
    assert len(script.multilingual(tmp_path / "out", str(multilingual_encoder))) == 2  # nothing is trained again
    assert configurations == ["minilm-coco-pairs.yaml"] * 2
    found = json.loads(document.read_text(encoding="utf-8"))
    assert (found["common"]["method"], found["common"]["bits"]) == ("multilingual", 64)
    figures = {(one["database"], one["variant"], one["ranking"]): one for one in found["figures"]}
    assert len(figures) == len(found["figures"]) == 2 * 3 * 2
    labels = load_image_text(str(scenes_folder))
    searched = [set(names) for split in ("train", "query") for names in labels[split]["labels"]]
    for language in ("en", *script.TRANSLATED):
        words, meanings = script.queries(language)
        chance = [sum(bool(names & set(meaning)) for names in searched) / len(searched) for meaning in meanings]
        own = figures["seen", f"both-{language}", "random"]
        assert own["mean"] == pytest.approx(np.mean(chance), abs=1e-5)
        assert f"{len(words)} of {len(words)} words known" in own["title"]
    folder = tmp_path / "out/runs/coco-pairs/multilingual/both/64-bits/unseen/seed-0"
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["hash_bits"], metrics["seed"], metrics["protocol"]) == (64, 0, "unseen")
    # Words of every language have codes of their own.
    codes = CrossMediaRetriever.from_pretrained(folder).encode_texts(["feline", "Katze", "猫", "狗"])
    assert len(np.unique(codes, axis=0)) == 4


@pytest.mark.parametrize("protocol", ["seen", "unseen"])
def test_precision_of_words_on_a_few_scenes(script, run_of, tmp_path, monkeypatch, protocol):
    folder = tmp_path / "runs" / "scenes" / "cmfah" / "both" / "16-bits" / protocol / "seed-3"
    train(run_of("--output_dir", str(folder), "--protocol", protocol, "--seed", "3"))
    pairs = read_pairs(parse_run(folder / "run.yaml", ["--output_dir", str(tmp_path / "read")]), tmp_path)
    known = {part for text in pairs.splits["train"]["text"] for part in text.split()}
    word = next(name for name in pairs.classes["train"] if name in known)
    monkeypatch.setattr(script, "WORDS", {word: f"{word} unheard"})
    with pytest.raises(SystemExit, match=f"training captions have {word}"):
        list(script.results_of(folder, "en"))
    monkeypatch.setattr(script, "words_in_captions", lambda words, captions: [])
    found = {one.ranking: one for one in script.results_of(folder, "en")}
    assert (found["hamming"].seed, found["hamming"].database) == (3, protocol)
    assert "1 of 2 words known" in found["hamming"].title

    splits = ("database", "query") if protocol == "unseen" else ("train", "validation", "query")
    relevant = np.array([word in labels for name in splits for labels in pairs.splits[name]["labels"]])
    retriever = CrossMediaRetriever.from_pretrained(folder)
    regions = [encode_pairs(retriever.model, retriever.processor, pairs.splits[name], "text").images for name in splits]
    images = np.concatenate(regions) >= 0
    inputs = retriever.processor(text=[word, "unheard"], return_tensors="pt")
    with torch.no_grad():
        texts = retriever.model.get_text_hash(**inputs).numpy() >= 0
    precisions = []
    for text in texts:
        distances = (images != text).sum(axis=1)
        limit = np.sort(distances)[9]
        nearer, tied = distances < limit, distances == limit
        precisions.append((relevant[nearer].sum() + (10 - nearer.sum()) * relevant[tied].mean()) / 10)
    assert found["hamming"].value == pytest.approx(np.mean(precisions))
    assert found["random"].value == pytest.approx(relevant.mean())
