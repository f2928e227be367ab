"""Files of experiment grids: read into runs, with all their faults in one error before anything runs."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

from huggingface_hub.utils import HFValidationError, validate_repo_id

from cmfah_hf.data.sources.request import DATA_VARIABLE, LoadRequest
from cmfah_hf.data.sources.scenes import SCENES
from cmfah_hf.documents import read_yaml
from cmfah_hf.errors import CMFAHError
from cmfah_hf.experiments.grid import LINEAR, Grid, GridRun
from cmfah_hf.training import bundled_configuration, parse_run
from cmfah_hf.training.evaluate import PROTOCOLS as ENCODINGS
from cmfah_hf.training.settings.arguments import PROTOCOLS
from cmfah_hf.training.settings.bundled import GRIDS, find_configuration
from cmfah_hf.training.settings.configuration import Run

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,79}")
_KEYS = ("title", "data", "methods", "variants", "bits", "seeds", "protocols", "encodings", "settings")
_OF_METHOD = ("title", "config", "reference", "variants", "settings")
# Settings that differ from run to run of one configuration; that of `bits` is checked for every length.
_OF_RUN = ("seed", "hash_bits")


def read_grid(path: str | Path, data_of: Sequence[str] | None = None) -> Grid:
    """Reads a grid.

    A grid is a YAML file. Its only required key is `methods`: by name, each with a `config` (a configuration of
    `cmfah train`, next to the grid or bundled) and optionally its own `reference`, `title`, `settings` and `variants`.
    `data`, `protocols` and `variants` map names to settings, or are lists of names; a variant may have a `title`.
    `{data}` in the name of a configuration or in a setting is replaced by the name of the data set. `bits`, `seeds` and
    `encodings` are lists, and `settings` apply to all runs. Settings of a data set take precedence over these, then
    those of a protocol, of a method, and of a variant. Variants of the grid do not apply to a reference.

    Args:
        path: The file, or the name of a bundled grid, such as `wikipedia`.
        data_of: Patterns of names, as in `Grid.only`: the data sets of these runs must exist, as far as this can be
            known without a request. None: data sets are not looked for.

    Raises:
        CMFAHError: If the file cannot be read or is not such a grid. It names the file and all faults: unknown keys and
            names, missing configurations, settings that their configuration does not have or cannot use, and missing
            data sets.
    """
    path, faults = find_configuration(path, GRIDS), _Faults()
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise CMFAHError(f"{path}: the grid is {type(raw).__name__}; give a mapping of names to values.")
    axes = _Axes.read(raw, path, faults)
    runs = tuple(_runs(axes, faults))
    _check_runs(axes, runs, data_of, faults)
    faults.raise_all(path, list(axes.methods))
    return Grid(str(raw.get("title") or path.stem), runs)


class _Faults:
    """Faults in the order in which they were found, each once, with the methods that have it."""

    def __init__(self) -> None:
        self._methods_of: dict[str, set[str]] = {}

    def add(self, fault: str, method: str | None = None) -> None:
        self._methods_of.setdefault(fault.rstrip("."), set()).update([method] if method else [])

    def raise_all(self, path: Path, methods: Sequence[str]) -> None:
        shown = []
        for fault, having in self._methods_of.items():
            some = having if len(having) < len(methods) else set()
            shown.append(f"{fault} (for {', '.join(sorted(some))})" if some else fault)
        if len(shown) == 1:
            raise CMFAHError(f"{path}: {shown[0]}.")
        if shown:
            numbered = "; ".join(f"{number}. {fault}" for number, fault in enumerate(shown, start=1))
            raise CMFAHError(f"{path} has {len(shown)} faults: {numbered}.")


@dataclass(frozen=True)
class _Axes:
    """The checked parts of a grid: what has a fault is left out, or is as by default.

    Attributes:
        folder: The folder of the grid.
        data, protocols: Their settings by name.
        methods: The keys of each method.
        settings: The settings of all runs.
        bits, seeds, encodings: The lists.
    """

    folder: Path
    data: dict[str, dict[str, Any]]
    protocols: dict[str, dict[str, Any]]
    methods: dict[str, dict[str, Any]]
    settings: dict[str, Any]
    bits: list[int]
    seeds: list[int]
    encodings: list[str]

    @classmethod
    def read(cls, raw: dict[str, Any], path: Path, faults: _Faults) -> "_Axes":
        _check_keys("the grid", raw, _KEYS, faults)
        general = _named("variants", raw["variants"], faults) if raw.get("variants") else {"full": {}}
        methods = {
            name: _method(name, method, general, faults)
            for name, method in _named("methods", raw.get("methods"), faults).items()
        }
        return cls(
            path.parent,
            _named("data", raw.get("data") or {"data": None}, faults),
            _protocols(raw.get("protocols", ["seen"]), faults),
            methods,
            _mapping("settings", raw.get("settings") or {}, faults),
            _bits(raw, faults),
            _list(raw, "seeds", [0, 1, 2, 3, 4], lambda value: isinstance(value, int) and value >= 0, faults),
            _list(raw, "encodings", ["single"], lambda value: value in ENCODINGS, faults),
        )


def _method(name: str, method: dict[str, Any], general: dict[str, Any], faults: _Faults) -> dict[str, Any]:
    """The keys of a method, all present. Without a reference that exists, it has no variants, and so no runs."""
    _check_keys(f"methods, {name}", method, _OF_METHOD, faults)
    reference = method.get("reference")
    common = general if reference is None else {"full": {}}  # variants of the grid change the training
    variants = _named(f"{name}, variants", method["variants"], faults) if method.get("variants") else common
    if reference not in (None, LINEAR):
        faults.add(f"{name} has the reference {reference!r}; leave it out, or give {LINEAR!r}")
        variants = {}
    if not method.get("config"):
        faults.add(f"{name} names no config; give a configuration of `cmfah train`")
        variants = {}
    return {
        "title": str(method.get("title") or name),
        "config": str(method.get("config", "")),
        "reference": reference,
        "variants": variants,
        "settings": _mapping(f"{name}, settings", method.get("settings") or {}, faults),
    }


def _runs(axes: _Axes, faults: _Faults) -> Iterator[GridRun]:
    for (data, of_data), (name, method) in product(axes.data.items(), axes.methods.items()):
        reference, variants = method["reference"], method["variants"]
        config = _config(axes.folder, name, method["config"], data, faults) if variants else None
        if config is None:
            continue
        sizes: list[int | None] = [None] if reference == LINEAR else [*axes.bits]
        seeds = axes.seeds[:1] if reference == LINEAR else axes.seeds
        for variant, of_variant in variants.items():
            plain = method["title"]
            title = of_variant.get("title") or (plain if len(variants) == 1 else f"{plain} ({variant})")
            own = {key: value for key, value in of_variant.items() if key != "title"}
            for size, protocol, seed in product(sizes, axes.protocols, seeds):
                settings = {**axes.settings, **of_data, **axes.protocols[protocol], **method["settings"], **own}
                settings |= {"seed": seed, "protocol": protocol}
                if size is not None:
                    settings["hash_bits"] = size
                settings = {
                    key: value.replace("{data}", data) if isinstance(value, str) else value
                    for key, value in settings.items()
                }
                yield GridRun(
                    *(data, name, variant, size, protocol, seed, title, config, settings),
                    *(tuple(axes.encodings), reference),
                )


def _check_runs(axes: _Axes, runs: Sequence[GridRun], data_of: Sequence[str] | None, faults: _Faults) -> None:
    """Checks the settings of all runs, those that several runs share once, and looks for data sets."""
    parsed: dict[str, Run | None] = {}
    lengths: set[tuple[str, int | None]] = set()
    for run in runs:
        settings = {name: value for name, value in run.settings.items() if name not in _OF_RUN}
        key = json.dumps([str(run.config), run.reference, settings], sort_keys=True, default=str)
        if key not in parsed:
            parsed[key] = _parsed(axes, run, faults)
        settled = parsed[key]
        if settled is not None and (key, run.bits) not in lengths:
            lengths.add((key, run.bits))
            _check_length(run, settled, faults)
        dataset = run.settings.get("dataset") if settled is None else settled.data.dataset
        if isinstance(dataset, str) and _is_chosen(run, data_of) and is_missing(dataset):
            faults.add(f"data, {run.data}: {dataset}: there is no such folder or file, here or below {DATA_VARIABLE}")


def _parsed(axes: _Axes, run: GridRun, faults: _Faults) -> Run | None:
    """The settings of a run; None if they have a fault, or cannot be read."""
    places = _places(axes, run)
    base = {name: value for name, value in run.settings.items() if name not in places or name == "method"}
    found: list[Run] = []

    def check(given: Mapping[str, Any]) -> None:
        arguments = replace(run, settings={**base, **given}).arguments()
        parsed = parse_run(run.config, [*arguments, "--output_dir", "unused"])
        if run.reference is None:
            parsed.objective_config()
        _check_model(parsed)
        found.append(parsed)

    given = {name: value for name, value in run.settings.items() if name not in base}
    problems = _faults_of(check, given)
    for name, fault in problems:
        faults.add(f"{places[name]}: {fault}" if name else f"{run.method}: {fault}", run.method if name else None)
    return None if problems else found[0]


def _places(axes: _Axes, run: GridRun) -> dict[str, str]:
    """The place in the grid of each setting of a run."""
    method = axes.methods[run.method]
    places = {}
    for place, settings in (
        ("settings", axes.settings),
        (f"data, {run.data}", axes.data[run.data]),
        (f"protocols, {run.protocol}", axes.protocols[run.protocol]),
        (f"{run.method}, settings", method["settings"]),
        (f"variants, {run.variant}", method["variants"][run.variant]),
    ):
        places.update(dict.fromkeys(settings, place))
    return places


def _check_length(run: GridRun, parsed: Run, faults: _Faults) -> None:
    """Whether the model can have a code length."""
    try:
        _check_model(replace(parsed, model={**parsed.model, **({"hash_bits": run.bits} if run.bits else {})}))
    except ValueError as error:
        faults.add(f"{run.method}, {run.variant}: {error}")


def _check_model(parsed: Run) -> None:
    """Whether there can be such a model; one with an encoder that would have to be fetched is not checked."""
    encoders = [parsed.model_settings.get(name) for name in ("backbone", "text_backbone", "dual_encoder")]
    if all(not isinstance(name, str) or Path(name).is_dir() for name in encoders):
        parsed.model_config()


def _faults_of(check: Callable[[dict[str, Any]], Any], given: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The name and the fault of each setting that fails together with those that do not; without a name, the fault that
    there is without any of them."""

    def fault_of(settings: Mapping[str, Any]) -> str | None:
        try:
            check(dict(settings))
        except (ValueError, TypeError) as error:
            return " ".join(str(error).split())
        return None

    if fault_of(given) is None:
        return []
    if (of_none := fault_of({})) is not None:
        return [("", of_none)]
    usable: dict[str, Any] = {}
    while True:  # until no further setting can be used: some need others
        left = {name: fault_of({**usable, name: value}) for name, value in given.items() if name not in usable}
        added = next((name for name, fault in left.items() if fault is None), None)
        if added is None:
            return [(name, str(fault)) for name, fault in left.items()]
        usable[added] = given[added]


