"""`cmfah data push`."""

from typing import Annotated

import typer

from cmfah_hf.cli.options import Branch, DoneAsJson, Message, Private


def push(
    source: Annotated[
        str, typer.Argument(help="A prepared folder, or any other data set: folder, Parquet file, Hub id, scenes.")
    ],
    repo_id: Annotated[str, typer.Option("--repo-id", help="The data set on the Hub, as owner/name.")],
    private: Private = False,
    revision: Branch = None,
    message: Message = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Also replace files changed on the Hub since the last push.")
    ] = False,
    json: DoneAsJson = False,
) -> None:
    """Push a data set to the Hub in one commit: its card and its Parquet shards.

    An interrupted push resumes when the command is repeated: only missing files are sent. The token is that of
    `hf auth login` or of the environment variable `HF_TOKEN`.
    """
    import dataclasses

    from cmfah_hf.cli.output import print_json, say
    from cmfah_hf.hub import push_dataset

    done = push_dataset(
        source, repo_id, private=private, revision=revision, message=message, overwrite=overwrite, progress=not json
    )
    if json:
        print_json(dataclasses.asdict(done))
        return
    splits = ", ".join(f"{name} {rows:,}" for name, rows in done.splits.items())
    what = f"{len(done.files)} files, {done.size:,} bytes" if done.changed else "nothing has changed"
    say(f"{done.url} at {done.commit[:7]}: {splits} pairs; {what}.")
    for line in done.remarks:
        say(line)
