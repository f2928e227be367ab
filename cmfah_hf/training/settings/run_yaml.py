"""`run.yaml`: the resolved settings of a run, from which it can be repeated."""

from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from cmfah_hf.atomic import write_text
from cmfah_hf.errors import CheckpointError
from cmfah_hf.hub.model_folder import SETTINGS_NAME
from cmfah_hf.training.settings.arguments import CMFAHTrainingArguments, DataArguments
from cmfah_hf.training.settings.configuration import Run

# Settings of a single run: its folders, its reports, its machine.
_OWN_TO_A_RUN = {
    *("output_dir", "resume_from_checkpoint", "restore_callback_states_from_checkpoint", "use_cpu", "local_rank"),
    *("report_to", "run_name", "project", "disable_tqdm", "log_level", "log_level_replica", "ddp_backend"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor", "push_to_hub"),
    *("dataloader_persistent_workers", "do_train", "do_eval", "do_predict", "logging_dir"),
}
_PREFIXES_OWN_TO_A_RUN = ("hub_", "trackio_")


def write_settings(run: Run, folder: Path) -> Path:
    """Writes the settings of a run that differ from the defaults to `run.yaml`; `parse_run` reads it.

    Settings of this run only are left out: folders, logs, the machine, and everything about the Hub, such as its token.
    """
    settings = {
        "model": {name: _plain(value) for name, value in run.model.items()},
        "method": {"name": run.method, **{name: _plain(value) for name, value in run.objective.items()}},
        "data": {"dataset": run.data.dataset, **_given(run.data, DataArguments())},
        "training": _given(run.training, CMFAHTrainingArguments(use_cpu=run.training.use_cpu)),
    }
    path = folder / SETTINGS_NAME
    text = yaml.safe_dump({name: values for name, values in settings.items() if values}, sort_keys=False)
    head = f"# The settings of this model; to train it again: cmfah train {SETTINGS_NAME} --output_dir again"
    write_text(path, f"{head}\n{text}", CheckpointError)
    return path


def _given(arguments: Any, defaults: Any) -> dict[str, Any]:
    found = {}
    for field in fields(arguments):
        name, value = field.name, _plain(getattr(arguments, field.name))
        if name in _OWN_TO_A_RUN or name.startswith(_PREFIXES_OWN_TO_A_RUN):
            continue
        if value != _plain(getattr(defaults, name)):
            found[name] = value
    return found


def _plain(value: Any) -> Any:
    """A value as plain YAML."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    to_dict = getattr(value, "to_dict", None)
    return _plain(to_dict()) if to_dict is not None else str(value)
