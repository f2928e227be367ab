"""`cmfah compress`."""

from pathlib import Path
from typing import Annotated

import typer

from cmfah_hf.cli.options import DoneAsJson, RemoteCode


def compress(
    encoder: Annotated[
        str, typer.Argument(help="A dual encoder, such as a CLIP or SigLIP: a folder, or a Hub id, also NAME@REVISION.")
    ],
    images: Annotated[str, typer.Argument(help="A folder of images, or a data set: a folder, a file or a Hub id.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder of the new model.")],
    bits: Annotated[int, typer.Option(help="Bits of a code; a multiple of 8.")] = 64,
    split: Annotated[str | None, typer.Option(help="A split of the data set. Default: all.")] = None,
    texts: Annotated[
        Path | None,
        typer.Option(
            help="Texts like those to search for, of any images: .txt, a line each, or .jsonl or .parquet with a "
            "column 'text'."
        ),
    ] = None,
    no_texts: Annotated[bool, typer.Option("--no-texts", help="Ignore the texts of the data set.")] = False,
    link: Annotated[
        bool | None,
        typer.Option(
            "--link/--copy",
            help="Name the encoder by its commit on the Hub, or save its weights. Default: name one of the Hub.",
        ),
    ] = None,
    trust_remote_code: RemoteCode = False,
    batch_size: Annotated[int, typer.Option(help="Images encoded at once.")] = 32,
    seed: Annotated[int, typer.Option(help="Seed of samples and rotations.")] = 0,
    json: DoneAsJson = False,
) -> None:
    """Make a search model from a pretrained dual encoder and unlabeled images, without training.

    Held-out images choose the code: by the ranks of their own texts, or without texts by what the encoder itself ranks.
    An index of the images lies beside the model, so `cmfah search MODEL --text ...` answers at once.
    """
    from cmfah_hf.cli.output import print_json, print_table
    from cmfah_hf.training.compression import compress as run_compression

    done = run_compression(
        encoder,
        images,
        output,
        bits,
        split=split,
        texts=texts,
        use_texts=not no_texts,
        link=link,
        trust_remote_code=trust_remote_code,
        batch_size=batch_size,
        seed=seed,
        progress=not json,
    )
    figures = done.figures()
    if json:
        print_json(
            {
                "model": str(output),
                "index": str(done.index),
                **figures,
                "left_out": done.left_out,
                "skipped": done.skipped,
            }
        )
        return

    def rows(of: str) -> list[list[str]]:
        return [[each["name"], f"{each['aqd']:.3f}", f"{each['hamming']:.3f}"] for each in figures[of]]

    compared = (
        "mean of 1 / log2(1 + rank of the own partner)"
        if figures["by_partner"]
        else "share of the encoder's 10 nearest"
    )
    unreadable = f", {len(done.left_out):,} left out as unreadable" if done.left_out else ""
    print_table(
        f"{output}: {done.images:,} images in {bits // 8} bytes each{unreadable}; {compared}",
        ["code", "AQD", "Hamming"],
        rows("candidates"),
    )
    if figures["centers"]:
        title = "Without texts, everyday phrases choose the center of texts; --texts FILE gives texts of your kind"
        print_table(title, ["center of texts", "AQD", "Hamming"], rows("centers"))
