"""`cmfah experiment`: plans, failures in one line with exit code 2, and reports in all formats."""

import json
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cmfah_hf.cli import main
from cmfah_hf.experiments.results import SCHEMA

VALUES = {"both": [0.70, 0.72, 0.71], "none": [0.69, 0.705, 0.70]}


@pytest.fixture
def call(capsys):
    """A function that runs the command and returns its exit code, output and errors."""

    def run(*arguments):
        code = 0
        try:
            main(["experiment", *map(str, arguments)])
        except SystemExit as end:
            code = end.code or 0
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def results(make_results, tmp_path):
    path = tmp_path / "results.parquet"
    pq.write_table(pa.Table.from_pylist([asdict(one) for one in make_results(VALUES)], schema=SCHEMA), path)
    return path


def test_a_plan_starts_no_runs(call, write_grid, tmp_path):
    code, out, _ = call("run", write_grid(), "--output", tmp_path / "out", "--plan", "--only", "*/seed-1")
    assert (code, out) == (0, "scenes/cmfah/full/16-bits/seen/seed-1\n")
    assert not (tmp_path / "out").exists()


def test_failed_runs_are_named_and_counted(call, write_grid, tmp_path):
    (tmp_path / "nowhere").mkdir()  # it exists, and holds no data
    grid = write_grid(data={"scenes": {"dataset": str(tmp_path / "nowhere")}})
    code, out, err = call("run", grid, "--output", tmp_path / "out", "--json")
    assert code == 2
    names = [f"scenes/cmfah/full/16-bits/seen/seed-{seed}" for seed in (0, 1)]
    assert json.loads(out)["failed"] == names
    lines = err.splitlines()
    assert all(f"[{count}/2] {name}: " in err for count, name in enumerate(names, start=1))
    assert "nowhere" in err
    assert lines[-1] == "cmfah: 2 of 2 runs failed, see the lines above; the same command tries again."


def test_missing_data_is_found_before_anything_runs(call, write_grid, tmp_path):
    grid = write_grid(data={"scenes": {"dataset": str(tmp_path / "nowhere")}})
    code, _, err = call("run", grid, "--output", tmp_path / "out")
    assert code == 2
    assert f"{tmp_path / 'nowhere'}: there is no such folder or file, here or below CMFAH_DATA" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert call("run", grid, "--output", tmp_path / "out", "--plan")[0] == 0


def test_reports(call, results, tmp_path):
    code, out, _ = call("report", results, "--against", "cmfah/both", "--figure", tmp_path / "map.png")
    assert code == 0
    assert out.splitlines()[0] == "| title | image to text | text to image | mean | seeds |"
    assert "| CMFAH (both) | | | .710 ± .010 | 3 |" in out
    assert "| -.012 | 0 of 3 |" in out
    assert (tmp_path / "map.png").is_file()
    assert out.count("*Protocol seen; database seen, its codes single. ") == 2
    latex = call("report", results, "--format", "latex")[1]
    assert r"\toprule" in latex
    assert latex.splitlines()[-1].startswith("% Protocol seen; ")
    document = json.loads(call("report", results, "--format", "json")[1])
    assert document["source"] == "measured"
    assert document["common"]["data"] == "coco"
    assert document["provenance"]["seeds"] == [0, 1, 2]
    assert "costs" not in document
    first = {"variant": "both", "title": "CMFAH (both)", "mean": 0.71, "std": 0.01, "seeds": 3}
    assert document["figures"][0] == first
    code, _, err = call("report", results, "--format", "json", "--metric", "map,recall@10")
    assert (code, "'recall@10'; there are: map" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "html"], "choose markdown, latex or json"),
        (["--where", "method=scahn"], "No result has the method 'scahn'; there are: cmfah"),
        (["--where", "bits=many"], "bits is 'many'; give a whole number"),
        (["--metric", "recall"], "No result has the metric 'recall'"),
        (["--against", "scahn/full"], "no row 'scahn/full' to compare with"),
        (["--curve", "precision@k"], "--curve is plotted to --figure; give the file"),
        (["--figure", "x.png", "--curve", "precision@k"], "curves are in the folders of runs; give the output"),
        (["--figure", "x.png", "--curve", "roc"], "no curve 'roc'; choose precision@k or precision-recall"),
    ],
)
def test_impossible_reports(call, results, arguments, message):
    code, _, err = call("report", results, *arguments)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1


def test_costs_are_reported(call, results):
    out = call("report", results, "--cost")[1]
    assert "| title | seconds | memory (MB) | seeds |" in out
    assert "| CMFAH (both) | 1.0 ± 0.0 | | 3 |" in out
    (first, _) = json.loads(call("report", results, "--cost", "--format", "json")[1])["costs"]
    assert (first["variant"], first["seconds"], first["memory_mb"], first["seeds"]) == ("both", 1.0, None, 3)


def test_no_results(call, tmp_path):
    assert "there are no results" in call("report", tmp_path)[2]
    (tmp_path / "results.parquet").write_text("no table", encoding="utf-8")
    assert "holds no results" in call("report", tmp_path)[2]
