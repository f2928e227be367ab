"""docs/api/: not stale, every public name in it, its links whole, and the examples of its docstrings run."""

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
