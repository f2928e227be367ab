"""The files of a Space: app, package and model, by path in its repository."""

import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cmfah_hf.atomic import atomic_folder
from cmfah_hf.documents import file_of, read_json
from cmfah_hf.errors import CheckpointError
from cmfah_hf.space.settings import SETTINGS_NAME, bundled_space

# Files of a run that search needs; not its checkpoints, plots and word vectors.
_MODEL_FILES = ("config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json")
_FURTHER_FILES = (
    "calibration.json", "expander.json", "expander.safetensors", "knowledge.json", "knowledge.safetensors",
    "metrics.json",
)  # fmt: skip
_APP_FILES = ("app.py", "README.md", "requirements.txt")
_PACKAGE_SUFFIXES = (".py", ".css", ".typed")


def model_files(folder: Path) -> dict[str, Path]:
    """The files of a run's folder that a Space needs, by name; `CheckpointError` if a required one is missing."""
    for name in _MODEL_FILES:
        if file_of(folder / name) is None:
            raise CheckpointError(f"{folder}: has no {name}; give the output folder of a training run.")
    return {name: folder / name for name in (*_MODEL_FILES, *_FURTHER_FILES) if file_of(folder / name)}


def copy_model(source: Path, target: Path) -> None:
    """Copies the files that a Space needs from a run's folder, replacing the target.

    Raises:
        CheckpointError: If the source lacks a file, the target is no folder, or the disk refuses. The target is as it
            was.
    """
    files = model_files(source)
    with atomic_folder(target, CheckpointError, (*_MODEL_FILES, *_FURTHER_FILES)) as folder:
        for name, path in files.items():
            shutil.copyfile(path, folder / name)


def space_files(model: Path | None = None) -> dict[str, Path]:
    """All files of a Space except `space.json`: the app, the installed package, and a model.

    The package is included so that the Space runs the code that it was made with.

    Args:
        model: The folder of the run whose model is included. None: no model.

    Raises:
        CMFAHError: If the embedded Space did not come with the package, or the model lacks a file.
    """
    folder, package = bundled_space(), Path(__file__).parents[1]
    files = {name: folder / name for name in _APP_FILES}
    for path in sorted(package.rglob("*")):
        inside = path.relative_to(package)
        # An installed package contains the embedded Space, the sources of the static page and the configurations.
        if path.suffix in _PACKAGE_SUFFIXES and inside.parts[0] not in ("space_files", "browser_files", "hub_configs"):
            files[f"{package.name}/{inside.as_posix()}"] = path
    if model is not None:
        files |= {f"model/{name}": path for name, path in model_files(model).items()}
    return files


def model_requirements(folder: Path) -> list[str]:
    """The libraries that only some models need, as this one does, in the installed versions: lines of requirements.txt.

    Raises:
        CheckpointError: If a settings file of the model is missing or damaged.
    """

    def setting(file: str, *names: str) -> Any:
        found: Any = read_json(folder / file, CheckpointError) if file_of(folder / file) else {}
        for name in names:
            found = found.get(name) if isinstance(found, dict) else None
        return found

    # The cutting of texts into words, by the processor and by the word graph.
    cutting = {setting("processor_config.json", "word_rules", "segmenter"), setting("expander.json", "tokenizer")}
    needed = {
        "timm": setting("config.json", "backbone_config", "model_type") == "timm_backbone",
        "icu4py": "icu" in cutting,
        "rjieba": "chinese" in cutting,
    }
    return [_pinned(name) for name, is_needed in needed.items() if is_needed]


def _pinned(library: str) -> str:
    try:
        return f"{library}=={version(library)}"
    except PackageNotFoundError:  # on a machine that only pushes
        return library


def is_space_file(path: str) -> bool:
    """True for files that an earlier push of a Space wrote."""
    first = path.partition("/")[0]
    return first in ("cmfah_hf", "model") or path in (*_APP_FILES, SETTINGS_NAME)
