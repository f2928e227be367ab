"""Running of grids: every run has a folder, resumes after an interruption, and fails without stopping others."""

import json
import logging
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from cmfah_hf.atomic import atomic_folder, locked
from cmfah_hf.documents import read_json
from cmfah_hf.errors import CheckpointError, CMFAHError
from cmfah_hf.experiments.grid import LINEAR, Grid, GridRun
from cmfah_hf.experiments.results import (
    RUNS_NAME,
    figures_of_queries,
    figures_of_validation,
    read_record,
    write_record,
    write_results,
)
from cmfah_hf.hub.model_folder import METRICS_NAME
from cmfah_hf.training import parse_run, train
from cmfah_hf.training.evaluate import evaluate_folder
from cmfah_hf.training.preparation import make_words, read_pairs
from cmfah_hf.training.settings.configuration import Run
from cmfah_hf.training.vocabulary import needs_word_vectors

logger = logging.getLogger(__name__)

WORDS_NAME = "words"
# Data settings that do not affect the words.
_WITHOUT_WORDS = {"refit", "mirror", "keep_regions", "backbone_weights", "image_column", "image_mean", "image_std"}
_WITHOUT_WORDS |= {"similarity", "query_split", "words_from", "keep_tokens"}
_WAITING_FOR_WORDS_S = 24 * 3600.0


def run_grid(
    grid: Grid, output: str | Path, only: Sequence[str] = (), jobs: int = 1, report: Callable[[str], None] = logger.info
) -> list[str]:
    """Runs a grid. Finished runs are not repeated, and interrupted ones resume from their last checkpoint.

    All runs over the same texts with the same word settings share one word graph and one table of word vectors, so that
    variants and seeds are compared on the same words.

    Args:
        grid: The grid.
        output: The folder of the grid: `runs/` with a folder per run, `words/`, and `results.parquet` with the figures.
        only: Patterns of names, as in `Grid.only`.
        jobs: The number of parallel processes.
        report: Called with one line for each run that has ended.

    Returns:
        The names of failed runs, which the next call repeats.

    Raises:
        CMFAHError: If a pattern matches nothing, or the folder cannot be written.
    """
    runs, output = grid.only(only), Path(output)
    if jobs < 1:
        raise CMFAHError(f"jobs is {jobs}; give 1 or more.")
    failed = []
    try:
        for count, (run, problem) in enumerate(_each(runs, output, jobs), start=1):
            report(f"[{count}/{len(runs)}] {run.name}: {problem or 'finished'}")
            if problem is not None:
                failed.append(run.name)
    finally:
        write_results(output)
    return failed


def _each(runs: Sequence[GridRun], output: Path, jobs: int) -> Iterator[tuple[GridRun, str | None]]:
    """Each run with the reason of its failure in one line, or None."""
    if jobs == 1:
        for run in runs:
            yield run, _attempt(run, output)
        return
    threads = max(1, (os.cpu_count() or 1) // jobs)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=_use_threads, initargs=(threads,)) as pool:
        pending: dict[Future[str | None], GridRun] = {pool.submit(_attempt, run, output): run for run in runs}
        try:
            for future in as_completed(pending):
                error = future.exception()  # only if the process died, because `_attempt` raises nothing
                yield pending[future], future.result() if error is None else f"its process ended ({error})"
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _use_threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)


def _attempt(run: GridRun, output: Path) -> str | None:
    """Finishes one run; returns the reason of its failure in one line, or None. Tracebacks of bugs are logged."""
    try:
        finish(run, output)
    except CMFAHError as error:
        return str(error)
    except Exception as error:  # a bug in one run does not stop the others
        logger.exception("%s failed", run.name)
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None


