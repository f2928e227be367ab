"""A model's files on the Hub, written from a run's folder.

README.md                               the card
config.json, *.py                       the towers' configuration, and the code of models, processor and pipeline
model.safetensors                       the towers, which `from_pretrained` fetches
pretraining.safetensors                 discriminators, label and concept heads; with the index below,
model.safetensors.index.pretraining.json  `from_pretrained(..., variant="pretraining")` loads the whole
processor_config.json, tokenizer*.json  the processor
expander.*, knowledge.*, skip_gram.*    the word graph, its knowledge, the word vectors
run.yaml, metrics.json, plots/          settings and results
calibration.json                        the maps from scores to probabilities
images.index, texts.index               the indexes, if given
onnx/                                   the towers as ONNX files with their description, if wanted
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmfah_hf.documents import read_json
from cmfah_hf.errors import CheckpointError
from cmfah_hf.hub.finished_run import METRICS_NAME, PLOTS, SETTINGS_NAME, WORDS, FinishedRun, own_file, without_places
from cmfah_hf.hub.onnx_files import ONNX_FILES
from cmfah_hf.retrieval.calibration import CALIBRATION_NAME
from cmfah_hf.retrieval.loading import no_bars
from cmfah_hf.retrieval.model_source import IMAGES_INDEX, TEXTS_INDEX

TRAINING_VARIANT = "pretraining"
TRAINING_WEIGHTS = "pretraining.safetensors"
TRAINING_INDEX = "model.safetensors.index.pretraining.json"
# Keys, at any depth of a configuration, that load code or make other libraries change the weights.
_FOREIGN_KEYS = ("auto_map", "custom_pipelines", "chat_template", "quantization_config", "trust_remote_code")


def write_model(folder: Path, target: Path) -> None:
    """Writes towers, training weights, processor, pipeline and their code in the Hub's layout into an empty folder.

    Nothing is copied: this package's classes load configuration, weights and vocabulary and save them again. Code,
    templates and pickles in the folder are not read.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    from cmfah_hf.models import CMFAHProcessor, CrossModalRetrievalPipeline

    with no_bars():
        try:
            towers, whole, report = _load_model(folder)
            processor = CMFAHProcessor.from_pretrained(folder)
        except CheckpointError:
            raise
        except (
            OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError, StrictDataclassError
        ) as error:  # fmt: skip
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise CheckpointError(f"{folder}: the model or processor cannot be loaded ({reason}).") from error
        if report["missing_keys"]:
            missing = sorted(report["missing_keys"])
            raise CheckpointError(
                f"{folder}: {len(missing)} tensors of the model are missing, such as {missing[0]!r}; save it again."
            )
        # `save_pretrained` writes the pipeline's code, its entry in the configuration, and the model.
        pipe = CrossModalRetrievalPipeline(towers, processor=processor, device="cpu")
        pipe.tokenizer = pipe.image_processor = pipe.feature_extractor = None  # parts of the processor
        pipe.save_pretrained(target, max_shard_size="50GB")
        processor.save_pretrained(target)
    if whole is not None:
        _write_training_weights(whole, target)


def write_settings(run: FinishedRun, target: Path, dataset_id: str | None) -> None:
    """Writes the run's settings for `cmfah train`, with the data's Hub id if it has one."""
    import yaml

    settings = {name: dict(values) for name, values in run.settings.items()}
    if dataset_id is not None:
        settings.setdefault("data", {})["dataset"] = dataset_id
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    (target / SETTINGS_NAME).write_text(f"# cmfah train {SETTINGS_NAME} --output_dir again\n{text}", encoding="utf-8")


def write_metrics(run: FinishedRun, target: Path) -> None:
    """Writes the run's metrics, if any."""
    if run.metrics:
        text = json.dumps(run.metrics, indent=2) + "\n"
        (target / METRICS_NAME).write_text(text, encoding="utf-8")


def is_ours(path: str) -> bool:
    """True for files that an earlier push of a model wrote."""
    return path in ONNX_FILES or path in {
        *(*WORDS, *PLOTS, METRICS_NAME, SETTINGS_NAME, IMAGES_INDEX, TEXTS_INDEX, TRAINING_WEIGHTS, TRAINING_INDEX),
        *("model.safetensors", "tokenizer.json", "tokenizer_config.json", "processor_config.json"),
        *("pytorch_model.bin", "training_args.bin", CALIBRATION_NAME),
    }


def _load_model(folder: Path) -> tuple[Any, Any | None, Mapping[str, Any]]:
    """The towers, the pretraining model if present, and the loading report."""
    from cmfah_hf.methods.pretraining import PRETRAINING_MODELS
    from cmfah_hf.models import MODELS
    from cmfah_hf.models.configuration_cmfah import FORMER_SETTINGS

    config_file = own_file(folder, "config.json")
    content = read_json(config_file, CheckpointError) if config_file is not None else None
    content = content if isinstance(content, dict) else {}
    name = content.get("model_type")
    if not isinstance(name, str) or name not in MODELS:
        raise CheckpointError(f"{folder}: config.json belongs to a model of type {name!r}, not {' or '.join(MODELS)}.")
    towers = MODELS[name]
    known = {*towers.config().to_dict(), *FORMER_SETTINGS, "id2label", "label2id"} - {"transformers_version"}
    config = towers.config.from_dict(_own({key: value for key, value in content.items() if key in known}))
    was_pulled = own_file(folder, TRAINING_INDEX) is not None  # from the Hub, with separate files
    is_whole = was_pulled or str(content.get("architectures")).endswith("ForPreTraining']")
    model, report = (PRETRAINING_MODELS[name] if is_whole else towers.model).from_pretrained(
        folder, config=config, variant=TRAINING_VARIANT if was_pulled else None, output_loading_info=True
    )
    return (model.base_model, model, report) if is_whole else (model, None, report)


def _own(value: Any) -> Any:
    """A configuration without foreign keys and local paths, at any depth."""
    if isinstance(value, dict):
        return {key: _own(inner) for key, inner in value.items() if key not in _FOREIGN_KEYS}
    return [_own(inner) for inner in value] if isinstance(value, list) else without_places(value)


def _write_training_weights(whole: Any, target: Path) -> None:
    """Writes the weights that only training needs, and an index that joins both files to the pretraining model."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    prefix = f"{whole.base_model_prefix}."
    rest = {name: value.contiguous() for name, value in whole.state_dict().items() if not name.startswith(prefix)}
    save_file(rest, target / TRAINING_WEIGHTS, metadata={"format": "pt"})
    with safe_open(target / "model.safetensors", "pt") as towers:
        places = dict.fromkeys(towers.keys(), "model.safetensors")
    index = {"metadata": {"format": "pt"}, "weight_map": {**places, **dict.fromkeys(rest, TRAINING_WEIGHTS)}}
    (target / TRAINING_INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
