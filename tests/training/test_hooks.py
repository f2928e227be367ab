"""Private hooks of `Trainer` that are overridden: their signatures, which may change with any minor version."""

import inspect
import re
from importlib.metadata import version
from pathlib import Path

import pytest
from transformers import Trainer

from cmfah_hf.training import CMFAHTrainer

HOOKS = {
    "_evaluate": ["trial", "ignore_keys_for_eval", "skip_scheduler=False"],
    "_get_output_dir": ["trial"],
    "_load_optimizer_and_scheduler": ["checkpoint"],
    "_run_epoch": [
        *("model", "epoch", "train_dataloader", "steps_in_epoch", "num_update_steps_per_epoch", "trial"),
        *("ignore_keys_for_eval", "start_time", "resume_from_checkpoint", "epochs_trained"),
        "steps_trained_in_current_epoch",
    ],
    "_save": ["output_dir=None", "state_dict=None"],
    "_save_checkpoint": ["model", "trial"],
    "_save_optimizer_and_scheduler": ["output_dir"],
}


def parameters(function) -> list[str]:
    found = list(inspect.signature(function).parameters.values())[1:]
    return [each.name if each.default is each.empty else f"{each.name}={each.default!r}" for each in found]


def test_list_of_overridden_hooks_is_complete():
    overridden = {
        name
        for name in dir(Trainer)
        if name.startswith("_")
        and not name.startswith("__")
        and inspect.isfunction(getattr(Trainer, name))
        and getattr(CMFAHTrainer, name) is not getattr(Trainer, name)
    }
    assert overridden == set(HOOKS)


@pytest.mark.parametrize("name", HOOKS)
def test_signatures_of_hooks_are_unchanged(name):
    assert parameters(getattr(Trainer, name)) == HOOKS[name]


def test_installed_transformers_is_a_checked_version():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    least, below = re.search(r'"transformers>=(\d+\.\d+),<(\d+\.\d+)"', text).groups()
    installed = tuple(map(int, version("transformers").split(".")[:2]))
    assert tuple(map(int, least.split("."))) <= installed < tuple(map(int, below.split(".")))
