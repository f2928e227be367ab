"""Grids: the runs of a file, their arguments, and invalid files."""

import pytest
import yaml

from cmfah_hf.errors import CMFAHError
from cmfah_hf.experiments import read_grid
from cmfah_hf.experiments.grid import as_arguments
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
