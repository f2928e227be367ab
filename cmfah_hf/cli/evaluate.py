"""`cmfah evaluate`."""

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    model: Annotated[str, typer.Argument(help="A trained model: a folder or a Hub id.")],
    dataset: Annotated[str, typer.Argument(help="A folder of images with metadata, Parquet, a Hub id, or 'scenes'.")],
    query_split: Annotated[str, typer.Option(help="The split whose items are the queries.")] = "query",
    database_split: Annotated[
        str | None, typer.Option(help="The split to search. Default: `database` if present, else `train`.")
    ] = None,
    protocol: Annotated[
        str,
        typer.Option(help="'single': each item is encoded by itself. 'paired': with its other modality, which leaks."),
    ] = "single",
    plots: Annotated[Path | None, typer.Option(help="A folder for the curves as PNG.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure a model on a data set: MAP with ties in expectation, precision at k, both directions, both rankings."""
    from cmfah_hf.cli.output import print_figures, print_json
    from cmfah_hf.training.evaluate import evaluate_folder

    figures = evaluate_folder(model, dataset, query_split, database_split, protocol, plots)
    if json:
        print_json({"protocol": protocol, **figures})
    else:
        print_figures(f"{model} on {dataset}, protocol {protocol!r}", figures)
