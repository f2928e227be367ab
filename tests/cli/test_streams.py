"""Standard output and error: pipes, terminals, closed pipes, interrupts, and hostile names."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image
from rich.console import Console

from cmfah_hf.cli import output
from cmfah_hf.retrieval import CrossMediaRetriever, HashIndex

PROGRAM = [sys.executable, "-c", "from cmfah_hf.cli import main; main()"]
MARKUP = [
    "x[red].jpg",
    "[/nothing].jpg",
    "[bold]y[/bold].png",
    "[link=e.x]z[/link].png",
    "a[0].png",
    "\\[b].png",
]
CONTROLS = ["\x1b[2J.jpg", "\x1b]0;title\x07.jpg", "two\nlines.jpg", "tab\t.jpg", "\u202egpj.exe.jpg", "\x9b31m.jpg"]


@pytest.fixture(scope="module")
def hostile_index(trained, tmp_path_factory):
    """Images with names that have a meaning in rich or in a terminal, indexed from their folder."""
    root = tmp_path_factory.mktemp("hostile")
    (root / "images").mkdir()
    for number, name in enumerate(MARKUP + CONTROLS):
        path = root / "images" / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (32, 32), (20 * number, 90, 10)).save(path, format="PNG")
    retriever = CrossMediaRetriever.from_pretrained(trained.folder)
    assert retriever.add_source(root / "images") == []
    retriever.images.save(root / "hostile.index")
    assert set(HashIndex.load(root / "hostile.index").ids) == set(MARKUP + CONTROLS)
    return root / "hostile.index"


def in_terminal(monkeypatch, tmp_path, width):
    """Makes tables assume that they are printed on a terminal."""
    file = (tmp_path / "screen").open("w+", encoding="utf-8")
    monkeypatch.setattr(
        "rich.console.Console",
        lambda **options: (
            Console(**options) if options else Console(file=file, force_terminal=True, width=width, color_system=None)
        ),
    )
    return file


def test_ids_are_unchanged_in_a_pipe(cmfah, trained, hostile_index):
    outcome = cmfah("search", trained.folder, hostile_index, "--text", "boat", "-k", 20)
    assert outcome.code == 0, outcome.err
    for name in MARKUP:
        assert re.search(rf"^ *\d+  {re.escape(name)} ", outcome.out, re.MULTILINE), name
    assert r"two\nlines.jpg" in outcome.out
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", outcome.out)
    found = cmfah("search", trained.folder, hostile_index, "--text", "boat", "-k", 20, "--json")
    assert {hit["id"] for hit in found.document["results"]} == set(MARKUP + CONTROLS)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", found.out)


def test_ids_are_unchanged_on_a_terminal(cmfah, trained, hostile_index, monkeypatch, tmp_path):
    screen = in_terminal(monkeypatch, tmp_path, 160)
    assert cmfah("search", trained.folder, hostile_index, "--text", "boat", "-k", 20).code == 0
    screen.seek(0)
    shown = screen.read()
    for name in MARKUP:
        assert f" {name} " in shown
    assert not re.search("[\x00-\x09\x0b-\x1a\x1c-\x1f\x7f-\x9f\u202a-\u202e]", shown)
    assert "\x1b[2J" not in shown
    assert "\x1b]0;" not in shown


def test_long_ids_are_complete_in_a_pipe_and_folded_on_a_terminal(capsys, monkeypatch, tmp_path):
    name = "below/" * 60 + "宽" * 40 + ".jpg"
    output.print_table(
        "A title that is longer than the table, which rich would wrap", ["n", "id"], [[1, name], [20, "b"]]
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["A title that is longer than the table, which rich would wrap", " n  id", f" 1  {name}", "20  b"]
    screen = in_terminal(monkeypatch, tmp_path, 60)
    output.print_table("title", ["n", "id"], [[1, name]])
    screen.seek(0)
    rows = [line for line in screen.read().splitlines() if "│" in line]
    assert "".join(row.strip("│").partition("│")[2].strip() for row in rows) == name


def test_titles_columns_and_bars_are_not_markup(capsys, monkeypatch, tmp_path):
    screen = in_terminal(monkeypatch, tmp_path, 100)
    output.print_table("[red]title[/none]", ["[blue]column", "\x1b[1m"], [["[green]cell", "[/]"]])
    screen.seek(0)
    shown = screen.read()
    for text in ("[red]title[/none]", "[blue]column", r"\x1b[1m", "[green]cell", "[/]"):
        assert text in shown

    class Terminal(Console):
        def __init__(self, **_):
            super().__init__(file=screen, force_terminal=True, width=100)

    monkeypatch.setattr("rich.console.Console", Terminal)
    with output.counting("[/red] one [bold]", total=2) as advance:
        advance(1, "[/red] two \x1b]0;t\x07")
    screen.seek(0)
    assert r"[/red] two \x1b]0;t\x07" in screen.read()


def test_errors_and_warnings_are_one_printable_line(cmfah, trained, hostile_index, tmp_path):
    for name in MARKUP + CONTROLS:
        outcome = cmfah("search", trained.folder, hostile_index, "--image", tmp_path / name)
        assert outcome.code == 2
        assert len(outcome.err.splitlines()) == 1
        assert outcome.err.startswith("cmfah: ")
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", outcome.err)
        if name in MARKUP:
            assert name in outcome.err
    for arguments in (["search", "--\x1b[31mred"], ["\x1b[31mred"], ["search", "a", "b", "-k", "\x1b[31m"]):
        outcome = cmfah(*arguments)
        assert outcome.code == 2
        assert "\x1b[31m" not in outcome.err


def test_ignored_words_are_reported(cmfah, trained, hostile_index):
    outcome = cmfah("search", trained.folder, hostile_index, "--text", "boat quixotic zebra, Zebra", "-k", 1, "--json")
    assert outcome.document["ignored_words"] == ["quixotic", "zebra"]
    assert outcome.err.splitlines()[-1] == ("Ignored 2 words that the model does not know: quixotic, zebra")
    outcome = cmfah("search", trained.folder, hostile_index, "--text", "boat", "-k", 1, "--json")
    assert (outcome.document["ignored_words"], outcome.err) == ([], "")
    assert "similar_words" not in outcome.document


def test_words_that_are_read_as_similar_ones_are_reported(cmfah, trained, hostile_index, tmp_path):
    names = ("config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json")
    for path in (*(trained.folder / name for name in names), *trained.folder.glob("expander.*")):
        shutil.copyfile(path, tmp_path / path.name)
    path = tmp_path / "processor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"unknown_words": "similar"}))
    outcome = cmfah("search", tmp_path, hostile_index, "--text", "boats quixotic", "-k", 1, "--json")
    assert (outcome.document["similar_words"], outcome.document["ignored_words"]) == ({"boats": ["boat"]}, ["quixotic"])
    assert "Read boats as boat" in outcome.err.splitlines()


def test_skipped_files_are_reported(cmfah, trained, tmp_path, caplog):
    (tmp_path / "photos" / ".thumbnails").mkdir(parents=True)
    image = Image.new("RGB", (32, 32), (200, 10, 10))
    image.save(tmp_path / "photos" / "a.png")
    image.save(tmp_path / "photos" / ".thumbnails" / "t.png")
    for name in ("b.wmf", "c.WMF", "d.mp4", "noending"):
        (tmp_path / "photos" / name).write_bytes(b"something")
    command = ["index", trained.folder, tmp_path / "photos", "-o", tmp_path / "a.index", "--json"]
    outcome = cmfah(*command)
    assert outcome.document["skipped"] == {".wmf": 2, ".mp4": 1, "hidden": 1, "no ending": 1}
    assert outcome.document["items"] == 1
    assert f"Skipped in {tmp_path / 'photos'}: .wmf 2, .mp4 1, hidden 1, no ending 1." in caplog.text
    outcome = cmfah(*command, "--hidden")
    assert outcome.document["items"] == 2
    assert "hidden" not in outcome.document["skipped"]


def test_an_index_of_another_model_needs_a_flag(cmfah, trained, trained_scahn, hostile_index, tmp_path):
    search = ["search", trained_scahn.folder, hostile_index, "--text", "boat", "-k", 1, "--json"]
    outcome = cmfah(*search)
    assert outcome.code == 2
    assert f"{hostile_index} holds codes of another model" in outcome.err
    assert "--any-model" in outcome.err
    assert cmfah(*search, "--any-model").code == 0
    (tmp_path / "x.index").write_bytes(hostile_index.read_bytes())
    Image.new("RGB", (32, 32)).save(tmp_path / "new.png")
    add = ["index", trained_scahn.folder, tmp_path / "new.png", "-o", tmp_path / "x.index", "--add", "--json"]
    assert cmfah(*add).code == 2
    assert (tmp_path / "x.index").read_bytes() == hostile_index.read_bytes()
    outcome = cmfah(*add, "--any-model")
    assert outcome.document["items"] == len(MARKUP + CONTROLS) + 1


def test_evaluate_reports_uninformative_and_unknown_parts(cmfah, trained):
    lines = cmfah("evaluate", trained.folder, trained.scenes).out.splitlines()
    assert any(re.match(r"constant query +map +0\.\d{3} +0\.\d{3}$", line) for line in lines)
    assert any(re.match(r"queries +\d+ +\d+ +\d\.\d{3} +\d+ +\d\.\d{3}$", line) for line in lines)
    document = cmfah("evaluate", trained.folder, trained.scenes, "--json").document
    assert {"constant/i2t/map", "constant/t2i/map", "queries_unknown_words_share"} < set(document)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["--json"]], ids=["help", "json"])
def test_a_closed_pipe_ends_the_command_quietly(trained, hostile_index, environment, arguments):
    command = [*PROGRAM, "search", str(trained.folder), str(hostile_index), "--text", "boat", *arguments]
    environment.pop("PYTHONUNBUFFERED", None)  # so that no output is left at the end
    read, write = os.pipe()
    os.close(read)  # as with `| head -0`
    ended = subprocess.run(command, env=environment, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(write)
    assert ended.stderr == ""
    assert ended.returncode == 1


def test_control_c_exits_with_one_line_and_130(trained, environment, tmp_path):
    command = [*PROGRAM, "search", str(trained.folder), str(tmp_path / "x.index"), "--image", "-", "--text", "boat"]
    program = (
        "import signal, sys, time, cmfah_hf.retrieval as r\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell disables it for background processes
        "class Slow:\n"
        "    def from_pretrained(*_, **__):\n"
        "        print('started', file=sys.stderr, flush=True); time.sleep(60)\n"
        "r.CrossMediaRetriever = Slow\n"
        "from cmfah_hf.cli import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, *command[3:]], env=environment, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr.readline() == "started\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "cmfah: interrupted.\n")


@pytest.mark.slow
def test_a_narrow_encoding_and_undecodable_names(trained, hostile_index, environment, tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9 \xe5\xae\xbd.png"
    search = [*PROGRAM, "search", str(trained.folder), str(hostile_index)]
    narrow = environment | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    ended = subprocess.run([*search, "--image", path], env=narrow, capture_output=True, timeout=120)
    assert ended.returncode == 2
    assert b"\\udce9" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    ended = subprocess.run([*search, "--text", "boat é", "--json"], env=narrow, capture_output=True, timeout=120)
    assert json.loads(ended.stdout)["query"] == "boat é"


def test_a_query_of_undecodable_bytes_is_refused(cmfah, trained, hostile_index):
    outcome = cmfah("search", trained.folder, hostile_index, "--text", "boat \udce9")
    assert outcome.code == 2
    assert (
        outcome.err == "cmfah: The text 'boat \\udce9' contains a lone surrogate, not a character; give it as UTF-8.\n"
    )


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(pty, "openpty"), reason="needs pseudo-terminals")
def test_a_real_terminal_gets_no_escapes_from_names(trained, hostile_index, environment):
    ours, theirs = pty.openpty()
    command = [*PROGRAM, "search", str(trained.folder), str(hostile_index), "--text", "boat", "-k", "20"]
    process = subprocess.Popen(
        command, env=environment | {"TERM": "xterm", "COLUMNS": "120"}, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            block = os.read(ours, 65536)
        except OSError:  # how Linux reports the end of a terminal
            break
        if not block:
            break
        shown += block
    assert process.wait(60) == 0
    assert b"\x1b[2J" not in shown
    assert b"\x1b]0;" not in shown
    assert b"x[red].jpg" in shown
