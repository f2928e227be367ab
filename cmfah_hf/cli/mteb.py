"""`cmfah mteb`."""

from pathlib import Path
from typing import Annotated

import typer

from cmfah_hf.cli.options import FiguresAsJson, RemoteCode


def mteb(
    model: Annotated[str, typer.Argument(help="A trained model: a folder or a Hub id.")],
    tasks: Annotated[
        list[str] | None, typer.Argument(help="Names of MTEB's tasks, such as Flickr30kT2IRetrieval; it fetches data.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Own pairs, or 'scenes', as two tasks: from text to image and back.")
    ] = None,
    split: Annotated[str, typer.Option(help="The split of the own data.")] = "query",
    relevance: Annotated[
        str, typer.Option(help="What is relevant in own data: the other half of the own 'pairs', or shared 'labels'.")
    ] = "pairs",
    output: Annotated[
        Path, typer.Option(help="A folder for the results, of several models if need be, for `cmfah push --mteb`.")
    ] = Path("mteb-results"),
    metric: Annotated[str, typer.Option(help="'aqd' or 'hamming'.")] = "aqd",
    batch_size: Annotated[int, typer.Option(min=1, help="Items encoded at once.")] = 32,
    revision: Annotated[str | None, typer.Option(help="The branch, tag or commit of a model on the Hub.")] = None,
    trust_remote_code: RemoteCode = False,
    json: FiguresAsJson = False,
) -> None:
    """Run tasks of the Massive Text Embedding Benchmark (extra `mteb`).

    Results of MTEB's tasks that are there are not computed again.
    """
    from cmfah_hf.cli.output import print_json, print_table
    from cmfah_hf.errors import QueryError
    from cmfah_hf.evaluation.mteb import MTEBEncoder, load_task, retrieval_tasks, run_tasks
    from cmfah_hf.evaluation.mteb.running import FIGURES

    if not tasks and data is None:
        raise QueryError("Nothing to run: name tasks of MTEB, or give own pairs by --data.")
    public = [load_task(name) for name in tasks or []]
    own = retrieval_tasks(data, split, relevance) if data is not None else []
    encoder = MTEBEncoder(model, revision, metric=metric, trust_remote_code=trust_remote_code or None)
    found = run_tasks(encoder, own, output, batch_size, again=True) if own else []
    found += run_tasks(encoder, public, output, batch_size, progress=not json) if public else []
    if json:
        print_json([{**one._asdict(), "metric": metric} for one in found])
        return
    rows = [
        [one.task, one.split, one.subset, *(one.figures.get(name, "none") for name in FIGURES), one.main_score]
        for one in found
    ]
    print_table(f"{model} by {metric}, results in {output}", ["task", "split", "subset", *FIGURES, "main score"], rows)
