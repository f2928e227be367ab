"""`cmfah data convert`."""

from pathlib import Path
from typing import Annotated

import typer

from cmfah_hf.cli.options import DoneAsJson


def convert(
    files: Annotated[list[Path], typer.Argument(help="Files of matrices (.mat, .h5), or a folder that holds them.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")],
    queries: Annotated[
        str | None,
        typer.Option(
            help="'first' (DCMH, AGAH) or 'last' (DADH, UCCH): the position of the query rows. Default: no split."
        ),
    ] = None,
    num_queries: Annotated[int | None, typer.Option(help="Number of queries.")] = None,
    num_train: Annotated[int | None, typer.Option(help="Number of training pairs among the other rows.")] = None,
    tag_names: Annotated[
        Path | None, typer.Option(help="A file with one tag per line, such as MIRFlickr's common_tags.txt.")
    ] = None,
    label_names: Annotated[Path | None, typer.Option(help="A file with one class per line.")] = None,
    axes: Annotated[
        list[str] | None,
        typer.Option(help="'images=NCWH', 'tags=DN': the order of the axes, as NumPy shows them; may be repeated."),
    ] = None,
    variable: Annotated[
        list[str] | None, typer.Option(help="'tags=T_all': a variable with a nonstandard name; may be repeated.")
    ] = None,
    images: Annotated[bool, typer.Option("--images/--no-images", help="Whether to write images or features.")] = True,
    json: DoneAsJson = False,
) -> None:
    """Write the matrices of research code as a data set: Parquet with images, texts and labels, and a card."""
    from cmfah_hf.cli.output import counting, print_json, print_table, say
    from cmfah_hf.data import convert_matrices, open_matrices

    matrices = open_matrices(files, _pairs(axes, "--axes"), _pairs(variable, "--variable"), tag_names, label_names)
    with counting("Writing", len(matrices)) as advance:
        done = convert_matrices(matrices, out, queries, num_queries, num_train, images, progress=advance)
    if json:
        print_json(done)
        return
    for line in done["matrices"]:
        say(line)
    say(f"{out}: " + (f"queries {queries}, training pairs in the database" if queries else "no split"))
    print_table("Splits", ["split", "pairs"], [[name, rows] for name, rows in done["splits"].items()])


def _pairs(given: list[str] | None, option: str) -> dict[str, str]:
    from cmfah_hf.errors import DataError

    pairs = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise DataError(f"{option} {text}: write it as role=value, such as images=NCWH.")
        pairs[name] = value
    return pairs
