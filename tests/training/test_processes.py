"""Several processes against one: the same losses, weights, codes and metrics, with DDP and FSDP2, over loopback."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import BatchSampler, SequentialSampler

from cmfah_hf.models import CMFAHModel
from cmfah_hf.training.processes import BatchShare

ROOT = Path(__file__).parents[2]
IMPORTS = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
PROGRAM = Path(__file__).with_name("process_runs.py")
LAUNCH_FILES = sorted((ROOT / "hub_configs" / "accelerate").glob("*.yaml"))


def free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(folder: Path, group: str, processes: int, **variables: str) -> None:
    """Runs `process_runs.py` in this number of processes; a failing process prints its error."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "FSDP_"))}
    port = str(free_port())
    running = []
    for rank in range(processes):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": IMPORTS, **variables}
        with (folder / f"{group}-{rank}.log").open("w") as log:
            command = [sys.executable, str(PROGRAM), str(folder), group]
            env = own | (place if processes > 1 else {"PYTHONPATH": IMPORTS})
            running.append(subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=240) for process in running]
    finally:
        for process in running:
            process.kill()
    logs = [(folder / f"{group}-{rank}.log").read_text()[-3000:] for rank in range(processes)]
    assert codes == [0] * processes, "\n".join(logs)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A function from a run's name to its results in one process and in each of two."""
    folder = tmp_path_factory.mktemp("processes")
    run(folder, "one", 1)
    run(folder, "two", 2)

    def found(name: str):
        return [
            torch.load(folder / f"{which}-{name}-{rank}.pt") for which, rank in (("one", 0), ("two", 0), ("two", 1))
        ]

    return found


