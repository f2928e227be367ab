"""`cmfah space`."""

from pathlib import Path
from typing import Annotated

import typer


def space(
    model: Annotated[
        str | None, typer.Argument(help="A trained model: a folder or a Hub id. Default: the embedded one.")
    ] = None,
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            help="What it searches: an index of folders, or folders of images, images, or data sets with images: "
            "folders, files, Hub ids, 'scenes'."
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="The same, also for the embedded model; may be repeated. Default: drawn scenes."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="The split to search. Default: `database` if present, else `train`.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Maximum number of images to encode. Default: 320.")] = None,
    title: Annotated[str | None, typer.Option(help="Title of the page.")] = None,
    host: Annotated[
        str | None, typer.Option(help="The address to listen on; 0.0.0.0 for all interfaces. Default: localhost.")
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Default: the first free one from 7860.")] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="A host name under which browsers reach the page, beyond localhost, IP addresses and --host. May be "
            "given several times."
        ),
    ] = None,
    mcp: Annotated[
        bool | None,
        typer.Option("--mcp/--no-mcp", help="Whether agents can search, by the Model Context Protocol. Default: not."),
    ] = None,
) -> None:
    """Serve the search page on this machine: search, why, codes, quality. Without a model it shows drawn scenes.

    The address is printed as soon as the page answers; the model is loaded then. An index of folders is searched whole,
    without encoding anything.
    """
    from dataclasses import replace

    from cmfah_hf.cli.output import say
    from cmfah_hf.errors import CMFAHError
    from cmfah_hf.space import SpaceSettings, serve
    from cmfah_hf.space.settings import bundled_space

    folder = bundled_space()
    settings = SpaceSettings.load(folder)
    named = (*(sources or ()), *(data or ()))
    if model is not None:
        if not named:
            raise CMFAHError(f"{model}: name what this model is to search: cmfah space {model} FOLDER, or an index.")
        settings = replace(settings, model=str(Path(model).absolute()) if Path(model).exists() else model)
    if named:
        settings = replace(settings, data=named[0] if len(named) == 1 else named, examples=())
    given = {"split": split, "limit": limit, "title": title, "hosts": tuple(allow_host or ()) or None, "mcp": mcp}
    settings = replace(settings, **{name: value for name, value in given.items() if value is not None})
    serve(settings, folder, host, port, announce=say)
