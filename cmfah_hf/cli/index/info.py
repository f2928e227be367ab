"""`cmfah index info`."""

from pathlib import Path
from typing import Annotated

import typer


def info(
    index: Annotated[Path, typer.Argument(help="An index file.")],
    json: Annotated[bool, typer.Option("--json", help="Print what the index holds as JSON.")] = False,
) -> None:
    """Show what an index holds: model, folders, counts, bytes, date."""
    from cmfah_hf.cli.output import print_json, print_table
    from cmfah_hf.retrieval.folders import describe_index

    found = describe_index(index)
    if json:
        print_json(found)
        return
    roots = found.pop("roots")
    facts = [[name, "-" if value is None else str(value)] for name, value in found.items() if name != "metadata"]
    facts.append(["metadata", ", ".join(found["metadata"]) or "-"])
    print_table(str(index), ["fact", "value"], facts)
    if roots:
        columns = ["name", "path", "is_there", "images", "unreadable", "left_out"]
        print_table("Folders", columns, [[root[column] for column in columns] for root in roots])
