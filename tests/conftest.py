"""Fixtures shared by several test folders: scenes on disk, tiny trained models, environments for new processes."""

import gc
import os
import shutil
import tempfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before torch is imported: for models this small, a second thread costs more than it saves.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Before transformers is imported: one cache of the code of models for this process, because Python finds the modules of
# only one.
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="modules-of-models-")

import pytest
import yaml
from hypothesis import settings

# The time of an example depends on the load of the machine more than on the code.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


# What imports and collection make lives to the end: it is not searched for garbage, neither meanwhile nor, by each full
# collection of a test or of a trainer, later.
gc.disable()


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_sessionfinish() -> None:
    shutil.rmtree(os.environ["HF_MODULES_CACHE"], ignore_errors=True)
    gc.unfreeze()  # at exit, some libraries report what is still there


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fuzz-inputs", type=int, default=10_000, help="Inputs of all mutation tests (tests/fuzz) together."
    )


# Tests must not modify this; they change copies.
TINY_RUN = {
    "model": {
        "hash_bits": 16,
        "backbone_config": {
            "model_type": "resnet",
            "layer_type": "basic",
            "embedding_size": 8,
            "hidden_sizes": [8, 16],
            "depths": [1, 1],
        },
        "freeze_backbone": False,
        "image_size": 32,
        "hidden_size": 16,
        "word_dim": 8,
        "text_filters": 8,
        "text_kernel_sizes": [1, 3],
        "use_lstm": False,
        "num_concepts": 4,
        "adversarial_weight": 0.1,
        "label_weight": 8,
    },
    "data": {"expand": True, "top_k": 3, "word_epochs": 2},
    "training": {
        "optim": "adamw_torch",
        "learning_rate": 3.0e-3,
        "discriminator_learning_rate": 1.0e-3,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 16,
        "use_cpu": True,
        "disable_tqdm": True,
    },
}


@dataclass(frozen=True)
class Trained:
    """A finished run: its model folder, the scenes it was trained on, its metrics and its configuration file."""

    folder: Path
    scenes: Path
    metrics: dict[str, Any]
    config: Path


@pytest.fixture(scope="session", autouse=True)
def assets_cache(tmp_path_factory) -> Path:
    """The cache of fingerprints and of folders' indexes for this test run only."""
    folder = tmp_path_factory.mktemp("assets")
    patch = pytest.MonkeyPatch()
    patch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(folder))
    yield folder
    patch.undo()


@pytest.fixture(scope="session")
def datasets_cache(tmp_path_factory) -> Path:
    """The cache of `datasets` for this test run only."""
    import datasets

    folder = tmp_path_factory.mktemp("cache-of-datasets")
    patch = pytest.MonkeyPatch()
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    datasets.disable_progress_bars()
    yield folder
    patch.undo()


@pytest.fixture(scope="session")
def scenes_folder(tmp_path_factory, datasets_cache) -> Path:
    """48 training and 16 query scenes as a folder of images with metadata."""
    from cmfah_hf.data import load_scenes, write_imagefolder

    return write_imagefolder(load_scenes(48, 16, image_size=48), tmp_path_factory.mktemp("drawn") / "pairs")


@pytest.fixture(scope="session")
def write_config() -> Callable[..., Path]:
    """A function that writes the tiny run's configuration, with changes by section, and returns the file."""

    def write(path: Path, **changes: dict[str, Any]) -> Path:
        settings = deepcopy(TINY_RUN)
        for section, values in changes.items():
            settings[section].update(values)
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def trained(scenes_folder, write_config, tmp_path_factory) -> Trained:
    """A tiny model trained by a real run, two epochs over the scenes. Read-only: tests change copies."""
    from cmfah_hf.training import parse_run, train

    root = tmp_path_factory.mktemp("trained")
    config = write_config(root / "run.yaml", data={"dataset": str(scenes_folder)})
    metrics = train(parse_run(config, ["--output_dir", str(root / "model")]))
    return Trained(root / "model", scenes_folder, metrics, config)


@pytest.fixture(scope="session")
def trained_scahn(scenes_folder, write_config, tmp_path_factory) -> Trained:
    """The same for SCAHN with a queue and all checkpoints. Read-only: tests change copies."""
    from cmfah_hf.training import parse_run, train

    root = tmp_path_factory.mktemp("trained-scahn")
    config = write_config(
        root / "run.yaml",
        model={"queue_size": 24, "freeze_backbone": True},
        data={"dataset": str(scenes_folder)},
        training={"save_total_limit": 9},
    )
    metrics = train(parse_run(config, ["--method", "scahn", "--output_dir", str(root / "model")]))
    return Trained(root / "model", scenes_folder, metrics, config)


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """The environment of a new process: its own caches, no network, this package importable from anywhere."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    return own | {
        "HF_HOME": str(tmp_path / "hf-home"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "TOKENIZERS_PARALLELISM": "false",
    }


@pytest.fixture(scope="session")
def exported(trained, tmp_path_factory) -> Path:
    """A copy of the tiny model with its ONNX files in float32. Read-only: tests change copies."""
    from cmfah_hf.retrieval.onnx.export import export_onnx

    folder = tmp_path_factory.mktemp("exported") / "model"
    shutil.copytree(trained.folder, folder, ignore=shutil.ignore_patterns("checkpoint-*"))
    export_onnx(folder)
    return folder
