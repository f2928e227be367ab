"""`cmfah space`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from cmfah_hf.space import SpaceSettings


def space(
    model: Annotated[
        str | None, typer.Argument(help="A trained model: a folder or a Hub id. Default: the embedded one.")
    ] = None,
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            help="What it searches: an index of folders, or folders of images, images, or data sets with images: "
            "folders, files, Hub ids, 'scenes'. With --static, the last one is the folder to write."
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
    static: Annotated[
        bool,
        typer.Option(
            "--static",
            help="Write a folder for any static host instead, which searches in the browser: MODEL INDEX OUT, or OUT "
            "alone for the embedded model.",
        ),
    ] = False,
    thumbnails: Annotated[
        bool, typer.Option("--thumbnails/--no-thumbnails", help="With --static: thumbnails of the images.")
    ] = True,
    links: Annotated[
        str | None,
        typer.Option(help="With --static: the address of the images, to which ids are appended; opened on a click."),
    ] = None,
    precision: Annotated[str, typer.Option(help="With --static: of the towers: fp32, fp16 or int8.")] = "fp32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="With --static: replace an earlier page.")] = False,
) -> None:
    """Serve the search page on this machine: search, why, codes, quality. Without a model it shows drawn scenes.

    The address is printed at once, and again when the page answers; the model is loaded then. An index of folders is
    searched whole, without encoding anything.
    """
    from dataclasses import replace

    from cmfah_hf.cli.output import say
    from cmfah_hf.errors import CMFAHError
    from cmfah_hf.space.settings import SpaceSettings, bundled_space

    folder = bundled_space()
    settings = SpaceSettings.load(folder)
    output = None
    if static:
        *places, output = [*([model] if model is not None else []), *(sources or ())] or [None]
        if output is None:
            raise CMFAHError("Name the folder to write: cmfah space --static MODEL INDEX OUT, or OUT alone.")
        model, sources = (places[0] if places else None), places[1:]
        if (host, port, allow_host, mcp) != (None,) * 4:
            raise CMFAHError("--host, --port, --allow-host and --mcp are for a server, which --static does without.")
    elif not thumbnails or links is not None or precision != "fp32" or overwrite:
        raise CMFAHError("--no-thumbnails, --links, --precision and --overwrite are for --static; add it.")
    named = (*(sources or ()), *(data or ()))
    if model is not None:
        if not named:
            usage = f"--static {model} INDEX {output}" if static else f"{model} FOLDER, or an index"
            raise CMFAHError(f"{model}: name what this model is to search: cmfah space {usage}.")
        settings = replace(settings, model=str(Path(model).absolute()) if Path(model).exists() else model)
    if named:
        settings = replace(settings, data=named[0] if len(named) == 1 else named, examples=())
    hosts = tuple(allow_host or ()) or None
    given: dict[str, Any] = {"split": split, "limit": limit, "title": title, "hosts": hosts, "mcp": mcp}
    settings = replace(settings, **{name: value for name, value in given.items() if value is not None})
    if output is not None:
        _write(settings, output, folder, thumbnails, links, precision, overwrite)
        return
    from cmfah_hf.space import serve

    serve(settings, folder, host, port, announce=say)


def _write(
    settings: "SpaceSettings",
    output: str,
    folder: Path,
    thumbnails: bool,
    links: str | None,
    precision: str,
    overwrite: bool,
) -> None:
    """Writes the static page, and says what it consists of."""
    from cmfah_hf.cli.output import say
    from cmfah_hf.space.static.export import export_page

    page = export_page(settings, output, folder, thumbnails, links, precision, overwrite, progress=True)
    start, total = page.start_bytes / 1e6, page.all_bytes / 1e6
    say(f"{output}: {page.items:,} items, {page.code_bytes:,} bytes of codes, {total:.1f} MB in all.")
    say(f"A browser loads {start:.1f} MB at the start.")
    say(f"To look at it: python -m http.server --directory {output}")
