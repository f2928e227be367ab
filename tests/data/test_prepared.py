"""Prepared data sets on disk: splits, other readers, interruptions, unreadable images."""

import errno
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmfah_hf.atomic import locked
from cmfah_hf.cli import main
from cmfah_hf.data import load_image_text
from cmfah_hf.data.dataset_card import card_splits
from cmfah_hf.data.releases import preparation, shards
from cmfah_hf.data.releases.mirflickr import prepare_mirflickr25k
from cmfah_hf.data.releases.nus_wide import prepare_nus_wide
from cmfah_hf.data.releases.protocols import split_rows
from cmfah_hf.data.releases.shards import Writing
from cmfah_hf.errors import DataError


@pytest.fixture
def replica(replicas, tmp_path):
    return replicas.make_mirflickr(tmp_path / "release")


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@settings(max_examples=50)
@given(data=st.data(), count=st.integers(2, 60), seed=st.integers(0, 5))
def test_splits_match_numpy(data, count, seed):
    queries = data.draw(st.integers(1, count - 1))
    train = data.draw(st.integers(1, count - queries))
    ids = [f"im{number}" for number in range(count)]
    numbers = np.arange(count)
    keys = np.array([hashlib.blake2b(f"{seed}:{i}".encode(), digest_size=16).hexdigest() for i in ids])
    drawn = numbers[np.argsort(keys)]
    for name, expected in {
        "paper": (drawn[queries : queries + train], drawn[:queries], drawn[queries + train :]),
        "dcmh": (numbers[queries : queries + train], numbers[:queries], numbers[queries + train :]),
        "dadh": (numbers[:train], numbers[-queries:], numbers[train : count - queries]),
    }.items():
        parts = split_rows(ids, name, queries, train, seed)
        for found, wanted in zip((parts.train, parts.query, parts.rest), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_the_draw_is_uniform_and_depends_on_the_seed():
    ids = [f"im{number}" for number in range(1000)]
    chosen = np.stack([np.isin(np.arange(1000), split_rows(ids, "paper", 200, 500, seed).query) for seed in range(100)])
    assert (chosen.sum(1) == 200).all()
    # In 100 draws of one fifth, each row is drawn 20 times, within 4 standard deviations.
    assert np.abs(chosen.sum(0) - 20).max() <= 4 * 4 + 1
    assert np.corrcoef(chosen[0], chosen[1])[0, 1] < 0.15


READER = """
import hashlib, json, sys
sys.modules["cmfah_hf"] = None
import datasets
datasets.disable_progress_bars()
out = {}
for streaming in (False, True):
    parts = datasets.load_dataset(sys.argv[1], streaming=streaming)
    for name, part in parts.items():
        rows = [{**row, "image": [row["image"].size, row["image"].mode]} for row in part]
        digest = hashlib.sha256("\\n".join(row["id"] for row in rows).encode()).hexdigest()
        out[f"{name} {streaming}"] = {"rows": rows, "sha256": digest, "features": repr(part.features)}
rest = datasets.load_dataset("parquet", data_files=sys.argv[1] + "/data/rest-*.parquet", split="train")
out["rest"] = {"names": rest.features["labels"].feature.names, "ids": rest["id"][:]}
print(json.dumps(out))
"""


@pytest.mark.slow
def test_datasets_alone_reads_it_with_the_right_types(replica, tmp_path, environment):
    report = prepare_mirflickr25k(
        replica.root, tmp_path / "out", release=replica.release, writing=Writing(rows_per_shard=5)
    )
    process = subprocess.run(
        [sys.executable, "-c", READER, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for name, count in report.rows.items():
        for streaming in (False, True):
            part = found[f"{name} {streaming}"]
            assert len(part["rows"]) == count
            assert part["sha256"] == report.ids_sha256[name]
            assert f"| `{name}` | {count} | `{part['sha256']}` |" in card
            for kind in ("'image': Image(", "'labels': List(ClassLabel(", "'tags': List(Value('string'))"):
                assert kind in part["features"]
        assert found[f"{name} False"] == found[f"{name} True"]
    assert found["rest"]["names"] == replica.class_names
    rows = found["database False"]["rows"]
    assert [row["id"] for row in rows] == [r["id"] for r in found["train False"]["rows"]] + found["rest"]["ids"]
    for row in rows:
        number = replica.ids.index(row["id"])
        assert row["labels"] == np.flatnonzero(replica.labels[number]).tolist()
        assert row["image"] == [[32, 24], "L" if number == 7 else "RGB"]


def test_no_row_is_stored_twice_and_bytes_match_the_release(replica, tmp_path):
    import pyarrow.parquet as pq

    prepare_mirflickr25k(replica.root, tmp_path / "out", release=replica.release, writing=Writing(rows_per_shard=5))
    files = sorted((tmp_path / "out" / "data").iterdir())
    tables = [pq.read_table(file) for file in files]
    assert {len(table) for table in tables} <= {4, 5}
    rows = [row for table in tables for row in table.to_pylist()]
    assert len({row["id"] for row in rows}) == len(rows) == 43
    for row in rows:
        assert row["image"]["path"] == f"{row['id']}.jpg"
        assert row["image"]["bytes"] == (replica.root / "mirflickr" / f"{row['id']}.jpg").read_bytes()
    assert all(re.fullmatch(r"(train|query|rest)-\d{5}-of-\d{5}\.parquet", file.name) for file in files)


def test_our_loader_reads_all_splits_map_style_and_streaming(replica, tmp_path):
    prepare_mirflickr25k(replica.root, tmp_path / "out", release=replica.release, writing=Writing(rows_per_shard=9))
    whole, streams = load_image_text(tmp_path / "out"), load_image_text(tmp_path / "out", streaming=True)
    assert list(whole) == list(streams) == ["train", "query", "database"]
    for name, part in whole.items():
        assert part.column_names == ["id", "image", "text", "labels", "tags"]
        for row, streamed in zip(part, streams[name], strict=True):
            assert {k: v for k, v in row.items() if k != "image"} == {k: v for k, v in streamed.items() if k != "image"}
            assert row["image"].tobytes() == streamed["image"].tobytes()
    assert whole["database"]["id"][:14] == whole["train"]["id"][:]
    assert not set(whole["query"]["id"]) & set(whole["database"]["id"])


def test_the_same_seed_gives_the_same_files_in_any_process(replica, tmp_path, environment):
    program = (
        "import sys\nfrom cmfah_hf.data.releases.mirflickr import *\n"
        f"release = {replica.release!r}\n"
        "prepare_mirflickr25k(sys.argv[1], sys.argv[2], seed=3, release=release)\n"
    )
    command = [sys.executable, "-c", program, str(replica.root), str(tmp_path / "theirs")]
    subprocess.run(command, check=True, env=environment | {"PYTHONHASHSEED": "7"}, timeout=120)
    report = prepare_mirflickr25k(replica.root, tmp_path / "ours", seed=3, release=replica.release)
    assert content(tmp_path / "theirs") == content(tmp_path / "ours")
    other = prepare_mirflickr25k(replica.root, None, seed=4, release=replica.release)
    assert other.ids_sha256["query"] != report.ids_sha256["query"]


KILLED = """
import signal, sys, time
from cmfah_hf.data.releases import mirflickr, shards

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell disables it for background processes

wait_at, seen = int(sys.argv[3]), 0
iterate = shards.iterate_images

def slow(*arguments):
    global seen
    for image in iterate(*arguments):
        yield image
        seen += 1
        if seen == wait_at:
            print("here", flush=True)
            time.sleep(60)

shards.iterate_images = slow
mirflickr.prepare_mirflickr25k(
    sys.argv[1], sys.argv[2], release=mirflickr.{release}, writing=shards.Writing(rows_per_shard=6)
)
"""


@pytest.mark.parametrize(
    ("by", "wait_at"), [(signal.SIGKILL, 1), (signal.SIGKILL, 20), (signal.SIGKILL, 43), (signal.SIGINT, 20)]
)
def test_an_interrupted_run_resumes_to_the_same_bytes(replica, tmp_path, environment, by, wait_at):
    how = {"release": replica.release, "writing": Writing(rows_per_shard=6)}
    prepare_mirflickr25k(replica.root, tmp_path / "whole", **how)
    out = tmp_path / "out"
    program = KILLED.replace("{release}", repr(replica.release))
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(replica.root), str(out), str(wait_at)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout.readline() == "here\n"
    finally:
        process.send_signal(by)
        process.wait(30)
    files = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in (out / "data").glob("[!.]*.parquet")}
    assert not (out / "README.md").exists()
    with pytest.raises(DataError, match=r"started with other arguments.*--overwrite"):
        prepare_mirflickr25k(replica.root, out, seed=1, **how)
    report = prepare_mirflickr25k(replica.root, out, **how)
    # Train is written first (14 rows in 3 files of 4 and 5), then the queries.
    assert report.shards_kept == len(files) == {1: 0, 20: 4, 43: report.shards - 1}[wait_at]
    assert all((path.stat().st_mtime_ns, path.stat().st_ino) == state for path, state in files.items())
    assert content(out) == content(tmp_path / "whole")


def test_a_damaged_finished_shard_is_rewritten(replica, tmp_path, monkeypatch):
    how = {"release": replica.release, "writing": Writing(rows_per_shard=6)}
    prepare_mirflickr25k(replica.root, tmp_path / "whole", **how)
    monkeypatch.setattr(preparation, "make_card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare_mirflickr25k(replica.root, tmp_path / "out", **how)
    monkeypatch.undo()
    damaged = sorted((tmp_path / "out" / "data").iterdir())[2]
    damaged.write_bytes(damaged.read_bytes()[:100])
    report = prepare_mirflickr25k(replica.root, tmp_path / "out", **how)
    assert report.shards_kept == report.shards - 1
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting a small disk requires root on Linux")
def test_a_full_disk(replica, tmp_path):
    how = {"release": replica.release, "writing": Writing(rows_per_shard=6)}
    prepare_mirflickr25k(replica.root, tmp_path / "whole", **how)
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=60k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        out = small / "out"
        with pytest.raises(DataError, match=r"small/out/.* could not be written \(No space left on device\)"):
            prepare_mirflickr25k(replica.root, out, **how)
        assert not list(out.rglob(".*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=10m", str(small)], check=True)
        report = prepare_mirflickr25k(replica.root, out, **how)
        assert 0 < report.shards_kept < report.shards
        assert content(out) == content(tmp_path / "whole")
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_full_disk_reported_by_the_system(replica, tmp_path, monkeypatch):
    how = {"release": replica.release, "writing": Writing(rows_per_shard=6)}
    sync, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"out/data/.* could not be written \(No space left on device\)"):
        prepare_mirflickr25k(replica.root, tmp_path / "out", **how)
    monkeypatch.undo()
    assert prepare_mirflickr25k(replica.root, tmp_path / "out", **how).shards_kept == 2


def test_existing_files_in_the_folder_are_not_lost(replica, tmp_path):
    out = tmp_path / "out"
    prepare_mirflickr25k(replica.root, out, release=replica.release, writing=Writing(rows_per_shard=3))
    before = content(out)
    with pytest.raises(DataError, match=r"out: holds a data set already; .*--overwrite"):
        prepare_mirflickr25k(replica.root, out, release=replica.release)
    assert content(out) == before
    (out / "notes.txt").write_text("mine")
    (out / "data" / "mine.parquet").write_bytes(b"mine")
    prepare_mirflickr25k(replica.root, out, split="dadh", release=replica.release, writing=Writing(overwrite=True))
    names = {
        "README.md",
        "notes.txt",
        "data/mine.parquet",
        *(f"data/{n}-00000-of-00001.parquet" for n in shards.PARTS),
    }
    assert set(content(out)) == names
    assert (out / "data" / "mine.parquet").read_bytes() == b"mine"
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "README.md").write_text("mine")
    with pytest.raises(DataError, match=r"README\.md: was not written by this command and is not overwritten"):
        prepare_mirflickr25k(
            replica.root, tmp_path / "project", release=replica.release, writing=Writing(overwrite=True)
        )
    assert content(tmp_path / "project") == {"README.md": b"mine"}
    (tmp_path / "foreign" / "data").mkdir(parents=True)
    (tmp_path / "foreign" / "data" / "train-0.parquet").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"train-0\.parquet: was not written by this command and is not overwritten"):
        prepare_mirflickr25k(
            replica.root, tmp_path / "foreign", release=replica.release, writing=Writing(overwrite=True)
        )
    assert content(tmp_path / "foreign") == {"data/train-0.parquet": b"mine"}
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match=r"file: is a file; name a folder"):
        prepare_mirflickr25k(replica.root, tmp_path / "file", release=replica.release)


