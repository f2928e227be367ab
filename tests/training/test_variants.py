"""`benchmarks/variants.py` on drawn scenes: its tables are of what the runs' folders hold, and none is made twice."""

import importlib.util
import json
import statistics
import sys
from pathlib import Path

import pytest

from cmfah_hf.training import parse_run
from cmfah_hf.training.evaluate import evaluate_folder

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "variants.py"


@pytest.fixture
def benchmark(monkeypatch):
    spec = importlib.util.spec_from_file_location("benchmark_of_variants", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        module.main()

    module.run = run
    return module


def rows_of(printed: str) -> dict[str, dict[str, list[str]]]:
    """Rows by name in tables by title, a row the words of its cells."""
    tables, title = {}, None
    for line in printed.splitlines():
        if line.strip().startswith("MAP on"):
            title = line.strip().partition(";")[0]
        elif "│" in line:
            name, *cells = (cell.strip() for cell in line.strip("│").split("│"))
            tables.setdefault(title, {})[name] = cells
    return tables


@pytest.mark.slow
def test_tables_are_those_of_the_folders(benchmark, scenes_folder, write_config, tmp_path, capsys):
    config = write_config(
        tmp_path / "run.yaml",
        model={"freeze_backbone": True},
        data={"dataset": str(scenes_folder)},
        training={"num_train_epochs": 1},
    )
    output = tmp_path / "variants"
    arguments = (config, "--output", output, "--variants", "both", "none", "--seeds", 0, 1, "--disable_tqdm", "true")
    benchmark.run(*arguments, "--reference")
    tables = rows_of(capsys.readouterr().out)
    assert list(tables) == list(benchmark.TITLES.values())
    for variant in ("both", "none"):
        folders = [output / f"{variant}-seed-{seed}" for seed in (0, 1)]
        assert [json.loads((folder / "config.json").read_text())["attention"] for folder in folders] == [variant] * 2
        for protocol in ("single", "paired"):
            found = [evaluate_folder(str(folder), str(scenes_folder), protocol=protocol) for folder in folders]
            cells = tables[benchmark.TITLES[protocol]][f"{benchmark.VARIANTS['cmfah'][variant][0]} ({variant})"]
            for cell, direction in zip(cells, ("i2t", "t2i"), strict=False):
                values = [figures[f"hamming/{direction}/map"] for figures in found]
                assert cell == f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"
            both = [(figures["hamming/i2t/map"] + figures["hamming/t2i/map"]) / 2 for figures in found]
            assert cells[2].startswith(f"{statistics.mean(both):.3f}")
        best = [json.loads((folder / "metrics.json").read_text())["validation"] for folder in folders]
        cells = tables[benchmark.TITLES["validation"]][f"{benchmark.VARIANTS['cmfah'][variant][0]} ({variant})"]
        assert cells[2].startswith(f"{statistics.mean(best):.3f}")

    # The words of the first run serve all, so variants are compared on the same texts.
    words = {(output / f"{name}-seed-{seed}" / "skip_gram.safetensors").read_bytes()
             for name in ("both", "none") for seed in (0, 1)}  # fmt: skip
    assert len(words) == 1

    # Once more: nothing is trained, and on the validation pairs alone no table is of the queries.
    made = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    benchmark.run(*arguments, "--on", "validation")
    again = rows_of(capsys.readouterr().out)
    assert again == {title: rows for title, rows in tables.items() if title == benchmark.TITLES["validation"]}
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()} == made

    # The posteriors of a linear classifier tell drawn scenes of even a random backbone from each other.
    i2t, t2i = benchmark.logistic_regression(output / "both-seed-0", parse_run(config, []).data)
    cells = tables[benchmark.TITLES["single"]]["logistic regression (real-valued)"]
    assert cells[:3] == [f"{i2t:.3f}", f"{t2i:.3f}", f"{(i2t + t2i) / 2:.3f}"]
    random = float(tables[benchmark.TITLES["single"]]["CMFAH (both)"][3])
    assert min(i2t, t2i) > 1.3 * random


@pytest.mark.slow
def test_scahn_is_taken_apart_with_cmfah_beside_it(benchmark, scenes_folder, write_config, tmp_path, capsys):
    changes = {
        "data": {"dataset": str(scenes_folder)},
        "training": {"num_train_epochs": 1},
    }
    frozen = {"freeze_backbone": True}
    config = write_config(tmp_path / "scahn.yaml", model={**frozen, "model_type": "scahn"}, **changes)
    beside = write_config(tmp_path / "cmfah.yaml", model=frozen, **changes)
    output = tmp_path / "parts"
    arguments = (config, "--output", output, "--on", "validation", "--seeds", 0, "--disable_tqdm", "true")
    benchmark.run(*arguments, "--variants", "full", "no-graph", "hash", "own", "--cmfah", beside)
    (rows,) = rows_of(capsys.readouterr().out).values()
    expected = {
        "SCAHN (full)": ("scahn", True, "both"),
        "without the label graph (no-graph)": ("scahn", False, "both"),
        "opponents on hash values alone (hash)": ("scahn", True, "hash"),
        "SCAHN, its own terms alone (own)": ("scahn", True, "both"),
        "CMFAH (cmfah)": ("cmfah", None, None),
        "CMFAH, the paper's terms alone (cmfah-own)": ("cmfah", None, None),
    }
    assert {name for name in rows if name.strip()} - {"variant"} == set(expected)
    for name, settings in expected.items():
        folder = output / f"{name.rpartition('(')[2].strip(')')}-seed-0"
        kept = json.loads((folder / "config.json").read_text())
        kept = kept["objective"]
        assert tuple(kept.get(key) for key in ("_name", "use_label_graph", "adversarial")) == settings
        best = json.loads((folder / "metrics.json").read_text())["validation"]
        assert rows[name][2] == f"{best:.3f}"
        # What this project adds to the papers' losses, and to SCAHN's from CMFAH's.
        terms = [kept[key] > 0 for key in ("label_weight", "concept_weight", "similarity_weight")]
        hinges = [kept[f"{key}_weight"] > 0 for key in ("intra_feature", "intra_hash", "inter_feature", "inter_hash")]
        if name.endswith("own)"):
            assert not any(terms)
            assert all(hinges) == (settings[0] == "cmfah")
            assert all(hinges) or not any(hinges)
        else:
            assert terms[0]
    # Every part has its row, and the other method's variants are none of SCAHN's.
    switches = " ".join(" ".join(changes) for _, changes in benchmark.VARIANTS["scahn"].values())
    for part in ("--use_label_graph", "--use_cross_contrast", "--use_intra_contrast", "--adversarial none"):
        assert part in switches
    with pytest.raises(SystemExit):
        benchmark.run(*arguments, "--variants", "image")
    assert "is of scahn, which has no variant 'image'" in capsys.readouterr().err
