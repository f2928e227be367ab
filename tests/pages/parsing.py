"""Commands that are parsed but not run, each by the parser of its program, so every option must exist."""

import argparse
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from pages.blocks import ROOT, Command


class _ParsedError(Exception):
    """Stops a script once it has parsed its arguments."""


def parse(command: Command, folder: Path) -> None:
    """Raises unless the command's program accepts all words, or the named files and targets exist."""
    program, *words = command.words
    assert program in _PARSERS, f"{command.place}: no parser for {program!r}"
    _PARSERS[program](words, folder)


def parse_cmfah(words: list[str], folder: Path | None = None) -> None:
    """Parses with the application down to the subcommand; the remaining words of `train` with the parser of a run."""
    from cmfah_hf.cli import app
    from cmfah_hf.training import parse_run
    from cmfah_hf.training.settings.bundled import GRIDS, find_configuration

    command, name, words = typer.main.get_command(app), "cmfah", list(words)
    while hasattr(command, "commands"):  # a group
        two = " ".join(words[:2])
        name, words = (two, words[2:]) if two in command.commands else (words[0], words[1:])
        command = command.commands[name]
    context = command.make_context(name, words)
    if context.info_name == "train":
        # The launch files and data need not exist; the settings must.
        own = Path(context.params["config"])  # a file of the page or of the project, or a name
        parse_run(own if own.is_file() or not (ROOT / own).is_file() else ROOT / own, list(context.args))
    if context.info_name == "run":  # a grid
        find_configuration(context.params["grid"], GRIDS)


def _python(words: list[str], folder: Path) -> None:
    if words[:2] == ["-m", "pytest"]:
        assert all((ROOT / path).exists() for path in words[2:]), words
        return
    if words[0] == "pairwise.py":  # of docs/adding-a-method.md: the command `cmfah` with one additional method
        if words[1] != "train":
            parse_cmfah(words[1:])
        return
    script = ROOT / words[0]
    assert script.is_file(), script
    parsers = {name: getattr(argparse.ArgumentParser, name) for name in ("parse_args", "parse_known_args")}
    if "argparse" not in script.read_text(encoding="utf-8"):
        assert not any(word.startswith("-") for word in words[1:]), words
        return
    modules = set(sys.modules)

    def stop_after(read: Callable) -> Callable:
        def stopped(*arguments, **settings):
            raise _ParsedError(read(*arguments, **settings))

        return stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(script), *words[1:]])
        patch.syspath_prepend(str(script.parent))
        # `parse_args` calls `parse_known_args`: only the function named by the script may stop it.
        used = "parse_known_args" if "parse_known_args" in script.read_text(encoding="utf-8") else "parse_args"
        patch.setattr(argparse.ArgumentParser, used, stop_after(parsers[used]))
        with pytest.raises(_ParsedError) as parsed:
            runpy.run_path(str(script), run_name="__main__")
    for name in set(sys.modules) - modules:  # scripts import each other by bare names
        if (ROOT / "benchmarks" / f"{name}.py").is_file():
            del sys.modules[name]
    if used == "parse_known_args":  # the rest are settings of a run
        from cmfah_hf.training import parse_run

        further = parsed.value.args[0][1]
        config = next((word for word in words if word.endswith(".yaml")), None)
        parse_run(ROOT / config if config else None, [*further, "--output_dir", str(folder / "parsed")])


def _accelerate(words: list[str], folder: Path) -> None:
    from accelerate.commands.launch import launch_command_parser

    launch, *words = words
    assert launch == "launch"
    own = launch_command_parser().parse_args(words)
    assert (ROOT / own.training_script).is_file()
    assert own.config_file is None or (ROOT / own.config_file).is_file()
    parse_cmfah(["train", *own.training_script_args])


def _pip(words: list[str], folder: Path) -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    install, target = words
    assert install == "install"
    name, extra = re.fullmatch(r"(\.|[\w-]+)(?:\[([\w-]+)\])?", target).groups()
    assert name == "." or f'name = "{name}"' in project, target
    assert extra is None or re.search(rf"^{extra} = \[", project, re.MULTILINE), target


def _uvx(words: list[str], folder: Path) -> None:
    option, target, program, *rest = words
    assert (option, program) == ("--from", "cmfah")
    _pip(["install", target], folder)
    parse_cmfah(rest)


def _ray(words: list[str], folder: Path) -> None:
    from ray.scripts.scripts import cli

    name, *rest = words
    cli.commands[name].make_context(name, rest)


def _foreign(words: list[str], folder: Path) -> None:
    """For programs that are not installed, the files of ours that they read must exist."""
    for word in words:
        if (named := re.fullmatch(r"@?(images-[\w*./-]+)", word)) and not list(folder.glob(named[1])):
            raise AssertionError(f"{word}: no such file after the previous commands")


_PARSERS = {
    "uvx": _uvx,
    "cmfah": parse_cmfah,
    "python": _python,
    "accelerate": _accelerate,
    "pip": _pip,
    "ray": _ray,
    **dict.fromkeys(("curl", "mc", "cp", "vespa", "psql"), _foreign),
}
