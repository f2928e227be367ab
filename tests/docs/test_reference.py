"""docs/api/: not stale, every public name in it, its links whole, and the examples of its docstrings run."""

import doctest
import importlib.util
import re
import sys

import pytest
from pages.blocks import DOCS, REFERENCE


@pytest.fixture(scope="module")
def writer():
    """The script that writes the reference, as a module."""
    spec = importlib.util.spec_from_file_location("write_api", DOCS / "write_api.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_it_is_what_the_docstrings_say_now(writer, tmp_path):
    written = {path.name: path.read_text(encoding="utf-8") for path in writer.write(tmp_path)}
    committed = {path.name: path.read_text(encoding="utf-8") for path in REFERENCE}
    assert sorted(written) == sorted(committed)
    stale = [name for name, text in written.items() if text != committed[name]]
    assert stale == [], "run `make docs`"


def test_every_public_name_has_its_entry_and_every_argument_is_told(writer):
    import cmfah_hf

    text = "\n".join(path.read_text(encoding="utf-8") for path in REFERENCE)
    entries = set(re.findall(r"^## `(\w+)`$", text, re.MULTILINE))
    public = {name for area in writer.PAGES for name, _ in writer.public_names(area)}
    assert public | set(cmfah_hf.__all__) == entries
    silent = [
        name
        for name in entries
        if re.search(rf"^## `{name}`\n\n```python\n[^`]*```\n\n(`cmfah_hf|## )", text, re.MULTILINE)
    ]
    assert [name for name in silent if not name.isupper()] == []


# Examples whose figures are those of a model that was trained for longer: run, without looking at what comes out.
OF_ANOTHER_MODEL = ("results.ids.tolist(), results.scores.tolist()\n([['beach.jpg']]",)


def examples() -> list[tuple[str, str]]:
    """Every block with a prompt, by the page and heading that it stands below."""
    found = []
    for page in REFERENCE:
        heading = ""
        for line, block in re.findall(
            r"^## `(\w+)`$|^```python\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL
        ):
            heading = line or heading
            if ">>> " in block:
                found.append((f"{page.stem}.{heading}", block))
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_examples_of_the_docstrings_run(workshop):
    import numpy as np
    import torch
    from PIL import Image

    (workshop.folder / "path" / "to").mkdir(parents=True)
    (workshop.folder / "path" / "to" / "checkpoint").symlink_to(workshop.folder / "my-model")
    failures = []
    for name, text in examples():
        given = {"np": np, "torch": torch, "picture": Image.open("beach.jpg")}
        test = doctest.DocTestParser().get_doctest(text, given, name, None, 0)
        runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
        said: list[str] = []
        runner.run(test, out=said.append)
        failures += [said] if said else []
    assert failures == []
