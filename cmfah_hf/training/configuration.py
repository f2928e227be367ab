"""A run's settings: a YAML file, then the command line over it."""

import argparse
import difflib
import os
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from transformers import HfArgumentParser

from cmfah_hf.documents import parse_yaml, read_yaml
from cmfah_hf.errors import CMFAHError
from cmfah_hf.models import METHODS, CMFAHConfig
from cmfah_hf.training.arguments import CMFAHTrainingArguments, DataArguments
from cmfah_hf.training.ranges import check_finite, short

SECTIONS = ("model", "data", "training")
# Of a number in a file; `int`s of thousands of digits cannot be written out.
_MOST_BITS = 200
# Made from the data, or the parent's own business; setting them by hand would only break the model.
_NOT_FOR_HAND = {
    *("vocab_size", "pad_token_id", "unk_token_id", "id2label", "label2id", "problem_type", "architectures"),
    *("transformers_version", "return_dict", "dtype", "chunk_size_feed_forward", "is_encoder_decoder"),
    "output_hidden_states",
}


@dataclass
class Run:
    """What one training run is told: fields of the model's configuration, the data's arguments, the trainer's, and the
    method, one of `METHODS`.
    """

    model: dict[str, Any]
    data: DataArguments
    training: CMFAHTrainingArguments
    method: str = "cmfah"

    @property
    def config_class(self) -> type[CMFAHConfig]:
        """The configuration that `model` holds fields of."""
        return METHODS[self.method].config

    def setting(self, name: str) -> Any:
        """A setting of the model, given or by default; None where the method has no such setting."""
        return self.model.get(name, getattr(self.config_class, name, None))


class _Parser(HfArgumentParser):
    """The command line's parser; `typed` gives the values of a file the same types."""

    def __init__(self):
        types = (DataArguments, CMFAHTrainingArguments)
        hints = {name: hint for kind in types for name, hint in get_type_hints(kind).items()}
        self._may_be_none = {name for name, hint in hints.items() if NoneType in get_args(hint)}
        self._may_be_mappings = {
            name for name, hint in hints.items() if any(dict in (kind, get_origin(kind)) for kind in get_args(hint))
        }
        super().__init__(types, allow_abbrev=False)

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        # `report_to` has a "none" of its own, which is not its None.
        if arg_string.lower() in ("none", "null") and action.dest in self._may_be_none - {"report_to"}:
            return None
        return super()._get_value(action, arg_string)

    def typed(self, name: str, value: Any) -> Any:
        """A value of a file as its field takes it. The errors name the field and not the value: it may be a token."""
        action = next(action for action in self._actions if action.dest == name)
        if value is None:
            if name not in self._may_be_none:
                raise CMFAHError(f"{name} cannot be null.")
            return None
        if isinstance(value, dict):
            if name not in self._may_be_mappings:
                raise CMFAHError(f"{name} is one value, not a mapping.")
            return value
        if value is False and name.endswith("_strategy"):  # what YAML 1.1 makes of `no`
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


def bundled_configuration(name: str) -> Path:
    """A configuration of `hub_configs/`: in the package where it is installed, beside it where it is checked out."""
    package = Path(__file__).parents[1]
    for folder in (package / "hub_configs", package.parent / "hub_configs"):
        if (folder / name).is_file():
            return folder / name
    raise CMFAHError(f"{name}: this configuration did not come with the package; install it again.")


