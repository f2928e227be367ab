"""Settings files that extend others: merged values, and refused files."""

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cmfah_hf.errors import CMFAHError
from cmfah_hf.training import parse_run
from cmfah_hf.training.settings.configuration import write_settings
from cmfah_hf.training.settings.yaml_files import MOST_FILES, merged, read_chain

VALUES = {
    "model": {
        "hash_bits": st.sampled_from([16, 32]),
        "dropout": st.sampled_from([0.1, 0.5]),
        "text_kernel_sizes": st.lists(st.integers(1, 5), min_size=1, max_size=3),
        "backbone": st.sampled_from(["vgg11", "vgg19"]),
        "backbone_config": st.just({"model_type": "resnet", "depths": [1]}),
    },
    "data": {
        "dataset": st.sampled_from(["scenes", "pairs"]),
        "top_k": st.integers(0, 20),
        "image_mean": st.none() | st.just([0.5, 0.4, 0.3]),
        "word_corpus": st.lists(st.sampled_from(["a.txt", "b.txt"]), min_size=1),
    },
    "training": {
        "learning_rate": st.sampled_from([1e-3, 0.5]),
        "seed": st.integers(0, 9),
        "logging_strategy": st.sampled_from(["no", "epoch"]),
        "early_stopping_patience": st.none(),
    },
}
SECTIONS = st.fixed_dictionaries(
    {}, optional={name: st.fixed_dictionaries({}, optional=values) for name, values in VALUES.items()}
)


def write(path: Path, sections: dict, base: Path | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    extends = {} if base is None else {"extends": os.path.relpath(base, path.parent)}
    path.write_text(yaml.safe_dump({**extends, **sections}), encoding="utf-8")
    return path


def values_of(run):
    return run.method, run.model, run.data, {**run.training.to_dict(), "logging_dir": None}


def chained(files: list[dict], folder: Path) -> tuple[Path, dict]:
    """The last file of a chain, and the settings of the whole chain merged."""
    last, whole = None, {}
    for number, sections in enumerate(files):
        last = write(folder / f"folder{number % 2}" / f"{number}.yaml", sections, base=last)
        for name, values in sections.items():
            own = whole.setdefault(name, {})
            if "backbone" in values:
                own.pop("backbone_config", None)
            own.update(values)
    return last, whole


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.lists(SECTIONS, min_size=1, max_size=4))
def test_later_files_of_a_chain_override_earlier_ones(files, tmp_path):
    last, whole = chained(files, tmp_path)
    assert merged(read_chain(last)) == merged(read_chain(write(tmp_path / "single.yaml", whole))) == whole


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.lists(SECTIONS, min_size=2, max_size=3))
def test_run_of_a_chain_matches_that_of_one_file(files, tmp_path):
    last, whole = chained(files, tmp_path)
    runs = [parse_run(path, ["--use_cpu"]) for path in (last, write(tmp_path / "single.yaml", whole))]
    assert values_of(runs[0]) == values_of(runs[1])
    assert runs[0].model == whole.get("model", {})


def test_the_base_is_relative_to_the_file_that_names_it(tmp_path, monkeypatch):
    base = write(tmp_path / "shared/base.yaml", {"model": {"hash_bits": 32, "dropout": 0.1}, "data": {"top_k": 3}})
    middle = write(tmp_path / "shared/deep/middle.yaml", {"model": {"dropout": 0.2}}, base)
    last = write(tmp_path / "run.yaml", {"data": {"walk_length": 3}}, middle)
    monkeypatch.chdir(tmp_path / "shared")
    run = parse_run("../run.yaml", ["--use_cpu", "--top_k", "4"])
    assert run.model == {"hash_bits": 32, "dropout": 0.2}
    assert (run.data.walk_length, run.data.top_k) == (3, 4)
    assert merged(read_chain(last))["data"] == {"top_k": 3, "walk_length": 3}


def test_the_last_method_of_a_chain_wins(tmp_path):
    base = write(tmp_path / "base.yaml", {"model": {"model_type": "scahn", "queue_size": 8}})
    run = parse_run(write(tmp_path / "run.yaml", {"model": {"hash_bits": 16}}, base), ["--use_cpu"])
    assert (run.method, run.model, run.objective) == ("scahn", {"hash_bits": 16}, {"queue_size": 8})
    other = write(tmp_path / "other.yaml", {"model": {"model_type": "cmfah"}}, base)
    with pytest.raises(CMFAHError, match=r"base\.yaml: model has no setting 'queue_size', which is .* --method scahn"):
        parse_run(other, ["--use_cpu"])


