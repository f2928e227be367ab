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
    hidden: Annotated[
        bool, typer.Option("--hidden", help="Take hidden files and folders too, and those of thumbnails.")
    ] = False,
    any_model: Annotated[
        bool, typer.Option("--any-model", help="With --add: also to an index whose codes another model made.")
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Items encoded at once.")] = 32,
    json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Encode pictures (or texts) and index their codes. A picture that cannot be read is named and left out.

    The id of a picture is its path below its folder; of several sources, each id begins with its source. Files that are
    no pictures are counted, and so are hidden ones, which are left out.
    """
    from cmfah_hf.atomic import regular_target
    from cmfah_hf.cli.output import print_json, say
    from cmfah_hf.errors import HashIndexError
    from cmfah_hf.retrieval import CrossMediaRetriever

    regular_target(output, HashIndexError)  # refused now, and not when everything has been encoded
    retriever = CrossMediaRetriever.from_pretrained(model, any_model=any_model)
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
        say(f"{output}: {len(filled):,} items, {code_bytes:,} bytes of codes, {len(unreadable)} left out.")