def test_two_processes_cannot_write_to_one_folder(replica, tmp_path):
    with (
        locked(tmp_path / "out" / "data"),
        pytest.raises(DataError, match=rf"out/data is being written already by process {os.getpid()} on "),
    ):
        prepare_mirflickr25k(replica.root, tmp_path / "out", release=replica.release)


@pytest.fixture
def broken(replica):
    """Two undecodable images, in rows 4 and 20, and the rows that have a label and a tag."""
    replica.images[4].write_bytes(replica.images[4].read_bytes()[:400])
    rows = np.flatnonzero(replica.labels.any(1) & replica.tags.any(1))
    other = int(rows[rows >= 20][0])
    replica.images[other].write_bytes(b"<html>This photo is no longer available</html>")
    return {"im5", f"im{other + 1}"}, {f"im{row + 1}" for row in rows}


def ids_of(folder):
    parts = load_image_text(folder, streaming=True, images=False)
    return {name: [row["id"] for row in part] for name, part in parts.items()}


def test_broken_images_are_skipped_and_listed(replica, broken, tmp_path, caplog):
    names, every = broken
    report = prepare_mirflickr25k(replica.root, tmp_path / "out", release=replica.release)
    ids = ids_of(tmp_path / "out")
    assert set(ids["query"] + ids["database"]) == every - names
    assert {row_id for row_id, _ in report.unreadable} == names
    reasons = dict(report.unreadable)
    assert re.match(r"im5\.jpg: damaged or cut short", reasons["im5"])
    assert sum(report.rows[name] for name in ("query", "database")) == len(every) - 2
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "- 2 images cannot be decoded: their rows are left out." in card
    assert all(f"- {name}: {reason}" in card for name, reason in reasons.items())
    assert len([r for r in caplog.records if r.getMessage().startswith("Cannot be read: im")]) == 2
    for name, part in ids.items():
        assert hashlib.sha256("\n".join(part).encode()).hexdigest() == report.ids_sha256[name]


