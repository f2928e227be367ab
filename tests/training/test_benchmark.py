"""`benchmarks/training.py` on a few pairs: its tables, and that the compared loops compute the same."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "training.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_of_training", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.slow
def test_plain_loop_takes_the_same_steps_as_the_trainer(benchmark, tmp_path):
    """Both end with the same weights, so neither is faster because it does less."""
    setting = benchmark.kept_regions(8, str(tmp_path), words=50)
    # One batch, so the order of the pairs does not matter; no randomness within a step.
    small = {"word_dim": 8, "text_filters": 4, "hidden_size": 16, "dropout": 0.0, "attention": "both"}
    args = setting.arguments(
        str(tmp_path), per_device_train_batch_size=8, use_cpu=True, lr_scheduler_type="constant", weight_decay=0.0
    )
    models = [setting.build(**small)[0].double() for _ in range(2)]
    start = {name: tensor.clone() for name, tensor in models[0].state_dict().items()}
    processor = setting.build(**small)[1]
    benchmark.TimedTrainer(models[0], args, setting.pairs, processing_class=processor).seconds()
    benchmark.PlainLoop(models[1], setting.pairs, processor, args, steps=1).train()
    moved = 0
    for (name, one), other in zip(models[0].state_dict().items(), models[1].state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8, msg=name)
        moved += not torch.equal(one, start[name])
    assert moved > 20


def test_turns_alternate_and_the_first_is_warm_up(benchmark):
    order = []
    seconds = benchmark.in_turns({name: lambda n=name: order.append(n) or len(order) for name in "ab"}, repeats=3)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
    assert seconds == {"a": [3, 6, 7], "b": [4, 5, 8]}
    assert benchmark.ratio(seconds["b"], seconds["a"]) == 8 / 7


@pytest.mark.slow
def test_all_tables_are_printed(tmp_path):
    found = subprocess.run(
        [sys.executable, str(SCRIPT), "--small", "--paper-setting", "--repeats", "1"],
        capture_output=True, text=True, cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    rows = {
        cells[0].strip(): [float(cell.replace(",", "")) for cell in cells[1:] if re.fullmatch(r"\s*[\d.,]+\s*", cell)]
        for line in found.stdout.splitlines()
        if len(cells := line.strip("│").split("│")) > 2
    }
    for name in ("kept regions", "pixels", "Parquet stream", "pixels, VGG19", "both", "none", "frozen", "fine-tuned"):
        assert rows[name], found.stdout
        assert min(rows[name]) >= 0
    assert rows["both"][2] > 0  # evaluation takes time
    lines = [line.split("│") for line in found.stdout.splitlines() if line.count("│") == 6]
    compared = [cells[2].strip() for cells in lines if cells[1].strip() in ("kept regions", "pixels, VGG19")]
    kinds = ["neither", "attention", "attention and discriminators"]
    assert compared == [*kinds, "the same, cross-modal in every update", *kinds], found.stdout
