"""Indexing of a folder of photographs: images per second, compared with decoding alone and encoding alone; memory.

    python benchmarks/indexing.py
    python benchmarks/indexing.py --model my-model --images 20000 --rounds 3 --json

Draws JPEGs of 640 x 480 and a model with the backbone of a ResNet-18 (random weights; its speed does not depend on
them), or takes `--model`. In each round, the same images are decoded alone (read, decoded and resized, in the threads
of `cmfah index`), encoded alone (from prepared batches, one after the other and, as in indexing, several at the same
time) and indexed, in turn, in one process on the same processors. Indexing is compared with the slower of decoding and
encoding, each way, and with what remains if both share the processors, whose work adds up.
Then `--images` JPEGs are indexed by `cmfah index` in a new process, and again without changes. The speed of a machine
changes within minutes, so that this process is paused every 90 seconds while decoding and encoding alone are measured.
"""

import argparse
import json
import logging
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from rich.console import Console
from rich.table import Table

from cmfah_hf.models import CMFAHConfig, CMFAHModel, CMFAHProcessor
from cmfah_hf.retrieval import CrossMediaRetriever, ImageOptions
from cmfah_hf.retrieval.folders import FolderRequest, ModelOnDemand, UpdateOptions, update_folders
from cmfah_hf.retrieval.items import batches_of
from cmfah_hf.retrieval.preparation import read_image