def test_broken_images_do_not_move_other_rows_between_splits(replica, broken, replicas, tmp_path):
    sound = replicas.make_mirflickr(tmp_path / "sound")
    prepare_mirflickr25k(sound.root, tmp_path / "all", release=sound.release)
    prepare_mirflickr25k(replica.root, tmp_path / "some", release=replica.release)
    for name, part in ids_of(tmp_path / "some").items():
        assert part == [row_id for row_id in ids_of(tmp_path / "all")[name] if row_id not in broken[0]]


def test_broken_images_are_kept_on_request(replica, broken, tmp_path):
    import pyarrow.parquet as pq

    kept = prepare_mirflickr25k(
        replica.root, tmp_path / "kept", release=replica.release, writing=Writing(keep_broken=True)
    )
    assert {row_id for row_id, _ in kept.unreadable} == broken[0]
    unverified = prepare_mirflickr25k(
        replica.root, tmp_path / "out", release=replica.release, writing=Writing(verify=False)
    )
    assert unverified.unreadable == []
    for out in ("kept", "out"):
        rows = [row for file in (tmp_path / out / "data").iterdir() for row in pq.read_table(file).to_pylist()]
        assert {row["id"] for row in rows} == broken[1]
        assert all(len(row["image"]["bytes"]) == 400 for row in rows if row["id"] == "im5")


