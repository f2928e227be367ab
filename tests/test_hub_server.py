"""The Hub on the loopback against the client of `huggingface_hub` and Git."""

import hashlib
import os
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hub_server import HubServer
from hub_server.store import GIT_ATTRIBUTES
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

LARGE = bytes(range(256)) * 1200


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with HubServer() as server:
        yield server


@pytest.fixture
def api(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return HfApi(endpoint=hub.endpoint, token="hf_writer")


def add(path: str, content: bytes) -> CommitOperationAdd:
    return CommitOperationAdd(path, content)


@pytest.mark.parametrize("kind", ["model", "dataset", "space"])
def test_each_kind_of_repository_round_trips(api, hub, kind, tmp_path):
    url = api.create_repo("me/thing", repo_type=kind, space_sdk="gradio" if kind == "space" else None)
    assert (url.repo_id, url.repo_type) == ("me/thing", kind)
    operations = [add("README.md", b"---\nlicense: mit\n---\n"), add("a/b/big.bin", LARGE), add("a/c.txt", b"small")]
    commit = api.create_commit("me/thing", operations, commit_message="All", repo_type=kind)
    info = api.repo_info("me/thing", repo_type=kind, files_metadata=True)
    assert info.sha == commit.oid
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings}
    assert sizes["a/b/big.bin"] == len(LARGE)
    big = api.get_paths_info("me/thing", ["a/b/big.bin", "a", "absent"], repo_type=kind)
    assert [type(each).__name__ for each in big] == ["RepoFile", "RepoFolder"]
    assert big[0].lfs.sha256 == hashlib.sha256(LARGE).hexdigest()
    folder = Path(api.snapshot_download("me/thing", repo_type=kind))
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == {".gitattributes", "README.md", "a/b/big.bin", "a/c.txt"}
    assert (folder / "a/b/big.bin").read_bytes() == LARGE
    assert [c.title for c in api.list_repo_commits("me/thing", repo_type=kind)] == ["All", "initial commit"]
    api.move_repo("me/thing", "org/thing", repo_type=kind)
    api.delete_repo("org/thing", repo_type=kind)
    assert not api.repo_exists("org/thing", repo_type=kind)


def test_ids_match_git(api, hub, tmp_path):
    files = {"README.md": b"hello\n", "a/x.txt": b"x", "a.b/y.txt": b"", "a/b/z.txt": b"z" * 100}
    api.create_repo("me/thing")
    api.create_commit("me/thing", [add(path, content) for path, content in files.items()], commit_message="All")
    last, first = hub.store.repositories["model", "me/thing"].history("main")

    def git(*arguments: str, **environment: str) -> str:
        result = subprocess.run(
            ["git", *arguments],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=True,
        )
        return result.stdout.strip()

    git("init", "--quiet")
    parent: tuple[str, ...] = ()
    for commit, added in ((first, {".gitattributes": GIT_ATTRIBUTES}), (last, files)):
        for path, content in added.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(content)
        git("add", "--all")
        who = {"NAME": commit.author, "EMAIL": f"{commit.author}@users.noreply", "DATE": commit.date[:19] + "+0000"}
        who = {f"GIT_{role}_{name}": value for role in ("AUTHOR", "COMMITTER") for name, value in who.items()}
        tree = git("write-tree")
        assert git("commit-tree", "-m", commit.title, *parent, tree, **who) == commit.oid
        parent = ("-p", commit.oid)
    listed = {line.split()[3]: line.split()[2] for line in git("ls-tree", "-r", "-t", last.oid).splitlines()}
    nodes = api.list_repo_tree("me/thing", recursive=True)
    assert {node.path: getattr(node, "blob_id", None) or node.tree_id for node in nodes} == listed


def test_a_tree_is_paginated(api, hub):
    hub.page_size = 7
    hub.add("me/many", {f"data/{number:03d}.txt": b"x" for number in range(40)})
    paths = [node.path for node in api.list_repo_tree("me/many", recursive=True, repo_type="dataset")]
    assert paths == sorted([".gitattributes", "data", *(f"data/{number:03d}.txt" for number in range(40))])
    assert len(hub.asked("GET", "/tree/")) == 6
    assert len(list(api.list_repo_tree("me/many", "data", repo_type="dataset"))) == 40


def test_a_request_is_logged_once_its_answer_is_read(api, hub, monkeypatch):
    end = hub.record.end

    def late(*request):
        time.sleep(0.2)
        end(*request)

    monkeypatch.setattr(hub.record, "end", late)
    hub.add("me/thing", {"a.txt": b"1"})
    for number in range(1, 4):
        assert api.dataset_info("me/thing").id == "me/thing"
        assert len(hub.asked("GET", "me/thing")) == number


