"""`cmfah data push` against the Hub on the loopback, in processes of their own."""

import hashlib
import json
import shutil
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hub_server import User

QUERY, REST = "query-00000-of-00001.parquet", "rest-00000-of-00001.parquet"


def content_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def published(hub, id: str = "org/scenes", **where: str) -> dict[str, bytes]:
    """What is on the Hub, without what every repository has and without the record of the push."""
    files = hub.files(id, **where)
    assert files.pop(".gitattributes")
    assert files.pop(".cmfah-hf.json")
    return files


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def wait_until(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def one_line(result, part: str) -> None:
    """The command ended as a refusal does: exit code 2, nothing on standard output, one line that has this in it."""
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith("cmfah: ")]
    assert len(lines) == 1, result.stderr
    assert part in lines[0]
    assert "Traceback" not in result.stderr
    assert "hf_" not in result.stderr


def test_a_prepared_folder_goes_up_as_it_is_in_one_commit(push, push_here, hub, prepared):
    result = push(prepared.folder, "--repo-id", "org/scenes", "--json")
    assert result.returncode == 0, result.stderr
    done = json.loads(result.stdout)
    files = content_of(prepared.folder)
    assert published(hub) == files
    assert hub.history("org/scenes") == ["Upload the data set", "initial commit"]
    assert done == {
        "repo_id": "org/scenes",
        "url": f"{hub.endpoint}/datasets/org/scenes",
        "revision": "main",
        "commit": hub.store.repositories["dataset", "org/scenes"].branches["main"],
        "changed": True,
        "private": False,
        "splits": {"train": 12, "query": 4, "database": 18},
        "files": [
            ".cmfah-hf.json",
            "README.md",
            "data/query-00000-of-00001.parquet",
            "data/rest-00000-of-00001.parquet",
            "data/train-00000-of-00002.parquet",
            "data/train-00001-of-00002.parquet",
        ],
        "size": sum(map(len, files.values())) + len(hub.files("org/scenes")[".cmfah-hf.json"]),
        "kept": [],
    }
    assert len(hub.asked("PUT")) == 4  # each shard once, also those that two splits share

    again = json.loads(push_here(prepared.folder, "--repo-id", "org/scenes", "--json").stdout)
    assert (again["changed"], again["commit"]) == (False, done["commit"])
    assert len(hub.asked("PUT")) == 4


def test_killed_in_the_middle_it_goes_on_with_what_is_missing(push, push_here, hub, prepared):
    hub.add("org/scenes", {"notes.txt": b"the former state", "data/train-00000-of-00001.parquet": b"former"})
    before = hub.files("org/scenes")
    stalled = {f"/objects/{sha256_of(prepared.folder / 'data' / name)}" for name in (QUERY, REST)}
    for path in stalled:
        hub.slow(f"PUT {path}", seconds=60)
    process = push(prepared.folder, "--repo-id", "org/scenes", start=True)
    wait_until(lambda: len(hub.asked("PUT", ok=True)) == 2)
    process.kill()
    process.communicate()
    assert process.returncode == -9
    assert hub.files("org/scenes") == before  # a reader sees what was there

    hub.faults.clear()
    hub.log.clear()
    result = push_here(prepared.folder, "--repo-id", "org/scenes")
    assert result.returncode == 0, result.stderr
    assert {request.path for request in hub.asked("PUT")} == stalled
    assert len(hub.asked("PUT")) == 2
    assert hub.history("org/scenes")[:2] == ["Upload the data set", "Add files"]
    # The shard of the former state is gone with the same commit; `train` would have had its rows too.
    assert published(hub) == content_of(prepared.folder) | {"notes.txt": b"the former state"}


