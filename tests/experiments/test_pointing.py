"""`benchmarks/pointing.py`: the pointing game with the models of a grid."""

import importlib
import sys
from pathlib import Path

import pytest

from cmfah_hf.data.scenes import make_scenes
from cmfah_hf.experiments import read_grid, run_grid
from cmfah_hf.retrieval import CrossMediaRetriever
from cmfah_hf.training.evaluate import pointing_accuracy

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_models_whose_texts_attend_play_the_game(write_grid, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = importlib.import_module("pointing")
    variants = {name: {"attention": name} for name in ("both", "none")}
    assert run_grid(read_grid(write_grid(variants=variants, seeds=[0])), tmp_path / "out") == []
    folders = script.finished(tmp_path / "out")
    assert [folder.parts[-4] for folder in folders] == ["both", "none"]
    scenes = make_scenes(8, seed=script.SEED)
    retriever = CrossMediaRetriever.from_pretrained(folders[0])
    expected = pointing_accuracy(retriever.model, retriever.processor, scenes)
    results = [result for folder in folders for result in script.results_of(folder, scenes)]
    assert [(one.variant, one.ranking, one.value) for one in results] == [
        ("both", "attention", expected["accuracy"]),
        ("both", "random", expected["chance"]),
    ]
    monkeypatch.setattr(sys, "argv", ["pointing.py", str(tmp_path / "out"), "--scenes", "8"])
    script.main()
    assert f"{expected['accuracy']:.3f}" in capsys.readouterr().out
