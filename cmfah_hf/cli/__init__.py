"""The command `cmfah`: one file per command, thin over the packages below."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Annotated, Any, NoReturn, cast

import typer
import typer.core

from cmfah_hf.cli.calibrate import calibrate
from cmfah_hf.cli.compress import compress
from cmfah_hf.cli.configs import configs
from cmfah_hf.cli.data import data_app
from cmfah_hf.cli.demo import demo
from cmfah_hf.cli.duplicates import duplicates
from cmfah_hf.cli.evaluate import evaluate
from cmfah_hf.cli.expand import expand_app
from cmfah_hf.cli.experiment import experiment_app
from cmfah_hf.cli.export import export
from cmfah_hf.cli.export.onnx import onnx
from cmfah_hf.cli.index import index
from cmfah_hf.cli.index.info import info
from cmfah_hf.cli.index.remove import remove
from cmfah_hf.cli.output import say
from cmfah_hf.cli.push import push
from cmfah_hf.cli.search import search
from cmfah_hf.cli.serve import serve
from cmfah_hf.cli.space import space
from cmfah_hf.cli.train import TrainCommand, train
from cmfah_hf.errors import CMFAHError, printable

# The exit code that shells expect after Ctrl-C.
_INTERRUPTED = 130
_BUG = 70  # EX_SOFTWARE of sysexits.h
# The base class of the parser's errors, which has no public name.
_UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__base__)


class _Group(typer.core.TyperGroup):
    """A group whose usage errors are printable, whatever the arguments contain.

    The name of a command may have two words, such as `index info`, although `index` is a command too.
    """

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _printable_usage_errors():
            return super().make_context(*args, **kwargs)

    def resolve_command(self, context: Any, args: list[str]) -> Any:
        two = " ".join(args[:2])
        return super().resolve_command(context, [two, *args[2:]] if two in self.commands else args)

    def invoke(self, context: Any) -> Any:
        with _printable_usage_errors():
            return super().invoke(context)


@contextmanager
def _printable_usage_errors() -> Iterator[None]:
    try:
        yield
    except _UsageError as error:
        error.message = printable(error.message)
        raise


def _print_version(asked: bool) -> None:
    if asked:
        say(f"cmfah-hf {version('cmfah-hf')}")
        raise typer.Exit


app = typer.Typer(
    name="cmfah",
    cls=_Group,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},  # which the commands inherit
    rich_markup_mode="markdown",
    help="Cross-media hashing: search images by words in 8 bytes per item.",
)


@app.callback()
def _all_commands(
    shown: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Cross-media hashing: search images by words in 8 bytes per item."""


app.command()(demo)
app.command(cls=TrainCommand, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(train)
app.command()(configs)
app.command()(compress)
app.command()(evaluate)
app.command()(calibrate)
app.command()(index)
app.command("index info")(info)
app.command("index remove")(remove)
app.command()(search)
app.command()(duplicates)
app.command()(serve)
app.command()(space)
app.command()(export)
app.command("export onnx")(onnx)
app.command()(push)
app.add_typer(data_app, name="data")
app.add_typer(expand_app)
app.add_typer(experiment_app)


class _Line(logging.Formatter):
    """A log message as one printable line, since names in it come from untrusted files."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return printable(super().formatMessage(record))


def main(arguments: list[str] | None = None) -> None:
    """Runs a command. A mistake of the user is one line on standard error and exit code 2, a bug of ours 70.

    Ctrl-C ends it with one line and 130, a closed pipe silently with 1. With `CMFAH_DEBUG=1` in the environment, the
    traceback is shown instead of the line.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # else its tables appear above our one line
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # for names that the terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            _run(arguments)
        finally:
            sys.stdout.flush()  # at exit Python would print a traceback of its own
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
    except Exception as error:
        _fail(error)


def _fail(error: Exception) -> NoReturn:
    message = " ".join(str(error).split()) or type(error).__name__
    if not _is_users(error):
        say(f"cmfah: {type(error).__name__}: {message} (a bug; CMFAH_DEBUG=1 shows the traceback)", err=True)
        raise SystemExit(_BUG) from error
    say(f"cmfah: {message}", err=True)
    raise SystemExit(2) from error


def _is_users(error: Exception) -> bool:
    """Whether the user, a file or the machine is at fault: this package's errors, models', and the system's."""
    # `ModelFileError` travels with the models, and so is no `CMFAHError`; a strict dataclass is the Hub's own.
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, (CMFAHError, OSError)) or not names.isdisjoint({"ModelFileError", "StrictDataclassError"})
