"""PyTorch and ONNX Runtime compared: bits of codes, and a whole `cmfah search` in a new process; see docs/search.md.

    python benchmarks/backends.py
    python benchmarks/backends.py my-model --only time --repeats 9 --json

Without a model, a copy of the embedded one gets ONNX files. Bits are those of scenes of several sizes, as PNG and JPEG
files, and of their texts, from raw bytes and strings to codes. Times are those of processes that search an index of
scenes, and of one that only imports a model of transformers; they take turns with the same texts, and the answers of
the backends are compared. The first turn of each is not counted: it fills the caches of the system and, for PyTorch,
that of fingerprints.
"""

import argparse
import io
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

PROGRAM = [sys.executable, "-c", "from cmfah_hf.cli import main; main()"]
# Sides and formats of the scenes whose bits are compared.
SCENES = ((48, "PNG"), (96, "PNG"), (256, "JPEG"), (500, "JPEG"))
TEXTS = ("boat", "blue sky", "bird", "flower", "night")
# The part of a start that a search with PyTorch cannot do without.
IMPORT = "from transformers import CLIPModel"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="a folder with ONNX files; default: the embedded model")
    parser.add_argument("--only", choices=("bits", "time"))
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--repeats", type=int, default=5, help="processes of each backend")
    parser.add_argument("--scenes", type=int, default=200, help="of each size, and in the index")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    own = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = own.model or embedded(Path(folder))
        if own.only != "time":
            found["bits"] = bits(model, own)
        if own.only != "bits":
            found["time"] = times(model, index_of_scenes(model, Path(folder), own.scenes), own)
    if own.json:
        print(json.dumps({"load": os.getloadavg(), **found}, indent=1))  # noqa: T201
        return
    for title, rows in found.items():
        table = Table(title, *next(iter(rows.values())))
        for name, figures in rows.items():
            table.add_row(
                name, *(f"{value:,}" if isinstance(value, int) else f"{value:.2g}" for value in figures.values())
            )
        Console().print(table)


def bits(model: str, own: argparse.Namespace) -> dict[str, Any]:
    """Values of inputs and bits of codes that differ from PyTorch's."""
    from cmfah_hf import CrossMediaRetriever
    from cmfah_hf.data import make_scenes
    from cmfah_hf.data.images import decode_image
    from cmfah_hf.retrieval.onnx.comparison import compared

    content, texts = [], []
    for size, kind in SCENES:
        for row in make_scenes(own.scenes, image_size=size):
            file = io.BytesIO()
            row["image"].convert("RGB").save(file, kind)
            content.append(file.getvalue())
            texts.append(row["text"])
    by_torch = CrossMediaRetriever.from_pretrained(model, device="cpu")
    by_onnx = CrossMediaRetriever.from_pretrained(model, backend="onnx", precision=own.precision)
    images = [decode_image(each) for each in content]
    pixels = by_torch.processor(images=images, return_tensors="np")["pixel_values"]
    with by_onnx.prepare([images], lambda image, _: (None, image)) as prepared:
        different = int((next(prepared).pixel_values != pixels).sum())
    expected = by_torch.encode_images(content)
    rows = {
        "pixel_values": {"compared": pixels.size, "different": different, "beyond 1e-4": different, "largest": 0.0},
        **{
            name: figures(compared(wanted, got))
            for name, wanted, got in (
                ("images", expected, by_onnx.encode_images(content)),
                ("texts", by_torch.encode_texts(texts), by_onnx.encode_texts(texts)),
                ("images, resized by Pillow", expected, by_pillow(by_torch, by_onnx, images)),
            )
        },
    }
    return rows


def by_pillow(by_torch: Any, by_onnx: Any, images: list[Image.Image]) -> np.ndarray:
    """Codes as the script in docs/hub.md makes them. Only for models that resize images to a square."""
    settings = by_torch.processor.image_processor
    side = (settings.size["width"], settings.size["height"])
    resized = [np.asarray(image.convert("RGB").resize(side, settings.resample), np.float32) for image in images]
    values = np.stack(resized) * np.float32(settings.rescale_factor)
    values = (values - np.float32(settings.image_mean)) / np.float32(settings.image_std)
    return by_onnx.encode_pixels(values.transpose(0, 3, 1, 2))


def figures(comparison: Any) -> dict[str, Any]:
    return {
        "compared": comparison.bits,
        "different": comparison.different,
        "beyond 1e-4": comparison.clearly,
        "largest": comparison.largest,
    }


def times(model: str, index: str, own: argparse.Namespace) -> dict[str, Any]:
    """Seconds of searches in new processes, by backend, and those of the import alone."""
    spent: dict[str, list[tuple[float, float]]] = {IMPORT: [], "torch": [], "onnx": []}
    for turn in range(own.repeats + 1):
        text, found = TEXTS[turn % len(TEXTS)], {}
        for name in list(spent)[:: -1 if turn % 2 else 1]:
            search = [*PROGRAM, "search", model, index, "--text", text, "-k", str(own.k), "--json", "--backend", name]
            printed, *seconds = timed([sys.executable, "-c", IMPORT] if name == IMPORT else search)
            if name != IMPORT:
                found[name] = [hit["id"] for hit in json.loads(printed)["results"]]
            if turn:
                spent[name].append((seconds[0], seconds[1]))
        assert found["torch"] == found["onnx"], text
    return {
        name: {
            "median, s": statistics.median(passed for passed, _ in each),
            "least": min(passed for passed, _ in each),
            "most": max(passed for passed, _ in each),
            "processor time, s": statistics.median(used for _, used in each),
        }
        for name, each in spent.items()
    }


def embedded(folder: Path) -> str:
    """A copy of the embedded model with ONNX files."""
    from cmfah_hf.retrieval.onnx import export_onnx
    from cmfah_hf.space.settings import bundled_space

    model = Path(shutil.copytree(bundled_space() / "model", folder / "model"))
    export_onnx(model)
    return str(model)


def index_of_scenes(model: str, folder: Path, count: int) -> str:
    from cmfah_hf import CrossMediaRetriever
    from cmfah_hf.data import make_scenes

    retriever = CrossMediaRetriever.from_pretrained(model, backend="onnx")
    scenes = make_scenes(count)
    retriever.add_images(scenes["image"], ids=[str(name) for name in scenes["id"]])
    retriever.images.save(folder / "scenes.index")
    return str(folder / "scenes.index")


def timed(command: list[str]) -> tuple[str, float, float]:
    """The output of a process, and its seconds, from its start to its end and of the processor."""
    before, begin = processor_seconds(), time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout, time.perf_counter() - begin, processor_seconds() - before


def processor_seconds() -> float:
    """The processor time of all processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
