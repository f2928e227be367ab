"""A model's card, written from what its run left: data, protocol, figures, use, training, limits, licences."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cmfah_hf.hub.cards import card_of
from cmfah_hf.hub.finished_run import ATTENTION_PLOT, DRAWN, SETTINGS_NAME, FinishedRun
from cmfah_hf.retrieval.retriever import PICTURES_INDEX, TEXTS_INDEX

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard

_RANKINGS = {"hamming": "Hamming", "aqd": "AQD"}
_WAYS = {"i2t": "image to text", "t2i": "text to image"}
# By the `model_type` of a configuration.
_CITATIONS = {
    "cmfah": """@article{liang2022cmfah,
  title   = {Cross-Media Fine-Grained Representation Learning Based on Multi-modal Graph and Adversarial Hash Attention
             Network},
  author  = {Liang, Meiyu and Wang, Xiaoxiao and Du, Junping},
  journal = {Pattern Recognition and Artificial Intelligence},
  volume  = {35},
  number  = {3},
  pages   = {195--206},
  year    = {2022},
  doi     = {10.16451/j.cnki.issn1003-6059.202203001}
}""",
    "scahn": """@inproceedings{liang2022scahn,
  title     = {Semantic Structure Enhanced Contrastive Adversarial Hash Network for Cross-media Representation
               Learning},
  author    = {Liang, Meiyu and Du, Junping and Cao, Xiaowen and Yu, Yang and Lu, Kangkang and Xue, Zhe and Zhang, Min},
  booktitle = {Proceedings of the ACM International Conference on Multimedia},
  year      = {2022},
  doi       = {10.1145/3503161.3548391}
}""",
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
) -> "ModelCard":
    """The card of a run, with its figures as `model-index`, which the Hub reads.

    Args:
        run: As `read_run` gives it.
        repo_id: Where the model will be, as `owner/name`; the code to paste names it.
        license: The model's, by the Hub's names.
        data_license: The data's, in words. Default: what the data's own card says.
        dataset_id: The data's id on the Hub. Default: what the run trained on, if it was loaded from the Hub.
        language: Of the texts, by its ISO code.
        tags: Beside the card's own.
        base_model: What the backbone was taken from, as a Hub id.
        files: Of the repository. Default: those of the run.
        revision: The branch, where it is not the main one.
    """
    from huggingface_hub import ModelCard, ModelCardData

    files = set(run.files if files is None else files)
    dataset_id = dataset_id or run.dataset_id
    name, method = repo_id.rpartition("/")[2], run.config.get("model_type", "cmfah")
    head = ModelCardData(
        language=language,
        license=license,
        library_name="transformers",
        pipeline_tag="feature-extraction",
        tags=["cross-modal-retrieval", "hashing", "image", "text", method, *tags],
        datasets=[dataset_id] if dataset_id else None,
        base_model=base_model,
        model_name=name,
        eval_results=_eval_results(run, dataset_id),
    )
    bits = run.config["hash_bits"]
    parts = [
        f"# {name}",
        f"A picture and a text share {bits} bits, so a sentence finds pictures, and a picture texts, in {bits // 8} "
        f"bytes an item. A {method.upper()} model, made with cmfah-hf.",
        *_figures(run, dataset_id, files),
        *_usage(run, repo_id, files, revision),
        *_training(run, repo_id, revision),
        *_limits(run, files),
        *_licences(run, license, data_license),
        "## Citation",
        f"```bibtex\n{_CITATIONS.get(method, _CITATIONS['cmfah'])}\n```",
    ]
    body = "\n\n".join(parts)
    return ModelCard(card_of(head.to_yaml(), body))


def _eval_results(run: FinishedRun, dataset_id: str | None) -> "list[EvalResult] | None":
    from huggingface_hub import EvalResult

    found = run.metrics.get("query") or {}
    results = []
    for ranking, its_name in _RANKINGS.items():
        for way, direction in _WAYS.items():
            value = found.get(f"{ranking}/{way}/map")
            if value is not None and math.isfinite(value):
                results.append(
                    EvalResult(
                        task_type="cross-modal-retrieval",
                        task_name="Cross-modal retrieval",
                        dataset_type=dataset_id or run.dataset or "unknown",
                        dataset_name=_data_name(run, dataset_id),
                        dataset_split=run.settings.get("data", {}).get("query_split", "query"),
                        metric_type="mean_average_precision",
                        metric_name=f"MAP, {its_name}, {direction}",
                        metric_value=round(value, 6),
                        metric_args={"ranking": ranking, "direction": way, "encoding": "one modality at a time"},
                    )
                )
    return results or None


def _data_name(run: FinishedRun, dataset_id: str | None) -> str:
    return (dataset_id or run.dataset or "unknown").rpartition("/")[2]


def _as_code(name: str | None) -> str:
    """A name in a card's text that was not made for it."""
    plain = re.sub(r"[^\w .:+@()/-]", "_", str(name))[:100]
    return f"`{plain}`"


