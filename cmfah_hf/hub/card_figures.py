"""Figures of a model card: retrieval by labels and of pairs, and how the candidates of a compression compared."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from cmfah_hf.hub.finished_run import ATTENTION_PLOT, DRAWN, FinishedRun

RANKINGS = {"hamming": "Hamming", "aqd": "AQD"}
WAYS = {"i2t": "image to text", "t2i": "text to image"}
# Further databases of the test queries, by the name of their figures in `metrics.json`.
OTHER_DATABASES = {
    "query_seen": "the training pairs",
    "query_pair": "codes of pairs, each of an image with its text",
    "query_learnt": "the training pairs' codes of the fit, which has seen their labels",
}

_FLOAT = "float"
_OF_PAIRS = {
    **{f"recall@{k}": f"recall at {k}" for k in (1, 5, 10)},
    "median_rank": "median rank",
    "ndcg@10": "nDCG at 10",
}
_COMPARED_BY = {
    True: "The mean of 1 / log2(1 + rank) of an item's own partner by code",
    False: "The share of the ten nearest items of the encoder that are among the ten nearest by code",
}


def is_compressed(run: FinishedRun) -> bool:
    """Whether a model was made by `cmfah compress`, without training."""
    return isinstance(run.metrics.get("compression"), dict)


def figures_of(run: FinishedRun, dataset_id: str | None, files: set[str]) -> list[str]:
    """The paragraphs of the section of figures, with the data by its Hub id, if any, and plots among the files."""
    metrics = run.metrics
    query, pairs = metrics.get("query") or {}, metrics.get("pairs") or {}
    parts = ["## Figures"]
    if is_compressed(run):
        parts += _agreement(metrics["compression"])
    if query or pairs or not is_compressed(run):
        parts.append(_protocol(run, dataset_id))
    if query:
        parts.append(_by_labels(query))
    for name, database in OTHER_DATABASES.items():
        if metrics.get(name):
            parts += [f"The same queries against {database}:", _by_labels(metrics[name])]
    if pairs:
        parts += _of_pairs(pairs)
    if any(name.startswith(f"{_FLOAT}/") for name in (*query, *pairs)):
        parts.append("In parentheses: the share of the figure of the encoder's own vectors, which take more memory.")
    if not (query or pairs or is_compressed(run)):
        parts.append(_without_queries(run))
    if "plots/precision_at_k.png" in files:
        parts.append("![Precision at k, both directions and rankings](plots/precision_at_k.png)")
    if ATTENTION_PLOT in files:
        parts.append(
            "Regions of a query's image that its words attend to:\n\n"
            f"![Attention of words over an image]({ATTENTION_PLOT})"
        )
    return parts


def _without_queries(run: FinishedRun) -> str:
    metrics = run.metrics
    if metrics.get("validation") is None:
        return "The run has no metrics."
    pairs = "pairs, which selected the epoch," if selects_epoch(run) else "pairs"
    return (
        f"On the validation {pairs} the mean MAP of both directions is {figure(metrics['validation'])}. Test queries "
        "were not measured."
    )


def selects_epoch(run: FinishedRun) -> bool:
    """Whether the validation pairs chose the epoch; older runs record it only in their settings."""
    recorded = run.metrics.get("epoch_by")
    if recorded is not None:
        return recorded == "validation"
    return (run.settings.get("training") or {}).get("load_best_model_at_end", True) is not False


def _by_labels(query: Mapping[str, Any]) -> str:
    """The table of retrieval by labels."""
    rows = _ranked(query, "map", "MAP")
    rows.append(("MAP of a random ranking", [figure(query.get("random/map"))] * 2))
    ks = sorted({int(key.rpartition("@")[2]) for key in query if re.fullmatch(r"hamming/i2t/precision@\d+", key)})
    for k in ks:
        rows += _ranked(query, f"precision@{k}", f"precision at {k}", ("hamming",))
    return _table(rows)


def _of_pairs(pairs: Mapping[str, Any]) -> list[str]:
    """The sentence and the table of instance retrieval."""
    rows: list[tuple[str, list[str]]] = []
    for metric, name in _OF_PAIRS.items():
        rows += _ranked(pairs, metric, name)
    counts = [pairs.get(name) for name in ("images", "texts")]
    among = f" among {counts[0]:,.0f} images and {counts[1]:,.0f} texts" if all(counts) else ""
    return [f"The other half of a query's own pair{among}, with or without labels:", _table(rows)]


def _ranked(
    figures: Mapping[str, Any], metric: str, name: str, rankings: Iterable[str] = (*RANKINGS, _FLOAT)
) -> list[tuple[str, list[str]]]:
    """The rows of one metric, by ranking, with the shares of the encoder's own figure if it was measured."""
    rows = []
    for ranking in rankings:
        cells = []
        for way in WAYS:
            value, whole = (_number(figures.get(f"{each}/{way}/{metric}")) for each in (ranking, _FLOAT))
            if value is None or metric == "median_rank":
                cells.append("none" if value is None else f"{value:g}")
            else:
                cells.append(figure(value) + (f" ({figure(value / whole)})" if whole and ranking != _FLOAT else ""))
        if any(cell != "none" for cell in cells):
            rows.append((f"{name}, {RANKINGS.get(ranking, 'vectors of the encoder')}", cells))
    return rows