def test_check_only(replica, broken, tmp_path):
    checked = prepare_mirflickr25k(replica.root, None, release=replica.release)
    written = prepare_mirflickr25k(replica.root, tmp_path / "out", release=replica.release)
    assert checked.as_dict() | {"out": written.out} == written.as_dict()


def test_missing_images_are_counted_with_examples(replicas, tmp_path):
    replica = replicas.make_nus_wide(tmp_path / "release")
    rows = np.flatnonzero(replica.labels[:, [replica.class_names.index("sky")]].any(1))
    for row in rows[:4]:
        replica.images[row].unlink()
    paths = ", ".join(f"{replica.ids[row]}.jpg" for row in rows[:3])
    with pytest.raises(DataError, match=rf"4 of 60 images are missing \({paths}, \.\.\.\); .*--skip-missing"):
        prepare_nus_wide(replica.root, tmp_path / "out", release=replica.release)
    report = prepare_nus_wide(
        replica.root, tmp_path / "out", release=replica.release, writing=Writing(skip_missing=True)
    )
    ids = ids_of(tmp_path / "out")
    assert report.missing == 4
    assert len(ids["query"] + ids["database"]) == 56
    assert not {replica.ids[row] for row in rows[:4]} & set(ids["query"] + ids["database"])
    assert any("4 of 60 images are missing" in line for line in report.corrections)


