"""Descriptions of the settings of a run, for `cmfah train --help`."""

import inspect
import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields
from enum import Enum
from typing import Any

from cmfah_hf.methods import objective_class
from cmfah_hf.models import MODELS
from cmfah_hf.training.settings.arguments import CMFAHTrainingArguments, DataArguments
from cmfah_hf.training.settings.configuration import check_method, known_names

# An entry of `Args:`, such as "a, b (`int`, default to 1):" or "a: ...", and the lines that are indented more.
_ENTRY = re.compile(r"^    (?P<names>\w+(?:, \w+)*)(?: \(.*\))?:(?P<about>.*\n?(?:        .*\n?|\n)*)", re.MULTILINE)


@dataclass(frozen=True)
class Setting:
    """A setting: its name, its default as text, empty if there is none, and its description."""

    name: str
    default: str
    about: str


def setting_groups(method: str = "cmfah") -> dict[str, list[Setting]]:
    """All settings of `cmfah train` with a method, by group, each sorted by name.

    Raises:
        CMFAHError: If there is no such method.
    """
    check_method("--method", method)
    objective = objective_class(method)
    model, of_objective, known = MODELS[objective.model_type].config, objective.settings_class, known_names(method)
    groups = {
        f"The objective of {method}": _described(of_objective, known["method"], _documented(objective, of_objective)),
        "Model": _described(model, known["model"] - known["method"], _documented(model)),
    }
    for title, kind in (("Data", DataArguments), ("Training", CMFAHTrainingArguments)):
        helps = {field.name: " ".join(field.metadata.get("help", "").split()) for field in fields(kind)}
        groups[title] = _described(kind, set(helps), helps)
    return groups


def _described(kind: Any, names: set[str], abouts: Mapping[str, str]) -> list[Setting]:
    found = [Setting(field.name, _default(field), abouts.get(field.name, "")) for field in fields(kind)]
    return sorted((one for one in found if one.name in names), key=lambda setting: setting.name)


def _documented(*kinds: type) -> dict[str, str]:
    """The description of each argument, from the docstrings of classes and their parents."""
    abouts: dict[str, str] = {}
    for parent in (parent for kind in kinds for parent in kind.__mro__):
        for entry in _ENTRY.finditer(inspect.cleandoc(parent.__doc__ or "")):
            for name in entry["names"].split(", "):
                abouts.setdefault(name, " ".join(entry["about"].split()))
    return abouts


def _default(field: Field[Any]) -> str:
    value = field.default if field.default_factory is MISSING else field.default_factory()
    if value is MISSING or value is None:
        return ""
    return str(value.value if isinstance(value, Enum) else value)
