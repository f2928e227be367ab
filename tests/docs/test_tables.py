"""Tables of results in README.md and docs/: written from docs/results/, which a grid of the package produces."""

import json
import sys

import pytest
import yaml
from pages.blocks import DOCS

sys.path.insert(0, str(DOCS))
try:
    import write_tables
finally:
    sys.path.remove(str(DOCS))

PAGES = {
    page.relative_to(write_tables.ROOT).as_posix(): page.read_text(encoding="utf-8") for page in write_tables.PAGES
}
FILES = sorted(write_tables.RESULTS.glob("*.json"))


@pytest.mark.parametrize("name", PAGES)
def test_tables_match_the_results(name):
    assert write_tables.written(PAGES[name]) == PAGES[name], "run `make docs`"
    # Tables of numbers without markers are typed by hand, which is not allowed.
    unmarked = write_tables._MARKED.sub("", PAGES[name])
    assert "<!-- table:" not in unmarked


def test_every_table_is_shown_once_and_every_result_used():
    shown = [table for text in PAGES.values() for table in write_tables.names(text)]
    assert sorted(shown) == sorted(write_tables.tables())
    layouts = yaml.safe_load(write_tables.LAYOUTS.read_text(encoding="utf-8"))
    assert {results for layout in layouts.values() for results in layout["results"]} == {file.stem for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_results_are_small_and_name_their_source(file):
    document = json.loads(file.read_text(encoding="utf-8"))
    assert document["source"] in ("measured", "transcribed")
    assert file.stat().st_size < 40_000
    for figure in document["figures"]:
        assert figure.get("source", "measured") == "measured"  # since the file was transcribed
        assert figure["mean"] >= 0
        assert figure["mean"] <= 1 or figure["metric"].endswith(" share")
        assert figure["seeds"] >= 1
        assert figure["std"] is None or figure["seeds"] > 1


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_grids_run_the_shown_results(file):
    from cmfah_hf.experiments import read_grid

    document = json.loads(file.read_text(encoding="utf-8"))
    if script := document.get("script"):  # a benchmark instead of a grid
        assert (write_tables.ROOT / script).is_file()
        return
    grid = read_grid(write_tables.ROOT / "hub_configs" / "experiments" / f"{document.get('grid', file.stem)}.yaml")
    runs = {(run.data, run.method, run.variant) for run in grid.runs}
    figures = write_tables.read_figures(file.stem)
    assert {(figure["data"], figure["method"], figure["variant"]) for figure in figures} <= runs


def test_missing_or_ambiguous_results_are_named():
    layout = {"results": ["scenes"], "head": [""], "columns": {"mean": {"direction": "mean"}}}
    with pytest.raises(ValueError, match="no figure for"):
        write_tables.table("gone", {**layout, "rows": [["x", {"variant": "nobody"}]]})
    with pytest.raises(ValueError, match="2 figures"):
        write_tables.table("both", {**layout, "rows": [["x", {"variant": "own"}]]})
