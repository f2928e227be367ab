"""Curves of runs: files, means over the seeds, plots; shallow references write those of all their databases."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cmfah_hf.cli import main
from cmfah_hf.errors import CheckpointError, CMFAHError
from cmfah_hf.evaluation import RetrievalEvaluator
from cmfah_hf.evaluation.curve_files import CURVES_NAME, add_curves, read_curves, write_curves
from cmfah_hf.experiments import read_grid, run_grid
from cmfah_hf.experiments.curves import curves_of_runs, mean_curves
from cmfah_hf.experiments.figures import plot_curves
from cmfah_hf.experiments.results import write_record

KS = [1, 50, 100]


def points(scale, recalls=(0.2, 0.6, 1.0)):
    return {
        "k": np.array(KS),
        "precision_at_k": scale * np.array([1.0, 0.5, 0.25]),
        "recall": np.array(recalls),
        "precision": scale * np.array([0.9, 0.6, 0.3])[-len(recalls) :],
    }


@pytest.fixture
def output(write_grid, tmp_path):
    """The folders of four finished runs of two methods, with curves that are simple to average."""
    methods = {
        "scm": {"config": "fitted-scenes.yaml", "settings": {"method": "scm"}},
        "cmfh": {"config": "fitted-scenes.yaml", "settings": {"method": "cmfh", "similarity": "pairs"}},
    }
    grid = read_grid(write_grid(methods=methods))
    for run in grid.runs:
        folder = tmp_path / "out" / "runs" / run.name
        folder.mkdir(parents=True)
        write_record(folder, run, [])
        scale = {"scm": 1.0, "cmfh": 0.5}[run.method] * (1.0 if run.seed == 0 else 0.8)
        curves = {"hamming/i2t": points(scale), "hamming/t2i": points(scale / 2), "random": points(0.1)}
        write_curves(curves, folder / CURVES_NAME)
        add_curves({"hamming/i2t": points(scale), "random": points(0.1)}, "seen", "pair", folder / CURVES_NAME)
    return tmp_path / "out"


def test_files_hold_the_curves_of_the_evaluator(tmp_path):
    rng = np.random.default_rng(0)
    codes = [rng.choice([-1.0, 1.0], (size, 16)) for size in (9, 9, 2600, 2600)]
    labels = [rng.random((size, 3)) < 0.4 for size in (9, 2600)]
    evaluator = RetrievalEvaluator(metrics=("precision@k",), ks=(50, 950, 1000), ranking="hamming")
    curves, figures = evaluator.curves(*codes, *labels), evaluator(*codes, *labels)
    write_curves(curves, tmp_path / CURVES_NAME)
    found = read_curves(tmp_path / CURVES_NAME)
    assert set(found) == set(curves)
    for direction in ("i2t", "t2i"):
        curve = found[f"hamming/{direction}"]
        assert set(range(50, 1001, 50)) | {1} <= set(curve["k"])
        assert curve["k"].max() == 1000
        at = dict(zip(curve["k"], curve["precision_at_k"], strict=True))
        for k in evaluator.ks:
            assert at[k] == pytest.approx(figures[f"hamming/{direction}/precision@{k}"], abs=1e-5)
        np.testing.assert_allclose(curve["recall"], curves[f"hamming/{direction}"]["recall"], atol=1e-5)
    assert (tmp_path / CURVES_NAME).stat().st_size < 10_000


@pytest.mark.parametrize("content", ["[]", '{"random": [1]}', '{"random": {"k": [1]}}', "{", '{"a": null}'])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / CURVES_NAME).write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"curves\.json (is no file of curves|is not valid JSON)"):
        read_curves(tmp_path / CURVES_NAME)


def test_curves_of_different_lengths_are_refused(tmp_path):
    broken = {**{name: values.tolist() for name, values in points(1.0).items()}, "k": [1, 2]}
    (tmp_path / CURVES_NAME).write_text(json.dumps({"random": broken}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="is no file of curves"):
        read_curves(tmp_path / CURVES_NAME)


def test_means_over_the_seeds(output):
    means = mean_curves(curves_of_runs(output, "precision@k"), "precision@k")
    by_name = {(one.method, one.ranking, one.direction, one.encoding): one for one in means}
    assert len(by_name) == len(means) == 2 * (2 + 2 + 1)
    scm = by_name["scm", "hamming", "i2t", "single"]
    assert (scm.seeds, scm.bits, scm.database) == (2, 16, "seen")
    np.testing.assert_allclose(scm.x, KS)
    np.testing.assert_allclose(scm.y, 0.9 * np.array([1.0, 0.5, 0.25]))
    np.testing.assert_allclose(scm.spread, np.std([1.0, 0.8], ddof=1) * np.array([1.0, 0.5, 0.25]))
    np.testing.assert_allclose(by_name["cmfh", "random", "t2i", "single"].spread, 0, atol=1e-12)


def test_depths_and_recalls_that_not_all_seeds_have_are_left_out(output):
    one, two = [curve for curve in curves_of_runs(output, "precision@k") if curve.method == "scm"][::5][:2]
    assert (one.seed, two.seed) == (0, 1)
    (mean,) = mean_curves([one, replace(two, x=np.array([1, 50, 90]))], "precision@k")
    np.testing.assert_allclose(mean.x, [1, 50])
    recall = np.array([0.2, 0.6, 1.0])
    late = replace(two, x=np.array([0.5, 1.0]), y=np.array([0.5, 0.3]))
    (mean,) = mean_curves([replace(one, x=recall, y=np.array([0.9, 0.6, 0.3])), late], "precision-recall")
    assert (mean.x[0], mean.x[-1], len(mean.x)) == (pytest.approx(0.5), 1.0, 51)
    np.testing.assert_allclose(mean.y[[0, 10, -1]], [(0.675 + 0.5) / 2, (0.6 + 0.46) / 2, 0.3])


@pytest.mark.parametrize("kind", ["precision@k", "precision-recall"])
def test_plots_show_every_method_in_both_directions(output, tmp_path, kind):
    curves = curves_of_runs(output, kind)
    wide = Image.open(plot_curves(curves, tmp_path / "both.png", kind)).size
    one = [curve for curve in curves if curve.direction == "i2t"]
    assert wide[0] > 1.8 * Image.open(plot_curves(one, tmp_path / "one.png", kind)).size[0]
    svg = plot_curves(curves, tmp_path / "both.svg", kind).read_text(encoding="utf-8")
    for label in ("scm, single", "scm, pair", "cmfh, single", "cmfh, pair", "random order", "image to text"):
        assert f"<!-- {label} -->" in svg
    assert svg.count("<!-- random order -->") == 2


def test_runs_without_curves_are_left_out(output, caplog):
    files = sorted((output / "runs").rglob(CURVES_NAME))
    files[0].unlink()
    assert len({(one.method, one.seed) for one in curves_of_runs(output, "precision@k")}) == 3
    assert "1 runs have no curves, and are left out" in caplog.text
    for file in files[1:]:
        file.unlink()
    with pytest.raises(CMFAHError, match="no run has curves"):
        curves_of_runs(output, "precision@k")


def test_a_missing_file_is_created_with_further_curves(tmp_path):
    add_curves({"aqd/i2t": points(1.0), "random": points(0.1)}, "seen", "paired", tmp_path / CURVES_NAME)
    assert set(read_curves(tmp_path / CURVES_NAME)) == {"aqd/i2t/seen/paired"}


def test_the_linear_reference_writes_curves_of_its_own_ranking(write_grid, tmp_path):
    methods = {"linear": {"config": "tiny-{data}.yaml", "reference": "linear"}}
    grid = read_grid(write_grid(methods=methods, protocols=["unseen"], seeds=[0]))
    assert run_grid(grid, tmp_path / "out") == []
    curves = curves_of_runs(tmp_path / "out", "precision@k")
    found = {(one.database, one.encoding, one.ranking, one.direction, one.bits) for one in curves}
    of_all = ("unseen", "single")
    assert found == {(*of_all, ranking, name, None) for ranking in ("cosine", "random") for name in ("i2t", "t2i")}
    whole = {(one.ranking, one.direction): one.y[-1] for one in curves}
    for direction in ("i2t", "t2i"):
        assert whole["cosine", direction] == pytest.approx(whole["random", direction], abs=1e-5)
    assert {one.x.max() for one in curves} == {10}  # the held-out database


def test_shallow_methods_write_curves_costs_and_their_plots(write_grid, tmp_path, capsys):
    settings = {"method": "cmfh", "rounds": 2, "similarity": "pairs"}
    methods = {"cmfh": {"config": "fitted-{data}.yaml", "settings": settings}}
    path = write_grid(methods=methods, bits=[8], protocols=["unseen"])
    output = tmp_path / "out"
    assert run_grid(read_grid(path), output) == []
    curves = curves_of_runs(output, "precision@k")
    found = {(one.database, one.encoding, one.ranking) for one in curves}
    rankings = {(encoding, ranking) for encoding in ("single", "pair") for ranking in ("hamming", "aqd")}
    assert found == {("unseen", *each) for each in {*rankings, ("single", "random")}}
    plot = tmp_path / "curve.png"
    arguments = ["--where", "database=unseen", "--where", "ranking=hamming", "--figure", plot, "--curve", "precision@k"]
    with pytest.raises(SystemExit) as ended:
        main(["experiment", "report", str(output), "--cost", *map(str, arguments)])
    assert not ended.value.code
    printed = capsys.readouterr().out
    assert plot.is_file()
    assert "Chance ." in printed.splitlines()[5]
    assert "| title | seconds | memory (MB) | seeds |" in printed
    record = json.loads((output / "runs/scenes/cmfh/full/8-bits/unseen/seed-0/experiment.json").read_text("utf-8"))
    assert record["memory_mb"] > 50
    assert 0 <= record["seconds"] < 60
