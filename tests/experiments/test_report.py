"""Reports: tables, spreads and paired tests of results, against manual values, SciPy and statistics."""

import statistics

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from cmfah_hf.errors import CMFAHError
from cmfah_hf.experiments.figures import plot_results
from cmfah_hf.experiments.report import (
    Table,
    compare,
    comparison_table,
    cost_table,
    paired_p,
    select,
    shown_mean,
    summarize,
    table_of,
)

VALUES = {"both": [0.70, 0.72, 0.71], "none": [0.69, 0.705, 0.70], "text": [0.68]}


def test_means_and_standard_deviations_over_seeds(make_results):
    both, none, text = summarize(make_results(VALUES))
    assert both.values == {0: 0.70, 1: 0.72, 2: 0.71}
    assert both.mean == pytest.approx(0.71)
    assert none.spread == pytest.approx(statistics.stdev(VALUES["none"]))
    assert text.spread is None
    assert both.to_dict()["seeds"] == 3
    assert shown_mean(0.6884, 0.0061) == ".688 ± .006"
    assert shown_mean(1.0, None) == "1.000"


def test_one_value_per_seed(make_results):
    with pytest.raises(CMFAHError, match="two values of map for seed 0"):
        summarize([*make_results(VALUES), *make_results({"both": [0.5]})])


def test_rows_name_the_varied_settings(make_results):
    results = make_results(VALUES) + make_results(VALUES, direction="i2t") + make_results(VALUES, split="validation")
    table = table_of(results)
    assert list(table.head) == ["title", "image to text", "text to image", "mean", "seeds"]
    assert list(table.rows[0]) == ["CMFAH (both)", ".710 ± .010", "", ".710 ± .010", "3"]
    several = table_of([*results, *make_results(VALUES, bits=32)])
    assert list(several.head)[:2] == ["title", "bits"]
    assert len(several.rows) == 6
    with pytest.raises(CMFAHError, match="No result has the metric 'recall@1'; there are: map"):
        table_of(results, metric="recall@1")


def test_results_are_selected_by_column(make_results):
    results = make_results(VALUES)
    assert {result.variant for result in select(results, {"variant": "both", "bits": 64})} == {"both"}
    with pytest.raises(CMFAHError, match="no column 'colour'"):
        select(results, {"colour": "red"})


def test_markdown_and_latex():
    table = Table(["a_b", "x"], [["1 | 2", ""], ["50% ± 1", "y"]])
    assert table.markdown() == "| a_b | x |\n|---|---|\n| 1 \\| 2 | |\n| 50% ± 1 | y |"
    assert table.latex().splitlines()[0] == r"\begin{tabular}{lr}"
    assert r"a\_b & x \\" in table.latex()
    assert r"50\% $\pm$ 1 & y \\" in table.latex()


def test_paired_tests_match_scipy(make_results):
    none, text = compare(make_results(VALUES), "cmfah/both")
    assert none.difference == pytest.approx(statistics.mean(VALUES["none"]) - 0.71)
    assert (none.wins, none.seeds) == (0, 3)
    assert none.p == pytest.approx(stats.ttest_rel(VALUES["none"], VALUES["both"]).pvalue)
    assert (text.seeds, text.p) == (1, None)
    assert paired_p([0.1, 0.1, 0.1]) is None
    rows = comparison_table([none, text]).rows
    assert rows[0][-3:] == ["-.012", "0 of 3", f"{none.p:.3f}".removeprefix("0")]
    assert rows[1][-3:] == ["-.020", "0 of 1", ""]
    with pytest.raises(CMFAHError, match="no row 'cmfah/own' to compare with; there are cmfah/both"):
        compare(make_results(VALUES), "cmfah/own")


def test_rows_are_compared_within_their_group(make_results):
    results = make_results(VALUES) + make_results({"both": [0.5, 0.6], "none": [0.6, 0.8]}, bits=16)
    differences = {(one.of["variant"], one.of["bits"]): one.difference for one in compare(results, "cmfah/both")}
    assert differences[("none", 16)] == pytest.approx(0.15)
    assert differences[("none", 64)] < 0


def test_costs_are_means_over_seeds(make_results):
    results = []
    for seed, (seconds, memory) in enumerate([(10.0, 500.0), (12.0, 510.0)]):
        for metric in ("map", "recall@1"):  # rows of one run
            rows = make_results({"both": [0.1, 0.2]}, metric=metric, seconds=seconds, memory_mb=memory)
            results.append(rows[seed])
    results += make_results({"none": [0.3]}, seconds=0.25, bits=32)
    table = cost_table(results)
    assert list(table.head) == ["title", "bits", "seconds", "memory (MB)", "seeds"]
    assert table.rows == [
        ["CMFAH (both)", "64", "11.0 ± 1.4", "505 ± 7", "2"],
        ["CMFAH (none)", "32", "0.2", "", "1"],
    ]
    assert table.note.startswith("Seconds of reading the data and training; most main memory")


@pytest.mark.parametrize("lengths", [(64,), (16, 32, 64)])
def test_plots_show_every_method(make_results, tmp_path, lengths):
    results = [one for bits in lengths for one in make_results(VALUES, bits=bits)]
    results += make_results({"linear": [0.7]}, bits=None, ranking="cosine") if len(lengths) > 1 else []
    path = plot_results(results, tmp_path / "figures" / "map.png")
    image = np.asarray(Image.open(path).convert("L"))
    assert (image < 128).sum() > 200
