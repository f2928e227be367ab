"""Retrieval tasks in MTEB's form: of any pairs of image and text, and those of MTEB by name."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmfah_hf.data import load_image_text
from cmfah_hf.data.collator import captions_in
from cmfah_hf.errors import DataError, QueryError
from cmfah_hf.evaluation.mteb.library import import_mteb

if TYPE_CHECKING:
    from mteb.abstasks.retrieval import AbsTaskRetrieval

logger = logging.getLogger(__name__)

# The categories of MTEB, by direction.
_DIRECTIONS = {"t2i": "T2I", "i2t": "I2T"}
_RELEVANCE = ("pairs", "labels")


def retrieval_tasks(
    source: Any,
    split: str = "query",
    relevance: str = "pairs",
    name: str | None = None,
    languages: Sequence[str] = ("eng-Latn",),
) -> "list[AbsTaskRetrieval]":
    """Two tasks for `mteb.evaluate`, from text to image and from image to text, without a download.

    Args:
        source: A data set of pairs as `load_image_text` takes or returns it.
        split: The split whose items are queries in one modality and documents in the other.
        relevance: `"pairs"`: the other half of the own pair, of which each caption is a text of its own; `"labels"`:
            all items that share a label, of which queries without any are left out.
        name: The beginning of the tasks' names, which go on with `Labels` for labels. None: made of `source`.
        languages: The languages of the texts, as MTEB names them.

    Raises:
        DataError: If there is no such split, or no labels for `"labels"`.
        QueryError: If the relevance is unknown.
        CMFAHError: If mteb is not installed.
    """
    if relevance not in _RELEVANCE:
        raise QueryError(f"There is no relevance {relevance!r}; choose {' or '.join(_RELEVANCE)}.")
    import_mteb()
    pairs = _pairs(source, split)
    if relevance == "labels" and "labels" not in pairs.column_names:
        raise DataError(f"The split {split!r} has no labels, which define relevance; take relevance='pairs'.")
    stem = (name or _name_of(source)) + ("Labels" if relevance == "labels" else "")
    return [
        _task(f"{stem}{title}Retrieval", way, pairs, split, relevance, languages) for way, title in _DIRECTIONS.items()
    ]


def load_task(name: str) -> Any:
    """The task of MTEB of a name; `QueryError` if there is none.

    Raises:
        CMFAHError: If mteb is not installed.
    """
    mteb = import_mteb()
    try:
        return mteb.get_task(name)
    except KeyError as error:
        reason = " ".join(str(error.args[0] if error.args else error).split())[:300]
        raise QueryError(f"{name}: MTEB has no task of this name ({reason}).") from error


def _pairs(source: Any, split: str) -> Any:
    loaded = load_image_text(source) if isinstance(source, (str, Path)) else source
    if isinstance(loaded, dict):
        if split not in loaded:
            raise DataError(f"There is no split {split!r}; there are {', '.join(map(str, loaded))}.")
        loaded = loaded[split]
    lacking = [column for column in ("image", "text") if column not in loaded.column_names]
    if lacking:
        raise DataError(
            f"The split {split!r} has no column {lacking[0]!r}, which a task needs; give images with texts."
        )
    return loaded


def _name_of(source: Any) -> str:
    words = re.findall(r"[A-Za-z0-9]+", Path(source).name if isinstance(source, (str, Path)) else "")
    return "".join(word[0].upper() + word[1:] for word in words) or "Own"


def _task(name: str, way: str, pairs: Any, split: str, relevance: str, languages: Sequence[str]) -> "AbsTaskRetrieval":
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    def load_data(self: Any, num_proc: int | None = None, **kwargs: Any) -> None:
        if not self.data_loaded:
            self.dataset = {"default": {split: _split_data(pairs, way, relevance)}}
            self.data_loaded = True

    metadata = TaskMetadata(
        name=name,
        description=f"Retrieval by {relevance} among the items of a split of own data.",
        dataset={"path": name, "revision": "local"},
        type="Any2AnyRetrieval",
        category=way,  # type: ignore[arg-type]  # one of its literals
        modalities=["text", "image"],
        eval_splits=[split],
        eval_langs=list(languages),
        main_score="ndcg_at_10",
    )
    return type(name, (AbsTaskRetrieval,), {"metadata": metadata, "load_data": load_data})()


def _split_data(pairs: Any, way: str, relevance: str) -> Any:
    """Queries, documents and relevance of one direction, as `RetrievalSplitData`."""
    import datasets

    ids = [str(own) for own in pairs["id"]] if "id" in pairs.column_names else [str(row) for row in range(len(pairs))]
    without_images = pairs.remove_columns("image")
    texts = [captions_in(row) or [row["text"]] for row in without_images]
    names = [
        [own] if len(each) == 1 else [f"{own}#{n}" for n in range(len(each))]
        for own, each in zip(ids, texts, strict=True)
    ]
    of_images = pairs.select_columns(["image"]).add_column("id", ids)
    of_texts = datasets.Dataset.from_dict(
        {"id": [each for own in names for each in own], "text": [each for own in texts for each in own]}
    )
    labels = pairs["labels"] if relevance == "labels" else [[own] for own in ids]
    relevant = _relevant(ids, names, labels, way)
    queries, documents = (of_texts, of_images) if way == "t2i" else (of_images, of_texts)
    kept = [row for row, own in enumerate(queries["id"]) if own in relevant]
    if len(kept) < len(queries):
        logger.warning(
            "%d of %d queries have no relevant item and are left out.", len(queries) - len(kept), len(queries)
        )
        queries = queries.select(kept)
    return {"corpus": documents, "queries": queries, "relevant_docs": relevant, "top_ranked": None}


def _relevant(
    ids: Sequence[str], names: Sequence[Sequence[str]], labels: Sequence[Sequence[Any]], way: str
) -> dict[str, dict[str, int]]:
    """The relevant documents of each query that has any: those of items that share a label."""
    items: dict[Any, list[int]] = {}
    for item, own in enumerate(labels):
        for label in own:
            items.setdefault(label, []).append(item)
    found: dict[str, dict[str, int]] = {}
    for item, own in enumerate(labels):
        others = sorted({other for label in own for other in items[label]})
        queries = names[item] if way == "t2i" else [ids[item]]
        documents = [name for other in others for name in ([ids[other]] if way == "t2i" else names[other])]
        if documents:
            found |= dict.fromkeys(queries, dict.fromkeys(documents, 1))
    return found
