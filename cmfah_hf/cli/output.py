"""What commands print: one JSON document for machines, or tables for people."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table


def print_json(document: Any) -> None:
    """One JSON document on standard output, and nothing else there."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table on standard output; numbers to the right."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for position, column in enumerate(columns):
        numbers = all(not isinstance(row[position], str) for row in rows)
        table.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row))
    Console().print(table)


def print_figures(title: str, figures: Mapping[str, float]) -> None:
    """The figures of `RetrievalEvaluator` as a table, both directions side by side, the random ranking below."""
    rows: list[list[Any]] = []
    for name, value in figures.items():
        ranking, _, rest = name.partition("/")
        if rest.startswith("i2t/"):
            metric = rest.removeprefix("i2t/")
            rows.append([ranking, metric, value, figures[f"{ranking}/t2i/{metric}"]])
    if "random/map" in figures:
        rows.append(["random", "map", figures["random/map"], figures["random/map"]])
    print_table(title, ["ranking", "metric", "image -> text", "text -> image"], rows)


@contextmanager
def counting(description: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """A progress bar on standard error, where that is a terminal; without `total` it counts.

    Gives a function `advance(count=1, description=None)`.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

    columns = [
        SpinnerColumn(),
        TextColumn("{task.description}"),
        *([BarColumn()] if total else []),
        MofNCompleteColumn(),
    ]
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=total)

        def advance(count: int = 1, description: str | None = None) -> None:
            bar.update(task, advance=count, description=description)

        yield advance
