"""A training run's folder as what goes onto the Hub.

README.md                               the card
config.json, *.py                       the towers' configuration, and the code of models, processor and pipeline
model.safetensors                       the towers alone, which is what `from_pretrained` fetches
pretraining.safetensors                 discriminators, label and concept heads, and with
model.safetensors.index.pretraining.json  `from_pretrained(..., variant="pretraining")` the whole for training
processor_config.json, tokenizer*.json  the processor
expander.*, knowledge.*, skip_gram.*    the word graph, its knowledge, the word vectors
run.yaml, metrics.json, plots/          what it was told, what came out
pictures.index, texts.index             the indexes, if they were given
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cmfah_hf.data.loading import resolve_data_path
from cmfah_hf.errors import CheckpointError
from cmfah_hf.retrieval.retriever import PICTURES_INDEX, TEXTS_INDEX

logger = logging.getLogger(__name__)

SETTINGS_NAME, METRICS_NAME = "run.yaml", "metrics.json"
TRAINING_VARIANT = "pretraining"
TRAINING_WEIGHTS = "pretraining.safetensors"
TRAINING_INDEX = "model.safetensors.index.pretraining.json"
ATTENTION_PLOT = "plots/attention.png"
PLOTS = ("plots/precision_at_k.png", "plots/precision_recall.png", ATTENTION_PLOT)
_WORDS = tuple(f"{stem}.{end}" for stem in ("expander", "knowledge", "skip_gram") for end in ("json", "safetensors"))
# Data sets that code draws.
DRAWN = ("scenes", "cluttered-scenes")
# Settings that are places on somebody's disk; of an absolute path the last part alone is anyone else's business.
_PLACES = ("dataset", "backbone_weights", "knowledge", "word_corpus", "words_from")


@dataclass(frozen=True)
class FinishedRun:
    """What a card says of a run, and what is there to be pushed.

    Args:
        folder: Of the run.
        settings: The sections of `run.yaml`, without the places of this machine; empty if there is none.
        metrics: Of `metrics.json`.
        config: The model's configuration, as `config.json` holds it.
        files: What goes up as it stands, by its path in the repository.
        dataset: What the run was told to train on: a Hub id, `scenes`, or of a folder the name alone.
        data_licence: What the card of the data says, if the data is a folder with a card.
    """

    folder: Path
    settings: dict[str, dict[str, Any]]
    metrics: dict[str, Any]
    config: dict[str, Any]
    files: dict[str, Path] = field(default_factory=dict)
    dataset: str | None = None
    data_licence: str | None = None


def read_run(folder: Path, metrics: Mapping[str, Any] | None = None) -> FinishedRun:
    """Looks at the folder of a run; nothing is loaded.

    Args:
        folder: Where a training run, or a trainer, left its model.
        metrics: Figures, where the folder has none of its own.

    Raises:
        CheckpointError: If it holds no model, or a file of it cannot be read.
    """
    config_file = folder / "config.json"
    if not config_file.is_file():
        where = "a folder without config.json" if folder.is_dir() else "no such folder"
        raise CheckpointError(f"{folder}: {where}; give one that a training run has left.")
    config = _json(config_file)
    own = _json(folder / METRICS_NAME) if (folder / METRICS_NAME).is_file() else {}
    files = {name: folder / name for name in (*_WORDS, METRICS_NAME, *PLOTS) if (folder / name).is_file()}
    settings = _settings(folder / SETTINGS_NAME)
    dataset = settings.get("data", {}).get("dataset")
    licence = _licence_of(dataset)
    if dataset is not None and _is_here(dataset):
        dataset = Path(dataset).name
    return FinishedRun(folder, _without_places(settings), {**(metrics or {}), **own}, config, files, dataset, licence)


def write_model(folder: Path, target: Path) -> list[str]:
    """Writes towers, training weights, processor, pipeline and their code as they go onto the Hub.

    Args:
        folder: Of the run.
        target: An empty folder.

    Raises:
        CheckpointError: If the model or its processor cannot be loaded.
    """
    from cmfah_hf.models import CrossModalRetrievalPipeline

    with _no_bars():
        towers, whole, processor = _load(folder)
        # Of the pipeline `save_pretrained` leaves its code, its name in the configuration, and the model.
        pipe = CrossModalRetrievalPipeline(towers, processor=processor, device="cpu")
        pipe.tokenizer = pipe.image_processor = pipe.feature_extractor = None  # the processor's, saved with it
        pipe.save_pretrained(target, max_shard_size="50GB")
        processor.save_pretrained(target)
    if whole is not None:
        _write_training_weights(whole, target)
    return sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())


def _load(folder: Path) -> tuple[Any, Any | None, Any]:
    """The towers, the whole for training if it is there, and the processor."""
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoModelForPreTraining, AutoProcessor

    architectures = _json(folder / "config.json").get("architectures") or [""]
    was_pulled = (folder / TRAINING_INDEX).is_file()  # from the Hub, where the towers are apart
    try:
        whole = None
        if was_pulled or architectures[0].endswith("ForPreTraining"):
            variant = TRAINING_VARIANT if was_pulled else None
            whole, report = AutoModelForPreTraining.from_pretrained(folder, variant=variant, output_loading_info=True)
            towers = whole.base_model
        else:
            towers, report = AutoModel.from_pretrained(folder, output_loading_info=True)
        processor = AutoProcessor.from_pretrained(folder)
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise CheckpointError(f"{folder}: no model and processor can be loaded from there ({reason}).") from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise CheckpointError(
            f"{folder}: {len(missing)} of the model's tensors are missing, {missing[0]!r} first; save it again."
        )
    return towers, whole, processor


@contextmanager
def _no_bars() -> Iterator[None]:
    """Without the bars of transformers, which are noise for a few dozen tensors of a file."""
    from transformers.utils import logging as transformers_logging

    hook = transformers_logging.set_tqdm_hook(lambda bar, args, options: bar(*args, **{**options, "disable": True}))
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(hook)


def write_settings(run: FinishedRun, target: Path, dataset_id: str | None) -> None:
    """Writes the run's settings as anybody's `cmfah train` takes them, with the data by its Hub id if it has one."""
    import yaml

    settings = {name: dict(values) for name, values in run.settings.items()}
    if dataset_id is not None:
        settings.setdefault("data", {})["dataset"] = dataset_id
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    (target / SETTINGS_NAME).write_text(f"# cmfah train {SETTINGS_NAME} --output_dir again\n{text}", encoding="utf-8")


def is_ours(path: str) -> bool:
    """Whether a file of a repository is one that another push of a model left there."""
    return path in {
        *(*_WORDS, *PLOTS, METRICS_NAME, SETTINGS_NAME, PICTURES_INDEX, TEXTS_INDEX, TRAINING_WEIGHTS, TRAINING_INDEX),
        *("model.safetensors", "tokenizer.json", "tokenizer_config.json", "processor_config.json"),
        *("pytorch_model.bin", "training_args.bin"),
    }


def _write_training_weights(whole: Any, target: Path) -> None:
    """All that trains the towers, and an index by which both files together are the model for training."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    prefix = f"{whole.base_model_prefix}."
    rest = {name: value.contiguous() for name, value in whole.state_dict().items() if not name.startswith(prefix)}
    save_file(rest, target / TRAINING_WEIGHTS, metadata={"format": "pt"})
    with safe_open(target / "model.safetensors", "pt") as towers:
        places = dict.fromkeys(towers.keys(), "model.safetensors")
    index = {"metadata": {"format": "pt"}, "weight_map": {**places, **dict.fromkeys(rest, TRAINING_WEIGHTS)}}
    (target / TRAINING_INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error}); restore it, or train again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds no JSON object; restore it, or train again.")
    return content