def test_tables_are_prepared_without_images(replicas, tmp_path, caplog):
    replica = replicas.make_nus_wide(tmp_path / "release", images=False)
    (replica.root / "Flickr.tar.gz").write_bytes(b"closed")
    report = prepare_nus_wide(replica.root, tmp_path / "out", release=replica.release)
    assert not report.images
    assert "holds no images, so only ids, texts, tags and labels are prepared" in caplog.text
    assert "Flickr.tar.gz, NUS-WIDE-urls.rar, which cannot be read" in caplog.text
    stream = load_image_text(tmp_path / "out", split="train", streaming=True, images=False)
    assert list(next(iter(stream))) == ["id", "text", "labels", "tags"]
    with pytest.raises(DataError, match="no column looks like the image"):
        load_image_text(tmp_path / "out")


def test_without_a_remainder_the_database_is_the_training_split(replicas, tmp_path):
    replica = replicas.make_nus_wide(tmp_path / "release", images=False)
    prepare_nus_wide(replica.root, tmp_path / "out", queries=10, train=50, release=replica.release)
    ids = ids_of(tmp_path / "out")
    assert ids["database"] == ids["train"]
    assert len(list((tmp_path / "out" / "data").iterdir())) == 2


def test_splits_of_a_card(tmp_path):
    for name in ("a-0", "a-1", "b-0"):
        (tmp_path / f"{name}.parquet").touch()

    def read(head):
        (tmp_path / "README.md").write_text(f"---\n{head}\n---\nText\n", encoding="utf-8")
        found = card_splits(tmp_path)
        return found and {name: [Path(file).stem for file in files] for name, files in found.items()}

    assert read("license: mit") is None
    assert read("configs:\n- config_name: default\n  data_dir: data") is None
    assert read("configs:\n- config_name: x\n  data_files: '*.md'") is None
    assert read("configs:\n- config_name: x\n  data_files: 'a-*.parquet'") == {"train": ["a-0", "a-1"]}
    assert read("configs:\n- config_name: x\n  data_files: [b-0.parquet, a-0.parquet]") == {"train": ["b-0", "a-0"]}
    chosen = "- config_name: y\n  default: true\n  data_files:\n  - {split: q, path: ['b-*.parquet', a-1.parquet]}"
    assert read(f"configs:\n- config_name: x\n  data_files: a-0.parquet\n{chosen}") == {"q": ["b-0", "a-1"]}
    with pytest.raises(DataError, match=r"README\.md: no file matches 'c-\*\.parquet' of its configs"):
        read("configs:\n- config_name: x\n  data_files: 'c-*.parquet'")
    with pytest.raises(DataError, match=r"README\.md, its head between the lines ---, is not valid YAML"):
        read("configs: [")


def test_the_command(replica, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(prepare_mirflickr25k.__kwdefaults__, "release", replica.release)
    command = ["data", "prepare", "mirflickr25k", "--root", str(replica.root)]

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            main([*command, *arguments])
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    code, out, err = run("--check-only", "--json")
    assert code == 0, err
    checked = json.loads(out)
    assert checked["rows"] == {"train": 14, "query": 8, "database": 35}
    code, out, err = run("--out", str(tmp_path / "out"), "--seed", "5", "--split", "paper", "--rows-per-shard", "10")
    assert code == 0, err
    assert "24 classes, 106 labels, 114 tags, 0 empty texts, 0 rows left out, with images." in out
    line = next(
        line for line in (tmp_path / "out" / "README.md").read_text().splitlines() if line.startswith("cmfah d")
    )
    # The command on the card produces the same data set.
    before = content(tmp_path / "out")
    words = line.replace("RELEASE", str(replica.root)).replace("FOLDER", str(tmp_path / "again")).split()[1:]
    with pytest.raises(SystemExit):
        main(words)
    assert content(tmp_path / "again") == before
    capsys.readouterr()

    for arguments, message in (
        ([], "No output folder; give --out"),
        (["--check-only", "--classes", "10"], "--classes is for nus-wide"),
        (["--check-only", "--variant", "3"], "variant=3 is not known; give one of 43, 53"),
        (["--out", str(tmp_path / "out")], "holds a data set already"),
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("cmfah: ")
        assert message in err.splitlines()[-1]
    with pytest.raises(SystemExit) as end:
        main(["data", "prepare", "coco", "--root", "x", "--check-only"])
    assert end.value.code == 2
    assert "'coco' is not a known release; use mirflickr25k, nus-wide or wikipedia." in capsys.readouterr().err
