"""Reports of results: means and spreads over seeds, tables in Markdown and LaTeX, and paired tests."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from cmfah_hf.errors import CMFAHError
from cmfah_hf.experiments.results import Result

# The columns that identify a figure, which is averaged over seeds.
GROUPS = (
    *("data", "method", "variant", "title", "bits", "protocol"),
    *("split", "database", "encoding", "ranking", "direction", "metric"),
)
DIRECTIONS = {"i2t": "image to text", "t2i": "text to image", "mean": "mean"}
_SPECIAL = {character: f"\\{character}" for character in "&%$#_{}"}
_SPECIAL |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}


@dataclass(frozen=True)
class Summary:
    """A figure over seeds: its columns `GROUPS`, and its values by seed."""

    of: Mapping[str, Any]
    values: Mapping[int, float]

    @property
    def mean(self) -> float:
        return statistics.mean(self.values.values())

    @property
    def spread(self) -> float | None:
        """The standard deviation over the seeds; None for a single seed."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """The groups, `mean` and `std` with six decimals, and the number of `seeds`."""
        spread = None if self.spread is None else round(self.spread, 6)
        return {**self.of, "mean": round(self.mean, 6), "std": spread, "seeds": len(self.values)}


@dataclass(frozen=True)
class Table:
    """A table of texts: its header and its rows."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """The table in GitHub's Markdown."""
        lines = [
            "".join(f"| {cell} " if cell else "| " for cell in (cell.replace("|", "\\|") for cell in row)) + "|"
            for row in (self.head, *self.rows)
        ]
        return "\n".join([lines[0], "|---" * len(self.head) + "|", *lines[1:]])

    def latex(self) -> str:
        """The table as a LaTeX `tabular`, for the package booktabs."""
        lines = [" & ".join(_latex(cell) for cell in row) + r" \\" for row in (self.head, *self.rows)]
        columns = "l" + "r" * (len(self.head) - 1)
        body = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
        return "\n".join([rf"\begin{{tabular}}{{{columns}}}", *body, r"\end{tabular}"])


@dataclass(frozen=True)
class Comparison:
    """Comparison of two rows of a table over their common seeds: mean difference, number of wins, and p-value.

    `p` is from a two-sided paired t-test; None with fewer than two seeds, or if all differences are equal.
    """

    of: Mapping[str, Any]
    against: str
    difference: float
    wins: int
    seeds: int
    p: float | None


def select(results: Sequence[Result], where: Mapping[str, Any]) -> list[Result]:
    """The results whose columns have these values.

    Raises:
        CMFAHError: If a column is unknown, or no result is left; it names the values of the column.
    """
    names = {field.name for field in fields(Result)}
    chosen = list(results)
    for name, value in where.items():
        if name not in names:
            raise CMFAHError(f"Results have no column {name!r}; there are {', '.join(sorted(names))}.")
        left = [result for result in chosen if getattr(result, name) == value]
        if not left:
            there = ", ".join(sorted({str(getattr(result, name)) for result in chosen})) or "none"
            raise CMFAHError(f"No result has the {name} {value!r}; there are: {there}.")
        chosen = left
    return chosen


def summarize(results: Sequence[Result]) -> list[Summary]:
    """The results over seeds, in the order of their first occurrence.

    Raises:
        CMFAHError: If a seed has two different values, as in contradictory results of several grids.
    """
    found: dict[tuple, dict[int, float]] = {}
    for result in results:
        values = found.setdefault(tuple(getattr(result, name) for name in GROUPS), {})
        if values.setdefault(result.seed, result.value) != result.value:
            raise CMFAHError(
                f"{result.run} has two values of {result.metric} for seed {result.seed}; choose by `where`."
            )
    return [Summary(dict(zip(GROUPS, key, strict=True)), values) for key, values in found.items()]


def document_of(summaries: Sequence[Summary]) -> str:
    """Summaries as JSON for documentation, one per line, with the columns that are equal in all under `common`."""
    figures = [one.to_dict() for one in summaries]
    common = {name: figures[0][name] for name in GROUPS if len({one[name] for one in figures}) == 1}
    lines = [json.dumps({name: value for name, value in one.items() if name not in common}) for one in figures]
    return f'{{\n"source": "measured",\n"common": {json.dumps(common)},\n"figures": [\n' + ",\n".join(lines) + "\n]\n}"


