"""Changes that users made on the Hub, and their treatment by the next push."""

import json
import shutil

import pytest
import yaml

from cmfah_hf.errors import HubError
from cmfah_hf.hub import push_dataset, push_model, push_space
from cmfah_hf.hub.cards import card_of, marked, merged, metadata_of

THEIRS = b"---\n# by hand\nlicense: mit\ntags: [mine]\n---\n\n# My model\n\nI wrote this.\n"


@pytest.fixture
def pushed(here, hub, trained, monkeypatch):
    """A function that pushes the run, or a modified copy, and returns the files on the Hub afterwards."""
    monkeypatch.setenv("HF_TOKEN", "hf_writer")

    def push(folder=trained.folder, **settings):
        done = push_model(folder, "org/model", progress=False, **settings)
        return done, hub.files("org/model", "model")

    return push


def head_and_body(card: bytes) -> tuple[dict, str]:
    head, body = card.decode().split("---\n", 2)[1:]
    return yaml.safe_load(head), body


def test_a_card_written_by_a_user_is_kept(pushed, hub):
    hub.add("org/model", {"README.md": THEIRS, "notes.txt": b"mine"}, "model")
    done, files = pushed(license="apache-2.0")
    head, body = head_and_body(files["README.md"])
    assert body == "\n# My model\n\nI wrote this.\n"
    assert "# by hand\nlicense: mit\ntags: [mine]\n" in files["README.md"].decode()
    assert (head["license"], head["tags"]) == ("mit", ["mine"])
    assert (head["library_name"], head["model-index"][0]["name"]) == ("transformers", "model")
    assert "An image and a text share 16 bits" in files["README.cmfah-hf.md"].decode()
    assert files["notes.txt"] == b"mine"
    assert done.kept == ("README.md",)
    assert "README.cmfah-hf.md" in done.remarks[0]
    again, files_again = pushed(license="apache-2.0")
    assert (again.changed, files_again, again.kept) == (False, files, ("README.md",))
    done, files = pushed(license="apache-2.0", overwrite=True)
    assert b"I wrote this" not in files["README.md"]
    assert (done.kept, "README.cmfah-hf.md" in files) == ((), False)


def test_additions_to_a_pushed_card_are_kept(pushed, hub):
    _, files = pushed(license="mit")
    own = files["README.md"].replace(b"<!-- cmfah-hf: begin", b"Read this first.\n\n<!-- cmfah-hf: begin", 1)
    own = own.replace(b"license: mit\n", b"license: mit\nlanguage: de\n", 1) + b"\nAnd this last.\n"
    hub.add("org/model", {"README.md": own}, "model")
    done, files = pushed(license="apache-2.0", tags=["new"])
    card = files["README.md"].decode()
    head, body = head_and_body(files["README.md"])
    assert body.index("Read this first.") < body.index("cmfah-hf: begin") < body.index("And this last.")
    assert "The model: apache-2.0." in card
    assert "The model: mit." not in card
    assert (head["license"], head["language"]) == ("apache-2.0", "de")
    assert "new" in head["tags"]
    assert (done.kept, "README.cmfah-hf.md" in files) == ((), False)
    # Values corrected by a user are kept from then on.
    hub.add("org/model", {"README.md": files["README.md"].replace(b"license: apache-2.0", b"license: other")}, "model")
    _, files = pushed(license="mit")
    assert head_and_body(files["README.md"])[0]["license"] == "other"
    assert "The model: mit." in files["README.md"].decode()


def test_changes_within_a_pushed_card_are_kept(pushed, hub):
    _, files = pushed()
    changed = files["README.md"].replace(b"## Limitations", b"## Limitations (mine)")
    hub.add("org/model", {"README.md": changed}, "model")
    done, files = pushed(license="mit")
    assert b"## Limitations (mine)" in files["README.md"]
    assert b"The model: mit." in files["README.cmfah-hf.md"]
    assert done.kept == ("README.md",)


@pytest.mark.parametrize(
    "theirs",
    [
        b"---\nlicense: !!python/object/apply:os.system [x]\n---\nmine\n",
        b"---\na: [\n---\nmine\n",
        b"---\na: &a [*a]\n---\nmine\n",
        b"---\n- a\n---\nmine\n",
        b"---\n" + b"[" * 5000 + b"\n---\nmine\n",
        b"\xff\xfemine",
        b"---\na: 1\na: 2\n---\nmine\n",
    ],
)
def test_a_card_that_cannot_be_merged_is_kept_byte_for_byte(pushed, hub, theirs):
    hub.add("org/model", {"README.md": theirs}, "model")
    done, files = pushed()
    assert files["README.md"] == theirs
    assert b"An image and a text share 16 bits" in files["README.cmfah-hf.md"]
    assert done.kept == ("README.md",)


def test_a_replaced_file_is_overwritten_only_on_request(pushed, hub, trained, tmp_path):
    pushed()
    before = hub.files("org/model", "model")
    hub.add("org/model", {"config.json": b"{}", "images.index": b"mine", "plots/precision_at_k.png": b"mine"}, "model")
    there = hub.files("org/model", "model")
    folder = shutil.copytree(trained.folder, tmp_path / "run")
    with pytest.raises(HubError, match=r"config\.json.* changed on the Hub .* nothing was published") as raised:
        pushed(folder)
    assert "\n" not in str(raised.value)
    assert hub.files("org/model", "model") == there
    _, files = pushed(folder, overwrite=True)
    assert files == before | {"images.index": b"mine"}
    # A replaced plot that the next push no longer contains is kept.
    hub.add("org/model", {"plots/attention.png": b"mine"}, "model")
    done, files = pushed(attention_image=False)
    assert files["plots/attention.png"] == b"mine"
    assert done.kept == ("plots/attention.png",)