def test_objective_settings_in_either_section_of_a_chain(tmp_path):
    base = write(tmp_path / "base.yaml", {"model": {"model_type": "cmfah"}, "method": {"margin": 0.1}})
    run = parse_run(write(tmp_path / "one.yaml", {"model": {"margin": 0.2}}, base), ["--use_cpu"])
    assert (run.method, run.model, run.objective) == ("cmfah", {}, {"margin": 0.2})
    other = write(tmp_path / "other.yaml", {"method": {"name": "scahn", "queue_size": 8}}, base)
    run = parse_run(other, ["--use_cpu", "--margin", "0.3"])
    assert (run.method, run.model, run.objective) == ("scahn", {}, {"margin": 0.3, "queue_size": 8})


def test_run_yaml_holds_the_resolved_settings(tmp_path):
    base = write(tmp_path / "base.yaml", {"model": {"hash_bits": 32}, "training": {"learning_rate": 0.25}})
    run = parse_run(write(tmp_path / "run.yaml", {"data": {"top_k": 3}}, base), ["--use_cpu"])
    (tmp_path / "out").mkdir()
    written = write_settings(run, tmp_path / "out")
    assert yaml.safe_load(written.read_text(encoding="utf-8")) == {
        "model": {"hash_bits": 32},
        "method": {"name": "cmfah"},
        "data": {"dataset": "scenes", "top_k": 3},
        "training": {"learning_rate": 0.25},
    }


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"run": "extends: run.yaml"}, "run.yaml extends itself, through"),
        ({"run": "extends: a.yaml", "a": "extends: b.yaml", "b": "extends: ./../here/a.yaml"}, "a.yaml extends itself"),
        ({"run": "extends: gone.yaml"}, "run.yaml extends 'gone.yaml', which does not exist"),
        ({"run": "extends: a.yaml", "a": "extends: b/gone.yaml"}, "a.yaml extends 'b/gone.yaml', which does not exist"),
        ({"run": "extends: [a.yaml, b.yaml]"}, "run.yaml: extends is list; give the path of one YAML file"),
        ({"run": "extends:"}, "run.yaml: extends is None; give the path of one YAML file"),
        ({"run": "extends: /etc/passwd"}, "run.yaml: extends is '/etc/passwd'; give the path of one YAML file, rel"),
        ({"run": 'extends: "a\\0b"'}, "run.yaml extends 'a\\\\x00b', which does not exist"),
        ({"run": f"extends: {'x' * 5000}"}, "which does not exist"),
        ({"run": "extends: ."}, "is a folder; give a file"),
        ({"run": "extends: a.yaml", "a": "model: {hash_bit: 8}"}, "a.yaml: model has no setting 'hash_bit'; did you"),
        ({"run": "extends: a.yaml", "a": "data: {top_k: many}"}, "a.yaml, section data: argument --top_k"),
        ({"run": "extends: a.yaml", "a": "modle: {}"}, "a.yaml: there is no section 'modle'"),
        ({"run": "extends: a.yaml", "a": "model: [1]"}, "a.yaml: the section model is a list; give it settings"),
        ({"run": "extends: a.yaml", "a": "model: {a: 1, a: 2}"}, "a.yaml: line 1 gives 'a', as line 1 does"),
    ],
)
def test_refusals_name_the_file_in_one_line(files, message, tmp_path):
    for name, text in files.items():
        (tmp_path / "here").mkdir(exist_ok=True)
        (tmp_path / "here" / f"{name}.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(CMFAHError) as caught:
        parse_run(tmp_path / "here" / "run.yaml", ["--use_cpu"])
    assert message.replace("\\\\", "\\") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_length_of_a_chain_is_bounded(tmp_path):
    last = None
    for number in range(MOST_FILES + 1):
        last = write(tmp_path / f"{number}.yaml", {"data": {"top_k": number}}, last)
    assert merged(read_chain(tmp_path / f"{MOST_FILES - 1}.yaml"))["data"] == {"top_k": MOST_FILES - 1}
    with pytest.raises(CMFAHError, match=f"extends a chain of more than {MOST_FILES} files; shorten it"):
        merged(read_chain(last))
