"""Grids: the runs of a file, their arguments, and invalid files."""

import pytest
import yaml

from cmfah_hf.errors import CMFAHError
from cmfah_hf.experiments import grid_files, read_grid
from cmfah_hf.experiments.grid import as_arguments
from cmfah_hf.experiments.grid_files import is_missing
from cmfah_hf.training import bundled_configuration, parse_run

EXPERIMENTS = sorted(bundled_configuration("cmfah-scenes.yaml").parent.glob("experiments/*.yaml"))


def test_runs_are_the_product_of_the_axes(write_grid, tmp_path):
    grid = read_grid(
        write_grid(
            methods={
                "cmfah": {"config": "tiny-{data}.yaml", "variants": {"both": None, "none": {"attention": "none"}}},
                "linear": {"title": "linear", "config": "tiny-{data}.yaml", "reference": "linear"},
            },
            bits=[16, 32],
            protocols=["seen", "unseen"],
            settings={"num_train_epochs": 3, "words_from": "words-of-{data}"},
        )
    )
    assert grid.title == "Tiny"
    names = [run.name for run in grid.runs]
    assert len(set(names)) == len(names) == 2 * 2 * 2 * 2 + 2
    assert names[0] == "scenes/cmfah/both/16-bits/seen/seed-0"
    assert names[-1] == "scenes/linear/full/real/unseen/seed-0"
    assert [run.title for run in grid.runs if run.seed == 1 and run.bits == 32 and run.protocol == "seen"] == [
        "cmfah (both)",
        "cmfah (none)",
    ]
    run = grid.only(["*/none/32-bits/unseen/seed-1"])[0]
    parsed = parse_run(run.config, [*run.arguments(), "--output_dir", str(tmp_path)])
    assert (parsed.model["attention"], parsed.model["hash_bits"], parsed.model["freeze_backbone"]) == ("none", 32, True)
    assert (parsed.data.protocol, parsed.data.words_from) == ("unseen", "words-of-scenes")
    assert (parsed.training.seed, parsed.training.num_train_epochs) == (1, 3)
    with pytest.raises(CMFAHError, match="No run matches 'scahn'; a run is named like scenes/cmfah"):
        grid.only(["*", "scahn"])


def test_a_reference_has_its_own_variants_alone(write_grid):
    linear = {"config": "tiny-{data}.yaml", "reference": "linear"}
    grid = read_grid(
        write_grid(
            methods={"linear": linear, "varied": {**linear, "variants": {"plain": None, "mirror": {"mirror": True}}}},
            variants={"both": None, "none": {"attention": "none"}},
            settings={"num_train_epochs": 3},
        )
    )
    assert [(run.name, run.settings.get("mirror")) for run in grid.runs] == [
        ("scenes/linear/full/real/seen/seed-0", None),
        ("scenes/varied/plain/real/seen/seed-0", None),
        ("scenes/varied/mirror/real/seen/seed-0", True),
    ]


def test_a_protocol_may_have_settings(write_grid):
    """Those of a method or variant take precedence."""
    grid = read_grid(
        write_grid(
            methods={"cmfah": {"config": "tiny-{data}.yaml", "settings": {"dropout": 0.3}}},
            protocols={"seen": {"num_train_epochs": 5, "dropout": 0.1}, "unseen": None},
            variants={"both": None, "long": {"num_train_epochs": 7}},
            settings={"num_train_epochs": 3},
            seeds=[0],
        )
    )
    assert {(run.protocol, run.variant): run.settings["num_train_epochs"] for run in grid.runs} == {
        ("seen", "both"): 5,
        ("seen", "long"): 7,
        ("unseen", "both"): 3,
        ("unseen", "long"): 7,
    }
    assert {(run.settings["dropout"], run.settings["protocol"]) for run in grid.runs} == {
        (0.3, "seen"),
        (0.3, "unseen"),
    }


def test_settings_as_arguments_round_trip(tmp_path):
    settings = {
        "text_kernel_sizes": [1],
        "backbone_config": {"model_type": "resnet", "depths": [1, 1]},
        "use_lstm": False,
        "text_backbone": None,
        "image_mean": [0.1, 0.2, 0.3],
        "query_split": None,
        "refit": True,
        "learning_rate": 1e-4,
        "word_corpus": ["one.txt"],
    }
    run = parse_run(None, [*as_arguments(settings), "--output_dir", str(tmp_path)])
    assert {name: run.model[name] for name in list(settings)[:4]} == dict(list(settings.items())[:4])
    assert run.data.image_mean == [0.1, 0.2, 0.3]
    assert (run.data.query_split, run.data.refit, run.data.word_corpus) == (None, True, ["one.txt"])
    assert run.training.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colors": []}, "the grid has no key 'colors'"),
        ({"methods": {}}, "methods is empty"),
        ({"methods": {"x": {}}}, "x names no config"),
        ({"methods": {"x": {"config": "gone.yaml"}}}, "gone.yaml"),
        ({"methods": {"x": {"config": "tiny-scenes.yaml", "method": "scahn"}}}, "methods, x has no key 'method'"),
        ({"methods": {"x": {"config": "tiny-scenes.yaml", "reference": "svm"}}}, "the reference 'svm'"),
        ({"methods": {"../x": {"config": "tiny-scenes.yaml"}}}, "the name '../x'"),
        ({"data": "scenes"}, "data is str"),
        ({"variants": {"both": [1]}}, "variants, both is list"),
        ({"bits": 64}, "bits is 64"),
        ({"bits": [True]}, "bits cannot hold True"),
        ({"seeds": [-1]}, "seeds cannot hold -1"),
        ({"seeds": [1, 1]}, "seeds holds a value twice"),
        ({"protocols": ["all"]}, "protocols cannot hold 'all'"),
        ({"protocols": {"all": {}}}, "protocols cannot hold 'all'"),
        ({"protocols": {"seen": [1]}}, "protocols, seen is list"),
        ({"protocols": {"seen": {"epochz": 1}}}, "protocols, seen: There is no argument --epochz"),
        ({"encodings": ["both"]}, "encodings cannot hold 'both'"),
    ],
)
def test_invalid_grids(write_grid, changes, message):
    path = write_grid(**changes)
    with pytest.raises(CMFAHError, match=message.replace("(", r"\(")) as caught:
        read_grid(path)
    assert len(str(caught.value).splitlines()) == 1
    path.write_text(yaml.safe_dump(["a list"]), encoding="utf-8")
    with pytest.raises(CMFAHError, match="the grid is list"):
        read_grid(path)


