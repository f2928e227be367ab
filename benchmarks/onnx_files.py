"""Speed and codes of a model's towers: PyTorch in float32, and ONNX Runtime on the files of `cmfah export onnx`.

    python benchmarks/onnx_files.py
    python benchmarks/onnx_files.py --model MODEL --data FOLDER --threads 1 2
    python benchmarks/onnx_files.py --clip --threads 1

All runs of a tower take turns in one process, and the fastest turn of each counts, in milliseconds an item. MAP is
that of texts that search images and of images that search texts, among scenes that the model has not seen, by AQD; the
bits are those of their codes that differ from PyTorch's, and *clearly* those of a value of at least 0.0001. `--clip`
measures the speed of a model over a CLIP of the size of ViT-B/32 with random weights instead.

Shapes: `N` items, `K` bits.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from rich.console import Console
from rich.table import Table
from transformers import CLIPConfig

from cmfah_hf import CMFAHConfig, CMFAHModel, RetrievalEvaluator
from cmfah_hf.data import load_image_text
from cmfah_hf.retrieval import TorchEncoder
from cmfah_hf.retrieval.loading import load_parts
from cmfah_hf.retrieval.onnx import export_onnx
from cmfah_hf.retrieval.onnx.comparison import compared
from cmfah_hf.retrieval.onnx.files import INPUTS, PRECISIONS, TOWERS, file_name
from cmfah_hf.retrieval.onnx.programs import OPSET, onnx_program
from cmfah_hf.retrieval.onnx.quantization import half_program, write_int8
from cmfah_hf.retrieval.onnx.towers import towers_of

MODEL = Path(__file__).parents[1] / "spaces" / "cmfah-search" / "model"
PYTORCH = "PyTorch fp32"

Inputs = dict[str, np.ndarray]
Run = Callable[[Inputs], np.ndarray]


def runs_of(model: CMFAHModel, folder: Path, threads: int) -> dict[str, dict[str, Run]]:
    """For each tower, ways to compute its codes, by name."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    found: dict[str, dict[str, Run]] = {}
    for tower in towers_of(model):
        found[tower.name] = {PYTORCH: lambda inputs, tower=tower: _by_pytorch(tower, inputs)}
        for precision in PRECISIONS:
            path = folder / file_name(tower.name, precision)
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            found[tower.name][f"ONNX {precision}"] = lambda inputs, session=session: session.run(None, inputs)[0]
    return found


def _by_pytorch(tower: Any, inputs: Inputs) -> np.ndarray:
    return tower.codes(tuple(torch.from_numpy(inputs[name]) for name in INPUTS[tower.name])).numpy()


def timed(runs: dict[str, Run], inputs: Inputs, turns: int, seconds: float) -> dict[str, float]:
    """Milliseconds an item of the fastest turn of each run; they take turns until the time is over."""
    count = len(next(iter(inputs.values())))
    best = dict.fromkeys(runs, np.inf)
    for run in runs.values():
        run(inputs)
    end = time.perf_counter() + seconds
    for turn in range(10**9):
        if turn >= turns and time.perf_counter() > end:
            return best
        for name, run in runs.items():
            start = time.perf_counter()
            run(inputs)
            best[name] = min(best[name], 1e3 * (time.perf_counter() - start) / count)
    raise AssertionError


def inputs_of(encoder: TorchEncoder, data: Any) -> dict[str, Inputs]:
    """The inputs of both towers for all rows of a data set."""
    pixels = [
        encoder.processor(images=data[start : start + 50]["image"], return_tensors="pt")["pixel_values"]
        for start in range(0, len(data), 50)
    ]
    texts = encoder.processor(text=encoder.expand(data["text"]), return_tensors="pt")
    return {
        "vision": {"pixel_values": torch.cat(pixels).numpy()},
        "text": {name: texts[name].numpy() for name in INPUTS["text"]},
    }


def first(inputs: Inputs, count: int) -> Inputs:
    return {name: values[:count] for name, values in inputs.items()}


def codes_of(run: Run, inputs: Inputs) -> np.ndarray:
    """Codes `(N, K)`, in batches of 50."""
    count = len(next(iter(inputs.values())))
    batches = [{name: values[at : at + 50] for name, values in inputs.items()} for at in range(0, count, 50)]
    return np.concatenate([run(batch) for batch in batches])


