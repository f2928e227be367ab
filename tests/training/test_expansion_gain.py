"""`benchmarks/expansion_gain.py` on a few scenes: what it does to the texts; its rows differ in the expansion alone."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from cmfah_hf.data import load_image_text, load_scenes
from cmfah_hf.expansion import GraphExpander
from cmfah_hf.models.tokenization_cmfah import split_words
from cmfah_hf.retrieval import CrossMediaRetriever

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "expansion_gain.py"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("benchmark_of_expansion", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "load_scenes", lambda: load_scenes(40, 12, image_size=48))
    return module


def test_texts_change_and_nothing_else_does(benchmark, tmp_path):
    for folder in ("one", "again"):
        benchmark.write_noisy(tmp_path / folder)
    before = load_scenes(40, 12, image_size=48)
    after, again = load_image_text(tmp_path / "one"), load_image_text(tmp_path / "again")
    kept = total = 0
    for split in ("train", "query"):
        assert after[split]["text"] == again[split]["text"]
        for column in ("id", "labels"):
            assert after[split][column] == before[split][column]
        for old, new in zip(before[split]["text"], after[split]["text"], strict=True):
            own, left = set(split_words(old)), split_words(new)
            assert len(left) - len(own & set(left)) <= 2
            kept, total = kept + len(own & set(left)), total + len(own)
    assert 0.3 < kept / total < 0.75


@pytest.mark.slow
def test_rows_differ_in_the_expansion_alone(benchmark, write_config, monkeypatch, tmp_path, capsys):
    articles = tmp_path / "articles.jsonl"
    words = [split_words(text) for text in load_scenes(40, 12, image_size=48)["train"]["text"]]
    articles.write_text("".join(json.dumps({"text": " ".join(row)}) + "\n" for row in words * 3), encoding="utf-8")
    config = write_config(tmp_path / "run.yaml", model={"freeze_backbone": True}, training={"num_train_epochs": 1})
    monkeypatch.setattr(benchmark, "CONFIG", config)
    monkeypatch.setattr(benchmark, "SETTINGS", {"scenes": ["--word_dim", "8", "--disable_tqdm", "true"]})
    rows = ["none", "graph:1", "graph:1+knowledge:2"]
    arguments = ["scenes", "--output", tmp_path / "gain", "--seeds", 3, "--encyclopedia", articles, "--rows", *rows]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    benchmark.main()
    printed = capsys.readouterr().out
    assert printed.count("MAP on") == 2
    assert all(printed.count(row) >= 2 for row in rows)
    folders = [tmp_path / "gain" / name for name in ("none-seed-3", "graph-1-seed-3", "graph-1-knowledge-2-seed-3")]
    assert not (folders[0] / "expander.json").exists()
    expanders = [GraphExpander.load(folder) for folder in folders[1:]]
    for word in expanders[0].graph.vocabulary[:10]:
        one, three = (expander.expand(word) for expander in expanders)
        assert three[: len(one)] == one
        assert len(one) <= 2
        assert len(three) - len(one) <= 2
    vocabularies = [CrossMediaRetriever.from_pretrained(folder).processor.tokenizer.get_vocab() for folder in folders]
    assert vocabularies[0] == vocabularies[1] == vocabularies[2]
    vectors = [(folder / "skip_gram.safetensors").read_bytes() for folder in folders]
    assert vectors[0] == vectors[1] == vectors[2]
