"""The commands `cmfah data ...`. One file a command."""

import typer

from cmfah_hf.cli.data.prepare import prepare

data_app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Prepare data sets.")


@data_app.callback()
def _commands() -> None:
    """With a callback, a single command keeps its name."""


data_app.command()(prepare)
