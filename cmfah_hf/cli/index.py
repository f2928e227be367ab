"""`cmfah index`."""

from pathlib import Path
from typing import Annotated

import typer

from cmfah_hf.cli.options import DoneAsJson, RemoteCode


def index(
    model: Annotated[str, typer.Argument(help="A trained model: a folder or a Hub id.")],
    sources: Annotated[
        list[str], typer.Argument(help="Images, folders of them, or data sets with images: folders, files, Hub ids.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The index file to write.")] = Path("images.index"),
    split: Annotated[
        str | None, typer.Option(help="The split to index. Default: all, with ids such as train/cat.jpg.")
    ] = None,
    texts: Annotated[bool, typer.Option("--texts", help="Index the texts instead of the images.")] = False,
    keep: Annotated[
        list[str] | None, typer.Option(help="A metadata column to store with the codes, for --where; may be repeated.")
    ] = None,
    add: Annotated[bool, typer.Option("--add", help="Add to the existing index file.")] = False,
    hidden: Annotated[
        bool, typer.Option("--hidden", help="Include hidden files and folders, and those of thumbnails.")
    ] = False,
    any_model: Annotated[
        bool, typer.Option("--any-model", help="With --add: accept an index made by another model.")
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Items encoded at once.")] = 32,
    trust_remote_code: RemoteCode = False,
    json: DoneAsJson = False,
) -> None:
    """Encode images (or texts) and index their codes. Unreadable images are reported and skipped.

    The id of an image is its path below its folder; with several sources, each id begins with its source. Skipped
    files (no images, hidden) are counted.
    """
    from cmfah_hf.atomic import regular_target
    from cmfah_hf.cli.output import print_json, say
    from cmfah_hf.errors import HashIndexError
    from cmfah_hf.retrieval import CrossMediaRetriever

    regular_target(output, HashIndexError)  # refused before anything is encoded
    retriever = CrossMediaRetriever.from_pretrained(model, any_model=any_model, trust_remote_code=trust_remote_code)
    what = "texts" if texts else "images"
    if add:
        setattr(retriever, what, retriever.load_index(output))
    unreadable: list[str] = []
    skipped: dict[str, int] = {}
    for source in sources:
        prefix = f"{source.rstrip('/')}/" if len(sources) > 1 and not Path(source).is_file() else ""
        unreadable += retriever.add_source(
            source, split, what, batch_size, not json, keep or (), prefix, hidden, skipped
        )
    filled = getattr(retriever, what)
    filled.save(output)
    done = {"index": str(output), "items": len(filled), "bits": filled.bits, "model": filled.model}
    if json:
        print_json({**done, "left_out": unreadable, "skipped": skipped})
    else:
        code_bytes = len(filled) * filled.bits // 8
        say(f"{output}: {len(filled):,} items, {code_bytes:,} bytes of codes, {len(unreadable)} skipped.")
