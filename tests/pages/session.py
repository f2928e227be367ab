"""A folder in which the commands and the Python blocks of a page run one after the other, at a small size."""

import contextlib
import io
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import typer

from pages.blocks import ROOT, Block, Command
from pages.parsing import parse_cmfah

# Words appended to a command, so that it takes a second and not an hour.
SMALLER = {
    "cmfah train": "--num_train_epochs 1 --refit false --use_cpu true --disable_tqdm true",
    "cmfah train methods": "--image_size 64",  # for VGG19, which takes 224
    "cmfah calibrate": "--split train",  # there are 12 query pairs, and 20 are needed
    "cmfah demo": "--train-scenes 32 --query-scenes 8 --epochs 1",
}
# Default options of a command.
DEFAULTS = {"cmfah train": ("--dataset", "my-images")}
# Replaced words of commands, and why.
INSTEAD = {
    "cmfah-photographs": "cmfah-scenes",  # would download VGG19's weights
    "paper/cmfah-mirflickr": "cmfah-scenes",  # the same, and Wikipedia
    "scenes": "my-images",  # would draw 2,300 images
    "2000": "8",  # queries
    "10000": "14",  # training pairs
}
# Replacements in Python blocks.
INSTEAD_IN_PYTHON = {
    "num_queries=2000, num_train=10000": "num_queries=8, num_train=14",
    "load_scenes(600, 150, ": "load_scenes(24, 8, ",
    "20015": "96",  # images of 256 x 256
}


@dataclass
class PageSession:
    """The execution of a page: its folder, the names defined by its Python, and the output of each command."""

    folder: Path
    names: dict[str, Any] = field(default_factory=dict)
    printed: dict[str, str] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)

    def prepare(self, model: Path, images: Path) -> None:
        """Creates `my-model`, `my-images` and query images, and links to files at the project's root."""
        shutil.copytree(model, self.folder / "my-model", ignore=shutil.ignore_patterns("checkpoint-*"))
        shutil.copytree(images, self.folder / "my-images")
        for name in ("hub_configs", "train.py"):
            (self.folder / name).symlink_to(ROOT / name)
        drawn = sorted((images / "query").glob("*.png"))
        from PIL import Image

        for name, source in zip(("beach.jpg", "street.jpg", "holiday.jpg"), drawn, strict=False):
            Image.open(source).save(self.folder / name)

    def smaller(self, code: str) -> str:
        for old, new in (INSTEAD_IN_PYTHON | self.addresses).items():
            code = code.replace(old, new)
        return code

    def python(self, block: Block) -> None:
        """Runs a block with the names of the previous blocks, and records its output."""
        out = io.StringIO()
        code = "\n" * block.line + self.smaller(block.text)
        with contextlib.redirect_stdout(out):
            exec(compile(code, block.page, "exec"), self.names)
        self.printed[block.place] = out.getvalue()

    def command(self, command: Command) -> str:
        """Runs `cmfah ...` or `python -c ...` in this process, checks its exit code and returns its output."""
        text = str(command)
        if command.words[:2] == ["python", "-c"]:
            exec(compile(self.smaller(command.words[2]), command.place, "exec"), {})
            return ""
        program, *words = command.words
        if program == "curl":
            return self._curl(words, command)
        if program == "trackio":
            return self._trackio(words, command)
        assert program == "cmfah", f"{command.place}: {program} is neither run nor in the list of parsed commands"
        parse_cmfah(words)  # the original words, before they are replaced
        words = [self._at_this_port(INSTEAD.get(word, word)) for word in words]
        for start, (option, value) in DEFAULTS.items():
            if text.startswith(start) and option not in words:
                words += [option, value]
        for start, further in SMALLER.items():
            if text.startswith(start):
                words += further.split()
        self.printed[text] = self._main(words, command)
        return self.printed[text]

    def _at_this_port(self, word: str) -> str:
        return self.smaller(word) if word.startswith("http://127.0.0.1") else word

    def _curl(self, words: list[str], command: Command) -> str:
        """A request to a server of this page, which must succeed."""
        words = [self._at_this_port(word) for word in words]
        done = subprocess.run(["curl", "-sS", "--fail-with-body", *words], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command.place}: {command}\n{done.stdout}{done.stderr}"
        self.printed[str(command)] = done.stdout
        return done.stdout

    def _trackio(self, words: list[str], command: Command) -> str:
        """The output of a command of trackio, which must find something."""
        program = Path(sys.executable).with_name("trackio")
        done = subprocess.run([program, *words], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command.place}: {command}\n{done.stdout}{done.stderr}"
        assert done.stdout.strip(), f"{command.place}: {command}"
        self.printed[str(command)] = done.stdout
        return done.stdout

    def _main(self, words: list[str], command: Command) -> str:
        from cmfah_hf.cli import main

        out, err, environment = io.StringIO(), io.StringIO(), dict(os.environ)
        with contextlib.ExitStack() as stack:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            if command.stdin is not None:
                piped = (self.folder / command.stdin).open("rb")
                patch.setattr(sys, "stdin", io.TextIOWrapper(stack.enter_context(piped)))
            stack.enter_context(contextlib.redirect_stdout(out))
            stack.enter_context(contextlib.redirect_stderr(err))
            left = stack.enter_context(pytest.raises(SystemExit))
            main(words)
        os.environ.clear()
        os.environ.update(environment)  # changes of the environment must not outlast the command
        assert not left.value.code, f"{command.place}: {command}\n{err.getvalue()}"
        return out.getvalue()

    def serve(self, command: Command, apps: list[Any]) -> None:
        """Runs `cmfah space ...` at a free port until the app is closed; later Python blocks use that port."""
        import gradio

        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        words = list(command.words[1:])
        named = "7860"
        if "--port" in words:
            named = words[words.index("--port") + 1]
            words[words.index(named)] = port
        else:
            words += ["--port", port]
        with pytest.MonkeyPatch.context() as patch:
            # Otherwise the command runs until Ctrl-C.
            patch.setattr(gradio.Blocks, "block_thread", lambda app: apps.append(app))
            self.printed[str(command)] = self._main(words, command)
        self.addresses[f":{named}"] = f":{port}"

    def serve_searches(self, command: Command) -> Callable[[], None]:
        """Runs `cmfah serve ...` at a free port in a thread, and returns the function that stops it."""
        from cmfah_hf.cli import app
        from cmfah_hf.serving import server

        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        serve = typer.main.get_command(app).commands["serve"]
        context = serve.make_context("serve", [*command.words[2:], "--port", port])
        made, ready, patch = [], threading.Event(), pytest.MonkeyPatch()

        class Reported(server.Server):
            def run_and_report(self, listening: socket.socket, report: Callable[[], None]) -> None:
                made.append(self)
                patch.undo()  # before the next server of the page
                super().run_and_report(listening, ready.set)

        def run() -> None:
            patch.setattr(server, "Server", Reported)
            context.invoke(serve.callback, **context.params)

        thread = threading.Thread(target=run)
        thread.start()
        assert ready.wait(120), command.place
        self.addresses[":8008"] = f":{port}"

        def stop() -> None:
            made[0].should_exit = True
            thread.join(60)
            assert not thread.is_alive()

        return stop