def assert_same_run(one, other, tolerance: float) -> None:
    assert one["steps"] == other["steps"]
    assert len(one["log"]) == len(other["log"])
    for entry, expected in zip(other["log"], one["log"], strict=True):
        assert entry == pytest.approx(expected, rel=tolerance, abs=tolerance)
    assert one["weights"].keys() == other["weights"].keys()
    for name, tensor in one["weights"].items():
        torch.testing.assert_close(other["weights"][name], tensor, rtol=0, atol=tolerance, msg=lambda text: name + text)  # noqa: B023
    assert (one["codes"] is None) == (other["codes"] is None)
    if one["codes"] is not None:
        assert torch.equal(other["codes"], one["codes"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps", "tolerance"),
    [
        # 21 pairs in batches of 8: the last share has 3 pairs and 2. Two epochs: the second uses codes of the first.
        ("both", 6, 1e-11),
        ("none", 6, 1e-11),
        ("scahn", 6, 1e-11),
        ("batch", 6, 1e-3),
        ("accumulation", 4, 1e-11),
        ("single", 4, 1e-11),
        ("backbone", 4, 1e-4),
    ],
)
def test_two_processes_train_like_one_with_the_global_batch(runs, name, steps, tolerance):
    one, first, second = runs(name)
    assert one["steps"] == steps
    assert_same_run(one, first, tolerance)
    losses = [entry["loss"] for entry in one["log"] if "loss" in entry]
    assert len(losses) == steps
    assert len(set(losses)) == steps  # training changed them
    if name != "backbone":
        maps = [entry["eval_map"] for entry in one["log"] if "eval_map" in entry]
        assert [entry["eval_map"] for entry in first["log"] if "eval_map" in entry] == maps
        assert len(maps) == 2
    # The copies are bit-equal, though they started from different weights.
    assert all(torch.equal(tensor, second["weights"][key]) for key, tensor in first["weights"].items())
    assert first["wrapper"] == "DistributedDataParallel"
    assert first["find_unused"] is False


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ucch", "ugach", "agah"])
def test_draws_of_an_objective_are_the_same_in_all_processes(runs, method):
    one, first, second = runs(method)
    assert one["steps"] == 9
    assert_same_run(one, first, 1e-9)
    for name, table in one["tables"].items():
        torch.testing.assert_close(first["tables"][name], table, rtol=0, atol=1e-6)
    # Dropout draws more numbers for 3 pairs than for 2, which must not separate the draws of later steps.
    _, first, second = runs(f"{method}-dropout")
    assert first["own_losses"] == second["own_losses"]
    assert len(set(first["own_losses"])) >= 9
    assert all(torch.equal(table, second["tables"][name]) for name, table in first["tables"].items())


@pytest.mark.slow
def test_gathered_rows_and_their_gradients(runs):
    one, first, second = runs("gathering")
    for part in (first, second):
        assert torch.equal(part["rows"], one["rows"])
        assert torch.equal(part["labels"], one["labels"])
        assert part["labels"].dtype == torch.int64
        start, stop = part["range"]
        assert torch.equal(part["gradient"], one["gradient"][start:stop])
    assert (first["range"], second["range"]) == ((0, 3), (3, 5))


@pytest.mark.slow
def test_sharded_weights_train_like_whole_ones(tmp_path):
    run(tmp_path, "one-sharded", 1)
    run(
        tmp_path, "two-sharded", 2, ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", FSDP_AUTO_WRAP_POLICY="NO_WRAP",
        FSDP_RESHARD_AFTER_FORWARD="true", FSDP_STATE_DICT_TYPE="FULL_STATE_DICT",
        FSDP_CPU_RAM_EFFICIENT_LOADING="false",
    )  # fmt: skip
    names = ("accumulation", "saved", "bf16", "scahn")
    one, two = ([torch.load(tmp_path / f"{which}-sharded-{name}-0.pt") for name in names] for which in ("one", "two"))
    assert two[0]["wrapper"].startswith("FSDP")
    assert_same_run(one[0], two[0], 1e-11)
    assert_same_run(one[3], two[3], 1e-11)
    assert_same_run(one[1], two[1], 1e-3)
    assert two[2]["log"][0]["loss"] == pytest.approx(one[2]["log"][0]["loss"], rel=0.02)
    # The best model was loaded at the end, and the folder holds that model in one file.
    expected = load_file(tmp_path / "one-sharded-model" / "model.safetensors")
    found = load_file(tmp_path / "two-sharded-model" / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-4)
        torch.testing.assert_close(two[1]["weights"][name], found[name], rtol=0, atol=0)
    CMFAHModel.from_pretrained(tmp_path / "two-sharded-model")


# Records which process wrote which file, then runs `train.py`.
COUNTING = """
import os, runpy, sys
from pathlib import Path
from cmfah_hf.expansion import GraphExpander, SkipGramEmbedding
from cmfah_hf.training import run
from cmfah_hf.training.data.region_cache import RegionExtractor
notes = Path(os.environ["NOTES"])
def note(kind, name):
    method = getattr(kind, name)
    def noted(*args, **kwargs):
        with (notes / f"{kind.__name__}.{name}-{os.environ['RANK']}").open("a") as file:
            file.write(".")
        return method(*args, **kwargs)
    setattr(kind, name, noted)
for kind, name in ((SkipGramEmbedding, "fit"), (SkipGramEmbedding, "load"), (SkipGramEmbedding, "save"),
                   (GraphExpander, "fit"), (GraphExpander, "save"), (GraphExpander, "__call__"),
                   (RegionExtractor, "__call__"), (run, "evaluate_pairs")):
    if kind is run:
        kind.__name__ = "run"
    note(kind, name)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_launched_run_writes_everything_once(scenes_folder, write_config, tmp_path, environment):
    config = write_config(
        tmp_path / "run.yaml",
        model={"freeze_backbone": True}, data={"dataset": str(scenes_folder), "refit": True},
        training={"per_device_train_batch_size": 8},
    )  # fmt: skip
    program, notes = tmp_path / "counting.py", tmp_path / "notes"
    program.write_text(COUNTING)
    notes.mkdir()
    command = ["-m", "accelerate.commands.launch", "--config_file", ROOT / "hub_configs/accelerate/cpu.yaml"]
    command += ["--main_process_port", free_port(), program, ROOT / "train.py", config]
    launched = subprocess.run(
        [sys.executable, *map(str, command), "--output_dir", str(tmp_path / "out"), "--json"],
        env=environment | {"NOTES": str(notes), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert launched.returncode == 0, launched.stderr[-3000:]
    metrics = json.loads(launched.stdout)  # printed by one process only
    assert metrics == json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["query"]["queries"] == 16
    assert metrics["refit"]
    assert launched.stderr.count("'train_loss'") == 2  # of the run and of its refit, each from one process
    assert {path.name for path in notes.iterdir()} == {
        "SkipGramEmbedding.fit-0", "SkipGramEmbedding.save-0", "SkipGramEmbedding.load-1", "GraphExpander.fit-0",
        "GraphExpander.save-0", "GraphExpander.__call__-0", "RegionExtractor.__call__-0", "run.evaluate_pairs-0",
    }  # fmt: skip
    assert (notes / "run.evaluate_pairs-0").read_text() == "."
    assert (tmp_path / "out" / "checkpoint-3" / "rng_state_1.pth").is_file()  # 43 pairs in batches of 16: in twos
    CMFAHModel.from_pretrained(tmp_path / "out")


def test_shares_of_a_batch_form_the_batch():
    for count in (1, 2, 3, 16, 17, 18, 21, 24, 31):
        for world in (1, 2, 3):
            for drop_last in (False, True):
                batches = BatchSampler(SequentialSampler(range(count)), 4, drop_last)
                shares = [BatchShare(batches, world, rank) for rank in range(world)]
                given = [list(share) for share in shares]
                assert {len(share) for share in shares} == {len(part) for part in given}
                whole = [list(chain.from_iterable(parts)) for parts in zip(*given, strict=True)]
                expected = list(BatchSampler(range(count), 4 * world, drop_last))
                assert whole == [batch for batch in expected if len(batch) >= world]
                sizes = [{len(part) for part in parts} for parts in zip(*given, strict=True)]
                assert all(min(size) > 0 and max(size) - min(size) <= 1 for size in sizes)


@pytest.mark.parametrize("path", LAUNCH_FILES, ids=lambda path: path.stem)
def test_launch_files_are_read_by_accelerate(path):
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    config = load_config_from_file(str(path))  # rejects unknown keys
    assert config.num_processes % config.num_machines == 0
    assert config.num_processes > 1 or path.stem == "one_gpu"
    port = ["--main_process_port", str(free_port())]
    parser = launch_command_parser()
    arguments = parser.parse_args(["--config_file", str(path), *port, "train.py", "run.yaml"])
    arguments, _, _ = _validate_launch_command(arguments)
    assert (arguments.num_processes, arguments.num_machines) == (config.num_processes, config.num_machines)
    assert (arguments.multi_gpu or arguments.use_fsdp) == (config.num_processes > 1)
    variables = prepare_multi_gpu_env(arguments)
    assert variables["ACCELERATE_MIXED_PRECISION"] == config.mixed_precision
    if path.stem == "fsdp2":
        assert (variables["ACCELERATE_USE_FSDP"], variables["FSDP_VERSION"]) == ("true", "2")
        assert variables["FSDP_AUTO_WRAP_POLICY"] == "NO_WRAP"
        assert variables["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"
    if path.stem == "several_nodes":
        assert (arguments.nnodes, arguments.nproc_per_node, arguments.node_rank) == ("2", "8", 0)


def test_launch_files_are_complete_and_installed():
    assert {path.stem for path in LAUNCH_FILES} == {"cpu", "one_gpu", "several_gpus", "fsdp2", "several_nodes"}
    assert '"hub_configs" = "cmfah_hf/hub_configs"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
