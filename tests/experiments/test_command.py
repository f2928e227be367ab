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
    grid = write_grid(data={"scenes": {"dataset": str(tmp_path / "nowhere")}})
    code, out, err = call("run", grid, "--output", tmp_path / "out", "--json")
    assert code == 2
    names = [f"scenes/cmfah/full/16-bits/seen/seed-{seed}" for seed in (0, 1)]
    assert json.loads(out)["failed"] == names
    lines = err.splitlines()
    assert all(f"[{count}/2] {name}: " in err for count, name in enumerate(names, start=1))
    assert "nowhere" in err
    assert lines[-1] == "cmfah: 2 of 2 runs failed, see the lines above; the same command tries again."


def test_reports(call, results, tmp_path):
    code, out, _ = call("report", results, "--against", "cmfah/both", "--figure", tmp_path / "map.png")
    assert code == 0
    assert out.splitlines()[0] == "| title | image to text | text to image | mean | seeds |"
    assert "| CMFAH (both) | | | .710 ± .010 | 3 |" in out
    assert "| -.012 | 0 of 3 |" in out
    assert (tmp_path / "map.png").is_file()
    assert r"\toprule" in call("report", results, "--format", "latex")[1]
    document = json.loads(call("report", results, "--format", "json")[1])
    assert document["source"] == "measured"
    assert document["common"]["data"] == "coco"
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
    ],
)
def test_impossible_reports(call, results, arguments, message):
    code, _, err = call("report", results, *arguments)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1


def test_no_results(call, tmp_path):
    assert "there are no results" in call("report", tmp_path)[2]
    (tmp_path / "results.parquet").write_text("no table", encoding="utf-8")
    assert "holds no results" in call("report", tmp_path)[2]
