"""Where the runs of a grid take place, in this process, in several or on a Ray cluster, and how long is left."""

import logging
import multiprocessing
import os
import secrets
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread, local

from cmfah_hf.errors import CMFAHError
from cmfah_hf.experiments.grid import GridRun
from cmfah_hf.training import bundled_configuration
from cmfah_hf.training.settings.bundled import FOLDER_NAME

logger = logging.getLogger(__name__)

# Variables that say where data, weights and their caches are; Ray's processes do not inherit them.
_PLACES = ("CMFAH_DATA", "HF_HOME", "HF_DATASETS_CACHE", "HF_HUB_CACHE", "HF_HUB_OFFLINE")


@dataclass(frozen=True)
class Ended:
    """The end of a run: the reason of its failure in one line, or None, and its seconds; 0 if it had been finished."""

    problem: str | None
    seconds: float


@dataclass(frozen=True)
class OnRay:
    """Resources that each run reserves on a Ray cluster."""

    cpus: float = 1.0
    gpus: float = 0.0


# Finishes a run below an output folder, and raises nothing.
Attempt = Callable[[GridRun, Path], Ended]


def in_this_process(attempt: Attempt, runs: Sequence[GridRun], output: Path) -> Iterator[tuple[GridRun, Ended]]:
    """The runs, one after the other, each with its end."""
    for run in runs:
        yield run, attempt(run, output)


def in_processes(attempt: Attempt, runs: Sequence[GridRun], output: Path, jobs: int) -> Iterator[tuple[GridRun, Ended]]:
    """The runs as they end in `jobs` processes, which share the CPUs of this machine. A process that dies, for example
    of too little memory, takes its run with it and no other: each has a pool of its own, which is made anew.
    """
    threads = max(1, (os.cpu_count() or 1) // jobs)
    of_thread, pools = local(), list[ProcessPoolExecutor]()

    def ended(run: GridRun) -> Ended:
        if getattr(of_thread, "pool", None) is None:
            context = multiprocessing.get_context("spawn")
            of_thread.pool = ProcessPoolExecutor(1, context, initializer=_begin_worker, initargs=(threads,))
            pools.append(of_thread.pool)
        try:
            future = of_thread.pool.submit(attempt, run, output)
            error = future.exception()  # only if the process died, because `attempt` raises nothing
        except BrokenProcessPool as broken:  # it died before
            error = broken
        if error is None:
            return future.result()
        of_thread.pool = None
        return Ended(f"its process ended ({error})", 0.0)

    with ThreadPoolExecutor(jobs, "runs") as workers:
        pending = {workers.submit(ended, run): run for run in runs}
        try:
            for done in as_completed(pending):
                yield pending[done], done.result()
        finally:
            workers.shutdown(wait=False, cancel_futures=True)
            for pool in pools:
                pool.shutdown(cancel_futures=True)


def on_ray(attempt: Attempt, runs: Sequence[GridRun], output: Path, reserved: OnRay) -> Iterator[tuple[GridRun, Ended]]:
    """The runs as they end on a Ray cluster, a task each: on the cluster that `RAY_ADDRESS` names or that runs here, or
    else on this machine alone. The output and the configurations must have the same path on all nodes.

    Raises:
        CMFAHError: If Ray is not installed, or its cluster cannot be reached.
    """
    try:
        import ray
    except ImportError as error:
        raise CMFAHError('Runs on a cluster need Ray; install it by `pip install "cmfah-hf[cluster]"`.') from error
    is_ours = not ray.is_initialized()
    try:
        if is_ours:
            ray.init(log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise CMFAHError(
            f"The Ray cluster cannot be used ({' '.join(str(error).split())[:200]}); check RAY_ADDRESS."
        ) from error
    output = output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    mark = output / f".shared-{secrets.token_hex(8)}"
    mark.touch()
    places = {name: os.environ[name] for name in _PLACES if name in os.environ}
    task = ray.remote(_on_node).options(
        num_cpus=reserved.cpus, num_gpus=reserved.gpus, max_retries=1, runtime_env={"env_vars": places}
    )
    arguments = (output, mark, Path.cwd(), max(1, int(reserved.cpus)))
    pending = {}
    try:
        for run in runs:
            pending[task.remote(attempt, replace(run, config=run.config.absolute()), *arguments)] = run
        while pending:
            (first, *_), _ = ray.wait(list(pending), num_returns=1)
            try:
                ended = ray.get(first)
            except ray.exceptions.RayError as error:
                ended = Ended(f"its process ended ({' '.join(str(error).split())[:200]})", 0.0)
            yield pending.pop(first), ended
    finally:
        for left in pending:
            ray.cancel(left, force=True)
        mark.unlink(missing_ok=True)
        if is_ours:
            ray.shutdown()


def _on_node(attempt: Attempt, run: GridRun, output: Path, mark: Path, folder: Path, threads: int) -> Ended:
    """A run in a process of a cluster's node, in the working folder of the caller if the node has it."""
    if not mark.is_file():
        return Ended(f"{output} is not shared with this node; name a folder that all nodes have", 0.0)
    if folder.is_dir():  # for data sets with relative paths
        os.chdir(folder)
    _use_threads(threads)
    try:
        return attempt(replace(run, config=_config_here(run.config)), output)
    except CMFAHError as error:
        return Ended(str(error), 0.0)


def _config_here(path: Path) -> Path:
    """A configuration on this node, where the package and its bundled ones may be elsewhere."""
    if path.is_file() or FOLDER_NAME not in path.parts:
        return path
    return bundled_configuration(str(Path(*path.parts[path.parts.index(FOLDER_NAME) + 1 :])))


def _begin_worker(threads: int) -> None:
    """Prepares a process of `in_processes`, which ends with the one that started it: Python would let it wait for ever,
    with its memory, for the next run of a parent that was killed."""
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    Thread(target=end_with_parent, name="end with parent", daemon=True).start()
    _use_threads(threads)


def _use_threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)


class Progress:
    """The time of a grid so far, and an estimate of the rest.

    A run that is left counts as long as those of its method that have ended, or else as all. As many take place at a
    time as have so far, at least `jobs`.
    """

    def __init__(self, runs: Sequence[GridRun], jobs: int, clock: Callable[[], float] = time.monotonic):
        self._left = {run.name: run.method for run in runs}
        self._jobs, self._clock, self._start = jobs, clock, clock()
        self._seconds: dict[str, list[float]] = {}

    def end(self, run: GridRun, seconds: float) -> str:
        """Notes the end of a run; the time so far and the rest, as `12:34, about 1:20:00 left`."""
        self._left.pop(run.name, None)
        if seconds:
            self._seconds.setdefault(run.method, []).append(seconds)
        passed = self._clock() - self._start
        if not self._left or not self._seconds:
            return shown_duration(passed)
        ended = [value for values in self._seconds.values() for value in values]
        rest = sum(statistics.mean(self._seconds.get(method, ended)) for method in self._left.values())
        at_once = min(max(self._jobs, sum(ended) / max(passed, 1e-9)), len(self._left))
        return f"{shown_duration(passed)}, about {shown_duration(rest / at_once)} left"


def shown_duration(seconds: float) -> str:
    """Minutes and seconds as `12:34`, with hours as `1:20:00`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