def table_of(results: Sequence[Result], metric: str = "map", split: str = "query") -> Table:
    """A table with directions as columns, without columns that are equal in all rows.

    Raises:
        CMFAHError: If there is no such figure.
    """
    summaries = summarize(select(results, {"metric": metric, "split": split}))
    shown = [name for name in GROUPS if name not in ("direction", "metric", "split", "method", "variant")]
    differing = [name for name in shown if name == "title" or len({one.of[name] for one in summaries}) > 1]
    rows: dict[tuple[str, ...], dict[str, Summary]] = {}
    for one in summaries:
        key = tuple("" if one.of[name] is None else str(one.of[name]) for name in differing)
        rows.setdefault(key, {})[one.of["direction"]] = one
    cells = []
    for key, row in rows.items():
        seeds = max(len(one.values) for one in row.values())
        shown_figures = [
            shown_mean(row[direction].mean, row[direction].spread) if direction in row else ""
            for direction in DIRECTIONS
        ]
        cells.append([*key, *shown_figures, str(seeds)])
    return Table([*differing, *DIRECTIONS.values(), "seeds"], cells)


def compare(
    results: Sequence[Result], against: str, metric: str = "map", split: str = "query", direction: str = "mean"
) -> list[Comparison]:
    """Every row of a table against one of them, paired by seed.

    Args:
        results: The results.
        against: The row to compare with, as `METHOD/VARIANT`; all other groups must be equal.
        metric, split, direction: The figure.

    Raises:
        CMFAHError: If there is no such row or figure.
    """
    summaries = summarize(select(results, {"metric": metric, "split": split, "direction": direction}))
    names = {_row_name(one): one for one in summaries}
    if against not in names:
        raise CMFAHError(f"There is no row {against!r} to compare with; there are {', '.join(names)}.")
    own = ("method", "variant", "title")
    bases = {_others(one, own): one for one in summaries if _row_name(one) == against}
    found = []
    for one in summaries:
        base = bases.get(_others(one, own))
        if base is None or base is one or not (seeds := sorted(one.values.keys() & base.values.keys())):
            continue
        differences = [one.values[seed] - base.values[seed] for seed in seeds]
        wins = sum(difference > 0 for difference in differences)
        p = paired_p(differences)
        found.append(Comparison(one.of, against, statistics.mean(differences), wins, len(seeds), p))
    return found


def paired_p(differences: Sequence[float]) -> float | None:
    """The p-value of a two-sided paired t-test from the differences of the pairs; None if it is undefined."""
    from scipy import stats

    if len(differences) < 2 or max(differences) - min(differences) < 1e-12:
        return None
    p = float(stats.ttest_1samp(differences, 0.0).pvalue)
    return None if math.isnan(p) else p


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """Comparisons as a table."""
    head = ["data", "title", "bits", "protocol", "database", "ranking"]
    rows = [
        [
            *(str(one.of[name]) for name in head),
            f"{one.difference:+.3f}".replace("0.", ".", 1),
            f"{one.wins} of {one.seeds}",
            "" if one.p is None else f"{one.p:.3f}".removeprefix("0"),
        ]
        for one in comparisons
    ]
    return Table([*head, "difference", "better with", "p (paired t-test)"], rows)


def shown_mean(mean: float, spread: float | None) -> str:
    """A mean and its spread as `.688 ± .006`; without a spread of zero or None."""
    texts = [f"{value:.3f}".removeprefix("0") for value in (mean, *([spread] if spread else []))]
    return " ± ".join(texts)


def _row_name(one: Summary) -> str:
    return f"{one.of['method']}/{one.of['variant']}"


def _others(one: Summary, names: Sequence[str]) -> tuple:
    return tuple(value for name, value in one.of.items() if name not in names)


def _latex(cell: str) -> str:
    return "".join(_SPECIAL.get(character, character) for character in cell).replace("±", r"$\pm$")
