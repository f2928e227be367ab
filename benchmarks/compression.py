"""Processor time and memory of the fitting of codes in `cmfah compress`, without the encoder; see docs/benchmarks.md.

    python benchmarks/compression.py
    python benchmarks/compression.py --images 10000 100000 1000000 --width 768

Each number of images is a new process, which draws clustered vectors in batches of 1,000 and fits codes to them: of
images alone, and of images with a text each.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from cmfah_hf.methods.closed_form import CodeFitter

BATCH, CENTERS = 1_000, 1_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[100_000, 300_000])
    parser.add_argument("--width", type=int, default=512, help="of the encoder's vectors")
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--texts", action="store_true", help="with a text each, in this process; prints JSON")
    parser.add_argument("--alone", action="store_true", help="without texts, in this process; prints JSON")
    own = parser.parse_args()
    if own.texts or own.alone:
        print(json.dumps([fitted(count, own.width, own.bits, own.texts) for count in own.images]))  # noqa: T201
        return
    table = Table(f"{own.width} dimensions, {own.bits} bits", "images", "adding, s", "fitting, s", "peak memory, MB")
    for count in own.images:
        for kind in ("--alone", "--texts"):
            command = [sys.executable, __file__, "--images", str(count), "--width", str(own.width), kind]
            done = subprocess.run([*command, "--bits", str(own.bits)], check=True, capture_output=True, text=True)
            adding, fitting, peak = json.loads(done.stdout)[0]
            title = "images alone" if kind == "--alone" else "images and texts"
            table.add_row(title, f"{count:,}", f"{adding:.1f}", f"{fitting:.1f}", f"{peak:,.0f}")
    Console(width=120).print(table)


def fitted(count: int, width: int, bits: int, with_texts: bool) -> tuple[float, float, float]:
    """Processor seconds of adding vectors and of fitting codes to them, and the peak memory of the process in MB."""
    generator = np.random.default_rng(0)
    centers = generator.standard_normal((CENTERS, width), np.float32)
    fitter, adding = CodeFitter(width), 0.0
    for start in range(0, count, BATCH):
        common = centers[generator.integers(CENTERS, size=min(BATCH, count - start))]
        sides = [common + generator.standard_normal(common.shape, np.float32) for _ in range(1 + with_texts)]
        begin = time.process_time()
        if with_texts:
            fitter.add_pairs(*sides)
        else:
            fitter.add_images(*sides)
        adding += time.process_time() - begin
    begin = time.process_time()
    fitter.fit(bits)
    fitting = time.process_time() - begin
    status = Path("/proc/self/status").read_text(encoding="utf-8")  # getrusage includes the parent
    return adding, fitting, int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1024


if __name__ == "__main__":
    main()
