"""Reports of results: means and spreads over seeds, tables with their provenance, costs, and paired tests."""

import json
import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from cmfah_hf.errors import CMFAHError
from cmfah_hf.experiments.provenance import Provenance, provenance_of
from cmfah_hf.experiments.results import Result

Row = TypeVar("Row")

# The columns that identify a run apart from its seed, and those that identify a figure, which is averaged over seeds.
OF_RUN = ("data", "method", "variant", "title", "bits", "protocol")
GROUPS = (*OF_RUN, "split", "database", "encoding", "ranking", "direction", "metric")
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
    """A table of texts: its header, its rows, and a line below it, such as the provenance of its figures."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def markdown(self) -> str:
        """The table in GitHub's Markdown, its note in italics."""
        lines = [
            "".join(f"| {cell} " if cell else "| " for cell in (cell.replace("|", "\\|") for cell in row)) + "|"
            for row in (self.head, *self.rows)
        ]
        note = ["", f"*{self.note}*"] if self.note else []
        return "\n".join([lines[0], "|---" * len(self.head) + "|", *lines[1:], *note])

    def latex(self) -> str:
        """The table as a LaTeX `tabular`, for the package booktabs, its note as a comment."""
        lines = [" & ".join(_latex(cell) for cell in row) + r" \\" for row in (self.head, *self.rows)]
        columns = "l" + "r" * (len(self.head) - 1)
        body = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
        note = [f"% {self.note}"] if self.note else []
        return "\n".join([rf"\begin{{tabular}}{{{columns}}}", *body, r"\end{tabular}", *note])


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


@dataclass(frozen=True)
class Cost:
    """The cost of one row: its columns `OF_RUN`, and the seconds and, where known, the memory by seed."""

    of: Mapping[str, Any]
    seconds: Mapping[int, float]
    memory_mb: Mapping[int, float]

    def to_dict(self) -> dict[str, Any]:
        """The columns, and the means over the seeds; None for unknown memory."""
        memory = statistics.mean(self.memory_mb.values()) if self.memory_mb else None
        return {
            **self.of,
            "seconds": round(statistics.mean(self.seconds.values()), 1),
            "memory_mb": None if memory is None else round(memory, 1),
            "seeds": len(self.seconds),
        }


def select(results: Sequence[Row], where: Mapping[str, Any]) -> list[Row]:
    """The results whose columns have these values; curves are selected in the same way.

    Raises:
        CMFAHError: If a column is unknown, or no result is left; it names the values of the column.
    """
    chosen = list(results)
    names = {field.name for field in fields(chosen[0] if chosen else Result)}  # type: ignore[arg-type]  # all dataclasses
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


def document_of(
    summaries: Sequence[Summary], provenance: Provenance | None = None, costs: Sequence[Cost] | None = None
) -> str:
    """Summaries as JSON for documentation, one per line, with the columns that are equal in all under `common`.

    Provenance and costs, if given, have keys of their own.
    """
    figures = [one.to_dict() for one in summaries]
    common = {name: figures[0][name] for name in GROUPS if len({one[name] for one in figures}) == 1}
    lines = [json.dumps({name: value for name, value in one.items() if name not in common}) for one in figures]
    own = [] if provenance is None else [f'"provenance": {json.dumps(provenance.to_dict())},']
    if costs is not None:
        own.append('"costs": [\n' + ",\n".join(json.dumps(cost.to_dict()) for cost in costs) + "\n],")
    head = ['{\n"source": "measured",', f'"common": {json.dumps(common)},', *own, '"figures": [']
    return "\n".join([*head, ",\n".join(lines), "]\n}"])


def table_of(
    results: Sequence[Result], metric: str = "map", split: str = "query", every: Sequence[Result] | None = None
) -> Table:
    """A table with directions as columns, without columns that are equal in all rows, and with its provenance.

    Args:
        results: The results.
        metric, split: The figures.
        every: Results with those of the random ranking, where `results` is a selection without them.

    Raises:
        CMFAHError: If there is no such figure.
    """
    rows_of_results = select(results, {"metric": metric, "split": split})
    summaries = summarize(rows_of_results)
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
    return Table([*differing, *DIRECTIONS.values(), "seeds"], cells, provenance_of(rows_of_results, every).line())


def costs_of(results: Sequence[Result]) -> list[Cost]:
    """The costs of the runs that results are of, in the order of their first occurrence."""
    found: dict[tuple, tuple[dict[int, float], dict[int, float]]] = {}
    for result in results:
        key = tuple(getattr(result, name) for name in OF_RUN)
        seconds, memory = found.setdefault(key, ({}, {}))
        seconds[result.seed] = result.seconds
        if result.memory_mb is not None:
            memory[result.seed] = result.memory_mb
    return [Cost(dict(zip(OF_RUN, key, strict=True)), *amounts) for key, amounts in found.items()]


def cost_table(results: Sequence[Result]) -> Table:
    """Seconds and memory of the runs that results are of: mean and standard deviation over the seeds."""
    costs = costs_of(results)
    names = [name for name in OF_RUN if name not in ("method", "variant")]
    differing = [name for name in names if name == "title" or len({cost.of[name] for cost in costs}) > 1]
    rows = [
        [
            *("" if cost.of[name] is None else str(cost.of[name]) for name in differing),
            _amount(cost.seconds.values(), 1),
            _amount(cost.memory_mb.values(), 0),
            str(len(cost.seconds)),
        ]
        for cost in costs
    ]
    note = (
        "Seconds of reading the data and training; most main memory of the process of the run, in 10^6 bytes. "
        f"{provenance_of(results).line_of_software()}."
    )
    return Table([*differing, "seconds", "memory (MB)", "seeds"], rows, note)


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


def comparison_table(comparisons: Sequence[Comparison], note: str = "") -> Table:
    """Comparisons as a table, with a line below it."""
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
    return Table([*head, "difference", "better with", "p (paired t-test)"], rows, note)


def shown_mean(mean: float, spread: float | None) -> str:
    """A mean and its spread as `.688 ± .006`; without a spread of zero or None."""
    texts = [f"{value:.3f}".removeprefix("0") for value in (mean, *([spread] if spread else []))]
    return " ± ".join(texts)


def _amount(values: Collection[float], digits: int) -> str:
    """Mean and standard deviation of amounts, as `12.3 ± 0.4`; empty without values."""
    if not values:
        return ""
    spread = [statistics.stdev(values)] if len(values) > 1 else []
    return " ± ".join(f"{value:.{digits}f}" for value in (statistics.mean(values), *spread))


def _row_name(one: Summary) -> str:
    return f"{one.of['method']}/{one.of['variant']}"


def _others(one: Summary, names: Sequence[str]) -> tuple:
    return tuple(value for name, value in one.of.items() if name not in names)


def _latex(cell: str) -> str:
    return "".join(_SPECIAL.get(character, character) for character in cell).replace("±", r"$\pm$")
