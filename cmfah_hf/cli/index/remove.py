"""`cmfah index remove`."""

from pathlib import Path
from typing import Annotated

import typer

from cmfah_hf.cli.options import DoneAsJson


def remove(
    index: Annotated[Path, typer.Argument(help="An index file.")],
    ids: Annotated[
        list[str] | None, typer.Argument(help="The ids of the items to remove, as answers show them.")
    ] = None,
    root: Annotated[
        list[str] | None, typer.Option(help="The name of a folder to remove with all its items; may be repeated.")
    ] = None,
    json: DoneAsJson = False,
) -> None:
    """Remove items from an index, or a whole folder. An unknown id is an error, and nothing is removed.

    The id of an image is its path below its folder, such as beach.jpg. With metadata of several splits, as `cmfah data
    from-folder` writes it, the split precedes it (train/beach.jpg), and with several folders, the folder's name.

    Removed images whose files are still in their folder stay out of the index at later updates, until `cmfah index
    --restore-removed` takes them back.
    """
    from cmfah_hf.cli.output import print_json, say
    from cmfah_hf.errors import HashIndexError
    from cmfah_hf.retrieval.folders import describe_index, remove_items

    if not ids and not root:
        raise HashIndexError(f"{index}: name the ids to remove, or a folder with --root NAME.")
    removed = remove_items(index, ids or (), root or ())
    left = describe_index(index)["items"]
    if json:
        print_json({"index": str(index), "removed": removed, "items": left})
    else:
        say(f"{index}: {removed:,} items removed, {left:,} left.")