def _table(rows: Iterable[tuple[str, list[str]]]) -> str:
    lines = [f"| {title} | {' | '.join(cells)} |" for title, cells in rows]
    return "\n".join([f"| | {' | '.join(WAYS.values())} |", "|---|---|---|", *lines])


def _number(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def _agreement(figures: Mapping[str, Any]) -> list[str]:
    """The figures by which the candidates of a compression were compared."""
    held_out = int(figures.get("held_out") or 0)
    measured = f"on {held_out:,} images that were held out" if held_out else "on the images that it was fitted to"
    parts = [
        f"{_COMPARED_BY[bool(figures.get('by_partner'))]}, {measured}. The first code was chosen.",
        _compared("code", figures.get("candidates")),
    ]
    if figures.get("centers"):
        parts.append(
            f"{_COMPARED_BY[False]}, with everyday phrases as texts, by center of the texts. The first was chosen."
        )
        parts.append(_compared("center of texts", figures["centers"]))
    return parts


def _compared(what: str, candidates: Iterable[Mapping[str, Any]] | None) -> str:
    lines = [
        f"| {code(each.get('name'))} | {figure(each.get('aqd'))} | {figure(each.get('hamming'))} |"
        for each in candidates or []
    ]
    return "\n".join([f"| {what} | AQD | Hamming |", "|---|---|---|", *lines])


def _protocol(run: FinishedRun, dataset_id: str | None) -> str:
    metrics, query = run.metrics, run.metrics.get("query") or {}
    where = f"[{dataset_id}](https://huggingface.co/datasets/{dataset_id})" if dataset_id else code(run.dataset)
    data = f"Data: {where}." if dataset_id or run.dataset else "The run does not name its data."
    if run.dataset in DRAWN:
        data = f"Data: {where}, drawn by code, with noisy tags."
    if metrics.get("train_pairs"):
        data += f" {metrics['train_pairs']:,} training pairs"
        if metrics.get("validation_pairs"):
            data += f", {metrics['validation_pairs']:,} validation pairs"
            data += " that selected the epoch" if selects_epoch(run) else ""
        data += "; then the model was trained on all of them." if metrics.get("refit") else "."
    if not query:
        return data
    once = "" if is_compressed(run) else " once, at the end,"
    return (
        f"{data} {int(query['queries']):,} held-out queries were evaluated{once} against a database of "
        f"{int(query['database']):,} pairs. Items that share a label are relevant. Each item is encoded by itself: "
        "images without their texts, texts without their images. MAP covers the whole database and is the "
        "expectation over the order of ties, which are frequent among codes."
    )


def code(name: str | None) -> str:
    """An untrusted name as inline code."""
    plain = re.sub(r"[^\w .,:+@()/-]", "_", str(name))[:100]
    return f"`{plain}`"


def figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}".removeprefix("0") if math.isfinite(value) else "none"
