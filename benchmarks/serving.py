"""A search over HTTP compared with the same search in the process that holds the index; see docs/benchmarks.md.

    python benchmarks/serving.py
    python benchmarks/serving.py my-model --items 1000000 --json

A server (`cmfah serve`, a new process) and this process hold the same model and the same index of random codes. They
take turns with the same texts, one at a time; every second round begins with the other. Before the first turn, their
answers to all texts are compared. The client keeps its connection, as a program does; the last row is the whole command
`cmfah search --server` in a new process.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from contests import Codes
from rich.console import Console
from rich.table import Table

from cmfah_hf import CrossMediaRetriever, HashIndex
from cmfah_hf.serving import SearchClient
from cmfah_hf.space.settings import bundled_space

PROGRAM = [sys.executable, "-c", "from cmfah_hf.cli import main; main()"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="default: the embedded model")
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--texts", type=int, default=200, help="of a turn")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--commands", type=int, default=5, help="new processes")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--clusters", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    own = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(own.threads)
    model = own.model or str(bundled_space() / "model")
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "random.index"
        retriever = CrossMediaRetriever.from_pretrained(model, device="cpu")
        fill(retriever, own, index)
        texts = draw_texts(retriever, own.texts, own.seed)
        with served(model, index) as (url, process), SearchClient(url) as client:
            ask: dict[str, Callable[[str], list[Any]]] = {
                "in the process": lambda text: retriever.search(text, k=own.k).ids[0].tolist(),
                "over HTTP": lambda text: [hit["id"] for hit in client.search(text, own.k)["answers"][0]],
            }
            for text in texts:
                assert ask["in the process"](text) == ask["over HTTP"](text), text
            milliseconds, processor = in_turns(ask, texts, own.repeats, process)
            commands = [time_command(url, text) for text in texts[: own.commands]]
    report(own, milliseconds, processor, commands)


def fill(retriever: CrossMediaRetriever, own: argparse.Namespace, path: Path) -> None:
    """An index of random codes, as of this model, in the retriever and in a file."""
    codes = Codes(retriever.model.config.hash_bits, "clustered", own.clusters, own.seed).items(own.items)
    index = HashIndex(retriever.model.config.hash_bits, retriever.fingerprint)
    index.add(codes, ids=[f"image-{number}.jpg" for number in range(own.items)])
    index.save(path)
    retriever.images = HashIndex.load(path, mmap=True)


def draw_texts(retriever: CrossMediaRetriever, count: int, seed: int) -> list[str]:
    """Different texts of three words that the model knows."""
    words = sorted(word for word in retriever.processor.tokenizer.get_vocab() if word.isalpha())
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(words, 3, replace=False)) for _ in range(count)]


@contextmanager
def served(model: str, index: Path) -> Iterator[tuple[str, int]]:
    """The address of a server in a new process, and the id of that process."""
    command = [*PROGRAM, "serve", model, str(index), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            lines = []
            for line in process.stderr or ():
                lines.append(line)
                if found := re.search(r"^Serving .* at (\S+)$", line):
                    yield found[1], process.pid
                    return
            raise RuntimeError("".join(lines))
        finally:
            process.terminate()


def in_turns(
    ask: dict[str, Callable[[str], Any]], texts: list[str], repeats: int, server: int
) -> tuple[dict[str, list[list[float]]], dict[str, float]]:
    """Milliseconds of every search, by contestant and turn; and of processor time, by contestant, of both processes."""
    found: dict[str, list[list[float]]] = {name: [] for name in ask}
    processor = dict.fromkeys(ask, 0.0)
    for turn in range(repeats):
        for name in list(ask)[:: -1 if turn % 2 else 1]:
            begin = time.process_time() + processor_seconds(server)
            found[name].append([timed(ask[name], text) for text in texts])
            processor[name] += time.process_time() + processor_seconds(server) - begin
    return found, {name: 1000 * seconds / (repeats * len(texts)) for name, seconds in processor.items()}


def processor_seconds(process: int) -> float:
    """The processor time of another process (Linux)."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def timed(call: Callable[[str], Any], text: str) -> float:
    begin = time.perf_counter()
    call(text)
    return 1000 * (time.perf_counter() - begin)


def time_command(url: str, text: str) -> float:
    """Seconds of the command in a new process, from its start to its end."""
    begin = time.perf_counter()
    subprocess.run([*PROGRAM, "search", "--server", url, "--text", text, "--json"], check=True, capture_output=True)
    return time.perf_counter() - begin


def report(
    own: argparse.Namespace,
    milliseconds: dict[str, list[list[float]]],
    processor: dict[str, float],
    commands: list[float],
) -> None:
    here, there = (milliseconds[name] for name in ("in the process", "over HTTP"))
    turns = zip(there, here, strict=True)
    ratios = [statistics.median(of_server) / statistics.median(of_process) for of_server, of_process in turns]
    rows = {
        name: [float(np.percentile(np.concatenate(turns), share)) for share in (50, 95, 99)]
        for name, turns in milliseconds.items()
    }
    if own.json:
        facts = {
            "items": own.items,
            "ratios": ratios,
            "milliseconds": rows,
            "processor_ms": processor,
            "command_seconds": commands,
        }
        print(json.dumps({**facts, "cores": os.cpu_count(), "load": os.getloadavg()}, indent=2))  # noqa: T201
        return
    table = Table(title=f"{own.items:,} codes, {own.texts * own.repeats:,} searches by text, k = {own.k}")
    for column in ("", "p50, ms", "p95, ms", "p99, ms", "processor, ms"):
        table.add_column(column, justify="right" if column else "left")
    for name, values in rows.items():
        table.add_row(name, *(f"{value:.2f}" for value in (*values, processor[name])))
    console = Console()
    console.print(table)
    lowest, highest = min(ratios), max(ratios)
    console.print(
        f"ratio of p50: {statistics.median(ratios):.2f} ({lowest:.2f} to {highest:.2f} in {own.repeats} turns)"
    )
    if commands:
        console.print(f"cmfah search --server in a new process: {statistics.median(commands):.2f} s")


if __name__ == "__main__":
    main()
