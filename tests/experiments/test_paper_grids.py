"""The grids of the paper's tables and figures: their runs, and all methods end to end on replicas of both releases."""

import json
from pathlib import Path

import pytest
import yaml
from data.release_replicas import make_mirflickr, make_nus_wide

from cmfah_hf.cli import main
from cmfah_hf.data.releases.mirflickr import prepare_mirflickr25k
from cmfah_hf.data.releases.nus_wide import prepare_nus_wide
from cmfah_hf.experiments import read_grid, read_results, run_grid
from cmfah_hf.experiments.report import select

GRIDS = Path(__file__).parents[2] / "hub_configs" / "experiments"
# Overrides only sizes and lengths, and uses local files instead of downloads.
SMALL = {
    **{"image_size": 64, "word_dim": 12, "num_train_epochs": 1, "per_device_train_batch_size": 8, "word_epochs": 1},
    **{"backbone_weights": None, "use_cpu": True, "disable_tqdm": True},
}
DEEP = {"hidden_size": 16, "mlp_sizes": []}
OF_METHOD = {
    **{"ssah": {**DEEP, "label_hidden_size": 8}, "agah": DEEP, "ugach": {"hidden_size": 16, "candidate_share": 0.5}},
    **{"dcmh": DEEP, "cmssh": {"pairs": 100}, "scm": {}},
    "cmfah": {"hidden_size": 16, "text_filters": 4, "num_concepts": 4, "save_strategy": "no"},
}


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    """Replicas of both releases, prepared, in one folder, with a file of articles."""
    folder = tmp_path_factory.mktemp("releases")
    for name, make, prepare in (
        ("mirflickr25k", make_mirflickr, prepare_mirflickr25k),
        ("nus-wide", make_nus_wide, prepare_nus_wide),
    ):
        replica = make(folder / f"{name}-release")
        prepare(replica.root, folder / name, release=replica.release)
    (folder / "articles.txt").write_text("nikon explore café müll tag3 tag1 lens\n" * 30, encoding="utf-8")
    return folder


@pytest.fixture
def small(releases, monkeypatch, tmp_path):
    """A function that writes a grid of the paper with small sizes, and returns the file."""
    monkeypatch.setenv("CMFAH_DATA", str(releases))

    def write(name: str, **changes) -> Path:
        grid = yaml.safe_load((GRIDS / f"{name}.yaml").read_text(encoding="utf-8"))
        for method, settings in grid["methods"].items():
            settings["settings"] = {**settings.get("settings", {}), **OF_METHOD[method]}
            if method == "cmfah":
                settings["settings"] |= {"knowledge": [str(releases / "articles.txt")], "load_best_model_at_end": False}
        for own in grid["data"].values():
            own.pop("backbone_weights", None)
        path = tmp_path / f"{name}.yaml"
        grid = {**grid, **changes, "settings": SMALL}
        path.write_text(yaml.safe_dump(grid, sort_keys=False), encoding="utf-8")
        return path

    return write


def test_the_grids_have_the_axes_of_the_paper():
    tables = read_grid(GRIDS / "paper-table-2-3.yaml").runs
    assert {run.bits for run in tables} == {16, 32, 64, 128}
    assert {run.data for run in tables} == {"mirflickr", "nus-wide"}
    assert {run.method for run in tables} >= {"cmssh", "scm", "ugach", "ssah", "agah", "cmfah"}
    apart = read_grid(GRIDS / "paper-table-4.yaml").runs
    assert {run.settings["attention"] for run in apart} == {"both", "image", "text", "none"}
    sweeps = {frozenset(run.settings) for run in read_grid(GRIDS / "paper-figures.yaml").runs}
    varied = set().union(*sweeps) - set.intersection(*map(set, sweeps))
    assert varied == {"margin", "discriminator_learning_rate", "num_train_epochs"}


@pytest.mark.slow
def test_all_methods_of_the_tables_run_on_both_data_sets(small, tmp_path, capsys):
    grid = read_grid(small("paper-table-2-3", bits=[16], seeds=[0]), data_of=[])
    output = tmp_path / "out"
    lines = []
    assert run_grid(grid, output, report=lines.append) == [], lines
    results = read_results(output)
    for data in ("mirflickr", "nus-wide"):
        maps = select(results, {"data": data, "metric": "map", "direction": "mean", "split": "query"})
        found = {one.method: one.value for one in maps if one.ranking == "hamming"}
        assert set(found) == set(OF_METHOD)
        assert all(0 < value <= 1 for value in found.values())
    for arguments in ([], ["--format", "latex"], ["--figure", str(tmp_path / "k.png"), "--curve", "precision@k"]):
        with pytest.raises(SystemExit) as ended:
            main(["experiment", "report", str(output), "--where", "data=nus-wide", *arguments])
        assert not ended.value.code
        assert "AGAH" in capsys.readouterr().out
    assert (tmp_path / "k.png").is_file()
    record = json.loads((output / "runs/mirflickr/agah/full/16-bits/seen/seed-0/experiment.json").read_text("utf-8"))
    assert record["versions"]["torch"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["paper-table-4", "paper-figures"])
def test_the_parts_and_the_sweeps_run(name, small, tmp_path):
    grid = read_grid(small(name, bits=[16], seeds=[0]), data_of=[])
    patterns = {"paper-table-4": ["mirflickr/*"], "paper-figures": ["mirflickr/*/margin-0.1/*", "*/gan-2e-4/*"]}[name]
    lines = []
    assert run_grid(grid, tmp_path / "out", patterns, report=lines.append) == [], lines
    assert len(lines) == {"paper-table-4": 4, "paper-figures": 3}[name]
