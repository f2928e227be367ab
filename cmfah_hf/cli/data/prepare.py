"""`cmfah data prepare`."""

from pathlib import Path
from typing import Annotated

import typer


def prepare(
    dataset: Annotated[str, typer.Argument(help="mirflickr25k or nus-wide.")],
    root: Annotated[Path, typer.Option(help="The folder with the release: its archives, or what was in them.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The folder to write.")] = None,
    variant: Annotated[
        int | None,
        typer.Option(
            help="The number of pairs. MIRFlickr: 20015 (default) or 24581. NUS-WIDE: 195834 (default) or 190421; of "
            "10 classes 186577 or 181365; of 81 classes 209347."
        ),
    ] = None,
    classes: Annotated[int | None, typer.Option(help="NUS-WIDE: 21 (default), 10 or 81.")] = None,
    tags: Annotated[str | None, typer.Option(help="NUS-WIDE: 1k (default) or 5018.")] = None,
    split: Annotated[str, typer.Option(help="paper (random), dcmh (queries first), or dadh (queries last).")] = "paper",
    seed: Annotated[int, typer.Option(help="Of the split 'paper'.")] = 0,
    queries: Annotated[int | None, typer.Option(help="How many. Default: 2,000, or 2,100 of NUS-WIDE.")] = None,
    train: Annotated[int | None, typer.Option(help="Training pairs. Default: 10,000, or 10,500 of NUS-WIDE.")] = None,
    check_only: Annotated[bool, typer.Option("--check-only", help="Read and check, and write nothing.")] = False,
    verify: Annotated[bool, typer.Option(help="Decode every picture to see whether it can be.")] = True,
    keep_broken: Annotated[bool, typer.Option("--keep-broken", help="Keep rows with pictures that cannot.")] = False,
    skip_missing: Annotated[bool, typer.Option("--skip-missing", help="Leave out rows without a picture.")] = False,
    allow_other_counts: Annotated[
        bool, typer.Option("--allow-other-counts", help="Take a copy whose counts are not the release's.")
    ] = False,
    rows_per_shard: Annotated[int | None, typer.Option(help="Rows of a file.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what was prepared in that folder.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Write MIRFlickr-25k or NUS-WIDE, as released, as Parquet with a card, ready for the Hub.

    Everything is checked against the release's known counts. What was broken off goes on with the same command.
    """
    from cmfah_hf.cli.output import print_json, print_table, say
    from cmfah_hf.data.releases.mirflickr import prepare_mirflickr25k
    from cmfah_hf.data.releases.nus_wide import prepare_nus_wide
    from cmfah_hf.data.releases.shards import Writing
    from cmfah_hf.errors import DataError

    if dataset not in ("mirflickr25k", "nus-wide"):
        raise DataError(f"There is no preparation of {dataset!r}; take mirflickr25k or nus-wide.")
    if out is None and not check_only:
        raise DataError("There is no folder to write to; name one with --out, or pass --check-only.")
    own = {name: value for name, value in {"classes": classes, "tags": tags}.items() if value is not None}
    if own and dataset == "mirflickr25k":
        raise DataError(f"--{next(iter(own))} is for nus-wide; MIRFlickr has one list of classes and one of tags.")
    run = prepare_nus_wide if dataset == "nus-wide" else prepare_mirflickr25k
    report = run(
        root,
        None if check_only else out,
        variant=variant,
        split=split,
        seed=seed,
        queries=queries,
        train=train,
        allow_other_counts=allow_other_counts,
        writing=Writing(
            verify=verify,
            keep_broken=keep_broken,
            skip_missing=skip_missing,
            overwrite=overwrite,
            rows_per_shard=rows_per_shard,
            progress=not json,
        ),
        **own,
    )
    if json:
        print_json(report.as_dict())
        return
    rows = [[name, f"{count:,}", report.ids_sha256[name][:16]] for name, count in report.rows.items()]
    print_table(f"{dataset}: {'checked' if check_only else out}", ["split", "rows", "ids (SHA-256)"], rows)
    left_out = report.missing + (0 if keep_broken else len(report.unreadable))
    say(
        f"{report.classes} classes, {report.label_ones:,} labels, {report.tag_ones:,} tags, {report.empty_texts:,} "
        f"empty texts, {left_out:,} rows left out, {'with' if report.images else 'WITHOUT'} pictures."
    )
    if not check_only:
        say(f"{report.shards:,} files, {report.shards_kept:,} of them from an earlier run.")