def _figures(run: FinishedRun, dataset_id: str | None, files: set[str]) -> list[str]:
    metrics, query = run.metrics, run.metrics.get("query") or {}
    parts = ["## Figures", _protocol(run, dataset_id)]
    if query:
        rows = [
            (f"MAP, {name}", [query.get(f"{ranking}/{way}/map") for way in _WAYS])
            for ranking, name in _RANKINGS.items()
        ]
        rows.append(("MAP of a random ranking", [query.get("random/map")] * 2))
        ks = sorted({int(key.rpartition("@")[2]) for key in query if key.startswith("hamming/i2t/precision@")})
        rows += [
            (f"precision at {k}, Hamming", [query.get(f"hamming/{way}/precision@{k}") for way in _WAYS]) for k in ks
        ]
        lines = [f"| {title} | {_figure(a)} | {_figure(b)} |" for title, (a, b) in rows if a is not None]
        parts.append("\n".join([f"| | {' | '.join(_WAYS.values())} |", "|---|---|---|", *lines]))
    elif metrics.get("validation") is not None:
        parts.append(
            f"On the validation pairs, which chose the epoch, the mean MAP of both directions is "
            f"{_figure(metrics['validation'])}. Test queries were not measured."
        )
    else:
        parts.append("The run left no figures.")
    if "plots/precision_at_k.png" in files:
        parts.append("![Precision at k, both directions and rankings](plots/precision_at_k.png)")
    if ATTENTION_PLOT in files:
        parts.append(
            "Which regions of a query's picture its words look at:\n\n"
            f"![Attention of words over a picture]({ATTENTION_PLOT})"
        )
    return parts


def _protocol(run: FinishedRun, dataset_id: str | None) -> str:
    metrics, query = run.metrics, run.metrics.get("query") or {}
    where = f"[{dataset_id}](https://huggingface.co/datasets/{dataset_id})" if dataset_id else _as_code(run.dataset)
    data = f"Data: {where}." if dataset_id or run.dataset else "The run does not name its data."
    if run.dataset in DRAWN:
        data = f"Data: {where}, drawn by code, with noisy tags."
    if metrics.get("train_pairs"):
        data += f" {metrics['train_pairs']:,} pairs were trained on"
        data += f", {metrics['validation_pairs']:,} more chose the epoch" if metrics.get("validation_pairs") else ""
        data += ", then all of them were trained on." if metrics.get("refit") else "."
    if not query:
        return data
    return (
        f"{data} {int(query['queries']):,} held-out queries were looked at once, at the end, and searched in "
        f"{int(query['database']):,} pairs. Relevant is what shares a label. Every item is encoded alone: a picture "
        "without its text, a text without its picture. MAP is over the whole database, and in expectation over the "
        "order of ties, which codes have many of."
    )


def _usage(run: FinishedRun, repo_id: str, files: set[str], revision: str | None) -> list[str]:
    quoted = json.dumps(repo_id)
    of = f", revision={json.dumps(revision)}" if revision else ""
    bits, words = run.config["hash_bits"], json.dumps(_query_words(run), ensure_ascii=False)
    pictures = (
        'pictures = {"red.jpg": Image.new("RGB", (256, 256), "red"), "sea.jpg": Image.new("RGB", (256, 256), "navy")}'
    )
    parts = [
        "## Use",
        "With the package cmfah-hf:",
        f"""```python
from PIL import Image

from cmfah_hf import CrossMediaRetriever

retriever = CrossMediaRetriever.from_pretrained({quoted}{of})
{pictures}
retriever.add_images(list(pictures.values()), ids=list(pictures))  # yours: add_source("folder-of-pictures")
results = retriever.search(text={words}, k=2)
print(results.ids[0].tolist(), results.scores[0].tolist())
```""",
    ]
    if {PICTURES_INDEX, TEXTS_INDEX} & files:
        parts.append("An index came with it; with it no picture has to be encoded first:")
        parts.append(
            f"""```python
retriever = CrossMediaRetriever.from_pretrained({quoted}{of}, index=True)
print(retriever.search(text={words}, k=10).ids[0].tolist())
```"""
        )
    parts += [
        "With transformers alone; the code that runs then is in this repository:",
        f"""```python
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor, pipeline

model = AutoModel.from_pretrained({quoted}{of}, trust_remote_code=True)
processor = AutoProcessor.from_pretrained({quoted}{of}, trust_remote_code=True)
{pictures}
inputs = processor(images=list(pictures.values()), text=[{words}], return_tensors="pt")
with torch.inference_mode():
    image_hash = model.get_image_hash(inputs["pixel_values"])  # (2, {bits}) in (-1, 1), each picture alone
    text_hash = model.get_text_hash(inputs["input_ids"], inputs["attention_mask"])  # (1, {bits})
differing = ((image_hash >= 0) != (text_hash >= 0)).sum(dim=1)  # bits
print(differing.tolist())

pipe = pipeline("cross-modal-retrieval", model={quoted}{of}, trust_remote_code=True)
found = pipe({{"text": {words}, "candidates": list(pictures.values())}})
print(found["code"].tolist(), found["ranking"])
```""",
    ]
    return parts


