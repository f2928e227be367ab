"""`cmfah export`, of an index; `cmfah export onnx` has a file of its own."""

from pathlib import Path
from typing import Annotated

import typer

from cmfah_hf.cli.options import second_words


def export(
    index: Annotated[
        Path, typer.Argument(help="An index file, as `cmfah index` writes it.", autocompletion=second_words)
    ],
    to: Annotated[str, typer.Option("--to", help="The database: milvus, vespa or pgvector.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    name: Annotated[str, typer.Option(help="Name of the collection, document type or table.")] = "cmfah",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export in that folder.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Write an index's ids, codes and metadata in the import format of a database.

    `cmfah export onnx MODEL` writes a model's towers as ONNX files.
    """
    from cmfah_hf.cli.output import print_json, say
    from cmfah_hf.errors import HashIndexError
    from cmfah_hf.retrieval import EXPORTERS, HashIndex

    if to not in EXPORTERS:
        raise HashIndexError(f"{to!r} is not a known database; use one of {', '.join(EXPORTERS)}.")
    loaded = HashIndex.load(index, mmap=True)
    files = EXPORTERS[to](loaded, output, name=name, overwrite=overwrite)
    if json:
        done = {"to": to, "items": len(loaded), "bits": loaded.bits, "model": loaded.model}
        print_json({**done, "files": [str(file) for file in files]})
    else:
        names = ", ".join(file.name for file in files)
        say(f"{output}: {len(loaded):,} items of {loaded.bits} bits for {to}: {names}.")
