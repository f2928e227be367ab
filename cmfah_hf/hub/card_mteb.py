"""Results of MTEB in a model card, read from the folder that `cmfah mteb` or `mteb.evaluate` wrote."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmfah_hf.documents import read_json
from cmfah_hf.errors import HubError
from cmfah_hf.hub.card_figures import RANKINGS, code, figure

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

_META, _FINGERPRINT = "model_meta.json", "cmfah.json"
_MOST_FILES, _MOST_BYTES = 10_000, 16 * 2**20
# Beyond it, a value is no figure; neither is NaN.
_LARGEST = 1e6
# Figures of the card, as MTEB and as people name them.
_FIGURES = {
    "ndcg_at_10": "nDCG at 10",
    "hit_rate_at_1": "hit rate at 1",
    "hit_rate_at_10": "hit rate at 10",
    "recall_at_10": "recall at 10",
}
_SOURCE = "https://github.com/embeddings-benchmark/mteb"


@dataclass(frozen=True)
class MTEBResult:
    """The result of a task on one split and one subset of its data, by one ranking."""

    task: str
    split: str
    subset: str
    ranking: str
    version: str
    figures: dict[str, float]


def read_mteb(folder: str | os.PathLike, fingerprint: str) -> list[MTEBResult]:
    """The results of a model in a folder of results of any models.

    Args:
        folder: `mteb.ResultCache`, or a folder in it.
        fingerprint: The fingerprint of the model, which is its revision too if it was not on the Hub.

    Raises:
        HubError: If a file is damaged, or there are no results of this model.
    """
    root = Path(folder)
    metas = sorted(root.rglob(_META))[:_MOST_FILES] if root.is_dir() else []
    found, others = [], 0
    for meta in metas:
        content = _object(meta)
        kept = meta.with_name(_FINGERPRINT)
        if fingerprint not in (content.get("revision"), _object(kept).get("fingerprint") if kept.is_file() else None):
            others += 1
            continue
        arguments = content.get("experiment_kwargs") or {}
        ranking = arguments.get("metric", "aqd") if isinstance(arguments, dict) else None
        if not isinstance(ranking, str) or ranking not in RANKINGS:
            raise HubError(f"{meta}: its metric is none of {', '.join(RANKINGS)}; run the tasks by `cmfah mteb`.")
        for path in sorted(meta.parent.glob("*.json")):
            if path.name not in (_META, _FINGERPRINT):
                found += _results(path, str(ranking))
    if not found:
        what = f"those there are of {others} other models" if others else "run `cmfah mteb` first"
        raise HubError(f"{folder}: holds no results of MTEB of this model; {what}.")
    return found


def _results(path: Path, ranking: str) -> list[MTEBResult]:
    content = _object(path)
    task, version, scores = (content.get(name) for name in ("task_name", "mteb_version", "scores"))
    if not isinstance(task, str) or not isinstance(scores, dict):
        raise HubError(f"{path}: is no result of a task of MTEB; remove it, or run the task again.")
    found = []
    for split, subsets in scores.items():
        for own in subsets if isinstance(subsets, list) else [None]:
            if not isinstance(own, dict):
                raise HubError(f"{path}: its scores are no list of subsets; run the task again.")
            values = {name: own[name] for name in _FIGURES if _is_number(own.get(name))}
            if not values and _is_number(own.get("main_score")):
                values = {"main_score": own["main_score"]}
            subset = str(own.get("hf_subset", "default"))
            found.append(MTEBResult(task, str(split), subset, ranking, str(version), values))
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _object(path: Path) -> dict[str, Any]:
    content = read_json(path, HubError, _MOST_BYTES)
    if not isinstance(content, dict):
        raise HubError(f"{path}: is not a JSON object; remove it, or run the task again.")
    return content


def mteb_figures(results: Sequence[MTEBResult]) -> list[str]:
    """The paragraphs of a card with the results; none without results."""
    if not results:
        return []
    names = [name for name in (*_FIGURES, "main_score") if any(name in one.figures for one in results)]
    head = ["task", "split", "ranking", *(_FIGURES.get(name, "main score") for name in names)]
    rows = [
        [code(_title(one)), code(one.split), one.ranking, *(figure(one.figures.get(name)) for name in names)]
        for one in results
    ]
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    versions = ", ".join(sorted({code(one.version) for one in results}))
    return [f"By [MTEB]({_SOURCE}) {versions}:", "\n".join(lines)]


def mteb_eval_results(results: Sequence[MTEBResult]) -> "list[EvalResult]":
    """The results for the `model-index` of a card."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="retrieval",
            task_name="Retrieval",
            dataset_type=f"mteb/{one.task}",
            dataset_name=f"MTEB {_title(one)}",
            dataset_config=one.subset,
            dataset_split=one.split,
            metric_type=name,
            metric_name=f"{_FIGURES.get(name, name)}, {one.ranking}",
            metric_value=round(value, 6),
            metric_args={"ranking": one.ranking},
            source_name="MTEB",
            source_url=_SOURCE,
        )
        for one in results
        for name, value in one.figures.items()
    ]


def _title(result: MTEBResult) -> str:
    return result.task if result.subset == "default" else f"{result.task} ({result.subset})"
