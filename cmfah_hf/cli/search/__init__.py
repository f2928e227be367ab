"""`cmfah search`: the options, and asking; `showing.py` shows the answers."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmfah_hf.cli.options import Backend, Precision, RemoteCode
from cmfah_hf.errors import QueryError

if TYPE_CHECKING:
    from cmfah_hf.cli.search.asking import ModelOptions

# Words that are named on standard error; the JSON names all.
_MOST_NAMED = 20


def search(
    model: Annotated[
        str | None, typer.Argument(help="The model that the index was made with: a folder or a Hub id.")
    ] = None,
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
        list[str] | None,
        typer.Option(
            help="Only items such as 'labels=boat,car', 'labels!=boat', 'year>=2020' or 'not date<2024-05'; may be "
            "repeated, and all must hold."
        ),
    ] = None,
    unique: Annotated[
        int | None, typer.Option(help="Fold answers whose codes differ in at most this many bits from a better one.")
    ] = None,
    min_score: Annotated[
        float | None,
        typer.Option(
            help="Only answers that are relevant with at least this probability, 0 to 1; needs a calibration."
        ),
    ] = None,
    approximate: Annotated[bool, typer.Option("--approximate", help="Search only near the query.")] = False,
    any_model: Annotated[
        bool, typer.Option("--any-model", help="Also search an index whose codes another model made.")
    ] = False,
    backend: Backend = "torch",
    precision: Precision = "fp32",
    trust_remote_code: RemoteCode = False,
    server: Annotated[
        str | None, typer.Option(help="The address of a `cmfah serve` to ask instead, such as http://127.0.0.1:8008.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="With --server: a file with its token. Default: the variable CMFAH_TOKEN.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
    paths_only: Annotated[bool, typer.Option("--paths-only", help="Print only the paths of the images.")] = False,
    null: Annotated[
        bool, typer.Option("--null", "-0", help="With --paths-only: end each with a null character, for xargs -0.")
    ] = False,
    thumbnails: Annotated[
        bool, typer.Option("--thumbnails", help="Print the images too, if the output is a terminal.")
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Also write the answers as a page, to this file.")] = None,
    open_first: Annotated[
        bool, typer.Option("--open", help="Open the first answer in the system's viewer; with --html, the page.")
    ] = False,
) -> None:
    """Search an index, or a folder of images, by words, by images, or by both.

    `--text`, `--image`, `--not` and `--not-image` may be repeated, and a number behind a last colon is a weight: 1 by
    default, and 0.5 for what to avoid. `--image -` reads an image from standard input. The index of a folder is kept in
    the Hub's cache, or in the given index file.

    Words that the model does not know are listed and ignored. `--min-score` can leave no answer, which is no error.
    """
    from cmfah_hf.cli.search.showing import Showing

    showing = Showing(json, paths_only, null, thumbnails, html, open_first)
    showing.check()

    from cmfah_hf.cli.output import say
    from cmfah_hf.cli.search.asking import ModelOptions, Question, ask_model, ask_server
    from cmfah_hf.retrieval.terms import described, read_terms

    terms = read_terms(text, image, avoid, avoid_image)
    opened = [replace(term, image=sys.stdin.buffer) if term.image == "-" else term for term in terms]
    question = Question(
        described(terms), opened, k, metric, where or [], not approximate, image_weight, unique, min_score
    )
    options = ModelOptions(any_model, trust_remote_code, backend, precision)
    if server is not None:
        _refuse_local(server, model, images, options)
        answers = ask_server(question, server, token_file)
    elif model is None:
        raise QueryError("Name the model of the index, or a server with --server.")
    else:
        answers = ask_model(question, model, index, images, options, progress=not (json or paths_only))
    for word, read in list(answers.similar_words.items())[:_MOST_NAMED]:
        say(f"Read {word} as {' '.join(read)}", err=True)
    ignored = answers.ignored_words
    if ignored:
        shown = ", ".join(ignored[:_MOST_NAMED]) + (", ..." if len(ignored) > _MOST_NAMED else "")
        say(f"Ignored {len(ignored)} words that the model does not know: {shown}", err=True)
    folded = sum(len(hit.get("folded", ())) for hit in answers.hits)
    if folded:
        say(f"Folded {folded} near-duplicates into better answers.", err=True)
    showing.show(answers)


def _refuse_local(server: str, model: Any, images: Any, options: "ModelOptions") -> None:
    for name, value in {"MODEL": model, "--images": images, **options.given()}.items():
        if value:
            raise QueryError(f"{server}: the server has its own model and index; leave out {name}.")
