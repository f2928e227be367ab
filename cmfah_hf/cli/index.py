"""`cmfah index`."""

from pathlib import Path
from typing import Annotated

import typer


def index(
    model: Annotated[str, typer.Argument(help="A trained model: a folder or a Hub id.")],
    sources: Annotated[
        list[str],
        typer.Argument(help="Pictures, folders of them, or data sets with pictures: folders, files, Hub ids."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The index file to write.")] = Path("pictures.index"),
    split: Annotated[str | None, typer.Option(help="One split. Default: all, with ids such as train/cat.jpg.")] = None,
    texts: Annotated[bool, typer.Option("--texts", help="Index the texts instead of the pictures.")] = False,
    keep: Annotated[
        list[str] | None, typer.Option(help="A column to keep beside the codes, for --where; may be repeated.")
    ] = None,
    add: Annotated[bool, typer.Option("--add", help="Add to the index file that is there.")] = False,
    batch_size: Annotated[int, typer.Option(help="Items encoded at once.")] = 32,
    json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Encode pictures (or texts) and index their codes. A picture that cannot be read is named and left out.

    The id of a picture is its path below its folder; of several sources, each id begins with its source.
    """
    from cmfah_hf.cli.output import print_json
    from cmfah_hf.errors import HashIndexError
    from cmfah_hf.retrieval import CrossMediaRetriever, HashIndex

    if output.is_dir():  # said now, and not when everything has been encoded
        raise HashIndexError(f"{output} is a folder; name a file in it for the index.")
    retriever = CrossMediaRetriever.from_pretrained(model)
    filled = HashIndex.load(output, bits=retriever.model.config.hash_bits) if add else retriever.images
    if texts:
        retriever.texts = filled
    else:
        retriever.images = filled
    unreadable = []
    for source in sources:
        prefix = f"{source.rstrip('/')}/" if len(sources) > 1 and not Path(source).is_file() else ""
        what = "texts" if texts else "images"
        unreadable += retriever.add_source(source, split, what, batch_size, not json, keep or (), prefix)
    filled.save(output)
    done = {"index": str(output), "items": len(filled), "bits": filled.bits, "left_out": unreadable}
    if json:
        print_json(done)
    else:
        code_bytes = len(filled) * filled.bits // 8
        typer.echo(f"{output}: {len(filled):,} items, {code_bytes:,} bytes of codes, {len(unreadable)} left out.")
