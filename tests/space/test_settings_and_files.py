"""Parts of a Space: settings, embedded model, pinned versions, files for the Hub."""

import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from cmfah_hf.errors import CheckpointError, CMFAHError
from cmfah_hf.space import SpaceSettings, copy_model, space_files
from cmfah_hf.space.files import is_space_file
from cmfah_hf.space.settings import bundled_space

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "spaces" / "cmfah-search"


def pins() -> dict[str, str]:
    lines = (SPACE / "requirements.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if not line.startswith("#")]
    return {requirement.name: str(requirement.specifier).removeprefix("==") for requirement in found}


def test_the_embedded_space_is_the_served_one():
    assert bundled_space() == SPACE
    settings = SpaceSettings.load(SPACE)
    assert (settings.model, settings.data, settings.limit) == ("model", "scenes", 320)
    assert settings.model_source(SPACE) == str(SPACE / "model")
    assert settings.model_source(ROOT / "docs") == "model"
    assert json.loads(settings.to_json()) == json.loads((SPACE / "space.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "does not exist"),
        ("{", "is not valid JSON"),
        ("", "is not valid JSON"),
        ("[" * 100_000, "nested too deep"),
        ('{"data": ' + "[" * 500 + "]" * 500 + "}", "nested more than"),
        ('{"title": "\\ud800"}', "half of a surrogate pair"),
        ('{"limit": ' + "9" * 5000 + "}", "is not valid JSON"),
        ('{"limit": 1e400}', "from 1 to 20,000"),
        ('{"limit": 3, "limit": 4}', "twice"),
        ('"text"', "has settings other than"),
        ("[]", "has settings other than"),
        ('{"colour": "red"}', "has settings other than data, examples, hosts, limit, mcp, model, split, title"),
        ('{"limit": 0}', "from 1 to 20,000"),
        ('{"limit": true}', "from 1 to 20,000"),
        ('{"model": ""}', "is a text"),
        ('{"examples": "boat"}', "a list of texts"),
        ('{"examples": null}', "a list of texts"),
        ('{"examples": {"boat": 1}}', "a list of texts"),
        ('{"examples": [["boat"]]}', "a list of texts"),
        ('{"hosts": "localhost"}', "a list of texts"),
        ('{"hosts": ["http://localhost"]}', "is not a host"),
        ('{"title": ["x"]}', "is a text"),
        ('{"model": {}}', "is a text"),
        ('{"data": 3}', "is a text"),
        ('{"data": []}', "a list of texts"),
        ('{"data": ["a", 3]}', "a list of texts"),
        ('{"split": 3}', "the name of a split"),
        ('{"mcp": 1}', "give true"),
    ],
)
def test_invalid_settings_are_refused_in_one_line(tmp_path, content, reason):
    if content is not None:
        (tmp_path / "space.json").write_text(content, encoding="utf-8")
    with pytest.raises(CMFAHError, match=reason) as refused:
        SpaceSettings.load(tmp_path)
    assert "\n" not in str(refused.value)


def test_the_embedded_model_is_small_and_its_files_load():
    files = {path.name: path for path in (SPACE / "model").iterdir()}
    assert {path.suffix for path in files.values()} == {".json", ".safetensors"}
    assert sum(path.stat().st_size for path in files.values()) < 2 * 2**20
    for path in files.values():
        content = path.read_bytes()
        assert b"/tmp/" not in content
        assert b"/home/" not in content

    from cmfah_hf import CrossMediaRetriever

    retriever = CrossMediaRetriever.from_pretrained(SPACE / "model")
    metrics = json.loads(files["metrics.json"].read_text(encoding="utf-8"))
    assert retriever.model.config.hash_bits == metrics["hash_bits"] == 64
    assert metrics["query"]["hamming/t2i/map"] > 4 * metrics["query"]["random/map"]
    assert "sailboat" in retriever.processor.known_words("a sailboat")


def test_pinned_versions_are_installed_and_satisfy_the_package():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies = \[\n(.*?)^\]", project, re.DOTALL | re.MULTILINE)[1]
    asked = {requirement.name: requirement for requirement in map(Requirement, re.findall(r'"(.+)"', block))}
    for name, pinned in pins().items():
        assert pinned in asked[name].specifier, name
    head = (SPACE / "README.md").read_text(encoding="utf-8").split("---")[1]
    card = yaml.safe_load(head)
    assert (card["sdk"], card["app_file"]) == ("gradio", "app.py")
    assert card["sdk_version"] == pins()["gradio"]
    assert len(card["short_description"]) <= 60
    assert version("gradio").split(".")[0] == pins()["gradio"].split(".")[0]


def test_files_of_a_space_include_the_package_and_the_model():
    files = space_files(SPACE / "model")
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "cmfah_hf").rglob("*.py")}
    assert package <= set(files)
    assert {"app.py", "README.md", "requirements.txt", "cmfah_hf/space/page.css", "model/model.safetensors"} <= set(
        files
    )
    assert not [name for name in files if "__pycache__" in name or name.startswith("tests")]
    assert all(is_space_file(name) for name in files)
    assert is_space_file("space.json")
    assert not is_space_file("my-own.png")
    assert "model/config.json" not in space_files()


def test_a_run_folder_is_included_without_its_checkpoints(trained, tmp_path):
    copy_model(trained.folder, tmp_path / "model")
    shipped = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert shipped == [
        "config.json", "expander.json", "expander.safetensors", "metrics.json", "model.safetensors",
        "processor_config.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    (tmp_path / "model" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        copy_model(tmp_path / "model", tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_the_page_is_built_without_torch():
    code = (
        "import sys; from cmfah_hf.space import serving, app, settings\n"
        "from pathlib import Path\n"
        "from cmfah_hf.space.loading import EngineLoader\n"
        "from cmfah_hf.space.uploads import Uploads\n"
        "folder = settings.bundled_space()\n"
        "app.build_app(EngineLoader(settings.SpaceSettings.load(folder), folder), Uploads(Path('x')), True)\n"
        "print(*sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == ""


def test_a_model_is_copied_atomically(trained, tmp_path, monkeypatch):
    there = tmp_path / "notes.txt"
    there.write_text("mine", encoding="utf-8")
    with pytest.raises(CheckpointError, match="a folder") as refused:
        copy_model(trained.folder, there)
    assert "\n" not in str(refused.value)
    assert there.read_text(encoding="utf-8") == "mine"

    target = tmp_path / "model"
    copy_model(trained.folder, target)
    before = {path.name: path.read_bytes() for path in target.iterdir()}

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cmfah_hf.space.files.shutil.copyfile", fail)
    with pytest.raises(CheckpointError, match="No space left"):
        copy_model(trained.folder, target)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "notes.txt"]


def test_additional_hosts_and_agents_come_from_the_command_line_or_the_settings(monkeypatch):
    from cmfah_hf.cli.space import space

    served = []
    monkeypatch.setattr("cmfah_hf.space.serve", lambda settings, *_, **__: served.append(settings), raising=False)
    space(allow_host=["search.home", "10.0.0.3"])
    space(mcp=True)
    assert [settings.hosts for settings in served] == [("search.home", "10.0.0.3"), ()]
    assert [settings.mcp for settings in served] == [False, True]
    with pytest.raises(CMFAHError, match="is not a host"):
        space(allow_host=["http://search.home"])
