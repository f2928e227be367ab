"""The command `cmfah`. One file a command; what they do lives in the floors below."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
import typer.core

from cmfah_hf.cli.data import data_app
from cmfah_hf.cli.demo import demo
from cmfah_hf.cli.evaluate import evaluate
from cmfah_hf.cli.expand import expand_app
from cmfah_hf.cli.experiment import experiment_app
from cmfah_hf.cli.export import export
from cmfah_hf.cli.index import index
from cmfah_hf.cli.output import say
from cmfah_hf.cli.push import push
from cmfah_hf.cli.search import search
from cmfah_hf.cli.space import space
from cmfah_hf.cli.train import train
from cmfah_hf.errors import printable

# What the shell expects of a command that Ctrl-C has ended.
_INTERRUPTED = 130
# The base of what the parser raises; it has no public name of its own.
_UsageError = typer.BadParameter.__base__


class _Group(typer.core.TyperGroup):
    """A group whose complaints about arguments are printable, whatever the arguments hold."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _printable_complaints():
            return super().make_context(*args, **kwargs)

    def invoke(self, context: Any) -> Any:
        with _printable_complaints():
            return super().invoke(context)


@contextmanager
def _printable_complaints() -> Iterator[None]:
    try:
        yield
    except _UsageError as error:
        error.message = printable(error.message)
        raise


app = typer.Typer(
    name="cmfah",
    cls=_Group,
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
app.add_typer(experiment_app)


class _Line(logging.Formatter):
    """A message as one line; what it names comes from anywhere."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return printable(super().formatMessage(record))


def main(arguments: list[str] | None = None) -> None:
    """Runs a command; what the user got wrong is one line on standard error and exit code 2.

    Interrupted, it ends with one line and 130; where nobody reads its output any more, quietly with 1. With
    `CMFAH_DEBUG=1` in the environment, a traceback is shown in the place of the one line.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its tables beside our one line
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # names that the terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            _run(arguments)
        finally:
            sys.stdout.flush()  # here, and not when Python ends, which prints a traceback of its own
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except SystemExit as left:
        if left.code == _INTERRUPTED:
            say("cmfah: interrupted.", err=True)
        raise


def _run(arguments: list[str] | None) -> None:
    if os.environ.get("CMFAH_DEBUG"):
        app(arguments)
    try:
        app(arguments)
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:  # the package's own errors are ValueErrors
        _fail(error)
    except Exception as error:
        if type(error).__name__.startswith("StrictDataclass"):  # a setting of the wrong type, in the Hub's own words
            _fail(error)
        raise


def _fail(error: Exception) -> None:
    message = " ".join(str(error).split()) or type(error).__name__
    say(f"cmfah: {message}", err=True)
    raise SystemExit(2) from error
