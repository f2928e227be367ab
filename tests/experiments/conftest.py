"""A grid of tiny trainings, and results without trainings."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from conftest import TINY_RUN

from cmfah_hf.experiments.results import Result


@pytest.fixture
def write_grid(scenes_folder, write_config, tmp_path):
    """A function that writes a grid of one-epoch runs with a frozen backbone, with changes by key.

    `fitted-scenes.yaml` is a configuration for shallow methods.
    """

    def write(**changes) -> Path:
        write_config(
            tmp_path / "tiny-scenes.yaml",
            model={"freeze_backbone": True},
            data={"dataset": "nowhere"},
            training={"num_train_epochs": 1},
        )
        towers = {name: TINY_RUN["model"][name] for name in ("backbone_config", "image_size")}
        (tmp_path / "fitted-scenes.yaml").write_text(yaml.safe_dump({"model": towers}), encoding="utf-8")
        grid = {
            "title": "Tiny",
            "data": {"scenes": {"dataset": str(scenes_folder)}},
            "methods": {"cmfah": {"title": "CMFAH", "config": "tiny-{data}.yaml"}},
            "bits": [16],
            "seeds": [0, 1],
            **changes,
        }
        path = tmp_path / "grid.yaml"
        path.write_text(yaml.safe_dump(grid, sort_keys=False), encoding="utf-8")
        return path

    return write


@pytest.fixture
def make_results():
    """A function from values by variant, one per seed, to results with this mean MAP of both directions."""
    base = Result(
        *("run", "coco", "cmfah", "both", "CMFAH", 64, "seen", 0, "query", "seen", "single", "hamming", "mean", "map"),
        *(0.0, 1.0, json.dumps({}), json.dumps({})),
    )

    def make(values: dict[str, list[float]], **changes) -> list[Result]:
        return [
            replace(base, variant=variant, title=f"CMFAH ({variant})", seed=seed, value=value, **changes)
            for variant, of_seeds in values.items()
            for seed, value in enumerate(of_seeds)
        ]

    return make