def is_missing(dataset: str) -> bool:
    """Whether a data set certainly does not exist: what may be on the Hub counts as present, without a request."""
    request = LoadRequest(dataset)
    if request.source in SCENES or request.is_address or request.exists:
        return False
    try:
        validate_repo_id(dataset)
    except HFValidationError:
        return True
    # `data/photographs`, where `CMFAH_DATA` has a folder `data`, is no id of the Hub.
    root = os.environ.get(DATA_VARIABLE)
    return bool(root) and "/" in dataset and (Path(str(root)).expanduser() / dataset.partition("/")[0]).is_dir()


def _is_chosen(run: GridRun, patterns: Sequence[str] | None) -> bool:
    return patterns is not None and (not patterns or any(fnmatchcase(run.name, pattern) for pattern in patterns))


def _config(folder: Path, method: str, name: str, data: str, faults: _Faults) -> Path | None:
    name = name.replace("{data}", data)
    sibling = folder / name
    try:
        return sibling if sibling.is_file() else bundled_configuration(name)
    except CMFAHError as error:
        faults.add(f"{method}: {error}")
        return None


def _named(key: str, value: Any, faults: _Faults) -> dict[str, dict[str, Any]]:
    """A mapping of names to mappings, or a list of names. Names must be valid folder names."""
    if isinstance(value, list):
        value = dict.fromkeys(map(str, value))
    if not isinstance(value, dict):
        _mapping(key, value, faults)
        return {}
    if not value:
        faults.add(f"{key} is empty; give at least one")
    named = {}
    for name, own in ((str(name), own) for name, own in value.items()):
        if _NAME.fullmatch(name):
            named[name] = _mapping(f"{key}, {name}", own or {}, faults)
        else:
            faults.add(f"{key} has the name {name[:80]!r}; use letters, digits, '.', '_', '+' and '-'")
    return named


