"""The commands `cmfah data ...`. One file a command."""

import typer

from cmfah_hf.cli.data.prepare import prepare
from cmfah_hf.cli.data.push import push

data_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="markdown", help="Prepare data sets, look at them, and share them."
)


@data_app.callback()
def _commands() -> None:
    """With a callback, a single command keeps its name."""


data_app.command()(prepare)
data_app.command()(push)
