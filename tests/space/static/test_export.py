"""The export of the static page, with stand-ins for npm and for the towers, which other tests have in full."""

import json
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image

from cmfah_hf.cli import main
from cmfah_hf.errors import CheckpointError, CMFAHError, HashIndexError
from cmfah_hf.models.word_rules import WordRules
from cmfah_hf.retrieval import CrossMediaRetriever, HashIndex
from cmfah_hf.retrieval.onnx.description import described
from cmfah_hf.retrieval.onnx.files import OnnxFiles, file_name
from cmfah_hf.space.settings import SpaceSettings
from cmfah_hf.space.static import export, sources
from cmfah_hf.space.static.export import export_page
from cmfah_hf.space.static.texts import text_files

ROOT = Path(__file__).parents[3]
SOURCES = ROOT / "spaces" / "cmfah-browser"
NPM = """#!{python}
import pathlib, sys
pathlib.Path({log!r}).open("a").write(" ".join(sys.argv[1:]) + "\\n")
assert pathlib.Path("package-lock.json").is_file()
for name, version in (("onnxruntime-web", "1.2.3"), ("@huggingface/tokenizers", "0.1.2")):
    folder = pathlib.Path("node_modules", name)
    (folder / "dist").mkdir(parents=True)
    (folder / "package.json").write_text('{{"version": "%s", "license": "MIT"}}' % version)
    for file in ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm", "tokenizers.min.mjs"):
        (folder / "dist" / file).write_text(name + " " + file)
"""