def _mapping(key: str, value: Any, faults: _Faults) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    faults.add(f"{key} is {type(value).__name__}; give a mapping of names to values")
    return {}


def _protocols(given: Any, faults: _Faults) -> dict[str, dict[str, Any]]:
    settings = _named("protocols", given, faults) if isinstance(given, dict) else {}
    names = {"protocols": list(given) if isinstance(given, dict) else given}
    known = _list(names, "protocols", ["seen"], lambda value: value in PROTOCOLS, faults)
    return {name: settings.get(name, {}) for name in known}


def _bits(raw: Mapping[str, Any], faults: _Faults) -> list[int]:
    bits = _list(raw, "bits", [64], lambda value: isinstance(value, int) and value > 0, faults)
    if broken := [str(value) for value in bits if value % 8]:
        faults.add(f"bits holds {', '.join(broken)}; a code is stored in whole bytes, so give multiples of 8")
    return [value for value in bits if value % 8 == 0]


def _list(
    raw: Mapping[str, Any], key: str, default: list[Any], is_allowed: Callable[[Any], bool], faults: _Faults
) -> list[Any]:
    values = raw.get(key, default)
    if not isinstance(values, list) or not values:
        faults.add(f"{key} is {values!r}; give a list such as {default}")
        return default
    refused = [value for value in values if isinstance(value, (bool, list, dict)) or not is_allowed(value)]
    for value in refused:
        faults.add(f"{key} cannot hold {value!r}; give a list such as {default}")
    kept = [value for value in values if value not in refused]
    if len(set(kept)) < len(kept):
        faults.add(f"{key} holds a value twice; leave one of them out")
    return list(dict.fromkeys(kept))


def _check_keys(where: str, given: Mapping[str, Any], known: Sequence[str], faults: _Faults) -> None:
    for key in given:
        if key not in known:
            faults.add(f"{where} has no key {str(key)[:80]!r}; there are {', '.join(known)}")
