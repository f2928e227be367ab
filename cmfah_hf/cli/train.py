"""`cmfah train`."""

import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from cmfah_hf.cli.options import FiguresAsJson


def train(
    context: typer.Context,
    config: Annotated[Path | None, typer.Argument(help="A YAML file, such as hub_configs/cmfah-scenes.yaml.")] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="'cmfah', 'scahn', or a comparison method such as 'scm'. Default: that of the file, or 'cmfah'."
        ),
    ] = None,
    json: FiguresAsJson = False,
) -> None:
    """Train a model and save it to a folder.

    Any field of the model's configuration, the data arguments and the training arguments can follow, as
    `--hash_bits 32` or `--output_dir runs/first`, and overrides the file.
    """
    from cmfah_hf.cli.output import print_figures, print_json, print_table
    from cmfah_hf.training import parse_run
    from cmfah_hf.training import train as run_training

    arguments = list(context.args)
    if config is not None and str(config).startswith("--"):  # no file: this is the first argument of the run
        arguments, config = [str(config), *arguments], None
    if method is not None:
        arguments += ["--method", method]
    run = parse_run(config, arguments)
    # The trainer prints its logs; standard output holds only the metrics.
    with redirect_stdout(sys.stderr) if json else nullcontext():
        metrics = run_training(run)
    if not metrics:  # not the main process
        return
    if json:
        print_json(metrics)
        return
    rows = [[name, value] for name, value in metrics.items() if not isinstance(value, dict)]
    print_table(f"Trained: {run.training.output_dir}", ["", "value"], rows)
    if "query" in metrics:
        print_figures("Test queries, one modality at a time", metrics["query"])
    if "pairs" in metrics:
        print_figures("The other half of each pair, among the test queries", metrics["pairs"])
