"""Progress of a grid, its peak memory, and its runs on a Ray cluster, with a stand-in for Ray where none is needed."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cmfah_hf.errors import CMFAHError
from cmfah_hf.experiments import OnRay, memory, read_grid, read_results, run_grid, running
from cmfah_hf.experiments.memory import PeakMemory
from cmfah_hf.experiments.workers import Ended, Progress, _config_here, in_processes, on_ray, shown_duration
from cmfah_hf.training import bundled_configuration

SCM = {"scm": {"config": "fitted-{data}.yaml", "settings": {"method": "scm"}}}


def run(name, method):
    return SimpleNamespace(name=name, method=method)


def test_the_rest_is_estimated_by_method():
    runs = [run(f"{method}-{seed}", method) for method in ("slow", "fast") for seed in range(3)]
    now = [0.0]
    progress = Progress(runs, jobs=1, clock=lambda: now[0])
    now[0] = 100.0
    assert progress.end(runs[0], 100.0) == "1:40, about 8:20 left"  # all as the only one so far
    now[0] = 110.0
    assert progress.end(runs[3], 10.0) == "1:50, about 3:40 left"
    # A run that had been finished says nothing of the others.
    assert progress.end(run("old", "fast"), 0.0) == "1:50, about 3:40 left"
    for one in (*runs[1:3], *runs[4:]):
        last = progress.end(one, 10.0)
    assert last == "1:50"


def test_the_estimate_counts_runs_at_once():
    runs = [run(f"{seed}", "one") for seed in range(9)]
    now = [60.0]
    progress = Progress(runs, jobs=4, clock=lambda: now[0])
    now[0] = 120.0
    assert progress.end(runs[0], 60.0) == "1:00, about 2:00 left"
    on_cluster = Progress(runs, jobs=1, clock=lambda: now[0])
    now[0] = 180.0
    for one in runs[:7]:
        shown = on_cluster.end(one, 60.0)
    assert shown == "1:00, about 1:00 left"


def test_durations():
    assert [shown_duration(seconds) for seconds in (0, 59.6, 754, 4800)] == ["0:00", "1:00", "12:34", "1:20:00"]


def held(megabytes):
    block = np.ones(megabytes * 125_000)
    return float(block.sum())


def test_peak_memory_is_that_of_the_run():
    held(100)
    before = PeakMemory()
    held(300)
    large = before.megabytes()
    again = PeakMemory()
    held(20)
    small = again.megabytes()
    if not memory._STATUS.is_file():
        pytest.skip("only Linux starts the peak anew")
    assert large - small == pytest.approx(280, abs=60)


def test_without_a_peak_of_its_own_a_run_counts_only_if_it_rises(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_ANEW", tmp_path / "missing" / "clear_refs")
    peaks = iter([100, 100, 100, 5_000_000])
    monkeypatch.setattr(memory, "_peak_of_process", lambda: next(peaks))
    assert PeakMemory().megabytes() is None
    assert PeakMemory().megabytes() == 5.0


def test_progress_is_shown_for_every_run(write_grid, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "finish", lambda run, output: None)
    lines = []
    run_grid(read_grid(write_grid()), tmp_path / "out", report=lines.append)
    assert lines == [
        "[1/2] scenes/cmfah/full/16-bits/seen/seed-0: finished (0:00, about 0:00 left)",
        "[2/2] scenes/cmfah/full/16-bits/seen/seed-1: finished (0:00)",
    ]


def die_of_the_second(run, output):
    if run.seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(1)  # so that runs are left when the process dies
    return Ended(None, float(run.seed))


@pytest.mark.slow
def test_a_process_that_dies_takes_no_other_run_with_it(write_grid, tmp_path, environment, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([environment["PYTHONPATH"], str(Path(__file__).parent)]))
    runs = read_grid(write_grid(seeds=[0, 1, 2, 3])).runs
    found = {run.seed: ended for run, ended in in_processes(die_of_the_second, runs, tmp_path, 2)}
    assert found.keys() == {0, 1, 2, 3}
    assert found.pop(1).problem.startswith("its process ended (")
    assert {seed: ended.problem for seed, ended in found.items()} == dict.fromkeys((0, 2, 3))


def wait_in(run, output):
    (output / f"{os.getpid()}.pid").touch()
    time.sleep(600)


PROGRAM = """
import sys
from pathlib import Path
from types import SimpleNamespace
import test_workers
from cmfah_hf.experiments.workers import in_processes
if __name__ == "__main__":
    list(in_processes(test_workers.wait_in, [SimpleNamespace(seed=0), SimpleNamespace(seed=1)], Path(sys.argv[1]), 2))