def test_all_faults_are_named_at_once(write_grid, tmp_path):
    (tmp_path / "broken.yaml").write_text("model: {hash_bitz: 16}\n", encoding="utf-8")
    path = write_grid(
        colors=[],
        data={"scenes": {"dataset": str(tmp_path / "nowhere"), "mirrored": True}},
        methods={
            "cmfah": {
                "config": "tiny-scenes.yaml",
                "variants": {"both": {"attention": "sideways"}, "low": {"label_weigth": 0, "learning_rate": "low"}},
            },
            "gone": {"config": "gone.yaml"},
            "broken": {"config": "broken.yaml", "settings": {"attention": "none"}},
            "dcmh": {"config": "tiny-scenes.yaml", "settings": {"method": "dmch"}},
            "svm": {"config": "tiny-scenes.yaml", "reference": "svm", "cost": 1},
            "scm": {"config": "fitted-scenes.yaml", "settings": {"method": "scm", "solution": "all"}},
        },
        bits=[16, 12, 4],
        seeds=[0, -1],
        settings={"optimizer": "sgd"},
    )
    with pytest.raises(CMFAHError) as caught:
        read_grid(path, data_of=[])
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for fault in (
        "the grid has no key 'colors'",
        "methods, svm has no key 'cost'",
        "svm has the reference 'svm'",
        "bits holds 12, 4; a code is stored in whole bytes",
        "seeds cannot hold -1",
        "gone.yaml: this configuration did not come",
        "settings: There is no argument --optimizer",
        "data, scenes: There is no argument --mirrored",
        "variants, low: There is no argument --label_weigth; did you mean 'label_weight' (for cmfah)",
        "variants, low: Argument --learning_rate/--learning-rate: invalid float value: 'low'",
        "variants, both: The settings of the model cannot be used: attention",
        "broken: ",
        "model has no setting 'hash_bitz'; did you mean 'hash_bits'",
        "dcmh: --method is 'dmch'",
        "scm, settings: solution is 'all'",
        f"data, scenes: {tmp_path / 'nowhere'}: there is no such folder",
    ):
        assert fault in message, fault
    assert message.startswith(f"{path} has 15 faults: 1. the grid has no key")
    assert "; 15. " in message
    assert message.count("--optimizer") == 1


def test_values_that_no_model_can_have_are_found(write_grid):
    with pytest.raises(CMFAHError, match=r"grid.yaml: variants, both: The settings of the model .*attention"):
        read_grid(write_grid(variants={"both": {"attention": "sideways"}}))
    with pytest.raises(CMFAHError, match="bits holds 12; a code is stored in whole bytes, so give multiples of 8"):
        read_grid(write_grid(bits=[12, 16]))
    with pytest.raises(CMFAHError, match=r"settings: protocol 'unseen' divides the training pairs"):
        read_grid(write_grid(settings={"streaming": True}, protocols=["seen", "unseen"]))


def test_runs_with_the_same_settings_are_parsed_once(write_grid, monkeypatch):
    parsed = []
    monkeypatch.setattr(grid_files, "parse_run", lambda *given: parsed.append(given) or parse_run(*given))
    variants = {"both": None, "none": {"attention": "none"}}
    grid = read_grid(write_grid(bits=[8, 16, 32, 64], seeds=list(range(50)), variants=variants))
    assert len(grid.runs) == 400
    assert len(parsed) == 2


def test_only_data_that_cannot_exist_is_missing(write_grid, tmp_path, monkeypatch):
    (tmp_path / "root" / "data" / "coco-pairs").mkdir(parents=True)
    monkeypatch.setenv("CMFAH_DATA", str(tmp_path / "root"))
    found = ("scenes", "data/coco-pairs", "owner/name", "name", "hf://datasets/owner/name/x.parquet", str(tmp_path))
    assert not any(map(is_missing, found))
    assert all(map(is_missing, ("data/coco-pears", "./nowhere", "a/b/c", str(tmp_path / "nowhere"))))
    path = write_grid(data={"one": {"dataset": "data/coco-pairs"}, "two": {"dataset": "data/coco-pears"}},
                      methods={"cmfah": {"config": "tiny-scenes.yaml"}})  # fmt: skip
    assert len(read_grid(path).runs) == 4
    assert len(read_grid(path, data_of=["one/*"]).runs) == 4
    with pytest.raises(CMFAHError, match=r"grid.yaml: data, two: data/coco-pears: there is no such folder"):
        read_grid(path, data_of=["*/seed-0"])


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_bundled_grids_use_existing_settings(path, tmp_path):
    grid = read_grid(path)
    assert grid.runs
    seen = set()
    for run in grid.runs:
        settings = (run.config, run.method, run.variant)
        if settings in seen:
            continue
        seen.add(settings)
        parse_run(run.config, [*run.arguments(), "--output_dir", str(tmp_path)])