def test_a_flaky_hub_is_borne(push_here, hub, prepared):
    hub.fail("POST /api/repos/create", status=502)
    hub.fail("PUT /objects/", status=503)
    hub.cut("PUT /objects/", after=700)
    hub.fail("GET /api/datasets/org/scenes/revision/main", status=500)
    hub.lose_answer("POST /api/datasets/org/scenes/commit")
    result = push_here(prepared.folder, "--repo-id", "org/scenes")
    assert result.returncode == 0, result.stderr
    assert sorted(request.status for request in hub.asked("PUT")) == [0, 200, 200, 200, 200, 503]
    # The commit whose answer was lost is known again, and not made twice.
    assert hub.history("org/scenes") == ["Upload the data set", "initial commit"]
    assert [request.status for request in hub.asked("POST", "/commit/")] == [0, 412]
    assert published(hub) == content_of(prepared.folder)


def test_a_full_disk_ends_it_and_what_was_sent_stays(push_here, hub, prepared):
    full = sha256_of(prepared.folder / "data" / REST)
    hub.fail(f"PUT /objects/{full}", status=507, times=None)
    one_line(push_here(prepared.folder, "--repo-id", "org/scenes"), "HTTP 507 Insufficient Storage")
    assert hub.history("org/scenes") == ["initial commit"]
    hub.faults.clear()
    hub.log.clear()
    assert push_here(prepared.folder, "--repo-id", "org/scenes").returncode == 0
    assert [request.path for request in hub.asked("PUT")].count(f"/objects/{full}") == 1
    assert len(hub.asked("PUT")) < 4


def test_a_commit_by_somebody_else_is_not_written_over(push, hub, prepared):
    hub.add("org/scenes", {"README.md": b"former"})
    hub.slow("PUT /objects/", seconds=0.3, times=4)
    process = push(prepared.folder, "--repo-id", "org/scenes", start=True)
    wait_until(lambda: hub.asked("PUT"))
    theirs = hub.add("org/scenes", {"data/theirs.parquet": b"theirs"})
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2, err
    assert "somebody else changed main during this push" in err
    assert hub.store.repositories["dataset", "org/scenes"].branches["main"] == theirs.oid
    assert set(hub.files("org/scenes")) == {".gitattributes", "README.md", "data/theirs.parquet"}


def test_of_two_pushes_at_once_each_is_whole_or_nothing(push, hub, prepared, tmp_path):
    other = shutil.copytree(prepared.folder, tmp_path / "other")
    (other / "notes.txt").write_text("The other one.")
    hub.add("org/scenes", {"notes.txt": b"former"})
    hub.slow("POST /api/datasets/org/scenes/preupload", seconds=1.0)
    folders = (prepared.folder, other)
    processes = [push(folder, "--repo-id", "org/scenes", start=True) for folder in folders]
    ends = [(process.communicate(timeout=60)[1], process.returncode) for process in processes]
    made = [folder for folder, (_, code) in zip(folders, ends, strict=True) if code == 0]
    assert made, ends
    assert all("somebody else changed main" in err for err, code in ends if code != 0)
    assert hub.history("org/scenes") == ["Upload the data set"] * len(made) + ["Add files", "initial commit"]
    assert published(hub) in [{"notes.txt": b"former"} | content_of(folder) for folder in made]


@pytest.mark.parametrize(
    ("token", "part"),
    [
        (None, "No token for the Hub"),
        ("hf_wrong", "the Hub rejects the token"),
        ("hf_stranger", "the token may not write there"),
        ("hf_reader", "the token may not write there"),
    ],
)
def test_who_may_not_push_is_told_so(push_here, hub, prepared, token, part):
    one_line(push_here(prepared.folder, "--repo-id", "org/scenes", token=token), part)
    assert hub.store.repositories == {}
    assert hub.store.objects == {}


def test_what_others_may_see_is_decided_by_who_owns_it(push_here, hub, prepared):
    hub.add("org/theirs", {"README.md": b"x"}, private=True)
    one_line(
        push_here(prepared.folder, "--repo-id", "org/theirs", token="hf_stranger"), "the token may not write there"
    )
    hub.store.users["hf_member"] = User("member", ("org",), may_write=False)
    hub.add("org/open", {"README.md": b"x"})
    one_line(push_here(prepared.folder, "--repo-id", "org/open", token="hf_member"), "the token may not write there")
    one_line(push_here(prepared.folder, "--repo-id", "org/open", "--private"), "exists and is public")
    assert hub.history("org/open") == ["Add files", "initial commit"]
    assert not hub.asked("PUT")
    done = json.loads(push_here(prepared.folder, "--repo-id", "org/new", "--private", "--json").stdout)
    assert done["private"]
    assert hub.store.repositories["dataset", "org/new"].private


