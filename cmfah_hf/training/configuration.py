"""A run's settings: a YAML file, then the command line over it."""

import argparse
import difflib
import re
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import yaml
from transformers import HfArgumentParser

from cmfah_hf.errors import CMFAHError
from cmfah_hf.models import CMFAHConfig
from cmfah_hf.training.arguments import CMFAHTrainingArguments, DataArguments

SECTIONS = ("model", "data", "training")
# Made from the data, or the parent's own business; setting them by hand would only break the model.
_NOT_FOR_HAND = {
    *("vocab_size", "pad_token_id", "unk_token_id", "id2label", "label2id", "problem_type", "architectures"),
    *("transformers_version", "return_dict", "dtype", "chunk_size_feed_forward", "is_encoder_decoder"),
    "output_hidden_states",
}


@dataclass
class Run:
    """What one training run is told: fields of `CMFAHConfig`, the data's arguments, the trainer's arguments."""

    model: dict[str, Any]
    data: DataArguments
    training: CMFAHTrainingArguments


class _Parser(HfArgumentParser):
    """The command line's parser; `typed` gives the values of a file the same types."""

    def __init__(self):
        types = (DataArguments, CMFAHTrainingArguments)
        hints = {name: hint for kind in types for name, hint in get_type_hints(kind).items()}
        self._may_be_none = {name for name, hint in hints.items() if NoneType in get_args(hint)}
        super().__init__(types, allow_abbrev=False)

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        # `report_to` has a "none" of its own, which is not its None.
        if arg_string.lower() in ("none", "null") and action.dest in self._may_be_none - {"report_to"}:
            return None
        return super()._get_value(action, arg_string)

    def typed(self, name: str, value: Any) -> Any:
        action = next(action for action in self._actions if action.dest == name)
        if value is None and name not in self._may_be_none:
            raise CMFAHError(f"{name} cannot be null.")
        if action.nargs == "+" and value is not None:
            return [self._get_value(action, str(item)) for item in (value if isinstance(value, list) else [value])]
        if isinstance(value, list) and name != "report_to":
            raise CMFAHError(f"{name} is one value, not the list {value}.")
        return value if value is None or isinstance(value, (list, dict)) else self._get_value(action, str(value))

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
        config: A YAML file with the sections `model`, `data` and `training`; None: the defaults alone.
        arguments: Of the command line, such as `["--hash_bits", "32", "--learning_rate=1e-3"]`. Any field of the
            three sections can be given so, and takes precedence over the file.

    Raises:
        CMFAHError: If the file is missing or is not such a YAML, or a name or value is not known.
    """
    settings = _read(Path(config)) if config is not None else {}
    parser = _Parser()
    data_names = {field.name for field in fields(DataArguments)}
    training_names = {field.name for field in fields(CMFAHTrainingArguments)}
    model_names = {field.name for field in fields(CMFAHConfig)} - _NOT_FOR_HAND
    known = {"model": model_names, "data": data_names, "training": training_names}
    for section, values in settings.items():
        for name in values:
            if name not in known[section]:
                raise CMFAHError(f"{config}: {section} has no setting {name!r}{_nearest(str(name), known[section])}.")
    for section in ("data", "training"):
        try:
            parser.set_defaults(
                **{name: parser.typed(name, value) for name, value in settings.get(section, {}).items()}
            )
        except (CMFAHError, argparse.ArgumentError) as error:
            raise CMFAHError(f"{config}, section {section}: {error}") from error
    data, training, rest = parser.parse_args_into_dataclasses(args=arguments or [], return_remaining_strings=True)
    model, given = dict(settings.get("model", {})), dict(_pairs(rest))
    for name in given:
        if name not in model_names:
            raise CMFAHError(f"There is no argument --{name}{_nearest(name, set().union(*known.values()))}.")
    if "backbone" in given:  # the file's `backbone_config` would outrank it
        model.pop("backbone_config", None)
    model.update(given)
    return Run(model, data, training)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        raise CMFAHError(f"{path}: there is no such configuration; hub_configs/ holds some to start from.")
    try:
        settings = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CMFAHError(f"{path}: not valid YAML ({' '.join(str(error).split())}).") from error
    if not isinstance(settings, dict) or not all(isinstance(values, dict) for values in settings.values()):
        raise CMFAHError(f"{path}: a configuration has the sections {', '.join(SECTIONS)}, each with its settings.")
    unknown = set(settings) - set(SECTIONS)
    if unknown:
        raise CMFAHError(f"{path}: there is no section {sorted(unknown)[0]!r}; there are {', '.join(SECTIONS)}.")
    return settings


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes `1e-3` for a string; everyone who writes a learning rate means the number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][-+]?\d+)$"),
    list("-+0123456789."),
)


def _pairs(arguments: list[str]) -> list[tuple[str, Any]]:
    pairs, rest = [], list(arguments)
    while rest:
        first = rest.pop(0)
        if not first.startswith("--"):
            raise CMFAHError(f"{first!r} is no argument; they are given as --name value.")
        name, equals, value = first.removeprefix("--").partition("=")
        if not equals:
            values = []
            while rest and not rest[0].startswith("--"):
                values.append(rest.pop(0))
            value = "true" if not values else values[0] if len(values) == 1 else f"[{', '.join(values)}]"
        pairs.append((name.replace("-", "_"), yaml.load(value, Loader=_Loader)))
    return pairs


def _nearest(name: str, known: set[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}" if near else ""
