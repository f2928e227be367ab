"""Runs of tasks by `mteb.evaluate`, whose results a folder keeps in MTEB's own form."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

from cmfah_hf.atomic import write_text
from cmfah_hf.evaluation.mteb.encoder import MTEBEncoder
from cmfah_hf.evaluation.mteb.library import import_mteb

# The file with the fingerprint of the model, next to its results: MTEB knows a model on the Hub by its commit.
FINGERPRINT_NAME = "cmfah.json"
# Figures of a table, as MTEB names them.
FIGURES = ("ndcg_at_10", "hit_rate_at_1", "hit_rate_at_10", "recall_at_10")


class TaskFigures(NamedTuple):
    """The figures of a task, on one split and one subset of its data.

    Attributes:
        task: The name of the task.
        split: The split.
        subset: The subset, such as a language; `"default"` without subsets.
        main_score: The figure that MTEB ranks models by.
        figures: Those of `FIGURES` that the task has.
    """

    task: str
    split: str
    subset: str
    main_score: float
    figures: dict[str, float]


def run_tasks(
    encoder: MTEBEncoder,
    tasks: Sequence[Any],
    output: str | os.PathLike,
    batch_size: int = 32,
    again: bool = False,
    progress: bool = False,
) -> list[TaskFigures]:
    """Runs tasks on a model, and keeps the results with its fingerprint for `cmfah push --mteb`.

    Args:
        encoder: The model.
        tasks: Tasks of `retrieval_tasks` or of MTEB.
        output: The folder of the results, `mteb.ResultCache`.
        batch_size: Items encoded at once.
        again: Run also tasks whose results of this model are there.
        progress: Show progress bars.
    """
    mteb = import_mteb()
    cache = mteb.ResultCache(os.fspath(output))
    with nullcontext() if progress else _without_bars():
        results = mteb.evaluate(
            encoder,
            list(tasks),
            cache=cache,
            overwrite_strategy="always" if again else "only-missing",
            encode_kwargs={"batch_size": batch_size, "show_progress_bar": progress},
            show_progress_bar=progress,
        )
    folder = cache.get_task_result_path("any", encoder.mteb_model_meta).parent
    write_text(folder / FINGERPRINT_NAME, json.dumps({"fingerprint": encoder.encoder.fingerprint}) + "\n")
    return [
        TaskFigures(
            task.task_name,
            split,
            str(scores.get("hf_subset", "default")),
            float(scores["main_score"]),
            {name: float(scores[name]) for name in FIGURES if name in scores},
        )
        for task in results.task_results
        for split, subsets in task.scores.items()
        for scores in subsets
    ]


@contextmanager
def _without_bars() -> Iterator[None]:
    """Disables the progress bars of `datasets`, by which MTEB reads the items."""
    import datasets

    were_enabled = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if were_enabled:
            datasets.enable_progress_bars()
