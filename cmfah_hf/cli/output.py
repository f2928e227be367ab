"""Command output: one JSON document for programs, or tables for people.

Names and queries are untrusted: none is interpreted as markup or reaches the terminal as a control character.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typer

from cmfah_hf.errors import UNPRINTABLE, printable


def say(line: str, err: bool = False) -> None:
    """Prints one line to standard output or standard error."""
    typer.echo(printable(line), err=err)


def print_json(document: Any) -> None:
    """Prints one JSON document to standard output."""
    is_unicode = (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    lines = json.dumps(document, indent=2, ensure_ascii=not is_unicode).split("\n")
    escaped = (UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", line) for line in lines)
    sys.stdout.write("\n".join(escaped) + "\n")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints a table with right-aligned numbers; without a terminal, one untruncated line per row."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    texts = [[_cell(value) for value in row] for row in rows]
    columns = [printable(column) for column in columns]
    right_aligned = [all(not isinstance(row[place], str) for row in rows) for place in range(len(columns))]
    console = Console()
    if not console.is_terminal:
        sys.stdout.write("\n".join([printable(title), *_lines([columns, *texts], right_aligned)]) + "\n")
        return
    table = Table(title=Text(printable(title), style="bold"), title_justify="left")
    for column, is_number in zip(columns, right_aligned, strict=True):
        table.add_column(Text(column), justify="right" if is_number else "left", overflow="fold")
    for row in texts:
        table.add_row(*map(Text, row))
    console.print(table)


def print_figures(title: str, figures: Mapping[str, float]) -> None:
    """Prints the figures of `RetrievalEvaluator` as a table, both directions side by side.

    The baselines follow, a random ranking and one constant query, and counts of unknown words, if present.
    """
    rows: list[list[Any]] = []
    for name, value in figures.items():
        ranking, _, rest = name.partition("/")
        if rest.startswith("i2t/") and ranking != "constant":
            metric = rest.removeprefix("i2t/")
            rows.append([ranking, metric, value, figures[f"{ranking}/t2i/{metric}"]])
    for name, value in figures.items():
        if name.startswith("random/") and name.count("/") == 1:
            rows.append(["random", name.removeprefix("random/"), value, value])
    if "constant/i2t/map" in figures:
        rows.append(["constant query", "map", figures["constant/i2t/map"], figures["constant/t2i/map"]])
    print_table(title, ["ranking", "metric", "image -> text", "text -> image"], rows)
    sides = [side for side in ("queries", "database") if f"{side}_words" in figures]
    if sides:
        names = ("words", "unknown_words", "unknown_words_share", "without_known_words", "without_known_words_share")
        rows = []
        for side in sides:
            counted = {name: figures[f"{side}_{name}"] for name in names}
            rows.append([side, *(value if name.endswith("share") else int(value) for name, value in counted.items())])
        columns = ["texts of the", "words", "unknown", "share", "texts without a known word", "share"]
        print_table("Words that the model does not know", columns, rows)


@contextmanager
def counting(description: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """A progress bar on standard error if that is a terminal; without `total`, a counter.

    Yields a function `advance(count=1, description=None)`.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

    columns = [
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        *([BarColumn()] if total else []),
        MofNCompleteColumn(),
    ]
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(printable(description), total=total)

        def advance(count: float = 1, description: str | None = None) -> None:
            bar.update(task, advance=count, description=None if description is None else printable(description))

        yield advance


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else printable(str(value))


def _lines(rows: Sequence[Sequence[str]], right_aligned: Sequence[bool]) -> Iterator[str]:
    from rich.cells import cell_len

    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = []
        for text, width, right in zip(row, widths, right_aligned, strict=True):
            blanks = " " * (width - cell_len(text))
            cells.append(blanks + text if right else text + blanks)
        yield "  ".join(cells).rstrip()
