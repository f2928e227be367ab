"""Grids on synthetic scenes: results from run folders, no repeated runs, one-line failures."""

import json
import shutil
import statistics
from dataclasses import replace

import numpy as np
import pytest
from transformers import BertConfig

from cmfah_hf.errors import CMFAHError
from cmfah_hf.evaluation.curve_files import read_curves
from cmfah_hf.experiments import read_grid, read_results, run_grid, running
from cmfah_hf.experiments.report import select, summarize
from cmfah_hf.experiments.results import RESULTS_NAME
from cmfah_hf.training import parse_run
from cmfah_hf.training.data.pairs import Pairs
from cmfah_hf.training.evaluate import evaluate_folder

VARIANTS = {"both": {"attention": "both"}, "none": {"attention": "none"}}


def snapshot(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.suffix != ".parquet"}


@pytest.mark.slow
def test_results_match_the_run_folders(write_grid, scenes_folder, tmp_path):
    output, lines = tmp_path / "out", []
    grid = read_grid(write_grid(variants=VARIANTS, encodings=["single", "paired"]))
    assert run_grid(grid, output, report=lines.append) == []
    assert lines[0].startswith("[1/4] scenes/cmfah/both/16-bits/seen/seed-0: finished (")
    folders = {run.name: output / "runs" / run.name for run in grid.runs}
    results = read_results(output / RESULTS_NAME)
    assert results == read_results(output)
    for name, folder in folders.items():
        assert json.loads((folder / "config.json").read_text())["attention"] == name.split("/")[2]
        assert not list(folder.glob("checkpoint-*"))
        metrics = json.loads((folder / "metrics.json").read_text())
        curves = read_curves(folder / "curves.json")
        for direction in ("i2t", "t2i"):
            at = dict(zip(*(curves[f"hamming/{direction}"][name] for name in ("k", "precision_at_k")), strict=True))
            assert at[1] == pytest.approx(metrics["query"][f"hamming/{direction}/precision@1"], abs=1e-5)
        own = select(results, {"run": name})
        (validation,) = select(own, {"split": "validation", "direction": "mean", "ranking": "hamming"})
        assert validation.value == pytest.approx(metrics["validation"])
        of_pairs = select(own, {"split": "pairs", "direction": "t2i", "metric": "recall@5"})
        assert {one.ranking: one.value for one in of_pairs} == {
            ranking: metrics["pairs"][f"{ranking}/t2i/recall@5"] for ranking in ("hamming", "aqd", "cosine", "random")
        }
        for encoding in ("single", "paired"):
            found = evaluate_folder(str(folder), str(scenes_folder), protocol=encoding)
            suffix = "/seen/paired" if encoding == "paired" else ""
            for ranking in ("hamming", "aqd"):
                at = curves[f"{ranking}/t2i{suffix}"]
                at_10 = np.interp(10, at["k"], at["precision_at_k"])
                assert at_10 == pytest.approx(found[f"{ranking}/t2i/precision@10"], abs=1e-5)
            of_queries = select(own, {"split": "query", "encoding": encoding})
            for ranking, direction, metric in (("hamming", "i2t", "map"), ("aqd", "t2i", "precision@10")):
                where = {"ranking": ranking, "direction": direction, "metric": metric}
                (result,) = select(of_queries, where)
                assert result.value == pytest.approx(found[f"{ranking}/{direction}/{metric}"])
            directions = [found[f"hamming/{direction}/map"] for direction in ("i2t", "t2i")]
            (mean,) = select(of_queries, {"ranking": "hamming", "metric": "map", "direction": "mean"})
            assert mean.value == pytest.approx(statistics.mean(directions))
            assert {one.value for one in select(of_queries, {"ranking": "random"})} == {found["random/map"]}
    assert {len(one.values) for one in summarize(results)} == {2}
    assert json.loads(results[0].versions)["torch"]
    assert all(one.seconds > 0 and one.memory_mb > 100 for one in results)
    # All runs read the same texts with the same words.
    assert len({(folder / "skip_gram.safetensors").read_bytes() for folder in folders.values()}) == 1
    assert len(list((output / "words").iterdir())) == 1

    # Run again: nothing is trained. Deleted results are evaluated again, with the curves of the paired encoding, and no
    # other file changes.
    before = snapshot(output)
    lost = output / "runs" / grid.runs[0].name / "experiment.json"
    lost.unlink()
    assert run_grid(grid, output) == []
    changed = {path for path, time in snapshot(output).items() if before[path] != time}
    assert changed == {lost, lost.with_name("curves.json")}
    # Only the memory of a training that was not measured anew is unknown.
    assert read_results(output) == [
        replace(one, memory_mb=None) if one.run == grid.runs[0].name else one for one in results
    ]