def exit_code(*arguments) -> int:
    """Runs a command in this process."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return left.value.code or 0


@pytest.fixture
def npm(tmp_path, monkeypatch) -> Path:
    """A program `npm` that installs stand-ins, with the log of its calls, which it returns."""
    log, program = tmp_path / "calls", tmp_path / "bin" / "npm"
    program.parent.mkdir()
    program.write_text(NPM.format(python=sys.executable, log=str(log)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return log


@pytest.fixture(scope="module")
def model(trained, tmp_path_factory) -> Path:
    """A model with a description of ONNX files that are stand-ins."""
    folder = tmp_path_factory.mktemp("static") / "model"
    shutil.copytree(trained.folder, folder)
    retriever = CrossMediaRetriever.from_pretrained(folder)
    (folder / "onnx").mkdir()
    for tower in ("vision", "text"):
        (folder / "onnx" / file_name(tower)).write_text(f"the tower of {tower}")
    described(retriever.encoder, folder / "onnx", ("fp32",), 20).save(folder / "onnx")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "photos"
    folder.mkdir()
    for number, name in enumerate(("b.png", "a.png", "Z.png", "é.png", "sub")):
        if name == "sub":
            (folder / name).mkdir()
            name = "sub/c d#?.png"
        Image.new("RGB", (300, 200), (50 * number, 90, 10)).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def index(model, images, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("index") / "photos.index"
    assert exit_code("index", model, images, "--output", path) == 0
    return path


@pytest.fixture
def settings(model, index) -> SpaceSettings:
    return SpaceSettings(model=str(model), data=str(index), title='Fish & "chips" <b>: {{count}}')


def read(folder: Path, name: str):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def test_items_are_in_the_order_of_their_ids(npm, settings, index, tmp_path):
    made = export_page(settings, tmp_path / "out")
    items, manifest = read(tmp_path / "out", "data/items.json"), read(tmp_path / "out", "page.json")
    assert items["ids"] == sorted(items["ids"]) == ["Z.png", "a.png", "b.png", "sub/c d#?.png", "é.png"]
    found, codes = HashIndex.load(index), (tmp_path / "out" / "data" / "codes.bin").read_bytes()
    assert made.code_bytes == len(codes) == 5 * found.bits // 8
    for row, item_id in enumerate(items["ids"]):
        own = found.codes[found.ids.tolist().index(item_id)]
        assert codes[row * found.bits // 8 : (row + 1) * found.bits // 8] == own.tobytes()
    assert items["texts"] is None
    thumbnails = (tmp_path / "out" / "data" / "thumbnails.bin").read_bytes()
    assert len(thumbnails) == sum(items["sizes"])
    (tmp_path / "first.webp").write_bytes(thumbnails[: items["sizes"][0]])
    with Image.open(tmp_path / "first.webp") as first:
        assert first.size == (256, 171)
        assert np.abs(np.asarray(first.convert("RGB"), int) - (100, 90, 10)).max() < 12
    assert manifest["count"] == 5
    assert manifest["bits"] == found.bits
    assert manifest["fingerprint"] == found.model
    # Everything that a browser loads is described, with the size that it has.
    for name, about in manifest["files"].items():
        assert (tmp_path / "out" / name).stat().st_size == about["bytes"]
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert made.all_bytes == sum(path.stat().st_size for path in files)
    assert {path.relative_to(tmp_path / "out").as_posix() for path in files} - set(manifest["files"]) == {
        "page.json", "README.md", ".nojekyll",
    }  # fmt: skip


def test_the_title_is_escaped_and_the_card_is_that_of_a_static_space(npm, settings, tmp_path):
    export_page(settings, tmp_path / "out")
    page, card = ((tmp_path / "out" / name).read_text(encoding="utf-8") for name in ("index.html", "README.md"))
    assert "<h1>Fish &amp; &quot;chips&quot; &lt;b&gt;: {{count}}</h1>" in page
    assert "{{title}}" not in page + card
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["sdk"], front["app_file"], front["title"]) == ("static", "index.html", settings.title)
    assert "searches 5 images" in card
    assert not re.search(r"(src|href)=\"(https?:)?//", page)


def test_parts_of_npm_are_installed_once_and_with_the_lock_file(npm, settings, tmp_path):
    for name in ("one", "two"):
        export_page(settings, tmp_path / name)
    assert npm.read_text().splitlines() == [" ".join(sources._COMMAND[1:])]
    assert "--ignore-scripts" in sources._COMMAND
    assert (tmp_path / "two" / "npm" / "onnxruntime.js").read_text() == "onnxruntime-web ort.wasm.bundle.min.mjs"
    assert not (tmp_path / "two" / "npm" / "tokenizers.js").exists()  # a model with words of its own
    licenses = (tmp_path / "two" / "npm" / "licenses.txt").read_text()
    assert "onnxruntime-web 1.2.3, MIT" in licenses


def test_the_lock_file_pins_versions_and_names_no_host():
    package, lock = read(SOURCES, "package.json"), read(SOURCES, "package-lock.json")
    wanted = package["dependencies"] | package["devDependencies"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in wanted.values())
    parts = {name: part for name, part in lock["packages"].items() if name}
    assert all("resolved" not in part and part["integrity"].startswith("sha512-") for part in parts.values())
    assert {name: parts[f"node_modules/{name}"]["version"] for name in wanted} == wanted


def test_npm_missing_or_offline_is_one_line(npm, settings, tmp_path, monkeypatch):
    program = tmp_path / "bin" / "npm"
    program.write_text(
        "#!/bin/sh\necho 'npm error code ENOTFOUND' >&2\necho 'npm error network request failed' >&2\n"
        "echo 'npm error A complete log of this run can be found in: /root/x' >&2\nexit 1\n"
    )
    with pytest.raises(CMFAHError, match=r"\(code ENOTFOUND; network request failed\); connect to the network"):
        export_page(settings, tmp_path / "out")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CMFAHError, match=r"npm is not installed; install Node\.js"):
        export_page(settings, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_thumbnails_may_be_files_missing_or_left_out(npm, settings, images, index, tmp_path, monkeypatch, caplog):
    path = images / "b.png"
    content = path.read_bytes()
    path.write_bytes(content[:50])
    monkeypatch.setattr(export, "MOST_PACKED_BYTES", 100)
    try:
        export_page(settings, tmp_path / "files")
    finally:
        path.write_bytes(content)
    assert f"1 of 5 images of {index} cannot be read; the page shows them without thumbnails." in caplog.text
    manifest, items = (read(tmp_path / "files", name) for name in ("page.json", "data/items.json"))
    assert (manifest["thumbnails"], items["sizes"].index(0)) == ("files", 2)
    held = sorted((tmp_path / "files" / "data" / "thumbnails" / "0").iterdir())
    assert [file.name for file in held] == ["0.webp", "1.webp", "3.webp", "4.webp"]
    assert [file.stat().st_size for file in held] == [size for size in items["sizes"] if size]
    assert not any("thumbnails" in name for name in manifest["files"])
    export_page(settings, tmp_path / "none", thumbnails=False, links="https://example.org/photos/")
    manifest = read(tmp_path / "none", "page.json")
    assert (manifest["thumbnails"], manifest["links"]) == (None, "https://example.org/photos/")
    assert not list((tmp_path / "none" / "data").glob("thumbnails*"))


def test_an_index_of_codes_alone_is_shown_by_ids_and_texts(npm, settings, model, tmp_path, caplog):
    retriever = CrossMediaRetriever.from_pretrained(model)
    index = HashIndex(16, model=retriever.fingerprint)
    draw = np.random.default_rng(0)
    index.add(draw.standard_normal((4, 16)), ids=[2**60, 9, -3, 10], metadata={"text": ["a", None, "boat sun", "d"]})
    index.save(tmp_path / "codes.index")
    export_page(replace(settings, data=str(tmp_path / "codes.index")), tmp_path / "out")
    items = read(tmp_path / "out", "data/items.json")
    assert (items["ids"], items["texts"]) == (["-3", "9", "10", str(2**60)], ["boat sun", "", "d", "a"])
    assert "follows no folder, so the page shows ids without thumbnails" in caplog.text
    examples = read(tmp_path / "out", "page.json")["examples"]
    assert "boat sun" in examples


def test_folders_are_encoded_without_an_index(npm, settings, images, tmp_path):
    made = export_page(replace(settings, data=str(images), limit=3), tmp_path / "out")
    assert made.items == 3
    assert len(read(tmp_path / "out", "data/items.json")["sizes"]) == 3


def test_an_index_that_does_not_fit_is_refused(npm, settings, model, tmp_path):
    retriever = CrossMediaRetriever.from_pretrained(model)
    HashIndex(16, model=retriever.fingerprint).save(tmp_path / "empty.index")
    with pytest.raises(HashIndexError, match="is empty, so there is nothing to search"):
        export_page(replace(settings, data=str(tmp_path / "empty.index")), tmp_path / "out")
    other = HashIndex(16, model="0" * 32)
    other.add(np.ones((1, 16)))
    other.save(tmp_path / "other.index")
    with pytest.raises(HashIndexError, match="codes of another model"):
        export_page(replace(settings, data=str(tmp_path / "other.index")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_towers_of_another_model_or_damaged_ones_are_refused(npm, settings, model, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    settings = replace(settings, model=str(copy))
    (copy / "onnx" / "text_model.onnx").write_text("the tower of txet")
    with pytest.raises(CheckpointError, match=r"text_model\.onnx is not the file that cmfah\.json describes"):
        export_page(settings, tmp_path / "out")
    files = OnnxFiles.load(copy / "onnx")
    replace(files, fingerprint="0" * 32).save(copy / "onnx")
    with pytest.raises(CheckpointError, match="has the ONNX files of another model \\(fingerprint 00000000"):
        export_page(settings, tmp_path / "out")
    lanczos = replace(files.image_processor, resample=1)
    replace(files, image_processor=lanczos).save(copy / "onnx")
    with pytest.raises(CheckpointError, match="prepares images by the filter 1"):
        export_page(settings, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda own: setattr(own.expander, "mode", "walk"), "expands queries by sampled walks"),
        (lambda own: setattr(own.expander.graph, "tokenizer", "chinese"), "the words of the tokenizer 'chinese'"),
        (lambda own: setattr(own.expander, "_knowledge", object()), "by words of an encyclopedia"),
        (lambda own: setattr(own.processor, "word_rules", WordRules("icu")), "with ICU's dictionaries"),
    ],
)
def test_texts_that_a_browser_would_read_otherwise_are_refused(model, change, reason):
    retriever = CrossMediaRetriever.from_pretrained(model)
    assert set(text_files(retriever, "here")) == {"data/words.json", "data/graph.bin"}
    change(retriever)
    with pytest.raises(CheckpointError, match=rf"^here: .*{reason}.*search it with `cmfah space`\.$"):
        text_files(retriever, "here")


def test_a_tokenizer_that_browsers_approximate_is_refused():
    content = {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Precompiled"}]}}
    backend = SimpleNamespace(to_str=lambda: json.dumps(content))
    processor = SimpleNamespace(word_level=False, tokenizer=SimpleNamespace(backend_tokenizer=backend))
    with pytest.raises(CheckpointError, match="normalizes texts by Precompiled, which browsers only approximate"):
        text_files(SimpleNamespace(expander=None, processor=processor), "here")


def test_only_an_earlier_page_is_replaced_and_only_if_asked(npm, settings, tmp_path):
    out = tmp_path / "out"
    export_page(settings, out)
    with pytest.raises(CMFAHError, match="holds a page already"):
        export_page(settings, out)
    export_page(replace(settings, title="Another"), out, overwrite=True)
    assert read(out, "page.json")["title"] == "Another"
    (out / ".git").mkdir()
    with pytest.raises(CMFAHError, match=r"holds '\.git', which is not part of a page"):
        export_page(settings, out, overwrite=True)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("my own")
    with pytest.raises(CMFAHError, match=r"holds 'index\.html', which is not part of a page"):
        export_page(settings, tmp_path / "site", overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(CMFAHError, match="is a file; name a folder"):
        export_page(settings, tmp_path / "file", overwrite=True)


@pytest.mark.parametrize("links", ["javascript:alert(1)//", "data:text/html,", "", " "])
def test_links_that_are_no_addresses_are_refused(settings, tmp_path, links):
    with pytest.raises(CMFAHError, match="give an address that begins with http"):
        export_page(settings, tmp_path / "out", links=links)


def test_the_command_writes_a_page(npm, model, index, tmp_path, capsys):
    out = tmp_path / "out"
    assert exit_code("space", "--static", model, index, out, "--title", "Photos") == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"{re.escape(str(out))}: 5 items, 10 bytes of codes, \d+\.\d MB in all\.", lines[0])
    assert lines[-1] == f"To look at it: python -m http.server --directory {out}"
    assert read(out, "page.json")["title"] == "Photos"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["space", "--static"], "Name the folder to write: cmfah space --static MODEL INDEX OUT, or OUT alone."),
        (["space", "--static", "{model}", "{out}"], "name what this model is to search"),
        (["space", "--no-thumbnails"], "are for --static; add it."),
        (["space", "{model}", "{index}", "--links", "x"], "are for --static; add it."),
        (["space", "--static", "{model}", "{index}", "{out}", "--precision", "fp8"], "'fp8' is not known"),
        (["space", "--static", "{model}", "{index}", "{model}"], "which is not part of a page"),
    ],
)
def test_mistakes_are_one_line(npm, model, index, tmp_path, capsys, arguments, message):
    places = {"model": model, "index": index, "out": tmp_path / "out"}
    assert exit_code(*(part.format(**places) for part in arguments)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert len([line for line in printed.err.splitlines() if not line.startswith("Thumbnails")]) == 1
