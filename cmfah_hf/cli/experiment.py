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
    grid: Annotated[Path, typer.Argument(help="A grid: a YAML file, or a name of `cmfah configs`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder of all runs.")],
    only: Annotated[
        list[str] | None, typer.Option(help="Only runs whose names match, such as '*/scahn/*/seed-0'. Can be repeated.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes that run at once.")] = 1,
    plan: Annotated[bool, typer.Option("--plan", help="List the runs, and start none.")] = False,
    ray: Annotated[
        bool, typer.Option("--ray", help="Run on the Ray cluster of RAY_ADDRESS; all nodes need the output's folder.")
    ] = False,
    cpus: Annotated[float, typer.Option(min=0.1, help="With --ray: CPUs that each run reserves.")] = 1.0,
    gpus: Annotated[float, typer.Option(min=0, help="With --ray: GPUs that each run reserves.")] = 0.0,
    json: DoneAsJson = False,
) -> None:
    """Run a grid. Finished runs are skipped, interrupted ones resume, and failures are one line each."""
    import sys
    from contextlib import nullcontext, redirect_stdout

    from cmfah_hf.cli.output import print_json, say
    from cmfah_hf.errors import CMFAHError
    from cmfah_hf.experiments import OnRay, read_grid, run_grid

    # The data sets are looked for where the runs take place.
    read = read_grid(grid, data_of=None if plan or ray else only or [])
    names = [one.name for one in read.only(only or [])]
    failed: list[str] = []
    if plan and not json:
        for name in names:
            say(name)
    if not plan:
        with redirect_stdout(sys.stderr) if json else nullcontext():
            reserved = OnRay(cpus, gpus) if ray else None
            failed = run_grid(read, output, only or [], jobs, lambda line: say(line, err=True), reserved)
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
    cost: Annotated[bool, typer.Option("--cost", help="Seconds and memory of the runs, too.")] = False,
    figure: Annotated[Path | None, typer.Option(help="A plot to write: .png, .svg or .pdf.")] = None,
    curve: Annotated[
        str | None, typer.Option(help="What --figure plots instead of the figure: 'precision@k' or 'precision-recall'.")
    ] = None,
) -> None:
    """Print a table of results: mean and standard deviation over the seeds, both directions and their mean."""
    from dataclasses import replace

    from cmfah_hf.cli.output import say
    from cmfah_hf.errors import CMFAHError
    from cmfah_hf.experiments import compare, read_results, summarize
    from cmfah_hf.experiments.provenance import provenance_of
    from cmfah_hf.experiments.report import comparison_table, cost_table, costs_of, document_of, select, table_of

    if format not in ("markdown", "latex", "json"):
        raise CMFAHError(f"--format is {format!r}; choose markdown, latex or json.")
    if curve is not None and figure is None:
        raise CMFAHError("--curve is plotted to --figure; give the file of the plot.")
    conditions = _conditions(where or [])
    every = read_results(results)
    chosen = select(every, conditions)
    if figure is not None and curve is not None:
        _plot_curves(results, figure, curve, conditions)
    elif figure is not None:
        from cmfah_hf.experiments.figures import plot_results

        plot_results(chosen, figure, metric, split)
    if format == "json":
        several = [result for name in metric.split(",") for result in select(chosen, {"metric": name})]
        costs = costs_of(several) if cost else None
        for line in document_of(summarize(several), provenance_of(several, every), costs).split("\n"):
            say(line)
        return
    tables = [table_of(chosen, metric, split, every)]
    if against is not None:
        compared = comparison_table(compare(chosen, against, metric, split))
        tables.append(replace(compared, note=tables[0].note))
    if cost:
        tables.append(cost_table(select(chosen, {"metric": metric, "split": split})))
    for number, table in enumerate(tables):
        text = table.markdown() if format == "markdown" else table.latex()
        for line in [*([""] if number else []), *text.split("\n")]:
            say(line)


def _conditions(where: list[str]) -> dict[str, str | int]:
    """The columns and values of `--where`."""
    from cmfah_hf.errors import CMFAHError

    conditions: dict[str, str | int] = {}
    for name, _, value in (condition.partition("=") for condition in where):
        if name in ("bits", "seed") and not value.isdecimal():
            raise CMFAHError(f"--where {name} is {value!r}; give a whole number.")
        conditions[name] = int(value) if name in ("bits", "seed") else value
    return conditions


def _plot_curves(results: Path, figure: Path, kind: str, conditions: dict[str, str | int]) -> None:
    """Plots the curves of these columns, with those of a random order."""
    from cmfah_hf.experiments.curves import curves_of_runs
    from cmfah_hf.experiments.figures import plot_curves
    from cmfah_hf.experiments.report import select

    curves = curves_of_runs(results, kind)
    chosen = select(curves, conditions)
    others = {name: value for name, value in conditions.items() if name != "ranking"}
    if "ranking" in conditions:
        chosen += [curve for curve in select(curves, others) if curve.ranking == "random"]
    plot_curves(chosen, figure, kind)