def _settings(path: Path) -> dict[str, dict[str, Any]]:
    import yaml

    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path}: not valid YAML ({' '.join(str(error).split())}); correct or remove it."
        ) from error
    if not isinstance(content, dict) or not all(isinstance(values, dict) for values in content.values()):
        raise CheckpointError(f"{path}: not the settings of a run; correct or remove it.")
    return content


def _without_places(settings: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    def shown(value: Any) -> Any:
        if isinstance(value, list):
            return [shown(item) for item in value]
        return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value

    data = {name: shown(value) if name in _PLACES else value for name, value in settings.get("data", {}).items()}
    return {**settings, "data": data} if data else settings


def _is_here(dataset: str) -> bool:
    """Whether a data set is, or was, on a disk, and not a Hub id."""
    return Path(dataset).is_absolute() or resolve_data_path(dataset).exists()


def _licence_of(dataset: str | None) -> str | None:
    """The licence that the card of a local data set names; of the drawn scenes, that there is none to mind."""
    from huggingface_hub.repocard import metadata_load

    if dataset is None or dataset in DRAWN:
        return "none to mind, they are drawn by code" if dataset in DRAWN else None
    card = resolve_data_path(dataset) / "README.md"
    if not card.is_file():
        return None
    try:
        head = metadata_load(card) or {}
    except Exception:  # of YAML, of encodings, of the Hub's own checks: then the card says nothing
        logger.warning("%s: its head cannot be read, so the model's card does not name the data's licence.", card)
        return None
    named = head.get("license_name") or head.get("license")
    link = head.get("license_link")
    return None if named is None else f"{named} ({link})" if link else str(named)
