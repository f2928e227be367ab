"""`cmfah index` on folders that change, in new processes on real files."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from coarse_jpegs import draw

from cmfah_hf.retrieval import HashIndex

_MAIN = "from cmfah_hf.cli import main; main()"
PROGRAM = [sys.executable, "-c", _MAIN]
# A shell disables Ctrl-C for background processes, and what they start inherits that.
_INTERRUPTIBLE = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for number in range(8):
        draw(folder / "trip" / f"{number}.jpg", number)
    (folder / "film.mp4").write_bytes(b"film")
    return folder


@pytest.mark.slow
def test_the_story_of_a_folder(trained, photos, tmp_path, environment, run_in_a_new_process):
    """Indexed once, then again after every kind of change; each part in a new process."""
    index = tmp_path / "x.index"
    command = ["index", str(trained.folder), str(photos), "-o", str(index), "--json"]

    (first,) = run_in_a_new_process([command], environment)
    assert first.code == 0, first.err
    assert {"added": 8, "changed": 0, "renamed": 0, "removed": 0}.items() <= first.document.items()
    assert (first.document["skipped"], first.document["unreadable"]) == ({".mp4": 1}, [])

    draw(photos / "trip" / "0.jpg", 100)
    draw(photos / "new.jpg", 101)
    (photos / "trip" / "1.jpg").rename(photos / "beach.jpg")
    (photos / "trip" / "2.jpg").unlink()
    (photos / "broken.jpg").write_bytes(b"none")
    search = ["search", str(trained.folder), str(index), "--image", str(photos / "beach.jpg"), "-k", "1", "--json"]
    dry, second, found = run_in_a_new_process([[*command, "--dry-run"], command, search], environment)
    assert dry.document["steps"] == {
        "added": ["broken.jpg", "new.jpg"], "changed": ["trip/0.jpg"], "renamed": [["trip/1.jpg", "beach.jpg"]],
        "removed": ["trip/2.jpg"],
    }  # fmt: skip
    counted = {"added": 1, "changed": 1, "renamed": 1, "removed": 1, "unchanged": 5, "items": 8}
    assert counted.items() <= second.document.items()
    assert second.document["unreadable"][0].startswith(str(photos / "broken.jpg"))
    assert found.document["results"][0]["id"] == "beach.jpg"

    commands = [
        ["index", "info", str(index), "--json"],
        ["index", "info", str(index)],
        ["index", "remove", str(index), "beach.jpg", "--json"],
        ["index", "remove", str(index), "beach.jpg"],
        ["index", str(trained.folder), "-o", str(index)],
        ["index", str(trained.folder), "-o", str(index), "--restore-removed", "--json"],
    ]
    info, shown, removed, again, update, restored = run_in_a_new_process(commands, environment)
    assert info.document["roots"][0]["path"] == str(photos)
    assert info.document["roots"][0]["unreadable"] == 1
    assert info.document["model"] == str(trained.folder)
    assert (info.document["items"], info.document["other_items"], info.document["bits"]) == (8, 0, 16)
    assert "photos" in shown.out
    assert removed.document == {"index": str(index), "removed": 1, "items": 7}
    assert (again.code, again.err.count("\n")) == (2, 1)
    assert "holds no id 'beach.jpg'" in again.err
    assert "7 as before" in update.out
    assert "1 left out by hand" in update.out
    assert restored.document["added"] == 1


@pytest.mark.slow
def test_without_changes_the_model_is_not_loaded(trained, photos, tmp_path, environment, run_in_a_new_process):
    index = tmp_path / "x.index"
    model = shutil.copytree(trained.folder, tmp_path / "model")
    command = ["index", str(model), str(photos), "-o", str(index), "--json"]
    run_in_a_new_process([command], environment)
    program = (
        "import sys\nfrom cmfah_hf.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *command], env=environment, capture_output=True, text=True, timeout=120
    )
    assert json.loads(done.stdout)["unchanged"] == 8
    assert done.stderr.splitlines()[-1] == "[]"


def test_an_index_of_another_model_is_refused(trained, trained_scahn, photos, tmp_path, cmfah):
    index = tmp_path / "x.index"
    assert cmfah("index", trained.folder, photos, "-o", index).code == 0
    written = index.read_bytes()
    for options in ([], ["--dry-run"]):
        outcome = cmfah("index", trained_scahn.folder, photos, "-o", index, *options)
        assert (outcome.code, outcome.err.count("\n")) == (2, 1)
        assert "holds codes of another model" in outcome.err
    assert index.read_bytes() == written
    assert cmfah("index", trained_scahn.folder, photos, "-o", index, "--rebuild").code == 0


def test_unreadable_images_are_named_at_every_call(trained, photos, tmp_path, cmfah):
    for number in range(7):
        (photos / f"broken {number}.jpg").write_bytes(b"none")
    for options in ([], [], ["--dry-run"]):
        outcome = cmfah("index", trained.folder, photos, "-o", tmp_path / "x.index", *options)
        named = [line for line in outcome.out.splitlines() if line.startswith("unreadable: ")]
        assert [line.partition(".jpg: ")[0] for line in named[:5]] == [
            f"unreadable: {photos}/broken {number}" for number in range(5)
        ]
        assert named[5:] == ["unreadable: 2 more"]


def test_several_folders_and_a_folder_that_moves(trained, photos, tmp_path, cmfah):
    index, cam = tmp_path / "x.index", tmp_path / "cam2023"
    draw(cam / "IMG_0001.jpg", 50)
    outcome = cmfah("index", trained.folder, photos, cam, "-o", index, "--json")
    assert outcome.document["added"] == 9
    assert "cam2023/IMG_0001.jpg" in HashIndex.load(index)
    cam.rename(tmp_path / "archive")
    outcome = cmfah("index", trained.folder, "-o", index, "--json")
    assert (outcome.code, outcome.document["missing"], outcome.document["items"]) == (0, [str(cam)], 9)
    outcome = cmfah("index", trained.folder, cam, "-o", index)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "--root cam2023=PATH" in outcome.err
    outcome = cmfah("index", trained.folder, "--root", f"cam2023={tmp_path / 'archive'}", "-o", index, "--json")
    assert (outcome.document["unchanged"], outcome.document["added"]) == (1, 0)
    outcome = cmfah("index", "remove", index, "--root", "cam2023", "--json")
    assert outcome.document == {"index": str(index), "removed": 1, "items": 8}
    outcome = cmfah("index", "remove", index, "--root", "cam2023")
    assert "follows no folder named 'cam2023'; it follows photos" in outcome.err
    assert cmfah("index", "remove", index).code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{photos}", "{photos}/trip"], "inside {photos}"),
        (["{photos}", "--root", "nothing"], "give a name and a folder"),
        (["{photos}", "--root", "a/b={photos}"], "no name for a folder"),
        (["{scenes.parquet}", "--dry-run"], "--dry-run is for folders of images"),
        (["{photos}", "--keep", "year"], "no column 'year'"),
        ([], "follows no folder yet"),
    ],
)
def test_refused_in_one_line(trained, photos, tmp_path, cmfah, arguments, message):
    parquet = tmp_path / "scenes.parquet"
    parquet.touch()
    places = {"{photos}": str(photos), "{scenes.parquet}": str(parquet)}
    for name, value in places.items():
        arguments = [argument.replace(name, value) for argument in arguments]
        message = message.replace(name, value)
    outcome = cmfah("index", trained.folder, *arguments, "-o", tmp_path / "x.index")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert message in outcome.err
    assert not (tmp_path / "x.index").exists()


def test_folders_and_data_sets_share_an_index(trained, photos, tmp_path, cmfah):
    index, data = tmp_path / "x.index", tmp_path / "one.png"
    shutil.copy(sorted((trained.scenes / "train").glob("*.png"))[0], data)
    command = ["index", trained.folder, photos, data, "-o", index, "--json"]
    for added in (9, 1):  # the data set is encoded anew
        outcome = cmfah(*command)
        assert (outcome.code, outcome.document["added"], outcome.document["items"]) == (0, added, 9)
    assert "photos/trip/0.jpg" in HashIndex.load(index)
    outcome = cmfah("index", trained.folder, data, "-o", index)
    assert "follows folders (photos), which would be lost" in outcome.err
    assert cmfah("index", trained.folder, "-o", index, "--json").document["items"] == 9
    assert cmfah("index", trained.folder, data, "-o", index, "--rebuild", "--json").document["items"] == 1


def test_metadata_columns_follow_their_rows(trained, photos, tmp_path, cmfah):
    index = tmp_path / "x.index"
    rows = [{"file_name": f"trip/{n}.jpg", "text": "boat", "year": 2000 + n} for n in range(8)]

    def run(rows):
        (photos / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return cmfah("index", trained.folder, photos, "--keep", "year", "-o", index, "--json").document

    assert run(rows)["added"] == 8
    rows[3]["year"] = 1900
    assert {"changed": 1, "added": 0, "unchanged": 7}.items() <= run(rows).items()
    search = ["search", trained.folder, index, "--text", "boat", "--where", "year=1900", "--json"]
    assert [hit["id"] for hit in cmfah(*search).document["results"]] == ["trip/3.jpg"]
    outcome = cmfah("search", trained.folder, index, "--text", "boat", "--where", "text=boat")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "it has year. If the metadata of the folder photos has it, index that folder again" in outcome.err
    options = [part.strip("';") for part in outcome.err.partition(" with ")[2].split()[:4]]
    assert options == ["--keep", "year", "--keep", "text"]
    again = cmfah("index", trained.folder, photos, *options, "-o", index, "--json").document
    assert {"changed": 8, "added": 0}.items() <= again.items()
    found = cmfah(*search, "--where", "text=boat")
    assert [hit["id"] for hit in found.document["results"]] == ["trip/3.jpg"]


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=["kill", "ctrl-c", "term"])
def test_an_interrupted_run_goes_on_where_it_was(trained, tmp_path, environment, sent):
    folder, index = tmp_path / "many", tmp_path / "x.index"
    content = draw(tmp_path / "one.jpg", 1).read_bytes()
    folder.mkdir()
    for number in range(6_000):  # bytes behind the end of a JPEG make another content
        (folder / f"{number}.jpg").write_bytes(content + number.to_bytes(4, "big"))
    command = [*PROGRAM, "index", str(trained.folder), str(folder), "-o", str(index), "--json", "--batch-size", "8"]
    command[2] = _INTERRUPTIBLE + _MAIN
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while not index.exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        os.kill(process.pid, sent)
        process.communicate(timeout=60)
        assert process.returncode == {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}[sent]
    kept = len(HashIndex.load(index))
    assert 1_000 <= kept < 6_000
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    document = json.loads(done.stdout)
    assert (document["unchanged"], document["added"], document["items"]) == (kept, 6_000 - kept, 6_000)


def test_watching_needs_its_library(trained, photos, tmp_path, cmfah, monkeypatch):
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    outcome = cmfah("index", trained.folder, photos, "-o", tmp_path / "x.index", "--watch")
    assert (outcome.code, outcome.err) == (
        2, "cmfah: --watch needs watchfiles; install it: pip install 'cmfah-hf[watch]'.\n",
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "term"])
def test_watching_follows_a_folder(trained, photos, tmp_path, environment, sent, code):
    pytest.importorskip("watchfiles")
    index = photos / "x.index"  # its own changes do not count
    own = [str(trained.folder), str(photos), "-o", str(index), "--json", "--watch"]
    command = [sys.executable, "-c", _INTERRUPTIBLE + _MAIN, "index", *own]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **streams) as process:
        assert json.loads(process.stdout.readline())["added"] == 8
        draw(photos / "new.jpg", 60)
        assert json.loads(process.stdout.readline())["added"] == 1
        (photos / "new.jpg").rename(photos / "newer.jpg")
        assert json.loads(process.stdout.readline())["renamed"] == 1
        time.sleep(1)  # until it waits for events again
        process.send_signal(sent)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == code
        assert ("interrupted" in errors) == (sent == signal.SIGINT)
    assert "newer.jpg" in HashIndex.load(index)


def test_how_images_are_read_changes_no_code_but_of_large_jpegs(trained, tmp_path, cmfah):
    photos, index = tmp_path / "photos", tmp_path / "x.index"
    for number in range(5):
        draw(photos / f"{number}.jpg", number)
    found = []
    for options in ([], ["--workers", "1", "--batch-size", "2"], ["--workers", "3", "--fast-decoding"]):
        outcome = cmfah("index", trained.folder, photos, "-o", index, "--rebuild", *options, "--json")
        assert outcome.document["added"] == 5
        found.append(HashIndex.load(index).codes.tolist())
    assert found[0] == found[1] == found[2]
    outcome = cmfah("index", trained.folder, photos, "-o", index, "--rebuild", "--workers", "0")
    assert (outcome.code, outcome.err) == (2, "cmfah: workers is 0; give 1 or more.\n")


@pytest.mark.slow
def test_a_search_imports_only_what_it_uses(trained, photos, tmp_path, environment, cmfah):
    index = tmp_path / "x.index"
    cmfah("index", trained.folder, photos, "-o", index)
    program = (
        "import sys\n"
        "sys.argv[0] = 'cmfah'\n"
        "from cmfah_hf.cli import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", program, "search", str(trained.folder), str(index), "--text", "boat", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert len(json.loads(done.stdout)["results"]) == 8
    needless = {"datasets", "pandas", "gensim", "sklearn", "matplotlib", "networkx", "gradio", "rich", "fastapi"}
    assert not needless & set(done.stderr.split())


@pytest.mark.slow
def test_the_benchmark_of_indexing_runs(trained, environment):
    script = Path(__file__).parents[2] / "benchmarks" / "indexing.py"
    command = [sys.executable, str(script), "--model", str(trained.folder), "--images", "20", "--rounds", "1"]
    command += ["--round-images", "8", "--fast-decoding", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    found = json.loads(done.stdout)
    assert [row["images"] for row in found["whole"]] == [2, 20]
    assert all(value > 0 for row in (found["rates"], *found["whole"]) for value in row.values())
