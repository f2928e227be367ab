"""`cmfah data prepare`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer


def prepare(
    dataset: Annotated[str, typer.Argument(help="mirflickr25k, nus-wide or wikipedia.")],
    root: Annotated[Path, typer.Option(help="The folder with the release: its archives, or their contents.")],
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
    split: Annotated[
        str | None,
        typer.Option(
            help="paper (random, the default), dcmh (queries first), or dadh (queries last). Wikipedia has its own."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the split 'paper'. Default: 0.")] = None,
    queries: Annotated[int | None, typer.Option(help="Number of queries. Default: 2,000; NUS-WIDE: 2,100.")] = None,
    train: Annotated[
        int | None, typer.Option(help="Number of training pairs. Default: 10,000; NUS-WIDE: 10,500.")
    ] = None,
    check_only: Annotated[bool, typer.Option("--check-only", help="Read and check, and write nothing.")] = False,
    verify: Annotated[bool, typer.Option(help="Decode every image as a check.")] = True,
    keep_broken: Annotated[
        bool, typer.Option("--keep-broken", help="Keep rows whose images cannot be decoded.")
    ] = False,
    skip_missing: Annotated[bool, typer.Option("--skip-missing", help="Skip rows without an image.")] = False,
    allow_other_counts: Annotated[
        bool, typer.Option("--allow-other-counts", help="Accept a copy whose counts differ from the release's.")
    ] = False,
    rows_per_shard: Annotated[int | None, typer.Option(help="Rows per file.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier preparation in that folder.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Write MIRFlickr-25k, NUS-WIDE or the Wikipedia articles, as released, as Parquet with a card, ready for the Hub.

    Everything is checked against the release's known counts. An interrupted run resumes with the same command.
    """
    from cmfah_hf.cli.output import print_json, print_table, say
    from cmfah_hf.data.releases.shards import Writing
    from cmfah_hf.errors import DataError

    options = {
        "variant": variant, "classes": classes, "tags": tags, "split": split, "seed": seed, "queries": queries,
        "train": train,
    }  # fmt: skip
    own = {name: value for name, value in options.items() if value is not None}
    run = _preparation(dataset, [*own, *(["keep-broken"] * keep_broken), *(["skip-missing"] * skip_missing)])
    if out is None and not check_only:
        raise DataError("No output folder; give --out, or pass --check-only.")
    report = run(
        root,
        None if check_only else out,
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
        f"empty texts, {left_out:,} rows left out, {'with' if report.images else 'WITHOUT'} images."
    )
    if not check_only:
        say(f"{report.shards:,} files, {report.shards_kept:,} of them from an earlier run.")


def _preparation(dataset: str, given: Sequence[str]) -> Callable[..., Any]:
    """The function that prepares a release; `given` names options, which have to be for that release."""
    from cmfah_hf.data.releases.mirflickr import prepare_mirflickr25k
    from cmfah_hf.data.releases.nus_wide import prepare_nus_wide
    from cmfah_hf.data.releases.wikipedia import prepare_wikipedia
    from cmfah_hf.errors import DataError

    releases: dict[str, Callable[..., Any]] = {
        "mirflickr25k": prepare_mirflickr25k,
        "nus-wide": prepare_nus_wide,
        "wikipedia": prepare_wikipedia,
    }
    if dataset not in releases:
        raise DataError(f"{dataset!r} is not a known release; use mirflickr25k, nus-wide or wikipedia.")
    if dataset == "wikipedia" and given:
        raise DataError(
            f"--{given[0]} is not for wikipedia, which has rows and splits of its own and no images; leave it out."
        )
    only = [name for name in ("classes", "tags") if name in given]
    if only and dataset == "mirflickr25k":
        raise DataError(f"--{only[0]} is for nus-wide; MIRFlickr has one list of classes and one of tags.")
    return releases[dataset]
