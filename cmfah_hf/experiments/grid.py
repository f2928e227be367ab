"""Experiment grids: data sets x methods x variants x code lengths x protocols x seeds, read from a YAML file."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

from cmfah_hf.documents import read_yaml
from cmfah_hf.errors import CMFAHError, DataError
from cmfah_hf.methods.shallow.hasher import SHALLOW_METHODS, ShallowHasher, hasher_class
from cmfah_hf.training import CMFAHTrainingArguments, bundled_configuration
from cmfah_hf.training.evaluate import PROTOCOLS as ENCODINGS
from cmfah_hf.training.settings.arguments import PROTOCOLS, DataArguments

# Values of `reference`: what is fitted to features instead of a training.
LINEAR = "linear"
REFERENCES = (LINEAR, *SHALLOW_METHODS)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,79}")
_KEYS = ("title", "data", "methods", "variants", "bits", "seeds", "protocols", "encodings", "settings")
_OF_METHOD = ("title", "config", "reference", "hasher", "variants", "settings")


@dataclass(frozen=True)
class GridRun:
    """One run of a grid.

    Attributes:
        data, method, variant: Their names in the grid.
        bits: The code length; None for a reference without codes.
        protocol: `"seen"` or `"unseen"`, see `DataArguments`.
        seed: The seed of the training.
        title: The name of method and variant in tables.
        config: The configuration for `cmfah train`.
        settings: Settings that take precedence over the configuration.
        encodings: `"single"`, and `"paired"` if queries are also encoded with their partners.
        reference: None, or one of `REFERENCES` instead of a training.
        hasher: The settings of a shallow method in addition to bits and seed.
    """

    data: str
    method: str
    variant: str
    bits: int | None
    protocol: str
    seed: int
    title: str
    config: Path
    settings: Mapping[str, Any]
    encodings: tuple[str, ...] = ("single",)
    reference: str | None = None
    hasher: Mapping[str, Any] = field(default_factory=dict)

    def new_hasher(self) -> ShallowHasher:
        """The shallow method of this run.

        Raises:
            DataError: If it has no such setting, or one is outside its range.
        """
        kind = hasher_class(str(self.reference))
        if unknown := self.hasher.keys() - ({each.name for each in fields(kind)} - {"bits", "seed"}):
            raise DataError(f"{kind.name} has no setting {', '.join(sorted(unknown))} here.")
        return kind(bits=self.bits or 0, seed=self.seed, **self.hasher)

    @property
    def name(self) -> str:
        """The folder of the run below the grid's output; `--only` matches it."""
        size = "real" if self.bits is None else f"{self.bits}-bits"
        return f"{self.data}/{self.method}/{self.variant}/{size}/{self.protocol}/seed-{self.seed}"

    def arguments(self) -> list[str]:
        """The settings as arguments of `cmfah train`."""
        return as_arguments(self.settings)


@dataclass(frozen=True)
class Grid:
    """The title of a grid and its runs, in the order of its file."""

    title: str
    runs: tuple[GridRun, ...]

    def only(self, patterns: Sequence[str]) -> list[GridRun]:
        """The runs whose names match one of the patterns, such as `*/scahn/*/seed-0`; all runs without patterns.

        Raises:
            CMFAHError: If a pattern matches no run.
        """
        for pattern in patterns:
            if not any(fnmatchcase(run.name, pattern) for run in self.runs):
                raise CMFAHError(f"No run matches {pattern!r}; a run is named like {self.runs[0].name}.")
        return [run for run in self.runs if not patterns or any(fnmatchcase(run.name, one) for one in patterns)]