def test_a_damaged_record_is_reported_and_nothing_is_lost(pushed, hub):
    pushed()
    for content in (b"{", b"[]", b'{"files": {"a": 1}, "card": {}, "format_version": 1}', b'{"files": {}, "card": {}}'):
        hub.add("org/model", {".cmfah-hf.json": content}, "model")
        before = hub.files("org/model", "model")
        with pytest.raises(HubError, match=r"org/model: \.cmfah-hf\.json"):
            pushed()
        assert hub.files("org/model", "model") == before


def test_a_data_set_keeps_its_card_and_its_splits(here, hub, prepared):
    hub.add("org/scenes", {"README.md": b"---\nlicense: mit\n---\n\nMine.\n", "data/mine.txt": b"mine"})
    done = push_dataset(prepared.folder, "org/scenes", token="hf_writer", progress=False)
    files = hub.files("org/scenes")
    head, body = head_and_body(files["README.md"])
    assert (head["license"], body) == ("mit", "\nMine.\n")
    assert head["configs"] == metadata_of((prepared.folder / "README.md").read_text())["configs"]
    assert files["README.cmfah-hf.md"] == (prepared.folder / "README.md").read_bytes()
    assert done.kept == ("README.md",)
    assert files["data/mine.txt"] == b"mine"
    hub.add("org/scenes", {"README.md": files["README.md"].replace(b"split: query", b"split: test")})
    with pytest.raises(HubError, match=r"'configs' in the header of README\.md on the Hub"):
        push_dataset(prepared.folder, "org/scenes", token="hf_writer", progress=False)
    # A push does not remove shards that others added.
    hub.add("org/scenes", {"README.md": files["README.md"], "data/more.parquet": b"mine"})
    assert not push_dataset(prepared.folder, "org/scenes", token="hf_writer", progress=False).changed


def test_the_command_reports_kept_files(push_here, hub, prepared):
    hub.add("org/scenes", {"README.md": b"Mine."})
    result = push_here(prepared.folder, "--repo-id", "org/scenes")
    assert result.returncode == 0, result.stderr
    assert "Kept the text of README.md, which was written on the Hub" in result.stdout.splitlines()[1]
    assert "README.cmfah-hf.md" in result.stdout
    result = push_here(prepared.folder, "--repo-id", "org/scenes", "--overwrite", "--json")
    assert json.loads(result.stdout)["kept"] == []
    assert hub.files("org/scenes")["README.md"] == (prepared.folder / "README.md").read_bytes()


def test_changes_to_a_space_are_kept(here, hub):
    template = b"---\ntitle: Search\nsdk: gradio\nsdk_version: 5.0.0\napp_file: app.py\n---\n\n"
    template += b"Check out the configuration reference at https://huggingface.co/docs/hub/spaces-config-reference\n"
    hub.add("org/search", {"README.md": template}, "space")  # as created by the Hub itself

    def push(**settings):
        return push_space("org/search", token="hf_writer", progress=False, **settings)

    done = push()
    before = hub.files("org/search", "space")
    assert (done.kept, head_and_body(before["README.md"])[0]["sdk_version"]) == ((), "6.31.0")
    app = b"# mine\n" + before["app.py"]
    card = before["README.md"].replace(b"pinned: false", b"pinned: true")
    hub.add("org/search", {"app.py": app, "README.md": card}, "space")
    done = push(limit=12)
    files = hub.files("org/search", "space")
    assert (files["app.py"], files["README.md"]) == (app, card)
    assert json.loads(files["space.json"])["limit"] == 12
    assert set(done.kept) == {"README.md", "app.py"}
    hub.add("org/search", {"space.json": b"{}"}, "space")
    with pytest.raises(HubError, match=r"space\.json changed on the Hub"):
        push()


def test_merging_is_idempotent_and_exact():
    ours = card_of("license: mit\ntags:\n- a\n", "# One\n\ntext")
    theirs = ours.replace("tags:\n- a\n", "tags:\n- a   # why\nx: 1 # end\n").encode()
    new = card_of("license: apache-2.0\ntags:\n- b\nbase_model: z\n", "# Two")
    result = merged(theirs, new, {"license": "mit", "tags": ["a"]})
    assert not result.is_separate
    assert metadata_of(result.text) == {"license": "apache-2.0", "tags": ["b"], "x": 1, "base_model": "z"}
    assert "x: 1 # end" in result.text
    assert marked("# Two") in result.text
    assert merged(result.text.encode(), new, {"license": "apache-2.0", "tags": ["b"], "base_model": "z"}) == result
    # No head, Windows line ends, a repeated section.
    assert merged(b"Mine.", new, None).text.endswith("---\nMine.")
    assert merged(b"", new, None) == merged(b"\n", new, None)
    windows = ours.replace("\n", "\r\n").encode()
    assert not merged(windows, new, None).is_separate
    assert merged((ours + ours).encode(), new, None).is_separate
    assert merged(b"---\n{license: x}\n---\nMine.", new, None).text == "---\n{license: x}\n---\nMine."
