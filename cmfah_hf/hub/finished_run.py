"""Publishable content of a run's folder: regular files, without paths of this machine."""

import ntpath
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cmfah_hf.data import resolve_data_path
from cmfah_hf.data.dataset_card import CARD_NAME
from cmfah_hf.documents import file_of, read_bytes, read_json, read_yaml
from cmfah_hf.errors import CheckpointError
from cmfah_hf.hub.cards import license_in
from cmfah_hf.retrieval.calibration import CALIBRATION_NAME, Calibration

SETTINGS_NAME, METRICS_NAME = "run.yaml", "metrics.json"
ATTENTION_PLOT = "plots/attention.png"
PLOTS = ("plots/precision_at_k.png", "plots/precision_recall.png", ATTENTION_PLOT)
WORDS = tuple(f"{stem}.{end}" for stem in ("expander", "knowledge", "skip_gram") for end in ("json", "safetensors"))
# Synthetic data sets.
DRAWN = ("scenes", "cluttered-scenes")
# Settings that can be local paths.
_PLACES = (
    *("dataset", "backbone_weights", "knowledge", "word_corpus", "words_from"),
    *("backbone", "text_backbone", "dual_encoder", "_name_or_path", "name_or_path"),
)
# Personal and machine-specific settings, in files not written by `cmfah train`.
_PERSONAL = re.compile(r"hub_.*|trackio_.*|.*_token|token|.*_dir|run_name|project")
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
_LARGEST_PLOT = 32 * 2**20


@dataclass(frozen=True)
class FinishedRun:
    """A finished run: the files to push and the content of its card. What was read from files has no local paths."""

    folder: Path
    settings: dict[str, dict[str, Any]]  # the sections of `run.yaml`
    metrics: dict[str, Any]
    config: dict[str, Any]
    files: dict[str, Path] = field(default_factory=dict)  # to push unchanged, by path in the repository
    dataset: str | None = None  # a Hub id, one of `DRAWN`, or the last part of a path
    dataset_id: str | None = None  # its Hub id, if it was loaded from the Hub
    data_license: str | None = None  # from the card of a local data folder
    calibration: Calibration | None = None


def read_run(folder: Path, metrics: Mapping[str, Any] | None = None) -> FinishedRun:
    """Reads the folder of a run without loading its model; `metrics` are used if the folder has none."""
    config_file = own_file(folder, "config.json")
    if config_file is None:
        where = "a folder without config.json" if folder.is_dir() else "no such folder"
        raise CheckpointError(f"{folder}: {where}; give the output folder of a training run.")
    config = _object(config_file)
    metrics_file = own_file(folder, METRICS_NAME)
    figures = {**(metrics or {}), **(_object(metrics_file) if metrics_file else {})}
    files = {name: path for name in (*WORDS, *PLOTS) if (path := own_file(folder, name)) is not None}
    for name in PLOTS:
        if name in files and not read_bytes(files[name], CheckpointError, _LARGEST_PLOT).startswith(b"\x89PNG\r\n"):
            raise CheckpointError(f"{files[name]} is not a PNG image; remove it, or plot it again.")
    calibration = None
    if (path := own_file(folder, CALIBRATION_NAME)) is not None:
        calibration, files[CALIBRATION_NAME] = Calibration.load(path), path
    settings = _settings(folder)
    given = settings.get("data", {}).get("dataset")
    dataset, dataset_id = _source(figures.get("source"), given)
    license = _license_of(given if isinstance(given, str) else None)
    if isinstance(given, str) and not (dataset_id and given.startswith("hf://")):
        settings["data"]["dataset"] = dataset_id or dataset or last_part(given) or "data"
    settings, figures, config = (without_places(each) for each in (settings, figures, config))
    return FinishedRun(folder, settings, figures, config, files, dataset, dataset_id, license, calibration)


def own_file(folder: Path, name: str) -> Path | None:
    """A regular file below a folder; None if it does not exist, an error for links that leave it, pipes and devices."""
    path = folder / name
    try:
        mode = path.lstat().st_mode
    except (OSError, ValueError):
        return None
    if stat.S_ISDIR(mode):
        return None
    inside = path.resolve().is_relative_to(folder.resolve())
    if not inside or file_of(path) is None:
        what = "leads out of the folder" if not inside else "is not a regular file"
        raise CheckpointError(f"{path} {what}, and only files of the run are pushed; put a copy of it there.")
    return path


def is_repo_id(name: Any) -> bool:
    """True for a name of the form `owner/name`."""
    return isinstance(name, str) and _REPO_ID.fullmatch(name) is not None and ".." not in name and "--" not in name


def last_part(place: str) -> str:
    """The last part of a path of any operating system; empty for `..` and the like."""
    name = ntpath.basename(place.replace("\\", "/").rstrip("/"))
    return "" if name in (".", "..", "~") or name.endswith(":") else name


def without_places(value: Any, name: str = "") -> Any:
    """Settings or metrics without personal entries, local paths reduced to their last part, tokens masked."""
    if isinstance(value, dict):
        kept = {key: inner for key, inner in value.items() if not _PERSONAL.fullmatch(str(key))}
        return {key: without_places(inner, str(key)) for key, inner in kept.items()}
    if isinstance(value, list):
        return [without_places(inner, name) for inner in value]
    if not isinstance(value, str):
        return value
    is_place = name in _PLACES and not is_repo_id(value) and "://" not in value
    if is_place or _is_local(value):
        value = last_part(value) or "data"
    return _TOKEN.sub("***", value)


def _is_local(text: str) -> bool:
    """True for a local path: absolute, in a home folder, of Windows, or existing."""
    if "\n" in text or len(text) > 4096:
        return False
    if text.startswith(("/", "~", "./", "../", "\\", "file:")) or re.match(r"[A-Za-z]:[\\/]", text):
        return True
    return "/" in text and _is_there(text)


def _is_there(place: str) -> bool:
    try:
        return resolve_data_path(place).exists()
    except (OSError, ValueError):
        return False


def _source(recorded: Any, given: Any) -> tuple[str | None, str | None]:
    """The data's name and Hub id as recorded by training; older runs record only scenes reliably."""
    if isinstance(recorded, dict):
        kind, name = recorded.get("kind"), recorded.get("name")
        if kind == "hub" and is_repo_id(name):
            return name, name
        if kind == "scenes" and name in DRAWN:
            return name, None
        return (last_part(name) or None if kind == "local" and isinstance(name, str) else None), None
    if not isinstance(given, str):
        return None, None
    return (given if given in DRAWN else last_part(given) if _is_local(given) else None) or None, None


def _object(path: Path) -> dict[str, Any]:
    content = read_json(path, CheckpointError)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: is not a JSON object; restore it, or train again.")
    return content


def _settings(folder: Path) -> dict[str, dict[str, Any]]:
    path = own_file(folder, SETTINGS_NAME)
    content = (read_yaml(path, CheckpointError) if path is not None else None) or {}
    if not isinstance(content, dict) or not all(isinstance(values, dict) for values in content.values()):
        raise CheckpointError(f"{path}: does not hold the settings of a run; correct or remove it.")
    return content


def _license_of(dataset: str | None) -> str | None:
    """The license in the card of a local data set; a fixed text for synthetic scenes."""
    if dataset is None or dataset in DRAWN:
        return "not needed (synthetic scenes)" if dataset in DRAWN else None
    if not _is_there(dataset):
        return None
    card = file_of(resolve_data_path(dataset) / CARD_NAME)
    return None if card is None else license_in(card)
