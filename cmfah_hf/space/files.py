"""A Space as files: the app, the package that it runs, and the model, by their paths in its repository."""

import shutil
from pathlib import Path

from cmfah_hf.atomic import atomic_folder
from cmfah_hf.documents import file_of
from cmfah_hf.errors import CheckpointError
from cmfah_hf.space.settings import SETTINGS_NAME, bundled_space

# What a search needs of a run's folder. Its checkpoints, plots and word vectors stay where they are.
_MODEL_FILES = (
    "config.json",
    "model.safetensors",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
_FURTHER_FILES = (
    "expander.json",
    "expander.safetensors",
    "knowledge.json",
    "knowledge.safetensors",
    "metrics.json",
)
_APP_FILES = ("app.py", "README.md", "requirements.txt")
_PACKAGE_SUFFIXES = (".py", ".css", ".typed")


def model_files(folder: Path) -> dict[str, Path]:
    """The files of a run's folder that a Space needs, by name.

    Raises:
        CheckpointError: If one is missing without which the model cannot be loaded.
    """
    for name in _MODEL_FILES:
        if file_of(folder / name) is None:
            raise CheckpointError(f"{folder}: there is no {name}; give a folder that a training run has left.")
    return {name: folder / name for name in (*_MODEL_FILES, *_FURTHER_FILES) if file_of(folder / name)}


def copy_model(source: Path, target: Path) -> None:
    """Put what a Space needs of a run's folder into another folder, in place of what is there.

    Raises:
        CheckpointError: If the source lacks a file, the target is no folder, or the disk refuses. The target is as it
            was.
    """
    files = model_files(source)
    with atomic_folder(target, CheckpointError) as folder:
        for name, path in files.items():
            shutil.copyfile(path, folder / name)


def space_files(model: Path | None = None) -> dict[str, Path]:
    """All of a Space but its `space.json`: the app, this package as it is installed here, and a model.

    The package goes along, so that the Space runs the very code that it was made with.

    Args:
        model: The folder of the run whose model goes along. None: none does.

    Raises:
        CMFAHError: If the embedded Space did not come with the package, or the model lacks a file.
    """
    folder, package = bundled_space(), Path(__file__).parents[1]
    files = {name: folder / name for name in _APP_FILES}
    for path in sorted(package.rglob("*")):
        inside = path.relative_to(package)
        # Where the package is installed, the embedded Space and the configurations lie inside it.
        if path.suffix in _PACKAGE_SUFFIXES and inside.parts[0] not in ("space_files", "hub_configs"):
            files[f"{package.name}/{inside.as_posix()}"] = path
    if model is not None:
        files |= {f"model/{name}": path for name, path in model_files(model).items()}
    return files


def is_space_file(path: str) -> bool:
    """Whether a file of a repository is one that a push of a Space may have left there."""
    first = path.partition("/")[0]
    return first in ("cmfah_hf", "model") or path in (*_APP_FILES, SETTINGS_NAME)
