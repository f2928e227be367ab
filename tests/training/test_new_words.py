"""`benchmarks/new_words.py`: its words, and precision of words that no caption has, on a few scenes."""

import importlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

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


@pytest.mark.photographs
@pytest.mark.skipif(
    not os.environ.get("CMFAH_DATA") or not PAIRS.is_dir(), reason="CMFAH_DATA names no folder with data/coco-pairs"
)
def test_no_training_caption_has_one_of_the_words(script):
    lines = (PAIRS / "train" / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    words, meanings = script.queries("en")
    assert script.words_in_captions(words, [row["text"] for row in rows]) == []
    assert script.words_in_captions(["puppy", "dog"], [row["text"] for row in rows]) == ["puppy", "dog"]
    assert {name for meaning in meanings for name in meaning} <= {label for row in rows for label in row["labels"]}


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