def parse_run(config: str | Path | None, arguments: list[str] | None = None) -> Run:
    """Reads a run's settings.

    Args:
        config: A YAML file with the sections `model`, `data` and `training`; None: the defaults alone. `model_type` in
            `model` names the method; without it, it is `cmfah`.
        arguments: Of the command line, such as `["--hash_bits", "32", "--learning_rate=1e-3"]`. Any field of the
            three sections can be given so, and the `--method`, and takes precedence over the file.

    Raises:
        CMFAHError: If the file is missing or is not such a YAML, or a name or value is not known.
    """
    settings = _read(Path(config)) if config is not None else {}
    method, arguments = _method(config, settings, arguments or [])
    parser = _Parser()
    data_names = {field.name for field in fields(DataArguments)}
    training_names = {field.name for field in fields(CMFAHTrainingArguments)}
    model_names = _settings_of(method)
    known = {"model": model_names, "data": data_names, "training": training_names}
    for section, values in settings.items():
        for name in values:
            if name not in known[section]:
                hint = _other_method(str(name)) or _nearest(str(name), known[section])
                raise CMFAHError(f"{config}: {section} has no setting {short(name)}{hint}.")
    for section in ("data", "training"):
        try:
            parser.set_defaults(
                **{name: parser.typed(name, value) for name, value in settings.get(section, {}).items()}
            )
        except (CMFAHError, argparse.ArgumentError) as error:
            raise CMFAHError(f"{config}, section {section}: {error}") from error
    try:
        data, training, rest = parser.parse_args_into_dataclasses(args=arguments, return_remaining_strings=True)
    except CMFAHError:
        raise
    except (ValueError, TypeError, OSError, ImportError, NotImplementedError) as error:  # of transformers' own checks
        raise CMFAHError(f"The settings of the training cannot be used: {' '.join(str(error).split())}") from error
    model, given = dict(settings.get("model", {})), dict(_pairs(rest))
    for name in given:
        if name not in model_names:
            hint = _other_method(name) or _nearest(name, set().union(*known.values(), {"method"}))
            raise CMFAHError(f"There is no argument --{name}{hint}.")
    for name in {"backbone", "text_backbone"} & given.keys():  # the file's `backbone_config` would outrank it
        model.pop(f"{name}_config", None)
    model.update(given)
    for name, value in model.items():
        check_finite(name, value)
    return Run(model, data, training, method)


def _method(config: str | Path | None, settings: dict, arguments: list[str]) -> tuple[str, list[str]]:
    """The method that the file or, over it, the command line names; and the arguments that are left."""
    parser = _Methods(add_help=False, allow_abbrev=False)
    parser.add_argument("--method")
    given, rest = parser.parse_known_args(arguments)
    where, method = "", given.method
    in_file = settings.get("model", {}).pop("model_type", None)
    if method is None and in_file is not None:
        where, method = f"{config}: ", in_file
    if method is not None and not (isinstance(method, str) and method in METHODS):
        name = "model_type" if where else "--method"
        shown = repr(method) if isinstance(method, str) else f"a {type(method).__name__}"
        raise CMFAHError(f"{where}{name} is {shown}; choose one of {', '.join(METHODS)}.")
    return method or "cmfah", rest


class _Methods(argparse.ArgumentParser):
    def error(self, message: str):
        raise CMFAHError(f"{message[0].upper()}{message[1:]}; choose one of {', '.join(METHODS)}.")


def _settings_of(method: str) -> set[str]:
    return {field.name for field in fields(METHODS[method].config)} - _NOT_FOR_HAND


def _other_method(name: str) -> str:
    having = [method for method in METHODS if name in _settings_of(method)]
    return f", which is a setting of --method {having[0]}" if having else ""


def _read(path: Path) -> dict[str, dict[str, Any]]:
    if not os.path.exists(path):  # noqa: PTH110 - that of `Path` raises an error for a name that is too long
        raise CMFAHError(f"{path}: there is no such configuration; hub_configs/ holds some to start from.")
    settings = read_yaml(path) or {}
    if not isinstance(settings, dict) or not all(isinstance(values, dict) for values in settings.values()):
        raise CMFAHError(f"{path}: a configuration has the sections {', '.join(SECTIONS)}, each with its settings.")
    for name in settings:
        if name not in SECTIONS:
            raise CMFAHError(f"{path}: there is no section {short(name)}; there are {', '.join(SECTIONS)}.")
    return settings


def _pairs(arguments: list[str]) -> list[tuple[str, Any]]:
    pairs, rest = [], list(arguments)
    while rest:
        first = rest.pop(0)
        if not first.startswith("--"):
            shown = "a value that may be a token" if first.startswith("hf_") else repr(first)
            raise CMFAHError(f"{shown} is no argument; they are given as --name value.")
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
