"""The files for contributors: pages, forms of issues, and the workflow; what they name exists."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
# Types of the fields of a form, and what each must have.
FIELDS = {"textarea": "label", "input": "label", "dropdown": "label", "checkboxes": "label", "markdown": "value"}

if not GITHUB.is_dir():
    pytest.skip("a source distribution has no .github", allow_module_level=True)


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_the_workflow_runs_what_exists():
    workflow = read(GITHUB / "workflows" / "ci.yml")
    assert workflow["permissions"] == {"contents": "read"}
    assert set(workflow[True]) == {"push", "pull_request"}  # YAML 1.1 reads `on` as true
    (job,) = workflow["jobs"].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands == [".ci/run"]
    assert os.access(ROOT / commands[0], os.X_OK)
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]) for step in job["steps"] if "uses" in step)
    (python,) = (step["with"]["python-version"] for step in job["steps"] if "with" in step)
    minor = re.search(r'requires-python = ">=3\.(\d+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))[1]
    assert int(python.split(".")[1]) >= int(minor)
    called = re.findall(r"^make ([a-z-]+)$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    assert called
    assert set(called) <= TARGETS


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_the_forms_of_issues_are_complete(name):
    form = read(GITHUB / "ISSUE_TEMPLATE" / f"{name}.yml")
    assert form.keys() == {"name", "description", "labels", "body"}
    ids = [field["id"] for field in form["body"]]
    assert len(set(ids)) == len(ids)
    for field in form["body"]:
        assert field["attributes"][FIELDS[field["type"]]]
        assert field.keys() <= {"type", "id", "attributes", "validations"}
    assert any(field.get("validations", {}).get("required") for field in form["body"])


@pytest.mark.parametrize("path", ["CONTRIBUTING.md", ".github/pull_request_template.md"])
def test_commands_and_links_of_the_pages_exist(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    assert set(re.findall(r"`make ([a-z-]+)`", text)) <= TARGETS
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / link).exists(), link
    for file in re.findall(r"`(?:\.venv/bin/python -m pytest )?([\w./-]+(?:/|\.\w+)|\.ci/run)`", text):
        assert (ROOT / file).exists() or file == ".venv", file
