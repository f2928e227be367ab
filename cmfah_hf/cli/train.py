"""`cmfah train`."""

import sys
from contextlib import nullcontext, redirect_stdout
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from cmfah_hf.cli.options import FiguresAsJson


class TrainCommand(typer.core.TyperCommand):
    """`cmfah train`, whose help lists the settings that can follow, by group."""

    def parse_args(self, context: Any, args: list[str]) -> list[str]:
        # The help is printed before other options are read.
        named = [after for before, after in pairwise(args) if before == "--method"]
        named += [one.removeprefix("--method=") for one in args if one.startswith("--method=")]
        context.meta["method"] = (named or ["cmfah"])[-1]
        return super().parse_args(context, args)

    def format_help(self, context: Any, formatter: Any) -> None:
        super().format_help(context, formatter)
        from cmfah_hf.cli.output import print_table, say
        from cmfah_hf.training.settings.described import setting_groups

        for title, settings in setting_groups(context.meta["method"]).items():
            rows = [[f"--{one.name}", one.default, one.about] for one in settings]
            say("")
            print_table(title, ["setting", "default", "meaning"], rows)


def train(
    context: typer.Context,
    config: Annotated[Path | None, typer.Argument(help="A YAML file, or a name of `cmfah configs`.")] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="'cmfah', 'scahn', or a comparison method such as 'scm'. Default: that of the file, or 'cmfah'."
        ),
    ] = None,
    json: FiguresAsJson = False,
) -> None:
    """Train a model and save it to a folder.

    Any setting below can follow, as `--hash_bits 32` or `--output_dir runs/first`, and overrides the file. Those of
    another method are listed by `cmfah train --method NAME --help`.
    """
    from cmfah_hf.cli.output import print_figures, print_json, print_table, say
    from cmfah_hf.hub.card_figures import OTHER_DATABASES
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
        try:
            metrics = run_training(run)
        except KeyboardInterrupt:
            if any(Path(run.training.output_dir).glob("checkpoint-*")):
                say("cmfah: to go on, repeat the command with --resume_from_checkpoint last.", err=True)
            raise
    if not metrics:  # not the main process
        return
    if json:
        print_json(metrics)
        return
    rows = [[name, value] for name, value in metrics.items() if not isinstance(value, dict)]
    print_table(f"Trained: {run.training.output_dir}", ["", "value"], rows)
    if "query" in metrics:
        print_figures("Test queries, one modality at a time", metrics["query"])
    for name, database in OTHER_DATABASES.items():
        if name in metrics:
            print_figures(f"The same queries against {database}", metrics[name])
    if "pairs" in metrics:
        print_figures("The other half of each pair, among the test queries", metrics["pairs"])