def test_a_branch_of_its_own_leaves_the_main_one_alone(push_here, hub, prepared):
    hub.add("org/scenes", {"notes.txt": b"former", "data/train-00000-of-00001.parquet": b"former"})
    before = hub.files("org/scenes")
    assert push_here(prepared.folder, "--repo-id", "org/scenes", "--revision", "v2/all").returncode == 0
    assert hub.files("org/scenes") == before
    assert set(published(hub, revision="v2/all")) == {"notes.txt", *content_of(prepared.folder)}


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda folder: (folder / "README.md").unlink(), "has no card (README.md)"),
        (lambda folder: (folder / "README.md").write_text("# Scenes\n"), "has a card that names no splits"),
        (lambda folder: (folder / "README.md").write_text("---\nconfigs: [\n---\n"), "README.md"),
        (lambda folder: (folder / "data/train-00001-of-00002.parquet").unlink(), "this shard is missing"),
        (lambda folder: (folder / "data/query-00000-of-00001.parquet").unlink(), "query-*.parquet"),
        (lambda folder: cut(folder / "data/train-00001-of-00002.parquet"), "write or fetch it again"),
        (lambda folder: shutil.copy(folder / "data/query-00000-of-00001.parquet", folder / "x.parquet"), "no split of"),
        (lambda folder: without(folder / "data/train-00001-of-00002.parquet", "tags"), "has different columns than"),
        (lambda folder: without(folder / "data/query-00000-of-00001.parquet", "id"), "has no column 'id'"),
    ],
)
def test_a_folder_that_nobody_could_read_is_not_sent(change, part, prepared, tmp_path):
    from cmfah_hf.errors import DataError
    from cmfah_hf.hub import push_dataset

    folder = shutil.copytree(prepared.folder, tmp_path / "changed")
    change(folder)
    with pytest.raises(DataError) as raised:
        push_dataset(folder, "org/scenes", token="hf_writer")
    assert part in str(raised.value)
    assert str(folder) in str(raised.value)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def without(path: Path, column: str) -> None:
    pq.write_table(pq.read_table(path).drop_columns([column]), path)


@pytest.mark.parametrize("repo_id", ["scenes", "org/sce nes", "a/b/c", "org/-x-", ""])
def test_an_id_that_cannot_be_is_refused_before_anything_is_read(repo_id):
    from cmfah_hf.errors import HubError
    from cmfah_hf.hub import push_dataset

    with pytest.raises(HubError, match="is not a valid repository id"):
        push_dataset("/nowhere", repo_id, token="hf_writer")


def test_a_hub_that_is_not_there_is_named_as_such(push_here, prepared, monkeypatch):
    from huggingface_hub import constants

    from cmfah_hf.hub import publishing

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    one_line(push_here(prepared.folder, "--repo-id", "org/scenes"), "HF_HUB_OFFLINE is set")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(publishing, "_WAITS", ())
    one_line(
        push_here(prepared.folder, "--repo-id", "org/scenes"),
        "org/scenes: no connection to the Hub (ConnectError",
    )


def test_no_message_holds_the_token(hub, here, prepared, monkeypatch):
    """Not even one that quotes what the server, or the network, said."""
    from huggingface_hub import HfApi

    from cmfah_hf.errors import HubError
    from cmfah_hf.hub import push_dataset

    def fail(*arguments, **settings):
        raise RuntimeError("no route for Bearer hf_writer")

    monkeypatch.setattr(HfApi, "create_repo", fail)
    with pytest.raises(HubError) as raised:
        push_dataset(prepared.folder, "org/scenes", token="hf_writer")
    assert "no route for Bearer ***" in str(raised.value)