def finish(run: GridRun, output: Path) -> None:
    """Finishes one run, whatever its state.

    Raises:
        CMFAHError: If its settings, data or weights cannot be used, or its folder holds a run with other settings.
    """
    folder = output / RUNS_NAME / run.name
    record = read_record(folder)
    if record is not None:
        settings, hasher = (json.loads(json.dumps(dict(each))) for each in (run.settings, run.hasher))
        if (record["config"], record["settings"], record.get("hasher", {})) != (run.config.name, settings, hasher):
            raise CheckpointError(f"{folder} holds a run with other settings; remove it, or name another output.")
        if record["figures"] is not None:
            return
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder, run, None)
    start = time.monotonic()
    parsed = parse_run(run.config, [*run.arguments(), "--output_dir", str(folder)])
    if run.reference is not None:
        figures = _reference_figures(run, parsed, folder)
        write_record(folder, run, figures, time.monotonic() - start)
        return
    metrics_file = folder / METRICS_NAME
    if not metrics_file.is_file():
        if parsed.data.words_from is None:
            parsed.data.words_from = str(shared_words(parsed, output))
        if record is not None and any(folder.glob("checkpoint-*")):
            parsed.training.resume_from_checkpoint = "last"
        train(parsed)
    metrics: dict[str, Any] = read_json(metrics_file, CheckpointError)
    write_record(folder, run, _figures(run, parsed, folder, metrics), float(metrics.get("seconds", 0.0)))
    for checkpoint in folder.glob("checkpoint-*"):  # the model is the best one
        shutil.rmtree(checkpoint, ignore_errors=True)


def _reference_figures(run: GridRun, parsed: Run, folder: Path) -> list[dict[str, Any]]:
    if run.reference == LINEAR:
        from cmfah_hf.experiments.reference import linear_reference

        return linear_reference(parsed, folder)
    from cmfah_hf.experiments.shallow import shallow_reference

    return shallow_reference(parsed, run.new_hasher(), folder)


def _figures(run: GridRun, parsed: Run, folder: Path, metrics: dict[str, Any]) -> list[dict[str, Any]]:
    state = read_json(folder / "trainer_state.json", CheckpointError)
    logs = [log for log in state["log_history"] if "eval_map" in log]
    figures = []
    if logs:  # that of the epoch of the model
        log = min(logs, key=lambda log: abs(log["epoch"] - metrics["epoch"]))
        figures = figures_of_validation(log, run.protocol)
    figures += figures_of_queries(metrics.get("pairs", {}), run.protocol, split="pairs")
    if "query" not in metrics:
        return figures
    figures += figures_of_queries(metrics["query"], run.protocol)
    if "query_seen" in metrics:
        figures += figures_of_queries(metrics["query_seen"], "seen")
    if "paired" in run.encodings and run.protocol == "seen":
        data = parsed.data
        database = data.database_split if data.database_split != "database" else None
        found = evaluate_folder(
            str(folder), data.dataset, data.query_split or "query", database, "paired", captions=data.captions
        )
        figures += figures_of_queries(found, "seen", "paired")
    return figures


def shared_words(run: Run, output: Path) -> Path:
    """The folder of the words for all runs over the same texts with the same settings, which is created if missing.

    The seed of the word graph is 0, so that the words do not depend on the order of the runs.
    """
    settings = {name: value for name, value in asdict(run.data).items() if name not in _WITHOUT_WORDS}
    key = json.dumps([settings, run.setting("word_dim"), needs_word_vectors(run)], sort_keys=True)
    folder = (output / WORDS_NAME / sha256(key.encode()).hexdigest()[:16]).absolute()
    with locked(folder.with_name(f"{folder.name}.making"), CheckpointError, _WAITING_FOR_WORDS_S):
        if not folder.is_dir():
            seed, run.training.seed = run.training.seed, 0
            try:
                pairs = read_pairs(run, output)
                with atomic_folder(folder, CheckpointError) as temporary:
                    make_words(pairs.settings_of(run), pairs.texts, temporary, None)
            finally:
                run.training.seed = seed
    return folder
