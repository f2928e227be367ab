"""`cmfah calibrate`."""

from typing import Annotated

import typer

from cmfah_hf.cli.options import FiguresAsJson, RemoteCode


def calibrate(
    model: Annotated[str, typer.Argument(help="A trained model: a folder, into which the calibration is written.")],
    dataset: Annotated[
        str, typer.Argument(help="Pairs that the model was not trained on: a folder with metadata, Parquet, a Hub id.")
    ],
    split: Annotated[
        str | None, typer.Option(help="The split whose items are the queries. Default: `query`, or the only one.")
    ] = None,
    database_split: Annotated[
        str | None, typer.Option(help="The split to search. Default: the other pairs of `--split`.")
    ] = None,
    captions: Annotated[
        str, typer.Option(help="What lists of texts are: 'several' captions, 'joined' to one text, or 'auto'.")
    ] = "auto",
    trust_remote_code: RemoteCode = False,
    json: FiguresAsJson = False,
) -> None:
    """Fit the probability that an answer is relevant, for `cmfah search --min-score`.

    Relevant means a shared label, or without labels the query's own partner. `cmfah train` does this with its
    validation pairs; the figures are on queries that a map was not fitted to.
    """
    from cmfah_hf.cli.output import print_json, print_table
    from cmfah_hf.models.remote_code import remote_code
    from cmfah_hf.retrieval.calibration import SHOWN_MAP
    from cmfah_hf.training.calibration import calibrate_folder

    with remote_code(trust_remote_code):
        calibration = calibrate_folder(model, dataset, split, database_split, captions)
    maps = calibration.maps.items()
    if json:
        print_json(
            {
                "relevance": calibration.relevance,
                "maps": {name: {"method": one.method, **one.figures, "bins": one.bins} for name, one in maps},
            }
        )
        return
    names = ("queries", "ece", "ece@10", "precision", "recall")
    rows = [
        [*name.split("/"), one.method, *(one.figures.get(figure, "none") for figure in names)] for name, one in maps
    ]
    title = f"Calibration of {model} by {calibration.relevance}, on queries that a map was not fitted to"
    print_table(title, ["metric", "direction", "map", *names[:3], "precision at .5", "recall at .5"], rows)
    if SHOWN_MAP in calibration.maps:
        bins = [[round(count), *shares] for count, *shares in calibration.maps[SHOWN_MAP].bins]
        title = "Reliability of the first ten answers from text to image by AQD"
        print_table(title, ["answers", "mean probability", "relevant share"], bins)
