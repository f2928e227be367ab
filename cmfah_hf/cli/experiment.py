"""`cmfah experiment`: run a grid of trainings, and report their results."""

from pathlib import Path
from typing import Annotated

import typer

from cmfah_hf.cli.options import DoneAsJson

experiment_app = typer.Typer(
    name="experiment", no_args_is_help=True, help="Grids of trainings: run them, and report their results."
)


@experiment_app.command()
def run(
    grid: Annotated[Path, typer.Argument(help="A grid, such as hub_configs/experiments/photographs.yaml.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder of all runs.")],
    only: Annotated[
        list[str] | None, typer.Option(help="Only runs whose names match, such as '*/scahn/*/seed-0'. Can be repeated.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes that run at once.")] = 1,
    plan: Annotated[bool, typer.Option("--plan", help="List the runs, and start none.")] = False,
    json: DoneAsJson = False,
) -> None:
    """Run a grid. Finished runs are skipped, interrupted ones resume, and failures are one line each."""
    import sys
    from contextlib import nullcontext, redirect_stdout

    from cmfah_hf.cli.output import print_json, say
    from cmfah_hf.errors import CMFAHError
    from cmfah_hf.experiments import read_grid, run_grid

    read = read_grid(grid)
    names = [one.name for one in read.only(only or [])]
    failed: list[str] = []
    if plan and not json:
        for name in names:
            say(name)
    if not plan:
        with redirect_stdout(sys.stderr) if json else nullcontext():
            failed = run_grid(read, output, only or [], jobs, report=lambda line: say(line, err=True))
    if json:
        print_json({"title": read.title, "output": str(output), "runs": names, "failed": failed})
    if failed:
        raise CMFAHError(
            f"{len(failed)} of {len(names)} runs failed, see the lines above; the same command tries again."
        )


@experiment_app.command()
def report(
    results: Annotated[Path, typer.Argument(help="The output of `cmfah experiment run`, or its results.parquet.")],
    metric: Annotated[
        str, typer.Option(help="The figure, such as 'map' or 'precision@10'; with JSON also several, as map,recall@10.")
    ] = "map",
    split: Annotated[str, typer.Option(help="'query', 'pairs', or 'validation', which chose the epochs.")] = "query",
    where: Annotated[
        list[str] | None, typer.Option(help="Only rows of this value, as ranking=hamming. Can be repeated.")
    ] = None,
    format: Annotated[str, typer.Option(help="'markdown', 'latex' or 'json'.")] = "markdown",
    against: Annotated[
        str | None, typer.Option(help="Compare all rows with METHOD/VARIANT by paired t-tests over the seeds.")
    ] = None,
    figure: Annotated[Path | None, typer.Option(help="A plot to write: .png, .svg or .pdf.")] = None,
) -> None:
    """Print a table of results: mean and standard deviation over the seeds, both directions and their mean."""
    from cmfah_hf.cli.output import say
    from cmfah_hf.errors import CMFAHError
    from cmfah_hf.experiments import compare, read_results, summarize
    from cmfah_hf.experiments.report import comparison_table, document_of, select, table_of

    if format not in ("markdown", "latex", "json"):
        raise CMFAHError(f"--format is {format!r}; choose markdown, latex or json.")
    conditions: dict[str, str | int] = {}
    for name, _, value in (condition.partition("=") for condition in where or []):
        if name in ("bits", "seed") and not value.isdecimal():
            raise CMFAHError(f"--where {name} is {value!r}; give a whole number.")
        conditions[name] = int(value) if name in ("bits", "seed") else value
    chosen = select(read_results(results), conditions)
    if figure is not None:
        from cmfah_hf.experiments.figures import plot_results

        plot_results(chosen, figure, metric, split)
    if format == "json":
        several = [result for name in metric.split(",") for result in select(chosen, {"metric": name})]
        for line in document_of(summarize(several)).split("\n"):
            say(line)
        return
    tables = [table_of(chosen, metric, split)]
    if against is not None:
        tables.append(comparison_table(compare(chosen, against, metric, split)))
    for number, table in enumerate(tables):
        text = table.markdown() if format == "markdown" else table.latex()
        for line in [*([""] if number else []), *text.split("\n")]:
            say(line)
