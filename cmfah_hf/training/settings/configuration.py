"""Settings of a run: read from YAML files and the command line, written to `run.yaml`, which repeats the run."""

import argparse
import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from huggingface_hub.errors import HTTPError, StrictDataclassError
from transformers import HfArgumentParser, PreTrainedConfig

from cmfah_hf.atomic import write_text
from cmfah_hf.data import resolve_data_path
from cmfah_hf.documents import parse_yaml
from cmfah_hf.errors import CheckpointError, CMFAHError
from cmfah_hf.hub.model_folder import SETTINGS_NAME
from cmfah_hf.hub_access import folder_instead, hub_failure
from cmfah_hf.hub_requests import READING, limited
from cmfah_hf.methods import Objective, ObjectiveConfig, objective_class, registered_methods
from cmfah_hf.models import MODELS, CMFAHConfig
from cmfah_hf.models.dual_encoder import dual_encoder_class
from cmfah_hf.models.remote_code import remote_code
from cmfah_hf.training.settings.arguments import CMFAHTrainingArguments, DataArguments
from cmfah_hf.training.settings.bundled import find_configuration
from cmfah_hf.training.settings.ranges import check_finite, short
from cmfah_hf.training.settings.yaml_files import SettingsFile, merged, read_chain

# Maximum size of a number in a file; Python does not print an `int` of thousands of digits.
_MOST_BITS = 200
# The settings that name the method, by section; the first one that is given counts.
_METHOD_NAMES = (("method", "name"), ("model", "model_type"))
# Fields that are derived from the data or belong to the parent class; setting them would break the model.
_NOT_FOR_HAND = {
    *("vocab_size", "pad_token_id", "unk_token_id", "id2label", "label2id", "problem_type", "architectures"),
    *("transformers_version", "return_dict", "dtype", "chunk_size_feed_forward", "is_encoder_decoder"),
    *("output_hidden_states", "objective", "class_concepts"),
}
# Settings that may name a folder with an encoder.
_ENCODERS = ("backbone", "text_backbone", "dual_encoder")
# Settings of a single run: its folders, its reports, its machine.
_OWN_TO_A_RUN = {
    *("output_dir", "resume_from_checkpoint", "restore_callback_states_from_checkpoint", "use_cpu", "local_rank"),
    *("report_to", "run_name", "project", "disable_tqdm", "log_level", "log_level_replica", "ddp_backend"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor", "push_to_hub"),
    *("dataloader_persistent_workers", "do_train", "do_eval", "do_predict", "logging_dir"),
}
_PREFIXES_OWN_TO_A_RUN = ("hub_", "trackio_")


@dataclass
class Run:
    """The settings of a run: of its model, data, training, method and objective."""

    model: dict[str, Any]
    data: DataArguments
    training: CMFAHTrainingArguments
    method: str = "cmfah"
    objective: dict[str, Any] = field(default_factory=dict)

    @property
    def objective_class(self) -> type[Objective]:
        """The method's objective."""
        return objective_class(self.method)

    @property
    def config_class(self) -> type[CMFAHConfig]:
        """The class of the model's configuration."""
        return MODELS[self.objective_class.model_type].config

    def objective_config(self) -> ObjectiveConfig:
        """The settings of the objective, given or by default; `ValueError` if one cannot be used."""
        return self.objective_class.settings_class.from_section(self.objective)

    def setting(self, name: str) -> Any:
        """A setting of the objective or the model, given or by default; None if there is no such setting."""
        for given, defaults in ((self.objective, self.objective_class.settings_class), (self.model, self.config_class)):
            if name in given:
                return given[name]
            if hasattr(defaults, name):
                return getattr(defaults, name)
        return None

    @property
    def model_settings(self) -> dict[str, Any]:
        """The settings of the model, with the folders of its encoders, which may be below `CMFAH_DATA`."""
        named = {name: value for name in _ENCODERS if isinstance(value := self.model.get(name), str) and "/" in value}
        found = {name: resolve_data_path(value) for name, value in named.items()}
        return {**self.model, **{name: str(path) for name, path in found.items() if path.is_dir()}}

    def model_config(self) -> CMFAHConfig:
        """The configuration of the model, without the settings that depend on the data.

        Raises:
            CMFAHError: If a setting cannot be used.
        """
        settings: dict[str, Any] = {}
        watch = None
        try:
            settings = self.model_settings
            with remote_code(self.data.trust_remote_code), limited(READING) as watch:
                config = self.config_class(**settings)
                if isinstance(config.dual_encoder_config, PreTrainedConfig):
                    dual_encoder_class(config.dual_encoder_config)
            self.objective_config().apply_to(config)
            return config
        except CMFAHError:
            raise
        # transformers checks the settings of backbones in many ways.
        except (
            ValueError, TypeError, KeyError, AttributeError, OSError, ImportError, StrictDataclassError, HTTPError,
        ) as error:  # fmt: skip
            reason = _reason(error, settings, watch.given_up if watch is not None else None)
            raise CMFAHError(f"The settings of the model cannot be used: {reason}") from error


def _reason(error: Exception, settings: Mapping[str, Any], given_up: HTTPError | None) -> str:
    """Why the settings of a model cannot be used; `given_up` is the failure of the Hub, if it was asked in vain."""
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    if given_up is None or not isinstance(error, (OSError, HTTPError)):
        return reason
    encoders = [value for name in _ENCODERS if isinstance(value := settings.get(name), str) and "/" in value]
    asked = [value for value in encoders if not Path(value).is_dir()]
    named = next((value for value in asked if repr(value) in reason), next(iter(asked), None))
    return reason if named is None else f"{named}: {hub_failure(given_up)} {folder_instead(named)}"


class _Parser(HfArgumentParser):
    """The parser of the command line; `typed` converts values of a file to the same types."""

    def __init__(self):
        types = (DataArguments, CMFAHTrainingArguments)
        hints = {name: hint for kind in types for name, hint in get_type_hints(kind).items()}
        self._may_be_none = {name for name, hint in hints.items() if NoneType in get_args(hint)}
        self._may_be_mappings = {
            name for name, hint in hints.items() if any(dict in (kind, get_origin(kind)) for kind in get_args(hint))
        }
        super().__init__(types, allow_abbrev=False)  # type: ignore[arg-type]  # its own hint is that of instances

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        # For `report_to`, "none" is a value and not None.
        if arg_string.lower() in ("none", "null") and action.dest in self._may_be_none - {"report_to"}:
            return None
        return super()._get_value(action, arg_string)

    def typed(self, name: str, value: Any) -> Any:
        """A value of a file in the type of its field. Errors do not show the value, which may be a token."""
        action = next(action for action in self._actions if action.dest == name)
        if value is None:
            if name not in self._may_be_none:
                raise CMFAHError(f"{name} cannot be null.")
            return None
        if isinstance(value, dict):
            if name not in self._may_be_mappings:
                raise CMFAHError(f"{name} is one value, not a mapping.")
            return value
        if value is False and name.endswith("_strategy"):  # YAML 1.1 reads `no` as False
            value = "no"
        is_list = action.nargs == "+" or name == "report_to"
        if isinstance(value, list) and not is_list:
            raise CMFAHError(f"{name} is one value, not a list.")
        items = value if isinstance(value, list) else [value]
        for item in items:
            if isinstance(item, (list, dict)):
                raise CMFAHError(f"{name} is a list of single values.")
            if isinstance(item, int) and item.bit_length() > _MOST_BITS:
                raise CMFAHError(f"{name} is a number of {item.bit_length()} bits; give a smaller one.")
        typed = [self._get_value(action, str(item)) for item in items]
        return typed if action.nargs == "+" or isinstance(value, list) else typed[0]

    def error(self, message: str):
        raise CMFAHError(f"{message[0].upper()}{message[1:]}; see the arguments in the README.")


def parse_run(config: str | os.PathLike | None, arguments: list[str] | None = None) -> Run:
    """Reads a run's settings.

    Args:
        config: A YAML file with the sections `model`, `method`, `data` and `training`, or the name of a bundled one
            (`find_configuration`); None: the defaults. With `extends: base.yaml` it holds only differences from that
            file, see `read_chain`. `name` in `method`, or
            `model_type` in `model`, names the method; the default is `cmfah`. The settings of the objective are read
            from both sections.
        arguments: Arguments of the command line, such as `["--hash_bits", "32", "--learning_rate=1e-3"]`: any field of
            the sections, and `--method`. They take precedence over the file.

    Raises:
        CMFAHError: If a file is missing or not such a YAML file, or a name or value is unknown.
    """
    chain = read_chain(find_configuration(config)) if config is not None else []
    method, arguments = _method(chain, arguments or [])
    parser = _Parser()
    known = known_names(method)
    for file in chain:
        _set_defaults(parser, file, known)
    try:
        data, training, rest = parser.parse_args_into_dataclasses(args=arguments, return_remaining_strings=True)
    except CMFAHError:
        raise
    except (ValueError, TypeError, OSError, ImportError, NotImplementedError) as error:  # from transformers
        raise CMFAHError(f"The settings of the training cannot be used: {' '.join(str(error).split())}") from error
    given = SettingsFile(Path("command line"), {"model": dict(_pairs(rest))})
    for name in given.sections["model"]:
        if name not in known["model"]:
            hint = _other_method(name) or _nearest(name, set().union(*known.values(), {"method"}))
            raise CMFAHError(f"There is no argument --{name}{hint}.")
    model = merged([_one_section(file) for file in (*chain, given)])["model"]
    for name, value in model.items():
        check_finite(name, value)
    objective = {name: model.pop(name) for name in list(model) if name in known["method"]}
    return Run(model, data, training, method, objective)


def _one_section(file: SettingsFile) -> SettingsFile:
    """The settings of model and objective as one section, because the section `model` may hold both."""
    given = {**file.sections.get("model", {}), **file.sections.get("method", {})}
    return SettingsFile(
        file.path, {"model": {name: given[name] for name in given if name not in ("name", "model_type")}}
    )


def known_names(method: str) -> dict[str, set[str]]:
    """The names of the settings of each section."""
    data, training = ({field.name for field in fields(kind)} for kind in (DataArguments, CMFAHTrainingArguments))
    objective, model = _settings_of(method)
    return {"model": model | objective, "method": objective, "data": data, "training": training}


def _set_defaults(parser: "_Parser", file: SettingsFile, known: dict[str, set[str]]) -> None:
    """Checks the names of a file's settings, and makes those of data and training defaults of the command line."""
    for section, values in file.sections.items():
        for name in values:
            if name not in known[section] and (section, name) not in _METHOD_NAMES:
                hint = _other_method(str(name)) or _nearest(str(name), known[section])
                raise CMFAHError(f"{file.path}: {section} has no setting {short(name)}{hint}.")
    for section in ("data", "training"):
        try:
            values = file.sections.get(section, {})
            parser.set_defaults(**{name: parser.typed(name, value) for name, value in values.items()})
        except (CMFAHError, argparse.ArgumentError) as error:
            raise CMFAHError(f"{file.path}, section {section}: {error}") from error


def _method(chain: list[SettingsFile], arguments: list[str]) -> tuple[str, list[str]]:
    """The method named on the command line or else in the files, and the remaining arguments."""
    parser = _Methods(add_help=False, allow_abbrev=False)
    parser.add_argument("--method")
    given, rest = parser.parse_known_args(arguments)
    if given.method is not None:
        check_method("--method", given.method)
        return given.method, rest
    for file in reversed(chain):
        for section, name in _METHOD_NAMES:
            if (named := file.sections.get(section, {}).get(name)) is not None:
                check_method(f"{file.path}: {name}", named)
                return named, rest
    return "cmfah", rest


def check_method(name: str, method: Any) -> None:
    """Raises a `CMFAHError` if there is no such method; `name` is the setting that names it."""
    if not (isinstance(method, str) and method in registered_methods()):
        shown = repr(method) if isinstance(method, str) else f"a {type(method).__name__}"
        raise CMFAHError(f"{name} is {shown}; choose one of {', '.join(registered_methods())}.")


class _Methods(argparse.ArgumentParser):
    def error(self, message: str):
        raise CMFAHError(f"{message[0].upper()}{message[1:]}; choose one of {', '.join(registered_methods())}.")


def _settings_of(method: str) -> tuple[set[str], set[str]]:
    """The names of the settings of a method's objective, and of its model."""
    objective = objective_class(method)
    of_model = {setting.name for setting in fields(MODELS[objective.model_type].config)} - _NOT_FOR_HAND
    return objective.settings_class.names(), of_model - objective.settings_class.names()


def _other_method(name: str) -> str:
    having = [method for method in registered_methods() if name in set().union(*_settings_of(method))]
    return f", which is a setting of --method {having[0]}" if having else ""


def _pairs(arguments: list[str]) -> list[tuple[str, Any]]:
    pairs, rest = [], list(arguments)
    while rest:
        first = rest.pop(0)
        if not first.startswith("--"):
            shown = "a value that may be a token" if first.startswith("hf_") else repr(first)
            raise CMFAHError(f"{shown} is not an argument; give arguments as --name value.")
        name, equals, value = first.removeprefix("--").partition("=")
        if not equals:
            values = []
            while rest and not rest[0].startswith("--"):
                values.append(rest.pop(0))
            value = "true" if not values else values[0] if len(values) == 1 else f"[{', '.join(values)}]"
        pairs.append((name.replace("-", "_"), parse_yaml(value, f"--{name}")))
    return pairs


def _nearest(name: str, known: set[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}" if near else ""


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
    """The arguments that differ from the defaults and are not specific to one run."""
    values = {argument.name: _plain(getattr(arguments, argument.name)) for argument in fields(arguments)}
    return {
        name: value
        for name, value in values.items()
        if name not in _OWN_TO_A_RUN
        and not name.startswith(_PREFIXES_OWN_TO_A_RUN)
        and value != _plain(getattr(defaults, name))
    }


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
