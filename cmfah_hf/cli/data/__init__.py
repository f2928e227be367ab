"""The commands `cmfah data ...`, one file per command."""

import typer

from cmfah_hf.cli.data.convert import convert
from cmfah_hf.cli.data.from_folder import from_folder
from cmfah_hf.cli.data.inspect import inspect
from cmfah_hf.cli.data.prepare import prepare
from cmfah_hf.cli.data.push import push

data_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="markdown", help="Make, prepare, inspect, convert and push data sets."
)
data_app.command("from-folder")(from_folder)
data_app.command()(prepare)
data_app.command()(convert)
data_app.command()(inspect)
data_app.command()(push)
