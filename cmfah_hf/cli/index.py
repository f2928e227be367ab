"""`cmfah index`."""

from pathlib import Path
from typing import Annotated

import typer


def index(
    model: Annotated[str, typer.Argument(help="A trained model: a folder or a Hub id.")],
    source: Annotated[str, typer.Argument(help="A folder of pictures, or any data set with pictures.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The index file to write.")] = Path("pictures.index"),
    split: Annotated[str | None, typer.Option(help="One split. Default: all, with ids such as train/cat.jpg.")] = None,
    texts: Annotated[bool, typer.Option("--texts", help="Index the texts instead of the pictures.")] = False,
    batch_size: Annotated[int, typer.Option(help="Items encoded at once.")] = 32,
    json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Encode pictures (or texts) and index their codes. A picture that cannot be read is named and left out."""
    from cmfah_hf.cli.output import print_json
    from cmfah_hf.errors import HashIndexError
    from cmfah_hf.retrieval import CrossMediaRetriever

    if output.is_dir():  # said now, and not when everything has been encoded
        raise HashIndexError(f"{output} is a folder; name a file in it for the index.")
    retriever = CrossMediaRetriever.from_pretrained(model)
    unreadable = retriever.add_source(source, split, "texts" if texts else "images", batch_size, progress=not json)
    filled = retriever.texts if texts else retriever.images
    filled.save(output)
    done = {"index": str(output), "items": len(filled), "bits": filled.bits, "left_out": unreadable}
    if json:
        print_json(done)
    else:
        code_bytes = len(filled) * filled.bits // 8
        typer.echo(f"{output}: {len(filled):,} items, {code_bytes:,} bytes of codes, {len(unreadable)} left out.")
