"""`cmfah data`: what is done to data sets. One file a command."""

import typer

from cmfah_hf.cli.data.convert import convert
from cmfah_hf.cli.data.inspect import inspect

data_app = typer.Typer(name="data", no_args_is_help=True, help="Convert data sets and look at them.")
data_app.command()(convert)
data_app.command()(inspect)
