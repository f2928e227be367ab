"""Malicious names and queries through ids, tables, JSON and errors: unchanged, without markup or control characters."""

import json
import os
import random
import re

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from cmfah_hf.cli import main, output
from cmfah_hf.errors import CMFAHError
from cmfah_hf.retrieval import CrossMediaRetriever, HashIndex

PIECES = (
    "[red]", "[/red]", "[/]", "[bold", "]", "[link=file:///etc/passwd]", ":smile:", "\\[", "\\", "{task}", "%s", "$x$",
    "\x1b[2J", "\x1b]0;t\x07", "\x1b", "\x9b1m", "\x07", "\b\b", "\r", "\n", "\t", "\x7f", "\u2028", "\x85", "\u202e",
    "\u2066", "\u200f", "\ufeff", "\udcff", "\udce9", "宽", "é", "e\u0301", "👩\u200d👩", "'", '"', "a", "boat", " ",
    "-", "--", ".", "~",
)  # fmt: skip
RAW = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")


def hostile(rng: random.Random, longest: int = 12) -> str:
    text = "".join(rng.choice(PIECES) for _ in range(rng.randrange(1, longest)))
    return text * rng.choice((1, 1, 1, 1, 40))


def refused_in_one_line(capsys, arguments) -> None:
    """Runs a command; fails like the `Fuzzer` unless the command succeeds or refuses in one line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main(arguments)
    streams = capsys.readouterr()
    assert left.value.code in (None, 0, 2), left.value.code
    for text in (streams.out, streams.err):
        found = RAW.search(text)
        assert found is None, f"{found[0]!r} in {text[:200]!r}"
    if left.value.code == 2 and "Usage: " not in streams.err:
        assert len(streams.err.splitlines()) == 1, streams.err


@pytest.fixture(scope="module")
def index_file(trained, tmp_path_factory):
    """An index with malicious ids and metadata."""
    rng = random.Random(1)
    names = sorted({hostile(rng).encode("utf-8", "ignore").decode() or "x" for _ in range(40)})
    index = HashIndex(16)
    codes = np.random.default_rng(0).choice([-1.0, 1.0], (len(names), 16))
    index.add(codes, ids=names, metadata={"[b]col\x1b[1m": names[::-1]})
    path = tmp_path_factory.mktemp("names") / "hostile.index"
    index.save(path)
    return path


def test_tables_and_json(fuzzer, capsys, monkeypatch, tmp_path):
    def attempt(rng: random.Random) -> None:
        columns = [hostile(rng) for _ in range(rng.randrange(1, 4))]
        cells = [
            [hostile(rng) if rng.random() < 0.8 else rng.random() for _ in columns] for _ in range(rng.randrange(4))
        ]
        capsys.readouterr()
        output.print_table(hostile(rng), columns, cells)
        assert RAW.search(text := capsys.readouterr().out) is None, text
        assert len(text.splitlines()) == 2 + len(cells)
        output.print_json(cells)
        assert RAW.search(text := capsys.readouterr().out) is None, text
        assert json.loads(text) == cells
        with (tmp_path / "screen").open("w+", encoding="utf-8") as file, monkeypatch.context() as patch:
            terminal = Console(file=file, force_terminal=True, width=rng.choice((20, 80, 4000)), color_system=None)
            patch.setattr("rich.console.Console", lambda: terminal)
            output.print_table(hostile(rng), columns, cells)
            file.seek(0)
            shown = file.read()
        assert RAW.search(re.sub(r"\x1b\[[0-9;]*m", "", shown)) is None, shown
        error = CMFAHError(f"{hostile(rng)}: something")
        assert RAW.search(str(error)) is None
        assert len(str(error).splitlines()) == 1

    fuzzer(share=0.02, limit_s=2).run(attempt)


def test_commands(fuzzer, capsys, monkeypatch, trained, index_file, tmp_path):
    retriever = CrossMediaRetriever.from_pretrained(trained.folder)
    load = CrossMediaRetriever.from_pretrained
    monkeypatch.setattr(
        CrossMediaRetriever,
        "from_pretrained",
        lambda source, **options: retriever if source == str(trained.folder) else load(source, **options),
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)

    def attempt(rng: random.Random) -> None:
        name = hostile(rng)
        model, index = str(trained.folder), str(index_file)
        command = rng.choice(
            (
                ["search", model, index, "--json", "--text", f"boat {name}"],
                ["search", model, index, "--text", f"boat {name}"],
                ["search", model, index, "--image", name],
                ["search", model, index, "--text", "boat", "--where", name],
                ["search", model, index, "--text", "boat", f"--{name}"],
                ["search", model, name, "--text", "boat"],
                ["search", name, index, "--text", "boat"],
                ["export", name, "--to", "vespa", "-o", "out"],
                ["export", index, "--to", name, "-o", "out"],
                ["evaluate", model, name],
                [name, "x"],
            )
        )
        retriever.images = HashIndex(16)
        refused_in_one_line(capsys, command)

    fuzzer(share=0.01).run(attempt)


def test_folders_of_images(fuzzer, capsys, monkeypatch, trained, tmp_path):
    retriever = CrossMediaRetriever.from_pretrained(trained.folder)
    monkeypatch.setattr(CrossMediaRetriever, "from_pretrained", lambda *_, **__: retriever)
    image = tmp_path / "image.png"
    Image.new("RGB", (32, 32), (9, 9, 200)).save(image)

    def attempt(rng: random.Random) -> None:
        folder = tmp_path / f"{rng.random()}" / hostile(rng, 4).replace("/", "")[:40].strip(".~")
        folder.mkdir(parents=True)
        for _ in range(3):
            name = hostile(rng, 5).replace("/", "")[:30] + rng.choice((".png", ".png", ".heic", ""))
            os.link(image, folder / name) if rng.random() < 0.7 else (folder / name).write_bytes(b"none")
        retriever.images = HashIndex(16)
        out = tmp_path / "out.index"
        out.unlink(missing_ok=True)
        refused_in_one_line(capsys, ["index", str(trained.folder), str(folder), "-o", str(out), "--json"])

    fuzzer(share=0.005).run(attempt)