def _query_words(run: FinishedRun) -> str:
    """A text that the model knows: classes that are words of its vocabulary, else the first words of that."""
    try:
        tokenizer = json.loads((run.folder / "tokenizer.json").read_text(encoding="utf-8"))
        vocabulary: Mapping[str, int] = tokenizer["model"]["vocab"]
    except (OSError, ValueError, KeyError, TypeError):
        return "a dog on the beach"
    classes = [str(name).lower() for name in (run.config.get("id2label") or {}).values()]
    if run.config.get("text_backbone_config"):
        return " ".join(classes[:2]) or "a dog on the beach"
    known = [name for name in classes if name in vocabulary]
    rest = sorted((word for word in vocabulary if not word.startswith("[")), key=vocabulary.__getitem__)
    return " ".join((known or rest)[:2])


def _training(run: FinishedRun, repo_id: str, revision: str | None) -> list[str]:
    parts = ["## Train it again"]
    of = f" --revision {revision}" if revision else ""
    if run.settings:
        parts.append(
            f"```bash\nhf download {repo_id} {SETTINGS_NAME} --local-dir .{of}\n"
            f"cmfah train {SETTINGS_NAME} --output_dir again\n```"
        )
        parts.append("Data and files that it names have to be at hand; `--dataset` names the data's place.")
    else:
        parts.append("The settings of the run were not kept.")
    options = f', revision="{revision}"' if revision else ""
    parts.append(
        "To train on from here, with the discriminators: "
        f'`{run.config.get("model_type", "cmfah").upper()}ForPreTraining.from_pretrained("{repo_id}"{options}, '
        'variant="pretraining")`.'
    )
    facts = {
        "bits": run.config["hash_bits"],
        "attention": run.config.get("attention"),
        "image backbone": _backbone(run.config),
        "text backbone": _text_backbone(run.config),
        "words": None if _text_backbone(run.config) else run.config.get("vocab_size", 2) - 2,
        "seed": run.metrics.get("seed"),
        "epoch": run.metrics.get("epoch"),
        "seconds": run.metrics.get("seconds"),
    }
    shown = {name: f"{value:g}" if isinstance(value, float) else value for name, value in facts.items()}
    rows = [f"| {name} | {value} |" for name, value in shown.items() if value is not None]
    parts.append("\n".join(["| | |", "|---|---|", *rows]))
    return parts


def _backbone(config: Mapping[str, Any]) -> str:
    inner = config.get("backbone_config") or {}
    name = config.get("backbone") or inner.get("backbone") or inner.get("_name_or_path") or inner.get("model_type", "?")
    return f"{name}, frozen" if config.get("freeze_backbone") else f"{name}, trained"


def _text_backbone(config: Mapping[str, Any]) -> str | None:
    """The kind of text backbone; None of a model over word vectors."""
    inner = config.get("text_backbone_config")
    if not inner:
        return None
    name = inner.get("_name_or_path") or inner.get("model_type", "?")
    return f"{name}, frozen" if config.get("freeze_text_backbone", True) else f"{name}, trained"


def _limits(run: FinishedRun, files: set[str]) -> list[str]:
    vocabulary = (
        f"It knows {run.config.get('vocab_size', 2) - 2:,} words, those of its training texts. A text without any of "
        "them has a code that says nothing, and is refused as a query."
    )
    if _text_backbone(run.config):
        vocabulary = "It reads any text, cut to the length that its text backbone takes."
    lines = [
        vocabulary,
        "What is alike was taught by the labels and tags of the data above. On other pictures the figures do not hold, "
        "and what those labels leave out or get wrong the codes leave out and get wrong too.",
        "A code of few bits puts unlike things together at times. Nothing that matters to somebody should hang on one "
        "answer.",
    ]
    if "expander.json" in files:
        lines.append(
            "Texts were expanded in training by words of a graph. `CrossMediaRetriever` expands queries likewise, "
            "which is what the figures measure; `AutoModel` and the pipeline read a text as it stands."
        )
    return ["## Limits", "\n".join(f"- {line}" for line in lines)]


def _licences(run: FinishedRun, license: str | None, data_license: str | None) -> list[str]:
    model = f"The model: {license}." if license else "No licence was given to the model; ask its owner."
    data = data_license or run.data_license
    said = f"The data: {data}." if data else "The data's licence is not known here; see where it comes from."
    return ["## Licence", f"{model} {said} The code in this repository, which cmfah-hf put there: Apache-2.0."]


def _figure(value: float) -> str:
    return f"{value:.3f}".removeprefix("0") if math.isfinite(value) else "none"