_BATCH = 32
_PAUSED_EVERY_S = 90.0
# Ends with the peak of its resident memory in bytes. That of `getrusage` would include this process's.
_PROGRAM = """
import pathlib, resource, sys
from cmfah_hf.cli import main
try:
    main()
finally:
    lines = pathlib.Path("/proc/self/status").read_text().split("\\n") if sys.platform == "linux" else []
    peaks = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")]
    print(*(peaks or [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]), file=sys.stderr)
"""
_RESNET18 = {
    "model_type": "resnet", "layer_type": "basic", "embedding_size": 64, "hidden_sizes": [64, 128, 256, 512],
    "depths": [2, 2, 2, 2],
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="the folder of a model; default: a ResNet-18 with random weights")
    parser.add_argument("--images", type=int, default=20_000, help="of the whole run; 0 leaves it out")
    parser.add_argument("--round-images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--fast-decoding", action="store_true")
    parser.add_argument("--json", action="store_true")
    own = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_HOME"] = str(Path(folder) / "cache")
        model = own.model or _save_model(Path(folder) / "model")
        parts = _Parts(own, str(model), Path(folder))
        found = {"rates": parts.rates(own.rounds)}
        if own.images:
            found["whole"] = [_whole(own, str(model), Path(folder), own.images // part, parts) for part in (10, 1)]
    if own.json:
        print(json.dumps(found))  # noqa: T201
        return
    console = Console(width=110)
    table = Table(title=f"Images per second, medians of {own.rounds} rounds of {own.round_images}")
    for name in found["rates"]:
        table.add_column(name.replace("_", " "), justify="right")
    table.add_row(*(f"{value:,.2f}" if value < 2 else f"{value:,.0f}" for value in found["rates"].values()))
    console.print(table)
    for row in found.get("whole", ()):
        console.print(", ".join(f"{name.replace('_', ' ')} {value:,.2f}" for name, value in row.items()))


def draw_photographs(folder: Path, count: int) -> None:
    """Writes different JPEGs of 640 x 480 with the detail of photographs: smooth shapes, edges and grain."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    coarse = [Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((640, 480)) for _ in range(16)]
    edges = Image.fromarray(rng.integers(0, 256, (60, 80), np.uint8)).resize((640, 480), Image.Resampling.NEAREST)
    edges = edges.filter(ImageFilter.GaussianBlur(1)).point(lambda value: 255 * (value > 128))
    bases = [np.asarray(Image.composite(one, coarse[number - 1], edges), np.int16) for number, one in enumerate(coarse)]
    grain = rng.normal(0, 8, (960, 1280, 1)).astype(np.int16)
    for number in range(count):
        top, left = rng.integers(0, 480), rng.integers(0, 640)
        pixels = bases[number % len(bases)] + grain[top : top + 480, left : left + 640]
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(folder / f"{number:06d}.jpg", quality=85, comment=str(number).encode())


def _save_model(folder: Path) -> Path:
    torch.manual_seed(0)
    words = ["boat", "sun"]
    config = CMFAHConfig(
        hash_bits=64, hidden_size=128, word_dim=32, text_filters=32, text_kernel_sizes=[1], use_lstm=False,
        vocab_size=len(words) + 2, backbone_config=_RESNET18, image_size=224,
    )  # fmt: skip
    CMFAHModel(config).save_pretrained(folder)
    CMFAHProcessor.from_vocabulary(config, words).save_pretrained(folder)
    return folder


class _Parts:
    """The parts of indexing, each alone and all together, on the same images in this process."""

    def __init__(self, own: argparse.Namespace, model: str, folder: Path):
        options = ImageOptions(own.workers, own.fast_decoding)
        self._retriever = CrossMediaRetriever.from_pretrained(model, image_options=options)
        self._photographs, self._target = folder / "round", folder / "round.index"
        draw_photographs(self._photographs, own.round_images)
        self._files = sorted(self._photographs.iterdir())
        self._kept = list(self._decoded())
        self._alone = {"decode": self.decode, "encode": self.encode, "encode_at_once": self.encode_at_once}

    def _decoded(self) -> Iterator[torch.Tensor]:
        with self._retriever.prepare(batches_of(self._files, _BATCH, "", False), read_image) as prepared:
            yield from (batch.pixel_values for batch in prepared)

    def decode(self) -> None:
        for _ in self._decoded():
            pass

    def encode(self) -> None:
        for pixel_values in self._kept:
            self._retriever.encode_pixels(pixel_values)

    def encode_at_once(self) -> None:
        pool = self._retriever.encoding_pool()  # None: one batch after the other, as in indexing
        with pool or nullcontext():
            list((map if pool is None else pool.map)(self._retriever.encode_pixels, self._kept))

    def index(self) -> None:
        self._target.unlink(missing_ok=True)
        demand = ModelOnDemand.of(self._retriever)
        update_folders(self._target, [FolderRequest(self._photographs)], demand, UpdateOptions(batch_size=_BATCH))

    def rates(self, rounds: int) -> dict[str, float]:
        """The medians of the rates of all parts, measured in turn, and those of the shares in each round."""
        parts = {**self._alone, "index": self.index}
        measured: dict[str, list[float]] = {name: [] for name in parts}
        for number in range(rounds + 1):
            for name in list(parts)[:: 1 if number % 2 else -1]:
                seconds = _seconds_of(parts[name])
                if number:  # the first one is a warm-up
                    measured[name].append(seconds)
        decode_s, encode_s, at_once_s, index_s = (np.array(own) for own in measured.values())
        return {
            **{name: len(self._files) / statistics.median(own) for name, own in measured.items()},
            "of_the_slower": float(np.median(np.maximum(decode_s, encode_s) / index_s)),
            "of_the_slower_at_once": float(np.median(np.maximum(decode_s, at_once_s) / index_s)),
            "of_both_together": float(np.median((decode_s + at_once_s) / index_s)),
        }

    def seconds_alone(self) -> dict[str, float]:
        """Seconds that each part alone takes for one image."""
        return {name: _seconds_of(part) / len(self._files) for name, part in self._alone.items()}


def _run(command: list[str], in_a_pause: Callable[[], None]) -> tuple[float, int]:
    """Seconds of a command without its pauses, and its peak memory in bytes. Raises if it fails."""
    with tempfile.TemporaryFile("w+") as errors:
        start, paused_s = time.perf_counter(), 0.0
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        try:
            while True:
                try:
                    process.wait(_PAUSED_EVERY_S)
                    break
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGSTOP)
                    paused_s += _seconds_of(in_a_pause)
                    process.send_signal(signal.SIGCONT)
        finally:
            process.kill()  # after an interrupt it would stay paused
        seconds = time.perf_counter() - start - paused_s
        errors.seek(0)
        lines = errors.read().split("\n")
        if process.returncode:
            raise SystemExit("\n".join(lines[-20:]))
        return seconds, int(lines[-2])


def _seconds_of(part: Callable[[], None]) -> float:
    start = time.perf_counter()
    part()
    return time.perf_counter() - start


def _whole(own: argparse.Namespace, model: str, folder: Path, count: int, parts: _Parts) -> dict[str, float]:
    """Seconds and peak memory of `cmfah index` in new processes: first, and again without changes. The first one's
    rate is compared with that of the slower part, measured in its pauses."""
    photographs, target = folder / f"photographs-{count}", folder / f"{count}.index"
    draw_photographs(photographs, count)
    command = [sys.executable, "-c", _PROGRAM, "index", model, str(photographs)]
    command += ["-o", str(target), "--json", "--batch-size", str(_BATCH)]
    command += ["--fast-decoding"] * own.fast_decoding + (["--workers", str(own.workers)] if own.workers else [])
    found: dict[str, float] = {"images": count}
    alone: list[dict[str, float]] = []
    for name in ("first", "again"):
        seconds, peak = _run(command, lambda: alone.append(parts.seconds_alone()))
        found |= {f"{name}_seconds": seconds, f"{name}_peak_megabytes": peak / 1e6}
    if not alone:  # the run was shorter than what a pause waits for
        alone.append(parts.seconds_alone())
    found["rate"] = count / found["first_seconds"]
    slower = {"": "encode", "_at_once": "encode_at_once"}
    for name, encode in slower.items():
        slower_s = statistics.mean(max(seconds["decode"], seconds[encode]) for seconds in alone)
        found |= {f"rate_of_the_slower{name}": 1 / slower_s, f"of_the_slower{name}": found["rate"] * slower_s}
    shutil.rmtree(photographs)
    return found


if __name__ == "__main__":
    main()