def test_branches_tags_and_commits_name_states(api, hub):
    api.create_repo("me/thing")
    first = api.create_commit("me/thing", [add("a.txt", b"1")], commit_message="First").oid
    api.create_tag("me/thing", tag="v1")
    api.create_branch("me/thing", branch="feature/new")
    api.create_commit("me/thing", [add("a.txt", b"2")], commit_message="Second", revision="feature/new")

    def content(revision: str | None) -> str:
        return Path(api.hf_hub_download("me/thing", "a.txt", revision=revision)).read_text()

    assert [content(revision) for revision in (None, "v1", first, "feature/new")] == ["1", "1", "1", "2"]
    refs = api.list_repo_refs("me/thing")
    assert {branch.name for branch in refs.branches} == {"main", "feature/new"}
    assert [(tag.name, tag.target_commit) for tag in refs.tags] == [("v1", first)]
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_branch("me/thing", branch="feature/new")
    api.delete_branch("me/thing", branch="feature/new")
    api.delete_tag("me/thing", tag="v1")
    with pytest.raises(RevisionNotFoundError):
        content("v1")
    request = api.create_commit("me/thing", [add("b.txt", b"b")], commit_message="Ask", create_pr=True)
    assert request.pr_url.endswith("/discussions/1")
    assert "b.txt" not in hub.files("me/thing", "model")


def test_commits_are_atomic_and_have_parents(api, hub):
    api.create_repo("me/thing")
    first = api.create_commit("me/thing", [add("a/x.txt", b"1"), add("a/y.txt", b"2")], commit_message="First").oid
    api.create_commit("me/thing", [add("b.txt", b"3")], commit_message="Second", parent_commit=first)
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as raised:
        api.create_commit("me/thing", [add("b.txt", b"4")], commit_message="Late", parent_commit=first)
    assert raised.value.response.status_code == 412
    operations = [add("new.txt", b"n"), CommitOperationDelete("absent.txt")]
    with pytest.raises(RemoteEntryNotFoundError, match="A file with this name doesn't exist"):
        api.create_commit("me/thing", operations, commit_message="Half")
    assert set(hub.files("me/thing", "model")) == {".gitattributes", "a/x.txt", "a/y.txt", "b.txt"}
    api.create_commit("me/thing", [CommitOperationDelete("a/")], commit_message="Third")
    assert set(hub.files("me/thing", "model")) == {".gitattributes", "b.txt"}
    assert hub.history("me/thing", "model") == ["Third", "Second", "First", "initial commit"]


@pytest.mark.parametrize(("part", "puts"), [(None, 1), (100_000, 4)])
def test_large_objects_are_uploaded_once(api, hub, part, puts):
    hub.multipart_size = part
    for repository in ("me/one", "me/two"):
        api.create_repo(repository)
        operation = add("big.bin", LARGE)
        api.preupload_lfs_files(repository, [operation])
        assert hub.history(repository, "model") == ["initial commit"]  # stored, but part of no commit
        api.create_commit(repository, [operation], commit_message="Big")
    assert hub.files("me/two", "model")["big.bin"] == LARGE
    assert [request.status for request in hub.asked("PUT")] == [200] * puts


