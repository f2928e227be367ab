"""Answers that other programs and people can use: paths, pages, thumbnails, viewers."""

import base64
import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

import numpy as np
import pytest
from coarse_jpegs import draw
from PIL import Image

from cmfah_hf.cli.search import thumbnails
from cmfah_hf.cli.search.answers import Answers
from cmfah_hf.cli.search.showing import Showing
from cmfah_hf.errors import CMFAHError

ODD = [b"two\nlines.jpg", b"caf\xe9.jpg", b"a b.jpg", b"-n.jpg", b"<b>&\"'.jpg", b"\x1b[31m.jpg", "ü🌊.jpg".encode()]


class Page(HTMLParser):
    """The images, the links and the text of a page."""

    def __init__(self, path):
        super().__init__()
        self.images, self.links, self.text, self.tags = [], [], "", []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        own = dict(attributes)
        if tag == "img":
            content = base64.b64decode(own["src"].removeprefix("data:image/jpeg;base64,"))
            self.images.append(Image.open(io.BytesIO(content)).convert("RGB"))
        if tag == "a":
            self.links.append(os.fsdecode(unquote_to_bytes(urlsplit(own["href"]).path)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def photos(tmp_path):
    """Photographs with metadata whose ids are not their names."""
    folder, rows = tmp_path / "photos", []
    for n in range(6):
        draw(folder / "trip" / f"{n}.jpg", n)
        labels = ["boat"] * (n % 2) + ["sun"] * (n % 3 == 0)
        row = {"file_name": f"trip/{n}.jpg", "id": f"shot {n}", "text": "boat", "year": 2018 + n, "labels": labels}
        rows.append(json.dumps({**row, "taken": f"202{n}-05-0{n + 1}"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return folder


@pytest.mark.slow
def test_the_story_of_answers(trained, photos, tmp_path, environment, run_in_a_new_process, cmfah):
    """From folders to answers that open, in new processes; then the folder moves."""
    model, index, odd = str(trained.folder), str(tmp_path / "x.index"), tmp_path / "odd"
    for n, name in enumerate(ODD):
        draw(odd / os.fsdecode(name), 50 + n)
    keep = [part for name in ("year", "labels", "taken") for part in ("--keep", name)]
    search = ["search", model, index, "--text", "boat", "-k", "20"]
    outcomes = run_in_a_new_process(
        [
            ["index", model, str(photos), *keep, "-o", index, "--json"],
            ["index", model, str(odd), "-o", index, "--json"],
            [*search, "--json", "--html", str(tmp_path / "out.html")],
            [*search, "--paths-only", "-0"],
            [*search, "--paths-only"],
            [
                *search,
                "--json",
                "--where",
                "labels=boat,sun",
                "--where",
                "year>=2019",
                "--where",
                "not taken<=2021-05-02",
            ],
            search,
        ],
        environment,
    )
    assert [outcome.code for outcome in outcomes] == [0] * 7, outcomes
    _, _, found, paths, lines, chosen, table = outcomes

    hits = found.document["results"]
    expected = {f"photos/shot {n}": str(photos / "trip" / f"{n}.jpg") for n in range(6)}
    expected |= {f"odd/{os.fsdecode(name)}": str(odd / os.fsdecode(name)) for name in ODD}
    assert {hit["id"]: hit["path"] for hit in hits} == expected
    assert all(Path(hit["path"]).is_file() for hit in hits)

    (tmp_path / "out").mkdir()
    content = paths.out.encode("utf-8", "surrogateescape")
    subprocess.run(["xargs", "-0", "cp", "-t", tmp_path / "out", "--"], input=content, check=True)
    assert {os.fsencode(path.name) for path in (tmp_path / "out").iterdir()} == {
        *ODD, *(b"%d.jpg" % n for n in range(6)),
    }  # fmt: skip
    assert content.split(b"\0") == [*(os.fsencode(hit["path"]) for hit in hits), b""]
    assert lines.out.encode("utf-8", "surrogateescape") == content.replace(b"\0", b"\n")
    assert "1 of the paths contain line breaks; --null keeps paths apart." in lines.err

    page = Page(tmp_path / "out.html")
    assert page.links == [hit["path"] for hit in hits]
    for image, link in zip(page.images, page.links, strict=True):
        with Image.open(link) as original:  # 32 x 32, so the thumbnail has the same pixels
            assert image.size == original.size
            difference = np.subtract(image, original.convert("RGB"), dtype=np.int16)
        assert np.abs(difference).mean() < 12
    assert "b" in page.tags
    assert "<b>&\"'.jpg" in page.text
    assert "\x1b" not in page.text
    assert f"{tmp_path / 'out.html'}: 13 answers, 0 of them without their image." in found.err

    assert {hit["id"] for hit in chosen.document["results"]} == {"photos/shot 3", "photos/shot 5"}
    assert len(table.out.splitlines()) == 15
    assert re.search(rf"^ *\d+  photos/shot 3 .* {re.escape(str(photos))}/trip/3.jpg$", table.out, re.MULTILINE)

    photos.rename(tmp_path / "archive")
    moved = ["index", model, "--root", f"photos={tmp_path / 'archive'}", "-o", index, "--json"]
    assert cmfah(*moved).document["unchanged"] == 6
    found = cmfah(*search, "--json", "--where", "year>2000")
    assert {hit["path"] for hit in found.document["results"]} == {
        str(tmp_path / "archive" / "trip" / f"{n}.jpg") for n in range(6)
    }


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Answers with a readable image, a damaged one, one that is gone, and one whose path is unknown."""
    folder = tmp_path_factory.mktemp("answers")
    (folder / "cut.jpg").write_bytes(draw(folder / "a.jpg", 1).read_bytes()[:200])
    names = ["a.jpg", "cut.jpg", "gone.jpg", None]
    hits = [
        {"id": f"id{n}", "score": 9.5 - n, "metadata": {"text": "<script>alert(1)</script>"}}
        | ({"path": str(folder / name)} if name else {})
        for n, name in enumerate(names)
    ]
    return Answers("a <b>dog</b>\x1b[0m", "aqd", hits, ["text"])


def test_a_page_says_what_it_cannot_show(answers, tmp_path, capsys):
    Showing(html=tmp_path / "deep" / "out.html", json=True).show(answers)
    printed = capsys.readouterr()
    assert [hit["path"] for hit in json.loads(printed.out)["results"]] == answers.paths
    assert answers.paths[3] is None
    assert "out.html: 4 answers, 3 of them without their image." in printed.err
    page = Page(tmp_path / "deep" / "out.html")
    assert (len(page.images), len(page.links)) == (1, 1)
    assert {"script", "iframe", "link"}.isdisjoint(page.tags)
    for part in (
        "a <b>dog</b>\\x1b[0m",
        "<script>alert(1)</script>",
        "cut.jpg: damaged",
        "gone.jpg: there is no such",
        "9.500",
    ):
        assert part in page.text
    assert "default-src 'none'" in (tmp_path / "deep" / "out.html").read_text(encoding="utf-8")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CMFAHError, match=r"folder is a folder"):
        Showing(html=tmp_path / "folder").check()


def test_paths_that_are_unknown_are_counted(answers, capfdbinary):
    Showing(paths_only=True, null=True).show(answers)
    printed = capfdbinary.readouterr()
    assert printed.out.split(b"\0") == [*(os.fsencode(path) for path in answers.paths[:3]), b""]
    assert b"Left out 1 answers whose paths are unknown: the index follows no folder" in printed.err
    unknown = Answers("dog", "aqd", answers.hits[3:])
    with pytest.raises(CMFAHError, match="The paths of all 1 answers are unknown"):
        Showing(paths_only=True).show(unknown)
    Showing(paths_only=True).show(Answers("dog", "aqd", []))
    Showing().show(unknown)
    assert capfdbinary.readouterr().out.splitlines()[1].split() == [b"rank", b"id", b"aqd"]


@pytest.mark.skipif(sys.platform != "linux", reason="the viewer is xdg-open on Linux")
def test_the_viewer_opens_the_first_image_or_the_page(answers, tmp_path, monkeypatch):
    seen = tmp_path / "seen"
    (tmp_path / "xdg-open").write_text(f'#!/bin/sh\nprintf "%s" "$1" > {seen}.new\nmv {seen}.new {seen}\n')
    (tmp_path / "xdg-open").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    image = draw(tmp_path / os.fsdecode(ODD[0] + ODD[1]), 3)
    for hits, page in (
        (answers.hits, None),
        ([{"id": 3, "path": str(image)}], None),
        (answers.hits, tmp_path / "out.html"),
    ):
        Showing(open=True, html=page, paths_only=True).show(Answers("dog", "aqd", hits))
        for _ in range(200):
            if seen.exists():
                break
            time.sleep(0.02)
        assert os.fsdecode(seen.read_bytes()) == str(page or hits[0]["path"])
        seen.unlink()
    for start, message in ((2, "gone.jpg: there is no such file any more"), (3, "id3: the index"), (4, "no answer")):
        with pytest.raises(CMFAHError, match=message):
            Showing(open=True).show(Answers("dog", "aqd", answers.hits[start:]))
    monkeypatch.setenv("PATH", str(tmp_path / "folder"))
    with pytest.raises(CMFAHError, match=r"a\.jpg: the system has no program to open it"):
        Showing(open=True).show(answers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--json", "--paths-only"], "--json and --paths-only print different things"),
        (["--paths-only", "--thumbnails"], "--paths-only and --thumbnails"),
        (["-0"], "--null is about the ends of paths; give --paths-only too"),
    ],
)
def test_what_does_not_go_together_is_refused_before_the_search(cmfah, tmp_path, options, message):
    outcome = cmfah("search", tmp_path / "absent", "--text", "boat", *options)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert message in outcome.err


# Prints answers with thumbnails, in a terminal of its own.
TERMINAL = """
import json, sys
from cmfah_hf.cli.search import thumbnails
from cmfah_hf.cli.search.answers import Answers
from cmfah_hf.cli.search.showing import Showing

showing = Showing(thumbnails=True)
showing.check()
showing.show(Answers(*json.load(open(sys.argv[1]))))
"""


def printed_on_a_terminal(program, *arguments, stdin=None, size=(40, 120)):
    """The standard output of a Python program that runs in a terminal without graphics."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    command = [sys.executable, "-c", program, *map(str, arguments)]
    with subprocess.Popen(command, stdin=stdin or follower, stdout=follower, cwd=Path(__file__).parents[2]) as process:
        os.close(follower)
        parts = []
        while True:
            try:
                parts.append(os.read(leader, 2**16))
            except OSError:  # its end on Linux
                break
            if not parts[-1]:
                break
        assert process.wait(60) == 0
    os.close(leader)
    return b"".join(parts).decode("utf-8")


def test_thumbnails_are_printed_on_a_terminal_only(answers, tmp_path, capsys):
    pytest.importorskip("textual_image")
    (tmp_path / "answers.json").write_text(json.dumps([answers.query, "aqd", answers.hits, ["text"]]), encoding="utf-8")
    shown = printed_on_a_terminal(TERMINAL, tmp_path / "answers.json")
    rows = [line for line in shown.splitlines() if "▀" in line]
    assert len(rows) == 10
    assert {row.count("▀") for row in rows} == {20}  # the image is a square, and cells are twice as high as wide
    for part in ("1  id0  9.500", "gone.jpg: there is no such file", "(its path is unknown)", r"a <b>dog</b>\x1b[0m"):
        assert part in shown
    for options in ({"stdin": subprocess.DEVNULL}, {"size": (0, 0)}):
        without = printed_on_a_terminal(TERMINAL, tmp_path / "answers.json", **options)
        assert "▀" not in without
        assert "id0" in without
    Showing(thumbnails=True).show(answers)
    assert "▀" not in capsys.readouterr().out


def test_thumbnails_need_their_library(monkeypatch):
    monkeypatch.setattr(thumbnails, "_is_screen", lambda: True)
    monkeypatch.setitem(sys.modules, "textual_image.renderable", None)
    with pytest.raises(CMFAHError, match=r"--thumbnails needs textual-image; .* 'cmfah-hf\[terminal\]'"):
        Showing(thumbnails=True).check()
