"""The static page in Chromium with random codes: time until it is ready, and of answers; see docs/browser.md.

    python benchmarks/browser.py
    python benchmarks/browser.py --items 100000 1000000 --repeats 50 --json

Each number of items is exported with the embedded model, served from this process and opened by a new visitor without a
cache. Times are those that the page measures, from the press of the button until the answer is in the page.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from cmfah_hf import CrossMediaRetriever, HashIndex
from cmfah_hf.retrieval.onnx.export import export_onnx
from cmfah_hf.space import SpaceSettings, export_page
from cmfah_hf.space.settings import bundled_space

TEXTS = ("boat sun", "house tree", "ball umbrella", "moon star", "car road", "fish sea")
NOTES = "document.addEventListener('answer', event => (window.answers ??= []).push({...event.detail, values: null}))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=30, help="texts that are searched")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("chromium-browser"))
    parser.add_argument("--json", action="store_true")
    own = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        shutil.copytree(bundled_space() / "model", model)
        export_onnx(model)
        rows = [measure(own, model, Path(folder), items) for items in own.items]
    report(own, rows)


def measure(own: argparse.Namespace, model: Path, folder: Path, items: int) -> dict[str, Any]:
    """The figures of one number of items."""
    retriever = CrossMediaRetriever.from_pretrained(model, device="cpu")
    index = HashIndex(64, model=retriever.fingerprint)
    index.add(np.random.default_rng(own.seed).integers(0, 256, (items, 8), dtype=np.uint8))
    index.save(folder / "random.index")
    settings = SpaceSettings(model=str(model), data=str(folder / "random.index"), examples=TEXTS)
    made = export_page(settings, folder / "page", overwrite=True)
    with serving(folder / "page") as address:
        times = visited(own, address)
    return {"items": items, "code_bytes": made.code_bytes, "start_bytes": made.start_bytes, **times}


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a folder while it is served."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def visited(own: argparse.Namespace, address: str) -> dict[str, float]:
    """Times of one visit in milliseconds: medians, but for the first answer."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=own.chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(120_000)
        page.add_init_script(NOTES)
        page.goto(address)
        page.wait_for_selector("html[data-ready]")
        page.wait_for_selector(".card")
        ready = page.evaluate("performance.getEntriesByName('text-ready')[0].startTime")
        page.wait_for_selector("html[data-kept]")
        first = page.evaluate("window.answers[0]")
        by_metric = {metric: answers(page, own.repeats, metric) for metric in ("aqd", "hamming")}
        browser.close()
    return {
        "ready_ms": ready,
        "first_ms": first["total"],
        "answer_ms": statistics.median(one["total"] for one in by_metric["aqd"]),
        "encoding_ms": statistics.median(one["encoding"] for one in by_metric["aqd"]),
        **{f"{name}_ms": statistics.median(one["searching"] for one in found) for name, found in by_metric.items()},
    }


def answers(page: Any, repeats: int, metric: str) -> list[dict[str, Any]]:
    """The answers to as many texts, one after the other."""
    page.evaluate("metric => document.querySelector(`[value=${metric}]`).click()", metric)
    page.wait_for_function("metric => window.answers.at(-1).metric === metric", arg=metric)
    before = page.evaluate("window.answers.length")
    for number in range(repeats):
        page.fill("#words", TEXTS[number % len(TEXTS)])
        page.click("#search")
        page.wait_for_function("count => window.answers.length === count", arg=before + number + 1)
    return page.evaluate("before => window.answers.slice(before)", before)


def report(own: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    if own.json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return
    table = Table(title="Milliseconds in the browser")
    names = {
        "codes": "items", "MB of codes": "code_bytes", "MB at the start": "start_bytes", "ready": "ready_ms",
        "first answer": "first_ms", "answer": "answer_ms", "encoding": "encoding_ms", "AQD": "aqd_ms",
        "Hamming": "hamming_ms",
    }  # fmt: skip
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(cell(name, row[name]) for name in names.values()))
    Console(width=120).print(table)


def cell(name: str, value: float) -> str:
    if name.endswith("_bytes"):
        return f"{value / 1e6:.2f}"
    return f"{value:,.0f}" if name in ("items", "ready_ms") else f"{value:.1f}"


if __name__ == "__main__":
    main()