@pytest.mark.slow
def test_an_interrupted_run_resumes(write_grid, tmp_path, monkeypatch):
    grid = read_grid(write_grid(seeds=[0], settings={"num_train_epochs": 2, "save_total_limit": 3}))
    assert run_grid(grid, tmp_path / "whole") == []
    folder = tmp_path / "broken" / "runs" / grid.runs[0].name

    def interrupted(run):
        class Stop:
            def on_epoch_end(self, args, state, control, **kwargs):
                raise KeyboardInterrupt

        from transformers import TrainerCallback

        from cmfah_hf.training import trainer

        class Stopping(TrainerCallback):
            def on_save(self, args, state, control, **kwargs):
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            build = trainer.CMFAHTrainer.__init__

            def with_stop(self, *arguments, **settings):
                build(self, *arguments, **settings)
                self.add_callback(Stopping())

            patch.setattr(trainer.CMFAHTrainer, "__init__", with_stop)
            return train(run)

    train = running.train
    monkeypatch.setattr(running, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_grid(grid, tmp_path / "broken")
    assert list(folder.glob("checkpoint-*"))
    assert (tmp_path / "broken" / RESULTS_NAME).is_file()
    begun_at = []
    monkeypatch.setattr(
        running, "train", lambda run: begun_at.append(run.training.resume_from_checkpoint) or train(run)
    )
    assert run_grid(grid, tmp_path / "broken") == []
    assert begun_at == ["last"]
    values = [[(one.split, one.ranking, one.direction, one.metric, one.value) for one in read_results(tmp_path / name)]
              for name in ("whole", "broken")]  # fmt: skip
    assert values[0] == values[1]


def test_a_failed_run_is_one_line_and_the_others_continue(write_grid, tmp_path, monkeypatch):
    grid = read_grid(write_grid(seeds=[0, 1, 2]))
    attempted = []

    def finish(run, output):
        attempted.append(run.seed)
        if run.seed == 0:
            raise CMFAHError("the disk is full.")
        if run.seed == 1:
            raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(running, "finish", finish)
    lines = []
    assert run_grid(grid, tmp_path / "out", report=lines.append) == [run.name for run in grid.runs[:2]]
    assert attempted == [0, 1, 2]
    ends = ["the disk is full.", "RuntimeError: out of memory", "finished"]
    assert [line.partition(": ")[2].rpartition(" (")[0] for line in lines] == ends
    assert all(line.endswith((" left)", "(0:00)")) for line in lines)


def test_a_run_with_other_settings_does_not_reuse_the_folder(write_grid, tmp_path, monkeypatch):
    from cmfah_hf.experiments.results import write_record

    (run, *_) = read_grid(write_grid()).runs
    folder = tmp_path / "out" / "runs" / run.name
    folder.mkdir(parents=True)
    write_record(folder, run, [])
    running.finish(run, tmp_path / "out")
    (changed, *_) = read_grid(write_grid(settings={"num_train_epochs": 7})).runs
    with pytest.raises(CMFAHError, match="holds a run with other settings"):
        running.finish(changed, tmp_path / "out")
    (folder / "experiment.json").write_text("[]", encoding="utf-8")
    with pytest.raises(CMFAHError, match="is no record of an experiment"):
        running.finish(run, tmp_path / "out")


def test_codes_of_a_shallow_method_for_its_database_are_figures_of_their_own(write_grid, tmp_path):
    (run, *_) = read_grid(write_grid(protocols=["unseen"])).runs
    (tmp_path / "trainer_state.json").write_text('{"log_history": []}', encoding="utf-8")
    found = {"query": {"hamming/i2t/map": 0.3}, "query_seen": {"hamming/i2t/map": 0.4}}
    found |= {"query_pair": {"hamming/i2t/map": 0.5}, "query_learnt": {"hamming/i2t/map": 0.6}}
    figures = running._figures(run, parse_run(run.config, run.arguments()), tmp_path, found)
    assert [(one["database"], one["encoding"], one["value"]) for one in figures] == [
        *(("unseen", "single", 0.3), ("seen", "single", 0.4)),
        *(("unseen", "pair", 0.5), ("unseen", "learnt", 0.6)),
    ]


def test_errors_of_probabilities_are_figures(write_grid, tmp_path):
    (run, *_) = read_grid(write_grid()).runs
    (tmp_path / "trainer_state.json").write_text('{"log_history": []}', encoding="utf-8")
    errors = {"ece": 0.02, "ece@10": 0.04, "precision": 0.75, "recall": 0.5, "share": 0.2, "queries": 9, "bins": []}
    measured = {"aqd/i2t": errors, "aqd/t2i": {**errors, "ece": 0.04}, "aqd/t2t": errors}
    found = {"query": {}, "calibration": measured, "calibration_seen": {"hamming/i2t": {"ece": 0.3}}}
    figures = running._figures(run, parse_run(run.config, run.arguments()), tmp_path, found)
    of = {tuple(one[name] for name in ("database", "ranking", "direction", "metric")): one["value"] for one in figures}
    assert of["unseen", "aqd", "i2t", "ece"] == 0.02
    assert of["unseen", "aqd", "mean", "ece"] == pytest.approx(0.03)
    assert of["unseen", "aqd", "t2t", "probable_precision"] == 0.75
    assert of["unseen", "aqd", "t2i", "probable_recall"] == 0.5
    assert of["seen", "hamming", "i2t", "ece"] == 0.3
    assert len(of) == len(figures) == 4 * 4 + 1  # with the mean of the directions across the media


@pytest.mark.slow
def test_several_processes_and_both_protocols(write_grid, tmp_path, environment, monkeypatch):
    methods = {
        "cmfah": {"config": "tiny-{data}.yaml"},
        "linear": {"config": "tiny-{data}.yaml", "reference": "linear"},
    }
    # The workers are new processes with their own cache.
    monkeypatch.setenv("HF_HOME", environment["HF_HOME"])
    monkeypatch.setenv("PYTHONPATH", environment["PYTHONPATH"])
    grid = read_grid(write_grid(seeds=[0], methods=methods, protocols=["seen", "unseen"]))
    lines = []
    assert run_grid(grid, tmp_path / "out", jobs=2, report=lines.append) == [], lines
    results = read_results(tmp_path / "out")
    for method in ("cmfah", "linear"):
        maps = select(results, {"method": method, "metric": "map", "direction": "mean", "split": "query"})
        searched = {(one.protocol, one.database) for one in maps}
        chosen = select(results, {"method": method, "direction": "mean", "split": "validation"})
        assert searched == {("seen", "seen"), ("unseen", "unseen"), ("unseen", "seen")}
        assert {one.ranking for one in chosen} == {"hamming" if method == "cmfah" else "cosine", "random"}
    sizes = json.loads((tmp_path / "out" / "runs" / "scenes/cmfah/full/16-bits/unseen/seed-0/metrics.json").read_text())
    # Of 48 training scenes, 10 are the database, 8 of the rest that of the validation queries, about 4 are queries.
    assert sizes["query"]["database"] == 10
    assert sizes["query_seen"]["database"] == 38
    assert sizes["train_pairs"] + sizes["validation_pairs"] == 30
    assert sizes["protocol"] == "unseen"
    shutil.rmtree(tmp_path / "out" / "words")


def test_a_run_without_word_vectors_shares_no_words_with_one_that_has_them(tmp_path, monkeypatch):
    texts = ["a dog", "a cat and a dog"] * 3
    monkeypatch.setattr(running, "read_pairs", lambda *given: Pairs({}, None, {}, texts, None, None))
    BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=16).save_pretrained(tmp_path / "b")
    arguments = ["--text_backbone", str(tmp_path / "b"), "--output_dir", str(tmp_path / "run"), "--use_cpu", "true"]
    without = running.shared_words(parse_run(None, arguments), tmp_path)
    with_graph = running.shared_words(parse_run(None, ["--method", "scahn", *arguments]), tmp_path)
    assert without != with_graph
    assert not list(without.iterdir())
    assert (with_graph / "skip_gram.safetensors").is_file()
