"""Folders as static hosts serve them, and pages of Debian's Chromium that fail on errors and on other hosts."""

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from static_host import serving, visitor

ROOT = Path(__file__).parents[3]
SOURCES = ROOT / "spaces" / "cmfah-browser"


@pytest.fixture(scope="module")
def modules(chromium) -> Iterator:
    """A page at the sources, in which modules can be imported and called."""
    with serving(SOURCES) as address:
        page = chromium.new_page()
        page.goto(f"{address}README.md")  # without the page's own scripts
        yield page
        page.close()


@pytest.fixture
def open_page(chromium) -> Iterator[Callable]:
    """A function that opens an address as a new visitor; errors and requests to other hosts fail the test."""
    contexts, wrong = [], []

    def opened(address: str, **settings):
        contexts.append(visitor(chromium, wrong, **settings))
        page = contexts[-1].new_page()
        page.goto(address)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture(scope="module")
def scenes_address(scenes_page) -> Iterator[str]:
    """The address of the exported page of scenes."""
    with serving(scenes_page) as address:
        yield address


@pytest.fixture(scope="module")
def scenes_tab(chromium, scenes_address) -> Iterator:
    """One visitor's tab with this page, loaded; it is used by many tests, because loading takes seconds."""
    wrong: list[str] = []
    context = visitor(chromium, wrong)
    page = context.new_page()
    page.goto(scenes_address)
    page.wait_for_selector("html[data-ready]")
    yield page
    context.close()
    assert wrong == []


@pytest.fixture(scope="session")
def npm() -> str:
    """npm's path; tests that need it are skipped where it is missing, or cannot reach its registry."""
    from cmfah_hf.errors import CMFAHError
    from cmfah_hf.space.static.sources import npm_parts

    found = shutil.which("npm")
    if found is None:
        pytest.skip("no npm on this machine; Debian's package npm has it")
    try:
        npm_parts(with_tokenizers=True)
    except CMFAHError as error:
        pytest.skip(str(error))
    return found


@pytest.fixture(scope="session")
def axe(npm, tmp_path_factory) -> str:
    """The script of axe-core, which checks accessibility: the version of the lock file, by its checksum."""
    folder = tmp_path_factory.mktemp("axe")
    lock = json.loads((SOURCES / "package-lock.json").read_text(encoding="utf-8"))["packages"]["node_modules/axe-core"]
    command = [npm, "pack", f"axe-core@{lock['version']}", "--ignore-scripts"]
    subprocess.run(command, cwd=folder, check=True, timeout=300, capture_output=True)
    (path,) = folder.glob("*.tgz")
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    assert lock["integrity"] == f"sha512-{digest}"
    with tarfile.open(path) as archive:
        return archive.extractfile("package/axe.min.js").read().decode()


@pytest.fixture(scope="session")
def exported_model(tmp_path_factory) -> Path:
    """The embedded model with its ONNX files."""
    from cmfah_hf.retrieval.onnx.export import export_onnx
    from cmfah_hf.space.settings import bundled_space

    folder = tmp_path_factory.mktemp("exported") / "model"
    shutil.copytree(bundled_space() / "model", folder)
    export_onnx(folder)
    return folder


@pytest.fixture(scope="session")
def scenes_page(npm, exported_model, tmp_path_factory) -> Path:
    """The exported page of the embedded model and 320 scenes. Read-only: tests change copies."""
    from cmfah_hf.space.settings import SpaceSettings, bundled_space
    from cmfah_hf.space.static.export import export_page

    folder = tmp_path_factory.mktemp("page") / "scenes"
    export_page(replace(SpaceSettings.load(bundled_space()), model=str(exported_model)), folder)
    return folder