def test_a_download_resumes_where_it_was_cut(api, hub, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # the client keeps only complete chunks
    hub.add("me/thing", {"big.bin": LARGE, "small.txt": b"small"}, kind="model")
    hub.cut("GET /objects/", after=100_000)
    assert Path(api.hf_hub_download("me/thing", "big.bin")).read_bytes() == LARGE
    cut, rest = hub.asked("GET", "/objects/")
    assert (cut.status, cut.sent, rest.range, rest.status) == (0, 100_000, "bytes=100000-", 206)
    assert cut.sent + rest.sent == len(LARGE)
    api.hf_hub_download("me/thing", "small.txt")
    before = len(hub.log)
    api.hf_hub_download("me/thing", "big.bin")
    api.hf_hub_download("me/thing", "small.txt")
    assert {request.method for request in hub.log[before:]} == {"HEAD"}
    assert not any(request.sent for request in hub.log[before:])


def test_ranges_follow_http(api, hub):
    from huggingface_hub.utils import get_session

    hub.add("me/thing", {"small.txt": b"0123456789", "big.bin": LARGE}, kind="model")
    for name, content in (("small.txt", b"0123456789"), ("big.bin", LARGE)):
        for asked, expected in (
            ("2-4", content[2:5]),
            ("7-", content[7:]),
            ("-3", content[-3:]),
            ("8-99999999", content[8:]),
        ):
            got = get_session().get(
                f"{hub.endpoint}/me/thing/resolve/main/{name}",
                headers={"Range": f"bytes={asked}", "Authorization": "Bearer hf_writer"},
                follow_redirects=True,
            )
            assert (got.status_code, got.content) == (206, expected)
    assert (
        get_session().get(f"{hub.endpoint}/me/thing/resolve/main/small.txt", headers={"Range": "bytes=10-"}).status_code
        == 416
    )


def test_permissions(api, hub, tmp_path):
    api.create_repo("org/secret", private=True, repo_type="dataset")
    hub.add("org/secret", {"a.txt": b"a"})
    hub.add("me/gated", {"a.txt": b"a"}, kind="model")
    api.update_repo_settings("me/gated", gated="manual")
    anonymous, other_user, reader, wrong = (
        HfApi(endpoint=hub.endpoint, token=token) for token in (False, "hf_stranger", "hf_reader", "hf_wrong")
    )
    assert api.whoami()["name"] == "me"
    api.auth_check("org/secret", repo_type="dataset", write=True)
    for other in (anonymous, other_user):
        with pytest.raises(RepositoryNotFoundError):
            other.dataset_info("org/secret")
        with pytest.raises(GatedRepoError):
            other.hf_hub_download("me/gated", "a.txt")
    assert reader.dataset_info("org/secret").private
    for call in (
        lambda: reader.create_repo("me/new"),
        lambda: other_user.create_repo("me/new"),
        lambda: reader.create_commit("me/gated", [add("b.txt", b"b")], commit_message="No"),
        lambda: reader.auth_check("org/secret", repo_type="dataset", write=True),
    ):
        with pytest.raises(HfHubHTTPError) as raised:
            call()
        assert raised.value.response.status_code == 403
    with pytest.raises(HfHubHTTPError) as raised:
        wrong.whoami()
    assert raised.value.response.status_code == 401
    with pytest.raises(HfHubHTTPError):
        wrong.dataset_info("org/secret")
    with pytest.raises(RemoteEntryNotFoundError):
        api.hf_hub_download("me/gated", "absent.txt")
    assert ("model", "me/new") not in hub.store.repositories


def test_faults_occur_the_requested_number_of_times(api, hub, monkeypatch):
    slept = []
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", slept.append)
    api.create_repo("me/thing")
    hub.fail("PUT /objects/", status=503, times=2)
    hub.cut("PUT /objects/", after=1000)
    api.create_commit("me/thing", [add("big.bin", LARGE)], commit_message="Big")
    puts = hub.asked("PUT")
    assert [request.status for request in puts] == [503, 503, 0, 200]
    assert puts[2].received == 1000
    assert len(slept) == 3
    hub.fail("PUT /objects/", status=507, times=None)
    with pytest.raises(RuntimeError) as raised:
        api.create_commit("me/thing", [add("more.bin", LARGE + b"!")], commit_message="Full")
    assert raised.value.__cause__.response.status_code == 507
    hub.faults.clear()
    hub.lose_answer("POST /api/models/me/thing/commit")
    with pytest.raises(Exception, match="disconnected"):
        api.create_commit("me/thing", [add("more.bin", LARGE + b"!")], commit_message="Unheard")
    assert hub.history("me/thing", "model") == ["Unheard", "Big", "initial commit"]


def test_one_of_several_concurrent_commits_with_one_parent_succeeds(api, hub):
    api.create_repo("me/thing")
    head = api.model_info("me/thing").sha
    barrier = threading.Barrier(4)

    def commit(number: int) -> int:
        barrier.wait()
        try:
            api.create_commit("me/thing", [add("a.txt", b"%d" % number)], commit_message="x", parent_commit=head)
        except HfHubHTTPError as error:
            return error.response.status_code
        return 200

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(commit, range(4))) == [200, 412, 412, 412]
    assert len(hub.history("me/thing", "model")) == 2


def test_the_storage_requires_a_signature_and_no_token(api, hub):
    from huggingface_hub.utils import get_session

    hub.add("me/thing", {"big.bin": LARGE}, kind="model")
    (oid,) = hub.store.objects
    address = hub.signer.address(hub.storage, "GET", f"/objects/{oid}")
    assert get_session().get(address).content == LARGE
    assert get_session().get(address, headers={"Authorization": "Bearer hf_writer"}).status_code == 400
    assert get_session().get(address[:-1] + ("0" if address[-1] != "0" else "1")).status_code == 403
    put = hub.signer.address(hub.storage, "PUT", f"/objects/{'0' * 64}")
    assert get_session().request("PUT", put, content=b"not of this name").status_code == 400
    assert "0" * 64 not in hub.store.objects