"""


@pytest.mark.slow
def test_processes_end_with_the_one_that_started_them(tmp_path, environment):
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    paths = os.pathsep.join([environment["PYTHONPATH"], str(Path(__file__).parent)])
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path)]
    with subprocess.Popen(command, env={**environment, "PYTHONPATH": paths}) as parent:
        wait_for(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
        parent.kill()
    workers = [int(path.stem) for path in tmp_path.glob("*.pid")]
    wait_for(lambda: not any(is_alive(worker) for worker in workers))


def wait_for(condition):
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


def is_alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/status")
    return not (status.is_file() and "State:\tZ" in status.read_text(encoding="utf-8"))


class FakeRay:
    """What `on_ray` uses of Ray, in this process; tasks run when they are waited for, and those of `dying` die."""

    def __init__(self, dying=()):
        self.exceptions = SimpleNamespace(RayError=RuntimeError)
        self.dying, self.options_given, self.initialized, self.cancelled = dying, [], False, []

    def is_initialized(self):
        return self.initialized

    def init(self, **kwargs):
        self.initialized = True

    def shutdown(self):
        self.initialized = False

    def remote(self, function):
        def options(**given):
            self.options_given.append(given)
            return SimpleNamespace(remote=lambda *arguments: partial(function, *arguments))

        return SimpleNamespace(options=options)

    def wait(self, pending, num_returns):
        return pending[:num_returns], pending[num_returns:]

    def get(self, call):
        if call.args[1].seed in self.dying:
            raise RuntimeError("The node\ndied")
        return call()

    def cancel(self, call, force):
        self.cancelled.append(call)


def ended_well(run, output):
    return Ended(None, 1.0)


def test_runs_on_a_cluster(write_grid, tmp_path, monkeypatch):
    fake = FakeRay(dying=(1,))
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setenv("CMFAH_DATA", "/shared/data")
    monkeypatch.setattr(running, "_attempt", ended_well)
    lines = []
    grid = read_grid(write_grid(seeds=[0, 1, 2]))
    failed = run_grid(grid, tmp_path / "out", report=lines.append, ray=OnRay(cpus=2, gpus=0.5))
    assert failed == [grid.runs[1].name]
    assert "its process ended (The node died)" in lines[1]
    (options,) = fake.options_given
    assert (options["num_cpus"], options["num_gpus"]) == (2, 0.5)
    assert options["runtime_env"]["env_vars"]["CMFAH_DATA"] == "/shared/data"
    assert not fake.initialized
    assert not list((tmp_path / "out").glob(".shared-*"))


def test_an_output_that_is_not_shared_is_named(write_grid, tmp_path, monkeypatch):
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    fake.get = lambda call: call.func(*call.args[:3], tmp_path / "elsewhere", *call.args[4:])
    (first, *_) = on_ray(ended_well, read_grid(write_grid()).runs, tmp_path / "out", OnRay())
    assert "out is not shared with this node; name a folder that all nodes have" in first[1].problem


def test_what_is_left_is_cancelled(write_grid, tmp_path, monkeypatch):
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    ends = on_ray(ended_well, read_grid(write_grid()).runs, tmp_path / "out", OnRay())
    next(ends)
    ends.close()
    assert len(fake.cancelled) == 1
    assert not fake.initialized


def test_bundled_configurations_are_found_where_the_package_is(tmp_path):
    elsewhere = tmp_path / "other" / "hub_configs" / "base.yaml"
    assert _config_here(elsewhere) == bundled_configuration("base.yaml")
    assert _config_here(tmp_path / "own.yaml") == tmp_path / "own.yaml"
    with pytest.raises(CMFAHError, match=r"gone\.yaml"):
        _config_here(tmp_path / "hub_configs" / "gone.yaml")


def test_without_ray_there_is_one_line(write_grid, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(CMFAHError, match=r"need Ray; install it by `pip install \"cmfah-hf\[cluster\]\"`") as caught:
        run_grid(read_grid(write_grid()), tmp_path / "out", ray=OnRay())
    assert len(str(caught.value).splitlines()) == 1


# In a process and on a cluster of its own: other tests keep theirs until the end of the session, on the same machine.
ON_RAY = """
import sys
import ray
from cmfah_hf.experiments import read_grid, run_grid
from cmfah_hf.experiments.workers import OnRay

ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20)
lines = []
assert run_grid(read_grid(sys.argv[1]), "out", report=lines.append, ray=OnRay()) == [], lines
"""


@pytest.mark.cluster
def test_runs_on_a_real_cluster(write_grid, tmp_path, environment):
    pytest.importorskip("ray")
    path = write_grid(methods=SCM, bits=[8])
    done = subprocess.run(
        [sys.executable, "-c", ON_RAY, str(path)],
        env={**environment, "RAY_USAGE_STATS_ENABLED": "0"}, cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {one.seed for one in read_results(tmp_path / "out")} == {0, 1}
    (run, *_) = read_grid(path).runs
    record = json.loads((tmp_path / "out" / "runs" / run.name / "experiment.json").read_text())
    assert record["memory_mb"] > 50
