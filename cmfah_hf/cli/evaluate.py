"""`cmfah evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from cmfah_hf.cli.options import FiguresAsJson, RemoteCode


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
    captions: Annotated[
        str, typer.Option(help="What lists of texts are: 'several' captions, 'joined' to one text, or 'auto'.")
    ] = "auto",
    reference: Annotated[
        str | None, typer.Option(help="'float': also the cosine of the encoder's own vectors, of a dual encoder.")
    ] = None,
    save: Annotated[
        bool, typer.Option("--save", help="Add the figures to metrics.json of a compressed model, for its card.")
    ] = False,
    trust_remote_code: RemoteCode = False,
    json: FiguresAsJson = False,
) -> None:
    """Measure a model on a data set, in both directions, with ties in expectation.

    By labels: MAP and precision at k. Without: recall at k and median rank of the other half of each query pair.
    """
    from cmfah_hf.cli.output import print_figures, print_json
    from cmfah_hf.models.remote_code import remote_code
    from cmfah_hf.training.evaluate import evaluate_folder, split_figures

    with remote_code(trust_remote_code):
        figures = evaluate_folder(model, dataset, query_split, database_split, protocol, plots, captions, reference)
    if save:
        from cmfah_hf.training.compression import save_figures

        save_figures(model, dataset, figures)
    if json:
        print_json({"protocol": protocol, **figures})
    else:
        by_labels, of_pairs = split_figures(figures)
        print_figures(f"{model} on {dataset}, protocol {protocol!r}", by_labels)
        if of_pairs:
            print_figures(f"The other half of each pair, among the pairs of {query_split!r}", of_pairs)