def speeds(console: Console, model: CMFAHModel, folder: Path, inputs: dict[str, Inputs], own: Any) -> None:
    """Prints the milliseconds an item of every run, by threads and batches."""
    for threads in own.threads:
        torch.set_num_threads(threads)
        runs = runs_of(model, folder, threads)
        for tower in TOWERS:
            table = Table("run", *(f"batch {batch}: {what}" for batch in own.batches for what in ("ms", "times")))
            by_batch = [timed(runs[tower], first(inputs[tower], batch), 5, own.seconds) for batch in own.batches]
            for name in runs[tower]:
                cells = [(found[name], found[PYTORCH] / found[name]) for found in by_batch]
                table.add_row(name, *(cell for ms, times in cells for cell in (f"{ms:.3f}", f"{times:.1f}")))
            console.print(f"{tower}, {threads} thread{'s' * (threads > 1)}: milliseconds an item")
            console.print(table)


def quality(console: Console, model: CMFAHModel, folder: Path, inputs: dict[str, Inputs], labels: Any) -> None:
    """Prints MAP and the numbers of bits that differ, of every run."""
    runs = runs_of(model, folder, torch.get_num_threads())
    evaluate = RetrievalEvaluator(metrics=("map",), ranking="aqd")
    codes = {name: [codes_of(runs[tower][name], inputs[tower]) for tower in TOWERS] for name in runs["text"]}
    columns = [f"{tower}: {what}" for tower in TOWERS for what in ("bytes", "bits that differ", "clearly")]
    table = Table("run", "MAP, text to image", "MAP, image to text", *columns)
    for name, (images_NK, texts_NK) in codes.items():
        figures = evaluate(images_NK, texts_NK, images_NK, texts_NK, labels, labels)
        row = [f"{figures[f'aqd/{way}/map']:.4f}" for way in ("t2i", "i2t")]
        for tower, expected_NK, found_NK in zip(TOWERS, codes[PYTORCH], (images_NK, texts_NK), strict=True):
            result = compared(expected_NK, found_NK)
            path = folder / file_name(tower, name.split()[-1])
            size = "" if name == PYTORCH else f"{path.stat().st_size:,}"
            row += [size, f"{result.different} of {result.bits}", str(result.clearly)]
        table.add_row(name, *row)
    console.print(f"{len(labels)} held-out pairs, each a query and in the database")
    console.print(table)


def clip_model() -> CMFAHModel:
    """A model over a CLIP of the size of ViT-B/32, with random weights."""
    torch.manual_seed(0)
    config = CMFAHConfig(dual_encoder_config=CLIPConfig(), use_positions=False, attention="none", hash_bits=64)
    return CMFAHModel(config).eval()


def write_clip(model: CMFAHModel, folder: Path) -> None:
    rng = np.random.default_rng(0)
    for tower in towers_of(model):
        program = onnx_program(tower)
        (folder / file_name(tower.name)).write_bytes(program.SerializeToString())
        (folder / file_name(tower.name, "fp16")).write_bytes(half_program(tower, OPSET).SerializeToString())
        pixels = [rng.standard_normal((4, 3, 224, 224), np.float32)]
        write_int8(program, folder / file_name(tower.name, "int8"), tower, pixels)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--data", default="scenes", help="Pairs with labels; their split 'query' is read.")
    parser.add_argument("--clip", action="store_true", help="A model of the size of CLIP instead, speed only.")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--seconds", type=float, default=4.0, help="Time for the turns of each tower and batch.")
    own = parser.parse_args(arguments)
    console = Console(width=180)
    with tempfile.TemporaryDirectory() as folder:
        if own.clip:
            model, path = clip_model(), Path(folder)
            write_clip(model, path)
            most = max(own.batches)
            drawn = {tower.name: tower.draw(most, 7) for tower in towers_of(model)}
            named = {name: dict(zip(INPUTS[name], (x.numpy() for x in drawn[name]), strict=True)) for name in TOWERS}
            speeds(console, model, path, named, own)
            return
        data = load_image_text(own.data)
        # Of the same kind as the queries: the ranges of convolutions depend on the images.
        images = None if own.data == "scenes" else data["train"][:96]["image"]
        path = export_onnx(own.model, folder, PRECISIONS, images=images).folder
        parts = load_parts(own.model, {})
        encoder = TorchEncoder(parts.model, parts.processor, parts.expander, "cpu")  # type: ignore[arg-type]
        queries = data["query"]
        inputs = inputs_of(encoder, queries)
        quality(console, encoder.model, path, inputs, queries["labels"])
        speeds(console, encoder.model, path, inputs, own)


if __name__ == "__main__":
    main()
