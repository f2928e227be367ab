"""The command `cmfah`. One file a command; what they do lives in the floors below."""

import logging
import os
import sys

import typer

from cmfah_hf.cli.data import data_app
from cmfah_hf.cli.demo import demo
from cmfah_hf.cli.evaluate import evaluate
from cmfah_hf.cli.expand import expand_app
from cmfah_hf.cli.export import export
from cmfah_hf.cli.index import index
from cmfah_hf.cli.push import push
from cmfah_hf.cli.search import search
from cmfah_hf.cli.space import space
from cmfah_hf.cli.train import train

app = typer.Typer(
    name="cmfah",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="Cross-media hashing: search pictures by words in 8 bytes an item.",
)
app.command()(demo)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(train)
app.command()(evaluate)
app.command()(index)
app.command()(search)
app.command()(space)
app.command()(export)
app.command()(push)
app.add_typer(data_app, name="data")
app.add_typer(expand_app)


def main(arguments: list[str] | None = None) -> None:
    """Runs a command; what the user got wrong is one line on standard error and exit code 2.

    With `CMFAH_DEBUG=1` in the environment, the traceback is shown instead.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its tables beside our one line
    if os.environ.get("CMFAH_DEBUG"):
        app(arguments)
    try:
        app(arguments)
    except (ValueError, OSError) as error:  # the package's own errors are ValueErrors
        _fail(error)
    except Exception as error:
        if type(error).__name__.startswith("StrictDataclass"):  # a setting of the wrong type, in the Hub's own words
            _fail(error)
        raise


def _fail(error: Exception) -> None:
    message = " ".join(str(error).split()) or type(error).__name__
    typer.echo(f"cmfah: {message}", err=True)
    raise SystemExit(2) from error
