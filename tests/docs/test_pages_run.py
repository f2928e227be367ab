"""Every block of README.md and of docs/ is run in order, or is listed with the reason why not."""

import ast
import importlib
import inspect
from contextlib import ExitStack
from pathlib import Path

import pytest
from pages.blocks import LANGUAGES, PAGES, ROOT, Block, Command, blocks, commands
from pages.checks import CHECKS
from pages.parsing import parse
from pages.session import PageSession
from pages.setups import set_up

# Commands that are only parsed, each option by its program's parser, by their first words, and why they are not run.
ONLY_PARSED = {
    "pip install": "fetches some gigabytes",
    "uvx": "the same; tests/test_package.py runs the demo where only the wheel is installed",
    "accelerate launch": "starts processes; tests/training and tests/test_end_to_end.py do",
    "cmfah experiment": "takes hours; tests/experiments runs small grids",
    "python benchmarks/": "takes minutes to hours; tests beside the code run most of them at a small size",
    "python spaces/ship_model.py": "replaces the model in the package",
    "python -m pytest": "these tests",
    "python pairwise.py": "tests/docs/test_adding_a_method.py does",
    "ray start": "starts a cluster; `make test-cluster` does",
    "curl http://localhost": "needs Milvus; tests/retrieval/exporters looks at what it is given",
    "mc cp": "the same",
    "cp images-vespa": "needs Vespa, likewise",
    "vespa": "the same",
    "psql": "needs PostgreSQL with pgvector, likewise",
}
# Python that is only checked: it compiles, our imports exist, our functions accept the arguments.
ONLY_READ = {
    ("docs/adding-a-method.md", '"""Pairwise'): "a file of its own; tests/docs/test_adding_a_method.py runs it",
    ("docs/scaling.md", "import ray"): "needs a cluster",
    ("docs/scaling.md", "from pymilvus"): "needs Milvus",
    ("docs/scaling.md", "import json"): "needs Vespa",
    ("docs/scaling.md", "import psycopg"): "needs PostgreSQL",
    ("docs/scaling.md", "import numpy"): "goes on with what Milvus answered",
}
# They run until they are stopped. On other pages they are only parsed.
SERVERS = ("cmfah space", "cmfah serve")


def _run_page(page: Path, session: PageSession, servers: ExitStack) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block.place}: {block.language!r}"
        if block.language == "python":
            if any(name == block.page and block.text.startswith(start) for name, start in ONLY_READ):
                _read(block)
            else:
                session.python(block)
        for command in commands(block) if block.language == "bash" else ():
            text = str(command)
            if any(text.startswith(start) for start in ONLY_PARSED):
                parse(command, session.folder)
            elif text.startswith(SERVERS):
                parse(command, session.folder)
                if block.page == "docs/serving.md":
                    servers.callback(session.serve_searches(command))
                if block.page == "docs/space.md":
                    apps: list = []
                    session.serve(command, apps)
                    servers.callback(apps[0].close, verbose=False)
            else:
                session.command(command)


def _read(block: Block) -> None:
    tree = ast.parse(block.text)
    ours = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("cmfah_hf"):
            ours |= {alias.name: getattr(importlib.import_module(node.module), alias.name) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ours:
            named = {keyword.arg: None for keyword in node.keywords}
            inspect.signature(ours[node.func.id]).bind(*node.args, **named)


RUN = [page for page in PAGES if any(block.language in ("python", "bash") for block in blocks(page))]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_the_page_runs_from_top_to_bottom(page, session, hub, monkeypatch):
    name = page.relative_to(ROOT).as_posix()
    set_up(name, session, hub, monkeypatch)
    with ExitStack() as servers:
        _run_page(page, session, servers)
    CHECKS.get(name, lambda session, hub: None)(session, hub)


def test_the_lists_have_no_unused_entries():
    every = [
        str(command)
        for page in PAGES
        for block in blocks(page)
        if block.language == "bash"
        for command in commands(block)
    ]
    assert [start for start in ONLY_PARSED if not any(text.startswith(start) for text in every)] == []
    python = [block for page in PAGES for block in blocks(page) if block.language == "python"]
    assert [
        key for key in ONLY_READ if not any(block.page == key[0] and block.text.startswith(key[1]) for block in python)
    ] == []


@pytest.mark.parametrize(
    "line",
    [
        "cmfah index my-model --no-such-option",
        "cmfah train cmfah-scenes --no_such_field 3",
        "cmfah train cmfah-gone --output_dir x",
        "cmfah experiment run experiments/gone --output x",
        "cmfah no-such-command",
        "accelerate launch train.py hub_configs/gone.yaml",
        "accelerate launch --no-such-option train.py hub_configs/cmfah-scenes.yaml",
        "python benchmarks/data.py --no-such-option",
        "python benchmarks/gone.py",
        "python -m pytest tests/gone",
        "pip install cmfah-hf[gone]",
        "psql --file images-pgvector/gone.sql",
        "unheard-of --help",
    ],
)
def test_an_invalid_command_is_detected(line, tmp_path, capsys):
    with pytest.raises((Exception, SystemExit)):
        parse(Command("here", line.split()), tmp_path)


def test_an_unlisted_command_is_detected(tmp_path):
    with pytest.raises(AssertionError, match="neither run nor in the list"):
        PageSession(tmp_path).command(Command("here", ["docker", "run", "image"]))
