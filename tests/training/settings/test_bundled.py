"""Bundled configurations by name, and the descriptions of all settings."""

from dataclasses import fields
from pathlib import Path

import pytest

from cmfah_hf.errors import CMFAHError
from cmfah_hf.experiments import read_grid
from cmfah_hf.methods import registered_methods
from cmfah_hf.training import bundled_configuration, parse_run
from cmfah_hf.training.settings.arguments import CMFAHTrainingArguments, DataArguments
from cmfah_hf.training.settings.bundled import bundled_files, bundled_folder, find_configuration
from cmfah_hf.training.settings.configuration import known_names
from cmfah_hf.training.settings.described import setting_groups


@pytest.mark.parametrize(
    ("name", "below", "file"),
    [
        ("scenes", "", "cmfah-scenes.yaml"),
        ("cmfah-scenes", "", "cmfah-scenes.yaml"),
        ("hub_configs/cmfah-scenes.yaml", "", "cmfah-scenes.yaml"),
        ("scahn-scenes.yaml", "", "scahn-scenes.yaml"),
        ("methods/scm", "", "methods/scm.yaml"),
        ("paper/mirflickr", "", "paper/cmfah-mirflickr.yaml"),
        ("wikipedia", "experiments", "experiments/wikipedia.yaml"),
        ("scenes", "experiments", "experiments/scenes.yaml"),
        ("hub_configs/experiments/scenes.yaml", "experiments", "experiments/scenes.yaml"),
    ],
)
def test_bundled_files_are_found_by_name_from_anywhere(tmp_path, monkeypatch, name, below, file):
    monkeypatch.chdir(tmp_path)
    assert find_configuration(name, below) == bundled_folder() / file


def test_a_folder_does_not_hide_a_bundled_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photographs").mkdir()
    assert find_configuration("photographs") == bundled_folder() / "cmfah-photographs.yaml"


def test_a_file_comes_before_a_bundled_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("scenes").write_text("model: {hash_bits: 16}\n")
    assert parse_run("scenes").model["hash_bits"] == 16
    Path("scenes").unlink()
    assert parse_run("scenes").model == parse_run(bundled_configuration("cmfah-scenes.yaml")).model
    assert len(read_grid("wikipedia").runs) == len(read_grid(bundled_configuration("experiments/wikipedia.yaml")).runs)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("photograps", "such as photographs"),
        ("x" * 10_000, "lists"),
        ("", "lists"),
        ("../base", "lists"),
        ("/", "file"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name, hint):
    with pytest.raises(CMFAHError, match=hint) as caught:
        parse_run(name)
    assert len(str(caught.value).splitlines()) == 1


def test_every_bundled_file_says_what_it_is():
    files = bundled_files()
    assert {file.path for file in files} == set(bundled_folder().rglob("*.yaml"))
    assert all(find_configuration(file.name) == file.path for file in files)
    assert [file.name for file in files if len(file.about) < 5] == []


@pytest.mark.parametrize("method", registered_methods())
def test_every_setting_is_described(method):
    groups = setting_groups(method)
    known = known_names(method)
    assert [len(group) for group in groups.values()] == [
        len(known["method"]), len(known["model"] - known["method"]), len(known["data"]), len(known["training"]),
    ]  # fmt: skip
    assert [one.name for group in groups.values() for one in group if not one.about] == []


def test_defaults_are_those_of_the_classes():
    groups = setting_groups()
    shown = {one.name: one.default for one in groups["The objective of cmfah"]}
    assert (shown["margin"], shown["similarity_weight"]) == ("0.5", "0.0")
    assert {one.name: one.default for one in groups["Model"]}["hash_bits"] == "64"
    for title, kind in (("Data", DataArguments), ("Training", CMFAHTrainingArguments)):
        assert [one.name for one in groups[title]] == sorted(field.name for field in fields(kind))
    assert {one.name: one.default for one in groups["Training"]}["lr_scheduler_type"] == str(
        CMFAHTrainingArguments(use_cpu=True).lr_scheduler_type.value
    )