def read_grid(path: str | Path) -> Grid:
    """Reads a grid.

    A grid is a YAML file. Its only required key is `methods`: by name, each with a `config` (a configuration of
    `cmfah train`, next to the grid or bundled) and optionally its own `reference`, `hasher` (the settings of a shallow
    method), `title`, `settings` and `variants`.
    `data` and `variants` map names to settings; a variant may have a `title`. `{data}` in the name of a configuration
    or in a setting is replaced by the name of the data set. `bits`, `seeds`, `protocols` and `encodings` are lists, and
    `settings` apply to all runs.

    Raises:
        CMFAHError: If the file cannot be read or is not such a grid. It names the file and the key.
    """
    path = Path(path)
    raw = _mapping(path, "the grid", read_yaml(path))
    _check_keys(path, "the grid", raw, _KEYS)
    data = _named(path, "data", raw.get("data") or {"data": None})
    methods = _named(path, "methods", raw.get("methods"))
    bits = _list(path, raw, "bits", [64], lambda value: isinstance(value, int) and value > 0)
    seeds = _list(path, raw, "seeds", [0, 1, 2, 3, 4], lambda value: isinstance(value, int) and value >= 0)
    protocols = _list(path, raw, "protocols", ["seen"], lambda value: value in PROTOCOLS)
    encodings = tuple(_list(path, raw, "encodings", ["single"], lambda value: value in ENCODINGS))
    general = _mapping(path, "settings", raw.get("settings") or {})
    runs = []
    for (data_name, of_data), (method_name, method) in product(data.items(), methods.items()):
        _check_keys(path, f"methods, {method_name}", method, _OF_METHOD)
        reference = method.get("reference")
        if reference not in (None, *REFERENCES):
            raise CMFAHError(f"{path}: {method_name} has the reference {reference!r}; choose {', '.join(REFERENCES)}.")
        config = _config(path, method_name, str(method.get("config", "")), data_name)
        of_method = _mapping(path, f"{method_name}, settings", method.get("settings") or {})
        of_hasher = _mapping(path, f"{method_name}, hasher", method.get("hasher") or {})
        if of_hasher and reference in (None, LINEAR):
            raise CMFAHError(f"{path}: {method_name} has a hasher, which only a shallow method as its reference has.")
        variants = _named(path, "variants", method.get("variants") or raw.get("variants") or {"full": None})
        if reference is not None:
            variants = {"full": {}}
        for variant, of_variant in variants.items():
            plain = str(method.get("title") or method_name)
            title = of_variant.get("title") or (plain if len(variants) == 1 else f"{plain} ({variant})")
            own = {name: value for name, value in of_variant.items() if name != "title"}
            sizes: list[int | None] = [None] if reference == LINEAR else [*bits]
            for size, protocol, seed in product(sizes, protocols, seeds[:1] if reference == LINEAR else seeds):
                settings = {**general, **of_data, **of_method, **own, "seed": seed, "protocol": protocol}
                if size is not None:
                    settings["hash_bits"] = size
                settings = {
                    name: value.replace("{data}", data_name) if isinstance(value, str) else value
                    for name, value in settings.items()
                }
                runs.append(
                    GridRun(
                        *(data_name, method_name, variant, size, protocol, seed, title, config, settings),
                        *(encodings, reference, of_hasher),
                    )
                )
                if reference not in (None, LINEAR):
                    _check_hasher(path, runs[-1])
    return Grid(str(raw.get("title") or path.stem), tuple(runs))


def _check_hasher(path: Path, run: GridRun) -> None:
    try:
        run.new_hasher()
    except (DataError, TypeError) as error:
        raise CMFAHError(f"{path}: {run.method}: {error}") from error


def as_arguments(settings: Mapping[str, Any]) -> list[str]:
    """Settings as arguments of `cmfah train`: `{"hash_bits": 32}` becomes `["--hash_bits", "32"]`."""
    words_apart = {field.name for kind in (DataArguments, CMFAHTrainingArguments) for field in fields(kind)}
    arguments: list[str] = []
    for name, value in settings.items():
        if isinstance(value, list) and name in words_apart:
            arguments += [f"--{name}", *map(str, value)]
        elif isinstance(value, (list, dict, bool)):
            arguments += [f"--{name}", json.dumps(value)]
        else:
            arguments += [f"--{name}", "null" if value is None else str(value)]
    return arguments


def _config(path: Path, method: str, name: str, data: str) -> Path:
    if not name:
        raise CMFAHError(f"{path}: {method} names no config; give a configuration of `cmfah train`.")
    name = name.replace("{data}", data)
    sibling = path.parent / name
    return sibling if sibling.is_file() else bundled_configuration(name)


def _named(path: Path, key: str, value: Any) -> dict[str, dict[str, Any]]:
    """A mapping of names to mappings, or a list of names. Names must be valid folder names."""
    if isinstance(value, list):
        value = dict.fromkeys(map(str, value))
    named = {str(name): own for name, own in _mapping(path, key, value).items()}
    for name in named:
        if not _NAME.fullmatch(name):
            raise CMFAHError(f"{path}: {key} has the name {name[:80]!r}; use letters, digits, '.', '_', '+' and '-'.")
    if not named:
        raise CMFAHError(f"{path}: {key} is empty; give at least one.")
    return {name: _mapping(path, f"{key}, {name}", own or {}) for name, own in named.items()}


def _mapping(path: Path, key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CMFAHError(f"{path}: {key} is {type(value).__name__}; give a mapping of names to values.")
    return value


def _list(path: Path, raw: Mapping[str, Any], key: str, default: list, is_allowed: Any) -> list:
    values = raw.get(key, default)
    if not isinstance(values, list) or not values:
        raise CMFAHError(f"{path}: {key} is {values!r}; give a list such as {default}.")
    for value in values:
        if isinstance(value, bool) or not is_allowed(value):
            raise CMFAHError(f"{path}: {key} cannot hold {value!r}; give a list such as {default}.")
    if len(set(values)) < len(values):
        raise CMFAHError(f"{path}: {key} holds a value twice; leave one of them out.")
    return values


def _check_keys(path: Path, where: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in given:
        if key not in known:
            raise CMFAHError(f"{path}: {where} has no key {str(key)[:80]!r}; there are {', '.join(known)}.")
