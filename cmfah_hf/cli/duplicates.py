"""`cmfah duplicates`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from cmfah_hf.retrieval import HashIndex


def duplicates(
    index: Annotated[Path, typer.Argument(help="An index file.")],
    bits: Annotated[int, typer.Option(help="Codes that differ in at most this many bits are near-duplicates.")] = 3,
    json: Annotated[bool, typer.Option("--json", help="Print the groups as JSON.")] = False,
) -> None:
    """List groups of near-duplicates in an index.

    Two items are in one group if they, or a chain of items between them, differ in at most `--bits` bits. The items of
    the index are compared exactly, without the model.
    """
    from cmfah_hf.cli.output import counting, print_json, print_table, say
    from cmfah_hf.retrieval import HashIndex

    searched = HashIndex.load(index, mmap=True)
    with counting("Comparing codes, percent", 100) as advance:
        groups = searched.duplicates(bits, lambda share: advance(100 * share))
    paths = _paths(searched, [ids.tolist() for ids in groups])
    figures = {
        "items": len(searched),
        "groups": len(groups),
        "duplicates": sum(map(len, groups)) - len(groups),  # that could go, if each group kept one
    }
    if json:
        found = [{"ids": ids.tolist(), "paths": own} for ids, own in zip(groups, paths, strict=True)]
        print_json({"index": str(index), "bits": bits, **figures, "results": found})
        return
    rows = [
        [number, item_id, path or "-"]
        for number, (ids, own) in enumerate(zip(groups, paths, strict=True), 1)
        for item_id, path in zip(ids.tolist(), own, strict=True)
    ]
    if rows:
        print_table(f"{index}: items within {bits} bits of each other", ["group", "id", "path"], rows)
    say(f"{index}: {len(searched)} items, {len(groups)} groups, {figures['duplicates']} near-duplicates to spare.")


def _paths(index: "HashIndex", groups: list[list[Any]]) -> list[list[str | None]]:
    """The paths of the items of each group as of the last update; None for those of no folder."""
    every = [item_id for ids in groups for item_id in ids]
    paths = iter([None] * len(every) if index.folders is None else index.folders.paths_of(every))
    return [[next(paths) for _ in ids] for ids in groups]
