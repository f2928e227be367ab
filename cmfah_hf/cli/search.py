"""`cmfah search`."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def search(
    model: Annotated[str, typer.Argument(help="The model that the index was made with: a folder or a Hub id.")],
    index: Annotated[
        Path | None,
        typer.Argument(help="An index file of `cmfah index`. Default: that which was pushed with the model."),
    ] = None,
    text: Annotated[str | None, typer.Option("--text", "-t", help="Words to search with.")] = None,
    image: Annotated[str | None, typer.Option("--image", "-i", help="A picture to search with, or '-'.")] = None,
    image_weight: Annotated[float, typer.Option(help="With words and a picture: the picture's share, 0 to 1.")] = 0.5,
    k: Annotated[int, typer.Option("-k", help="How many items to show.")] = 10,
    metric: Annotated[str, typer.Option(help="'aqd': by real hash values; 'hamming': by bits.")] = "aqd",
    where: Annotated[
        list[str] | None, typer.Option(help="'column=value': only such items; may be repeated, all have to hold.")
    ] = None,
    approximate: Annotated[bool, typer.Option("--approximate", help="Look only near the query.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Search an index by words, by a picture, or by both; `--image -` reads the picture from standard input."""
    from cmfah_hf.cli.output import print_json, print_table
    from cmfah_hf.retrieval import CrossMediaRetriever, HashIndex
    from cmfah_hf.retrieval.metadata import parse_conditions

    retriever = CrossMediaRetriever.from_pretrained(model, index=index is None)
    if index is not None:
        retriever.images = HashIndex.load(index, mmap=True, bits=retriever.model.config.hash_bits)
    searched = retriever.images if len(retriever.images) else retriever.texts
    conditions = parse_conditions(where, searched.metadata) if where else None
    picture = sys.stdin.buffer if image == "-" else image
    results = retriever.search(text, picture, k, None, metric, conditions, not approximate, image_weight)
    found = [{"rank": rank, **hit} for rank, hit in enumerate(results.hits(), 1)]
    asked = " + ".join(part for part in (text, image) if part is not None)
    if json:
        print_json({"query": asked, "metric": metric, "results": found})
    else:
        columns = results.metadata.column_names if results.metadata is not None else []
        rows = [
            [hit["rank"], hit["id"], hit["score"], *(str(hit["metadata"][name]) for name in columns)] for hit in found
        ]
        print_table(asked, ["rank", "id", metric, *columns], rows)
