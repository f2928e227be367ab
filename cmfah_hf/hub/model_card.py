"""Model cards, generated from a finished run: data, protocol, metrics, usage, training, limitations, licenses."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cmfah_hf.hub.card_calibration import calibration_of
from cmfah_hf.hub.card_encoders import base_models, encoder_rows, place_of_weights
from cmfah_hf.hub.card_figures import RANKINGS, WAYS, figures_of, is_compressed
from cmfah_hf.hub.card_mteb import MTEBResult, mteb_eval_results, mteb_figures
from cmfah_hf.hub.cards import card_of
from cmfah_hf.hub.finished_run import SETTINGS_NAME, FinishedRun
from cmfah_hf.hub.onnx_files import ONNX_DESCRIPTION, ONNX_FILES
from cmfah_hf.retrieval.model_source import IMAGES_INDEX, TEXTS_INDEX

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard


# What a model learned from, by the similarity of its training pairs.
_LEARNED_FROM = {
    "labels": "the labels of the data above",
    "tags": "overlaps of the words of the texts above",
    "pairs": "the pairs of the data above",
    "embeddings": "the vectors of the encoder and the pairs of the data above",
}


def make_model_card(
    run: FinishedRun,
    repo_id: str,
    license: str | None = None,
    data_license: str | None = None,
    dataset_id: str | None = None,
    language: str | None = None,
    tags: Sequence[str] = (),
    base_model: str | None = None,
    files: Iterable[str] | None = None,
    revision: str | None = None,
    mteb_results: Sequence[MTEBResult] = (),
) -> "ModelCard":
    """The model card of a run, with its metrics as the Hub's `model-index`.

    Args:
        run: The run, from `read_run`.
        repo_id: The model's repository, `owner/name`, as the usage examples name it.
        license: The model's license as a Hub identifier.
        data_license: The data's license as text. Default: the license in the data's card.
        dataset_id: The data's Hub id. Default: the data set that the run loaded from the Hub, if any.
        language: ISO code of the texts' language.
        tags: Additional tags.
        base_model: Hub id of the pretrained backbone. Default: those of the encoders that the run recorded.
        files: Files of the repository. Default: those of the run.
        revision: The branch, if not main.
        mteb_results: Results of MTEB, from `read_mteb`.
    """
    from huggingface_hub import ModelCard, ModelCardData

    files = set(run.files if files is None else files)
    dataset_id = dataset_id or run.dataset_id
    name, method = repo_id.rpartition("/")[2], method_of(run.config)
    head = ModelCardData(
        language=language,
        license=license,
        library_name="transformers",
        pipeline_tag="feature-extraction",
        tags=["cross-modal-retrieval", "hashing", "image", "text", method, *_libraries(run), *tags],
        datasets=[dataset_id] if dataset_id else None,
        base_model=base_model or base_models(run),
        model_name=name,
        eval_results=[*_eval_results(run, dataset_id), *mteb_eval_results(mteb_results)] or None,
    )
    bits = run.config["hash_bits"]
    parts = [
        f"# {name}",
        f"An image and a text share {bits} bits, so a sentence finds images, and an image texts, in {bits // 8} "
        f"bytes per item. {_origin(run, method)}",
        *figures_of(run, dataset_id, files),
        *mteb_figures(mteb_results),
        *calibration_of(run),
        *_usage(run, repo_id, files, revision),
        *(_compression(run) if is_compressed(run) else _training(run, repo_id, revision)),
        *_limits(run, files),
        *_licenses(run, license, data_license),
        *([] if is_compressed(run) else _citation(method)),
    ]
    body = "\n\n".join(parts)
    return ModelCard(card_of(head.to_yaml(), body))


def _libraries(run: FinishedRun) -> list[str]:
    """The tag of sentence-transformers, for a model that it loads: one of images and texts, not of their features."""
    has_features = run.config.get("image_feature_dim") or run.config.get("text_feature_dim")
    return [] if has_features else ["sentence-transformers"]


def _origin(run: FinishedRun, method: str) -> str:
    if is_compressed(run):
        return "The vectors of a pretrained dual encoder, compressed and not trained, with cmfah-hf."
    return f"A {method.upper()} model, trained with cmfah-hf."


def method_of(config: Mapping[str, Any]) -> str:
    """The name of the method that trained a model, from its `config.json`."""
    section = config.get("objective")
    return str((section.get("_name") if isinstance(section, dict) else None) or config.get("model_type", "cmfah"))


def _citation(method: str) -> list[str]:
    from cmfah_hf.methods import objective_class, registered_methods

    paper = objective_class(method).paper if method in registered_methods() else None
    return [] if paper is None else ["## Citation", f"```bibtex\n{paper.bibtex}\n```"]


def _eval_results(run: FinishedRun, dataset_id: str | None) -> "list[EvalResult]":
    from huggingface_hub import EvalResult

    found, dataset = run.metrics.get("query") or {}, dataset_id or run.dataset or "unknown"
    results = []
    for ranking, its_name in RANKINGS.items():
        for way, direction in WAYS.items():
            value = found.get(f"{ranking}/{way}/map")
            if value is not None and math.isfinite(value):
                results.append(
                    EvalResult(
                        task_type="cross-modal-retrieval",
                        task_name="Cross-modal retrieval",
                        dataset_type=dataset,
                        dataset_name=dataset.rpartition("/")[2],
                        dataset_split=run.settings.get("data", {}).get("query_split", "query"),
                        metric_type="mean_average_precision",
                        metric_name=f"MAP, {its_name}, {direction}",
                        metric_value=round(value, 6),
                        metric_args={"ranking": ranking, "direction": way, "encoding": "one modality at a time"},
                    )
                )
    return results


def _compression(run: FinishedRun) -> list[str]:
    figures, config = run.metrics["compression"], run.config
    facts = {
        **encoder_rows(run),
        "code": figures.get("code"),
        "bits": config["hash_bits"],
        "dimensions of the images": figures.get("rank"),
        "images": figures.get("images"),
        "texts": figures.get("texts"),
        "texts of no image": figures.get("other_texts"),
    }
    return ["## How it was made", _table(facts), *place_of_weights(run)]


def _table(facts: Mapping[str, Any]) -> str:
    """A table of facts by name, without those that are None."""
    rows = [f"| {name} | {value} |" for name, value in facts.items() if value is not None]
    return "\n".join(["| | |", "|---|---|", *rows])


def _usage(run: FinishedRun, repo_id: str, files: set[str], revision: str | None) -> list[str]:
    quoted = json.dumps(repo_id)
    of = f", revision={json.dumps(revision)}" if revision else ""
    bits, words = run.config["hash_bits"], json.dumps(_query_words(run), ensure_ascii=False)
    images = (
        'images = {"red.jpg": Image.new("RGB", (256, 256), "red"), "sea.jpg": Image.new("RGB", (256, 256), "navy")}'
    )
    parts = [
        "## Use",
        "With the package cmfah-hf:",
        f"""```python
from PIL import Image

from cmfah_hf import CrossMediaRetriever

retriever = CrossMediaRetriever.from_pretrained({quoted}{of})
{images}
retriever.add_images(list(images.values()), ids=list(images))  # yours: add_source("folder-of-images")
results = retriever.search(text={words}, k=2)
print(results.ids[0].tolist(), results.scores[0].tolist())
```""",
    ]
    if {IMAGES_INDEX, TEXTS_INDEX} & files:
        parts.append("The repository includes an index, so no image has to be encoded first:")
        parts.append(
            f"""```python
retriever = CrossMediaRetriever.from_pretrained({quoted}{of}, index=True)
print(retriever.search(text={words}, k=10).ids[0].tolist())
```"""
        )
    if ONNX_DESCRIPTION in files:
        names = ", ".join(f"`{name}`" for name in sorted(ONNX_FILES & files) if name != ONNX_DESCRIPTION)
        parts.append(f"By ONNX Runtime, without PyTorch: {names}, with `pip install 'cmfah-hf[onnx]'`:")
        parts.append(
            f"""```python
retriever = CrossMediaRetriever.from_pretrained({quoted}{of}, backend="onnx")
print(retriever.encode_texts([{words}]).shape)
```"""
        )
    parts += [
        "With transformers only, which runs the code in this repository:",
        f"""```python
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor, pipeline

model = AutoModel.from_pretrained({quoted}{of}, trust_remote_code=True)
processor = AutoProcessor.from_pretrained({quoted}{of}, trust_remote_code=True)
{images}
inputs = processor(images=list(images.values()), text=[{words}], return_tensors="pt")
with torch.inference_mode():
    image_hash = model.get_image_hash(inputs["pixel_values"])  # (2, {bits}) in (-1, 1)
    text_hash = model.get_text_hash(inputs["input_ids"], inputs["attention_mask"])  # (1, {bits})
differing = ((image_hash >= 0) != (text_hash >= 0)).sum(dim=1)  # bits
print(differing.tolist())

pipe = pipeline("cross-modal-retrieval", model={quoted}{of}, trust_remote_code=True)
found = pipe({{"text": {words}, "candidates": list(images.values())}})
print(found["code"].tolist(), found["ranking"])
```""",
    ]
    if _libraries(run):
        parts += [
            "With sentence-transformers, which runs the code too:",
            f"""```python
from PIL import Image
from sentence_transformers import SentenceTransformer

model = SentenceTransformer({quoted}{of}, trust_remote_code=True)
{images}
image_hash = model.encode(list(images.values()))  # (2, {bits}) in (-1, 1)
text_hash = model.encode([{words}])  # (1, {bits}); with precision="ubinary", the bits as bytes
print(model.similarity(text_hash, image_hash).tolist())
```""",
        ]
    return parts


def _query_words(run: FinishedRun) -> str:
    """A query of known words: class names in the vocabulary, else its first words."""
    try:
        tokenizer = json.loads((run.folder / "tokenizer.json").read_text(encoding="utf-8"))
        vocabulary: Mapping[str, int] = tokenizer["model"]["vocab"]
    except (OSError, ValueError, KeyError, TypeError):
        return "a dog on the beach"
    classes = [str(name).lower() for name in (run.config.get("id2label") or {}).values()]
    if run.config.get("text_backbone_config") or run.config.get("dual_encoder_config"):
        return " ".join(classes[:2]) or "a dog on the beach"
    known = [name for name in classes if name in vocabulary]
    rest = sorted((word for word in vocabulary if not word.startswith("[")), key=vocabulary.__getitem__)
    return " ".join((known or rest)[:2])


def _training(run: FinishedRun, repo_id: str, revision: str | None) -> list[str]:
    parts = ["## Training"]
    of = f" --revision {revision}" if revision else ""
    if run.settings:
        parts.append(
            f"```bash\nhf download {repo_id} {SETTINGS_NAME} --local-dir .{of}\n"
            f"cmfah train {SETTINGS_NAME} --output_dir again\n```"
        )
        parts.append("Its data and files must be available; `--dataset` gives the location of the data.")
    else:
        parts.append("The run has no saved settings.")
    options = f', revision="{revision}"' if revision else ""
    parts.append(
        "To continue training, with the discriminators: "
        f'`{run.config.get("model_type", "cmfah").upper()}ForPreTraining.from_pretrained("{repo_id}"{options}, '
        'variant="pretraining")`.'
    )
    facts = {
        "bits": run.config["hash_bits"],
        "attention": run.config.get("attention"),
        "image backbone": _backbone(run.config),
        "text backbone": _text_backbone(run.config),
        **encoder_rows(run),
        "words": None if _text_backbone(run.config) else run.config.get("vocab_size", 2) - 2,
        "seed": run.metrics.get("seed"),
        "epoch": run.metrics.get("epoch"),
        "seconds": run.metrics.get("seconds"),
    }
    shown = {name: f"{value:g}" if isinstance(value, float) else value for name, value in facts.items()}
    return [*parts, _table(shown), *place_of_weights(run)]


def _backbone(config: Mapping[str, Any]) -> str:
    inner = config.get("backbone_config") or config.get("dual_encoder_config") or {}
    name = config.get("backbone") or inner.get("backbone") or inner.get("_name_or_path") or inner.get("model_type", "?")
    return f"{name}, frozen" if config.get("freeze_backbone") else f"{name}, trained"


def _text_backbone(config: Mapping[str, Any]) -> str | None:
    """The kind of text backbone; None of a model over word vectors."""
    inner = config.get("text_backbone_config") or config.get("dual_encoder_config")
    if not inner:
        return None
    name = inner.get("_name_or_path") or inner.get("model_type", "?")
    return f"{name}, frozen" if config.get("freeze_text_backbone", True) else f"{name}, trained"


def _similarity(run: FinishedRun) -> Any:
    """The similarity of pairs in training; older runs record it only in their settings, if it is not the default."""
    return run.metrics.get("similarity") or (run.settings.get("data") or {}).get("similarity")


def _limits(run: FinishedRun, files: set[str]) -> list[str]:
    vocabulary = (
        f"The vocabulary has {run.config.get('vocab_size', 2) - 2:,} words, those of the training texts. A query "
        "without any of them is rejected, because its code carries no information."
    )
    if _text_backbone(run.config):
        vocabulary = "Any text can be a query; texts are truncated to the maximum length of the text backbone."
    learned = "The codes repeat omissions and errors of the encoder. The figures do not transfer to other images."
    if not is_compressed(run):
        similarity = str(_similarity(run))
        source = _LEARNED_FROM.get(similarity, _LEARNED_FROM["labels"])
        if similarity != "embeddings" and (run.config.get("objective") or {}).get("distillation_weight"):
            source += ", and from the vectors of the encoder"
        learned = (
            f"Similarity was learned from {source}. The metrics do not transfer to other images, and the codes repeat "
            "omissions and errors of what they were learned from."
        )
    lines = [
        vocabulary,
        learned,
        "Short codes sometimes place different things together. Do not base decisions about people on single results.",
    ]
    if "expander.json" in files:
        lines.append(
            "Training texts were expanded by words of a graph. `CrossMediaRetriever` expands queries in the same way, "
            "as in the metrics; `AutoModel`, the pipeline and `SentenceTransformer` do not."
        )
    return ["## Limitations", "\n".join(f"- {line}" for line in lines)]


def _licenses(run: FinishedRun, license: str | None, data_license: str | None) -> list[str]:
    model = f"The model: {license}." if license else "The model has no license; ask its owner."
    data = data_license or run.data_license
    of_data = f"The data: {data}." if data else "The data's license is unknown; see its source."
    return ["## License", f"{model} {of_data} The code that cmfah-hf added to this repository: Apache-2.0."]
