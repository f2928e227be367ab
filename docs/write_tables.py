"""Writes the tables of README.md and docs/ from docs/results/, as docs/tables.yaml lays them out.

A table is between `<!-- table: NAME, written by make docs -->` and `<!-- end of table -->`.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

from cmfah_hf.experiments.report import Table, shown_mean

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
LAYOUTS = ROOT / "docs" / "tables.yaml"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# What a table shows unless its layout says otherwise.
DEFAULTS = {"metric": "map", "ranking": "hamming", "split": "query", "encoding": "single"}
DEFAULTS |= {"protocol": "seen", "database": "seen"}
_MARKED = re.compile(r"(<!-- table: (?P<name>[\w-]+),[^>]*-->\n).*?(<!-- end of table -->)", re.DOTALL)


def read_figures(name: str) -> list[dict[str, Any]]:
    """The figures of a results file, each with what is common to all, and the name of the file as `results`."""
    document = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return [{"results": name, **document["common"], **figure} for figure in document["figures"]]


def cell(figures: list[dict[str, Any]], wanted: dict[str, Any], place: str) -> str:
    """The one figure that is wanted; an empty cell where it was not measured."""
    found = [figure for figure in figures if all(figure.get(name) == value for name, value in wanted.items())]
    if len(found) > 1:
        raise ValueError(f"{place}: {len(found)} figures for {wanted}; say more of the one that is meant.")
    return shown_mean(found[0]["mean"], found[0]["std"]) if found else ""


def table(name: str, layout: dict[str, Any]) -> str:
    """A table in Markdown. A row is a list of its first cells and of what its figures have in common."""
    figures = [figure for results in layout["results"] for figure in read_figures(results)]
    head, columns = layout["head"], layout["columns"]
    rows = []
    for *labels, of_row in layout["rows"]:
        wanted = [{**DEFAULTS, **layout.get("where", {}), **of_row, **of_column} for of_column in columns.values()]
        cells = [cell(figures, one, f"{name}, {labels[0]}") for one in wanted]
        if not any(cells):
            raise ValueError(f"{name}: no figure for {of_row}; the results have none.")
        rows.append([*map(str, labels), *cells])
    return Table([*head, *columns], rows).markdown()


def tables() -> dict[str, str]:
    """Every table by its name."""
    layouts = yaml.safe_load(LAYOUTS.read_text(encoding="utf-8"))
    return {name: table(name, layout) for name, layout in layouts.items()}


def names(page: str) -> list[str]:
    """The tables that a page shows."""
    return [match["name"] for match in _MARKED.finditer(page)]


def written(page: str) -> str:
    """The page with its tables made anew."""
    made = tables()
    return _MARKED.sub(lambda match: f"{match[1]}\n{made[match['name']]}\n\n{match[3]}", page)


if __name__ == "__main__":
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        if (anew := written(text)) != text:
            path.write_text(anew, encoding="utf-8")
            print(path, file=sys.stdout)  # noqa: T201
