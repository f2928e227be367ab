"""The hinge over all triplets of a large batch: memory, and precision in float32."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cmfah_hf.methods.losses import triplet_hinge

PROGRAM = """
import re, torch
from pathlib import Path
from cmfah_hf.methods.losses import cosine_matrix, triplet_hinge, triplet_masks

def work(size):
    values = torch.randn(size, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.rand(size, 20, generator=torch.Generator().manual_seed(1)) < 0.1
    value = triplet_hinge(cosine_matrix(values, values), *triplet_masks(labels, within=True), 0.5)
    value.backward()
    return value.item(), values.grad.norm().item()

def held(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

work(64)
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: imports may have had a higher one
before = held("VmRSS")
print(*work(4096), held("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems report the peak in other units")
def test_a_batch_of_4096_takes_less_than_two_gigabytes(environment, tmp_path):
    """In the naive form its hinges alone would take 275 GB."""
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=250
    )
    assert run.returncode == 0, run.stderr
    value, gradient, peak = map(float, run.stdout.split())
    assert 0 < value < 1.5
    assert gradient > 0
    assert 100e6 < peak < 2e9


def test_long_rows_keep_their_precision_in_float32():
    """4,096 candidates of some anchors, against all their triplets in float64."""
    rng = np.random.default_rng(0)
    anchors, candidates = 12, 4096
    similarity = rng.uniform(-1, 1, (anchors, candidates)).astype(np.float32)
    positive = rng.random((anchors, candidates)) < 0.3
    negative = ~positive
    value, gradient = 0.0, np.zeros((anchors, candidates))
    for anchor in range(anchors):
        exact = similarity[anchor].astype(np.float64)
        hinge_PN = 0.5 + exact[negative[anchor]][None, :] - exact[positive[anchor]][:, None]
        value += hinge_PN[hinge_PN > 0].sum()
        gradient[anchor, positive[anchor]] = -(hinge_PN > 0).sum(axis=1)
        gradient[anchor, negative[anchor]] = (hinge_PN > 0).sum(axis=0)
    triplets = (positive.sum(axis=1) * negative.sum(axis=1)).sum()
    tensor = torch.tensor(similarity, requires_grad=True)
    found = triplet_hinge(tensor, torch.tensor(positive), torch.tensor(negative), 0.5)
    found.backward()
    assert found.item() == pytest.approx(value / triplets, rel=1e-5)
    difference = tensor.grad.double().numpy() - gradient / triplets
    assert np.linalg.norm(difference) < 1e-5 * np.linalg.norm(gradient / triplets)


@pytest.mark.slow
def test_the_benchmark_prints_both_forms(tmp_path, environment):
    script = Path(__file__).parents[2] / "benchmarks" / "triplets.py"
    run = subprocess.run(
        [sys.executable, str(script), "--sizes", "64", "--hold", "0.5"],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    row = next(line for line in run.stdout.splitlines() if line.split("│")[1:] and line.split("│")[1].strip() == "64")
    assert "(portions)" in row
    assert float(row.split("│")[9]) < 1e-5
