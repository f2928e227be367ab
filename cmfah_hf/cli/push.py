"""`cmfah push`."""

from pathlib import Path
from typing import Annotated

import typer


def push(
    run: Annotated[Path, typer.Argument(help="The folder that a training run has left.")],
    repo_id: Annotated[str, typer.Option("--repo-id", help="The model on the Hub, as owner/name.")],
    private: Annotated[bool, typer.Option("--private", help="Create it so that only its owners see it.")] = False,
    revision: Annotated[str | None, typer.Option(help="The branch; created if needed. Default: the main one.")] = None,
    index: Annotated[
        Path | None,
        typer.Option(help="An index of pictures to go with it; its ids are seen by whoever sees the model."),
    ] = None,
    texts_index: Annotated[Path | None, typer.Option(help="The same of texts.")] = None,
    license: Annotated[
        str | None, typer.Option(help="The model's licence by the Hub's names, such as apache-2.0.")
    ] = None,
    data_license: Annotated[
        str | None, typer.Option(help="The data's licence, in words. Default: what the data's own card says.")
    ] = None,
    dataset_id: Annotated[str | None, typer.Option(help="The data's id on the Hub, if it is there.")] = None,
    attention: Annotated[
        bool, typer.Option(help="Show in the card what the words of a query look at: it shows a picture of the data.")
    ] = True,
    message: Annotated[str | None, typer.Option(help="The commit's title.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Put a trained model on the Hub in one commit: weights, processor, words, code, figures, and a card.

    A push that was broken off goes on when the same command is given again: only what is missing is sent. The token is
    that of `hf auth login`, or of the environment variable `HF_TOKEN`.
    """
    import dataclasses

    from cmfah_hf.cli.output import print_json
    from cmfah_hf.hub import push_model

    done = push_model(
        run,
        repo_id,
        private=private,
        revision=revision,
        message=message,
        images_index=index,
        texts_index=texts_index,
        license=license,
        data_license=data_license,
        dataset_id=dataset_id,
        attention_picture=attention,
        progress=not json,
    )
    if json:
        print_json(dataclasses.asdict(done))
        return
    what = f"{len(done.files)} files, {done.size:,} bytes" if done.changed else "nothing has changed"
    typer.echo(f"{done.url} at {done.commit[:7]}: {what}.")
