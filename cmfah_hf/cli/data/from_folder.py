"""`cmfah data from-folder`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmfah_hf.cli.options import DoneAsJson

if TYPE_CHECKING:
    from cmfah_hf.data.from_folder.report import FolderReport


def from_folder(
    folder: Annotated[Path, typer.Argument(help="A folder of images, as it is.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="A folder to write, with hard links to the images. Default: metadata in FOLDER."
        ),
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option(help="A table of the images: .csv, .tsv, .json (also COCO's) or .jsonl; all columns are kept."),
    ] = None,
    image_column: Annotated[str | None, typer.Option(help="The table's column of file names.")] = None,
    text_column: Annotated[str | None, typer.Option(help="The table's column of texts.")] = None,
    label_column: Annotated[str | None, typer.Option(help="The table's column of labels.")] = None,
    folders: Annotated[
        str | None, typer.Option(help="Whether folders are classes: 'auto' (the default), 'classes' or 'ignore'.")
    ] = None,
    queries: Annotated[
        float | None, typer.Option(help="The share of images to hold out as queries. Default: 0.1.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The seed of their draw. Default: 0.")] = None,
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy the images to the output instead of linking them.")
    ] = False,
    hidden: Annotated[
        bool | None, typer.Option("--hidden/--no-hidden", help="Whether to include hidden files and folders.")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Whether to decode each image.")] = True,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Replace metadata with other content; with --queries or --seed, draw all anew."
        ),
    ] = False,
    json: DoneAsJson = False,
) -> None:
    """Make a data set of a folder of images, with the texts that are there already.

    Texts, keywords, labels and dates come from a table, from sidecars (.txt, .json, .xmp, Google Takeout), from EXIF,
    IPTC and XMP in the images, and from the folders' names. A part is held out as queries.

    Called again on a folder with metadata of its own, it adds new images and drops those that are gone; all others keep
    their split, and options that are not given are as before.

    Of a folder of WebDataset shards, a part of the samples is held out: cmfah-shards.json says so, and the shards stay
    as they are.
    """
    from cmfah_hf.cli.output import counting, print_json
    from cmfah_hf.data.from_folder.preparation import prepare_folder
    from cmfah_hf.data.from_folder.tables import TableRequest
    from cmfah_hf.errors import DataError

    if csv is None and (image_column or text_column or label_column):
        raise DataError("--image-column, --text-column and --label-column belong to a table; pass --csv FILE.")
    table = None if csv is None else TableRequest(csv, image_column, text_column, label_column)
    with counting("Reading images") as advance:
        report = prepare_folder(
            folder, output, table, folders, queries, seed, copy, hidden, verify, overwrite, progress=advance
        )
    if json:
        print_json(report.as_dict())
        return
    _print(report)


def _print(report: "FolderReport") -> None:
    from cmfah_hf.cli.output import say
    from cmfah_hf.data.images import describe_skipped

    splits = ", ".join(f"{count:,} {name}" for name, count in report.splits.items())
    done = "unchanged" if report.unchanged else "written"
    say(f"{report.output}: {report.images:,} images ({splits}), {done}.")
    if not report.shards:
        _print_sources(report)
    if report.table_columns:
        kept = (new if new == name else f"{name} as {new}" for name, new in report.table_columns.items())
        say(f"Further columns of the table: {', '.join(kept)}.")
    if report.linked or report.copied:
        say(f"Images linked {report.linked:,}, copied {report.copied:,}.")
    if report.skipped:
        say(f"Skipped: {describe_skipped(report.skipped)}.")
    if report.unreadable or report.problems:
        kinds = [f"unreadable {report.unreadable:,}"] if report.unreadable else []
        kinds += [f"{kind} {count:,}" for kind, count in report.problems.most_common() if count]
        say(f"Problems: {', '.join(kinds)}.", err=True)
    for line in report.named:
        say(f"  {line}", err=True)


def _print_sources(report: "FolderReport") -> None:
    from cmfah_hf.cli.output import say

    if report.as_before or report.gone:
        say(f"Images: {report.new:,} new, {report.as_before:,} as before, {report.gone:,} gone.")
    sources = ", ".join(f"{kind} {count:,}" for kind, count in report.text_from.most_common()) or "none"
    say(f"Texts: {sources}; without text {report.without_text:,}.")
    sources = ", ".join(f"{kind} {count:,}" for kind, count in report.labels_from.most_common()) or "none"
    say(f"Labels: {sources}; {report.classes:,} classes.")
    say(f"Dates {report.with_date:,}, keywords {report.with_keywords:,}, identical files {report.identical_files:,}.")
