"""`cmfah push`."""

from pathlib import Path
from typing import Annotated

import typer

from cmfah_hf.cli.options import Branch, DoneAsJson, Message, Private


def push(
    repo_id: Annotated[str, typer.Option("--repo-id", help="The target repository, as owner/name.")],
    run: Annotated[
        str | None, typer.Argument(help="The output folder of a training run; with --space also a Hub id, or omitted.")
    ] = None,
    space: Annotated[
        bool, typer.Option("--space", help="Push the search page as a Space that includes the model.")
    ] = False,
    private: Private = False,
    revision: Branch = None,
    message: Message = None,
    index: Annotated[
        Path | None,
        typer.Option(help="An index of images to go with it; its ids are visible to everyone who can see the model."),
    ] = None,
    texts_index: Annotated[Path | None, typer.Option(help="An index of texts to push with the model.")] = None,
    onnx: Annotated[
        bool,
        typer.Option(
            "--onnx", help="Push the towers as ONNX files too: those of RUN/onnx, or new ones; needs cmfah-hf[export]."
        ),
    ] = False,
    license: Annotated[
        str | None, typer.Option(help="The model's license as a Hub identifier, such as apache-2.0.")
    ] = None,
    data_license: Annotated[
        str | None, typer.Option(help="The data's license as text. Default: the license in the data's card.")
    ] = None,
    dataset_id: Annotated[str | None, typer.Option(help="The data's Hub id, if it has one.")] = None,
    attention: Annotated[
        bool, typer.Option(help="Include the attention plot in the card; it shows an image of the data.")
    ] = True,
    data: Annotated[
        str | None, typer.Option(help="The images that the Space searches: a data set on the Hub, or 'scenes'.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="The split to search. Default: `database` if present, else `train`.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Maximum number of images that the Space shows. Default: 320.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Title of the Space's page.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Also replace files changed on the Hub since the last push.")
    ] = False,
    json: DoneAsJson = False,
) -> None:
    """Push a trained model to the Hub in one commit: weights, processor, vocabulary, code, metrics and a card.

    With --space: the search page, ready to run; without a RUN it searches drawn scenes with the embedded model.

    An interrupted push resumes when the command is repeated: only missing files are sent. The token is that of
    `hf auth login` or of the environment variable `HF_TOKEN`.
    """
    import dataclasses

    from cmfah_hf.cli.output import print_json, say
    from cmfah_hf.errors import HubError
    from cmfah_hf.hub import push_model, push_space

    of_a_model = {
        "--index": index,
        "--texts-index": texts_index,
        "--license": license,
        "--data-license": data_license,
        "--dataset-id": dataset_id,
        "--onnx": onnx or None,
    }
    of_a_space = {"--data": data, "--split": split, "--limit": limit, "--title": title}
    for option, value in (of_a_model if space else of_a_space).items():
        if value is not None:
            raise HubError(
                f"{option} is for models; leave it out." if space else f"{option} is for Spaces; add --space."
            )
    common = {
        "private": private,
        "revision": revision,
        "message": message,
        "overwrite": overwrite,
        "progress": not json,
    }
    if space:
        done = push_space(repo_id, run, data, split, limit, title, **common)
    elif run is None:
        raise HubError("Nothing to push: give the output folder of a training run, or add --space.")
    else:
        done = push_model(
            Path(run),
            repo_id,
            images_index=index,
            texts_index=texts_index,
            license=license,
            data_license=data_license,
            dataset_id=dataset_id,
            attention_image=attention,
            onnx=onnx,
            **common,
        )
    if json:
        print_json(dataclasses.asdict(done))
        return
    what = f"{len(done.files)} files, {done.size:,} bytes" if done.changed else "nothing has changed"
    say(f"{done.url} at {done.commit[:7]}: {what}.")
    for line in done.remarks:
        say(line)
