"""`cmfah data inspect`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cmfah_hf.data.inspection.report import Inspection


def inspect(
    source: Annotated[str, typer.Argument(help="A folder of images with metadata, Parquet, matrices, or a Hub id.")],
    split: Annotated[str | None, typer.Option(help="One split. Default: all.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A folder for inspection.json and the plots as PNG.")
    ] = None,
    named: Annotated[int, typer.Option(help="Maximum number of broken images, duplicates and words to list.")] = 20,
    allow_urls: Annotated[
        bool, typer.Option("--allow-urls", help="Fetch images that rows name by http(s) addresses.")
    ] = False,
    image_folders: Annotated[
        list[Path] | None,
        typer.Option("--image-folder", help="A further folder that rows may name images in; may be repeated."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Inspect a data set: label balance, words, sizes, broken images, duplicates, leakage between splits."""
    from cmfah_hf.cli.output import counting, print_json, say
    from cmfah_hf.data import inspect_pairs

    with counting("Inspecting pairs") as advance:
        found = inspect_pairs(
            source,
            split,
            named,
            progress=lambda name: advance(1, f"Inspecting {name}"),
            allow_urls=allow_urls,
            image_folders=image_folders or (),
        )
    document = found.as_dict() | {"warnings": found.warnings}
    if output is not None:
        import json as standard_json

        from cmfah_hf.atomic import write_text
        from cmfah_hf.data.inspection.plots import plot_inspection
        from cmfah_hf.errors import DataError

        files = [str(file) for file in plot_inspection(found, output)]
        text = standard_json.dumps(document, indent=2, ensure_ascii=False)
        write_text(output / "inspection.json", text + "\n", DataError)
    if json:
        print_json(document)
        return
    _print(found)
    if output is not None:
        say(f"Written: {', '.join([str(output / 'inspection.json'), *files])}")


def _print(found: "Inspection") -> None:
    from cmfah_hf.cli.output import print_table
    from cmfah_hf.errors import printable

    typer.secho(printable(found.source), bold=True)
    print_table("Splits", ["split", "items"], [[name, count] for name, count in found.splits.items()])
    labels, words, images, twice = found.labels, found.words, found.images, found.duplicates
    if labels is not None:
        splits = list(labels.by_split) if len(labels.by_split) > 1 else []
        rows = [
            [name, count, labels.shares[name], *(labels.by_split[split].get(name, 0) for split in splits)]
            for name, count in labels.counts.items()
        ]
        print_table(f"Labels: {labels.mean_per_item:.2f} per item", ["class", "items", "share", *splits], rows)
        rows = [[number, count] for number, count in labels.per_item.items()]
        print_table("Labels per item", ["labels", "items"], rows)
        if labels.pairs:
            print_table("Classes together", ["class", "and", "items"], [list(pair) for pair in labels.pairs[:10]])
    if found.captions:
        print_table("Captions per item", ["captions", "items"], [list(entry) for entry in found.captions.items()])
    kind = "words" if words.source == "text" else "tags"
    rows = [[name, count] for name, count in words.most_frequent.items()]
    print_table(f"Most frequent {kind}", [kind, "items"], rows)
    print_table(f"All {kind}", ["different", "of them in one item"], [[words.distinct, words.once]])
    print_table(f"{kind.capitalize()} per item", [*words.per_item], [[*words.per_item.values()]])
    if images is not None:
        print_table("Modes", ["mode", "images"], [[name, count] for name, count in images.modes.items()])
        rows = [[name, count] for name, count in list(images.sizes.items())[:10]]
        print_table(f"Sizes: {images.distinct_sizes:,}", ["width x height", "images"], rows)
        if images.broken:
            rows = [[f"{entry['split']}/{entry['id']}", entry["reason"]] for entry in images.broken_named]
            print_table(f"Broken images: {images.broken:,}", ["item", "why"], rows)
    for title, groups in (("Same file", twice.same_bytes), ("Same image in other files", twice.same_pixels)):
        if groups:
            print_table(title, ["items"], [[", ".join(group)] for group in groups])
    if twice.same_ids:
        print_table("Same id", ["item", "times"], [[name, count] for name, count in twice.same_ids.items()])
    if twice.leaking:
        print_table("The same image in two splits", ["item", "is also"], [list(pair) for pair in twice.leaking])
    for line in found.warnings:
        is_leakage = line.startswith("LEAKAGE")
        typer.secho(printable(line), fg="red" if is_leakage else "yellow", bold=is_leakage)
