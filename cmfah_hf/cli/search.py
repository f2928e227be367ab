"""`cmfah search`."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from cmfah_hf.cli.options import RemoteCode

# Ignored words that are named on standard error; the JSON names all.
_MOST_IGNORED = 20


def search(
    model: Annotated[str, typer.Argument(help="The model that the index was made with: a folder or a Hub id.")],
    index: Annotated[
        Path | None,
        typer.Argument(help="An index file of `cmfah index`. Default: the index pushed with the model."),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="A folder of images to search instead; new and changed ones are indexed first."),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option("--text", "-t", help="Words to search with, such as 'sea' or 'sunset:0.5'.")
    ] = None,
    image: Annotated[list[str] | None, typer.Option("--image", "-i", help="An image to search with, or '-'.")] = None,
    avoid: Annotated[list[str] | None, typer.Option("--not", help="Words that the answers should not match.")] = None,
    avoid_image: Annotated[
        list[str] | None, typer.Option("--not-image", help="An image that the answers should not resemble.")
    ] = None,
    image_weight: Annotated[float, typer.Option(help="With words and images: the images' share, 0 to 1.")] = 0.5,
    k: Annotated[int, typer.Option("-k", help="Number of items to show.")] = 10,
    metric: Annotated[str, typer.Option(help="'aqd': by the query's continuous code; 'hamming': by bits.")] = "aqd",
    where: Annotated[
        list[str] | None, typer.Option(help="'column=value': only such items; may be repeated, and all must hold.")
    ] = None,
    approximate: Annotated[bool, typer.Option("--approximate", help="Search only near the query.")] = False,
    any_model: Annotated[
        bool, typer.Option("--any-model", help="Also search an index whose codes another model made.")
    ] = False,
    trust_remote_code: RemoteCode = False,
    json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Search an index, or a folder of images, by words, by images, or by both.

    `--text`, `--image`, `--not` and `--not-image` may be repeated, and a number behind a last colon is a weight: 1 by
    default, and 0.5 for what to avoid. `--image -` reads an image from standard input. The index of a folder is kept in
    the Hub's cache, or in the given index file.

    Words that the model does not know are listed and ignored.
    """
    from cmfah_hf.cli.output import print_json, print_table, say
    from cmfah_hf.retrieval import CrossMediaRetriever
    from cmfah_hf.retrieval.conditions import parse_conditions
    from cmfah_hf.retrieval.folders import update_folder_index
    from cmfah_hf.retrieval.terms import described, read_terms

    terms = read_terms(text, image, avoid, avoid_image)
    with_model = index is None and images is None
    retriever = CrossMediaRetriever.from_pretrained(
        model, index=with_model, any_model=any_model, trust_remote_code=trust_remote_code
    )
    changes = None
    if images is not None:
        changes = update_folder_index(retriever, images, index, progress=not json)
        say(f"{images}: {changes}.", err=True)
    elif index is not None:
        retriever.images = retriever.load_index(index, mmap=True)
    searched = retriever.images if len(retriever.images) else retriever.texts
    conditions = parse_conditions(where, searched.metadata) if where else None
    opened = [replace(term, image=sys.stdin.buffer) if term.image == "-" else term for term in terms]
    results = retriever.search(None, None, k, None, metric, conditions, not approximate, image_weight, opened)
    found = [{"rank": rank, **hit} for rank, hit in enumerate(results.hits(), 1)]
    ignored = retriever.ignored_words([term.text for term in terms if term.text is not None])
    if ignored:
        shown = ", ".join(ignored[:_MOST_IGNORED]) + (", ..." if len(ignored) > _MOST_IGNORED else "")
        say(f"Ignored {len(ignored)} words that the model does not know: {shown}", err=True)
    asked = described(terms)
    if json:
        folder = {} if changes is None else {"folder": changes.counts()}
        print_json({"query": asked, "metric": metric, "ignored_words": ignored, **folder, "results": found})
    else:
        columns = results.metadata.column_names if results.metadata is not None else []
        rows = [
            [hit["rank"], hit["id"], hit["score"], *(str(hit["metadata"][name]) for name in columns)] for hit in found
        ]
        print_table(asked, ["rank", "id", metric, *columns], rows)
