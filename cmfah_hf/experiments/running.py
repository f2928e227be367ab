"""Running of grids: every run has a folder, resumes after an interruption, and fails without stopping others."""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from cmfah_hf.atomic import atomic_folder, locked
from cmfah_hf.documents import read_json
from cmfah_hf.errors import CheckpointError, CMFAHError
from cmfah_hf.evaluation.curve_files import CURVES_NAME, add_curves
from cmfah_hf.experiments.grid import Grid, GridRun
from cmfah_hf.experiments.memory import PeakMemory
from cmfah_hf.experiments.results import (
    RUNS_NAME,
    figures_of_calibration,
    figures_of_queries,
    figures_of_validation,
    read_record,
    write_record,
    write_results,
)
from cmfah_hf.experiments.workers import Ended, OnRay, Progress, in_processes, in_this_process, on_ray
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
    grid: Grid,
    output: str | Path,
    only: Sequence[str] = (),
    jobs: int = 1,
    report: Callable[[str], None] = logger.info,
    ray: OnRay | None = None,
) -> list[str]:
    """Runs a grid. Finished runs are not repeated, and interrupted ones resume from their last checkpoint.

    All runs over the same texts with the same word settings share one word graph and one table of word vectors, so that
    variants and seeds are compared on the same words.

    Args:
        grid: The grid.
        output: The folder of the grid: `runs/` with a folder per run, `words/`, and `results.parquet` with the figures.
        only: Patterns of names, as in `Grid.only`.
        jobs: The number of parallel processes.
        report: Called with one line for each run that has ended, with the time so far and an estimate of the rest.
        ray: What each run reserves on a Ray cluster, where the runs take place instead; None: on this machine.

    Returns:
        The names of failed runs, which the next call repeats.

    Raises:
        CMFAHError: If a pattern matches nothing, the folder cannot be written, or Ray is asked for and not there.
    """
    runs, output = grid.only(only), Path(output)
    if jobs < 1:
        raise CMFAHError(f"jobs is {jobs}; give 1 or more.")
    progress, failed = Progress([run for run in runs if not _is_finished(run, output)], jobs), []
    try:
        for count, (run, ended) in enumerate(_each(runs, output, jobs, ray), start=1):
            so_far = progress.end(run, ended.seconds)
            report(f"[{count}/{len(runs)}] {run.name}: {ended.problem or 'finished'} ({so_far})")
            if ended.problem is not None:
                failed.append(run.name)
    finally:
        write_results(output)
    return failed


def _each(runs: Sequence[GridRun], output: Path, jobs: int, ray: OnRay | None) -> Iterator[tuple[GridRun, Ended]]:
    if ray is not None:
        return on_ray(_attempt, runs, output, ray)
    return in_this_process(_attempt, runs, output) if jobs == 1 else in_processes(_attempt, runs, output, jobs)


def _is_finished(run: GridRun, output: Path) -> bool:
    try:
        record = read_record(output / RUNS_NAME / run.name)
    except CMFAHError:  # the run will fail
        return False
    return record is not None and record["figures"] is not None


def _attempt(run: GridRun, output: Path) -> Ended:
    """Finishes one run, if it has not been finished. Tracebacks of bugs are logged."""
    start, problem, was_finished = time.monotonic(), None, _is_finished(run, output)
    try:
        finish(run, output)
    except CMFAHError as error:
        problem = str(error)
    except Exception as error:  # a bug in one run does not stop the others
        logger.exception("%s failed", run.name)
        problem = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return Ended(problem, 0.0 if was_finished else time.monotonic() - start)


def finish(run: GridRun, output: Path) -> None:
    """Finishes one run, whatever its state.

    Raises:
        CMFAHError: If its settings, data or weights cannot be used, or its folder holds a run with other settings.
    """
    folder = output / RUNS_NAME / run.name
    record = read_record(folder)
    if record is not None:
        settings = json.loads(json.dumps(dict(run.settings)))
        if (record["config"], record["settings"]) != (run.config.name, settings):
            raise CheckpointError(f"{folder} holds a run with other settings; remove it, or name another output.")
        if record["figures"] is not None:
            return
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder, run, None)
    memory = PeakMemory()
    parsed = parse_run(run.config, [*run.arguments(), "--output_dir", str(folder)])
    if run.reference is not None:
        from cmfah_hf.experiments.reference import linear_reference

        fitted = linear_reference(parsed, folder)
        write_record(folder, run, fitted.figures, fitted.seconds, memory.megabytes())
        return
    metrics_file = folder / METRICS_NAME
    # A training in several goes, or of an earlier call, has no peak that could be measured now.
    in_one_go = not metrics_file.is_file() and not any(folder.glob("checkpoint-*"))
    if not metrics_file.is_file():
        if parsed.data.words_from is None:
            parsed.data.words_from = str(shared_words(parsed, output))
        if record is not None and any(folder.glob("checkpoint-*")):
            parsed.training.resume_from_checkpoint = "last"
        train(parsed)
    metrics: dict[str, Any] = read_json(metrics_file, CheckpointError)
    figures = _figures(run, parsed, folder, metrics)
    most = memory.megabytes() if in_one_go else None
    write_record(folder, run, figures, float(metrics.get("seconds", 0.0)), most)
    for checkpoint in folder.glob("checkpoint-*"):  # the model is the best one
        shutil.rmtree(checkpoint, ignore_errors=True)


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
    # Against items that the model was not trained on, by either protocol, and against the training pairs.
    figures += figures_of_calibration(metrics.get("calibration", {}), "unseen")
    figures += figures_of_calibration(metrics.get("calibration_seen", {}), "seen")
    for encoding in ("pair", "learnt"):  # a shallow method's own codes of the database
        figures += figures_of_queries(metrics.get(f"query_{encoding}", {}), run.protocol, encoding)
    if "paired" in run.encodings and run.protocol == "seen":
        data = parsed.data
        database = data.database_split if data.database_split != "database" else None
        found = evaluate_folder(
            str(folder),
            data.dataset,
            data.query_split or "query",
            database,
            "paired",
            captions=data.captions,
            keep_curves=partial(add_curves, database="seen", encoding="paired", path=folder / CURVES_NAME),
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
                    make_words(pairs.settings_of(run), pairs.labeled_texts, temporary, None)
            finally:
                run.training.seed = seed
    return folder
