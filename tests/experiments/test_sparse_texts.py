"""`benchmarks/sparse_texts.py` on a few scenes: only the texts change; variants differ only in the expansion."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from cmfah_hf.data import load_image_text, load_scenes
from cmfah_hf.expansion import GraphExpander
from cmfah_hf.models.tokenization_cmfah import split_words

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "sparse_texts.py"


@pytest.fixture
def benchmark(monkeypatch, datasets_cache):
    spec = importlib.util.spec_from_file_location("benchmark_of_sparse_texts", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "load_scenes", lambda: load_scenes(40, 12, image_size=48))
    return module


def test_only_the_texts_change(benchmark, tmp_path):
    for folder in ("one", "again"):
        (tmp_path / folder).mkdir()
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


def test_variants_differ_only_in_the_expansion(benchmark, monkeypatch, tmp_path):
    articles = tmp_path / "articles.jsonl"
    words = [split_words(text) for text in load_scenes(40, 12, image_size=48)["train"]["text"]]
    articles.write_text("".join(json.dumps({"text": " ".join(row)}) + "\n" for row in words * 3), encoding="utf-8")
    output = tmp_path / "sparse"
    arguments = ["scenes", "--output", output, "--encyclopedia", articles, "--word_dim", "8", "--word_epochs", "1"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    benchmark.main()
    folders = [output / "scenes" / f"words-{variant}" for variant in benchmark.VARIANTS]
    none, graph, knowledge = (GraphExpander.load(folder) for folder in folders)
    added = 0
    for word in graph.graph.vocabulary[:10]:
        assert none.expand(word) == [word]
        one, both = graph.expand(word), knowledge.expand(word)
        assert both[: len(one)] == one
        assert 1 <= len(one) <= 6
        assert len(both) - len(one) <= 5
        added += len(one) - 1
    assert added
    assert len({(folder / "skip_gram.safetensors").read_bytes() for folder in folders}) == 1
    made = {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")}
    benchmark.main()
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")} == made
