"""The image-word graph at the size of NUS-WIDE: the closed form against walks on a plain networkx graph; memory.

    python benchmarks/expansion.py
    python benchmarks/expansion.py --images 20000 --graph-images 2000 --json

The tags are synthetic: 5,018 long-tailed tags, 8 per image on average, each image about a few topics. All methods read
the same images. "Plain" is a `networkx.Graph` of images and tags: expected visits by following every neighbor, and as
many sampled walks as `mode="walk"` draws. The plain methods and `mode="walk"` are timed on the graph of the first
`--graph-images`, for a few of its images, since all would take days; the closed form on the same small graph and on the
whole, including fitting, which the others exclude. Images per second include splitting texts and ranking words. Memory
is the peak of a separate process that reads the images as a stream (Linux).
"""

import argparse
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import networkx
import numpy as np
from rich.console import Console
from rich.table import Table

from cmfah_hf import GraphExpander

_BATCH = 1_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=195_834)
    parser.add_argument("--tags", type=int, default=5_018)
    parser.add_argument("--mean", type=float, default=8.0, help="mean number of tags per image")
    parser.add_argument("--graph-images", type=int, default=20_000, help="images of the plain graph")
    parser.add_argument("--plain-images", type=int, default=20, help="images expanded on the plain graph")
    parser.add_argument("--walks", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", action="store_true", help="only expand the stream and print the peak memory")
    parser.add_argument("--json", action="store_true")
    own = parser.parse_args()
    if own.memory:
        print(json.dumps(memory(own)))  # noqa: T201
        return
    rows = list(tag_texts(own))
    few = rows[: own.graph_images]
    sample = np.random.default_rng(own.seed).choice(len(few), own.plain_images, replace=False).tolist()
    found = {"whole": closed_form(rows, rows), "small": closed_form(few, few), **plain(own, few, sample)}
    found["walks"] = sampled(own, few, few[:_BATCH])
    sizes = sorted({min(20_000, own.images), own.images})
    found["memory"] = {str(images): in_a_new_process(own, images) for images in sizes}
    if own.json:
        print(json.dumps(found, indent=1))  # noqa: T201
    else:
        show(own, found)


def tag_texts(own: argparse.Namespace, images: int | None = None) -> Iterator[str]:
    """The tags of one image after the other: half of them of its three topics, long-tailed within and across topics."""
    generator = np.random.default_rng(own.seed)
    names = np.array([f"tag{number}" for number in range(own.tags)])
    cumulative = np.cumsum(1.0 / np.arange(1, own.tags + 1))
    cumulative /= cumulative[-1]
    for _ in range(own.images if images is None else images):
        length = generator.geometric(1.0 / own.mean)
        drawn = np.searchsorted(cumulative, generator.random(length))
        # A topic is a residue, so each topic has frequent tags and rare ones.
        topics = generator.integers(0, 60, 3)
        about = generator.random(length) < 0.5
        drawn[about] = drawn[about] // 60 * 60 + generator.choice(topics, int(about.sum()))
        yield " ".join(names[np.unique(np.minimum(drawn, own.tags - 1))])


def closed_form(graph_rows: list[str], rows: list[str]) -> dict[str, float]:
    start = time.perf_counter()
    expander = GraphExpander().fit(graph_rows)
    fitted = time.perf_counter()
    for first in range(0, len(rows), _BATCH):
        expander({"text": rows[first : first + _BATCH]})
    done = time.perf_counter()
    return {
        "images": len(rows),
        "words": len(expander.graph.vocabulary),
        "word_pairs": expander.graph.transitions.nnz,
        "fit_seconds": fitted - start,
        "fit_images_per_second": len(graph_rows) / (fitted - start),
        "expand_images_per_second": len(rows) / (done - fitted),
        "images_per_second": len(rows) / (done - start),
    }


def sampled(own: argparse.Namespace, graph_rows: list[str], rows: list[str]) -> dict[str, float]:
    expander = GraphExpander(mode="walk", num_walks=own.walks).fit(graph_rows)
    expander({"text": rows[:1]})
    start = time.perf_counter()
    expander({"text": rows})
    return {"expand_images_per_second": len(rows) / (time.perf_counter() - start)}


def plain(own: argparse.Namespace, rows: list[str], sample: list[int]) -> dict[str, dict[str, float]]:
    """Both plain methods, and the largest difference of their visits from the closed form's."""
    start = time.perf_counter()
    graph = plain_graph(rows)
    built = time.perf_counter() - start
    expander = GraphExpander().fit(rows)
    start = time.perf_counter()
    exact = [top_words(follow(graph, image), rows[image]) for image in sample]
    following = len(sample) / (time.perf_counter() - start)
    chance = random.Random(own.seed)
    start = time.perf_counter()
    drawn = [walk(graph, image, own.walks, chance) for image in sample]
    ranked = [top_words(visits, rows[image]) for visits, image in zip(drawn, sample, strict=True)]
    walking = len(sample) / (time.perf_counter() - start)
    ours = [expander.expected_visits(rows[image]) for image in sample]
    difference = max(
        max((abs(visits[word] - count) for word, count in follow(graph, image).items()), default=0.0)
        for visits, image in zip(ours, sample, strict=True)
    )
    closest = [expander.expand(rows[image]) for image in sample]
    pairs = list(zip(closest, exact, ranked, sample, strict=True))
    return {
        "plain_exact": {
            "build_seconds": built,
            "images_per_second": following,
            "largest_difference_of_visits": difference,
            "same_ten_words": float(np.mean([c == rows[i].split() + e for c, e, _, i in pairs])),
        },
        "plain_walks": {
            "build_seconds": built,
            "images_per_second": walking,
            "share_of_the_exact_ten_words": float(np.mean([len({*e} & {*r}) / max(1, len(e)) for _, e, r, _ in pairs])),
        },
    }


def plain_graph(rows: list[str]) -> networkx.Graph:
    graph = networkx.Graph()
    for image, row in enumerate(rows):
        graph.add_node(image)
        graph.add_edges_from((image, word) for word in row.split())
    return graph


def follow(graph: networkx.Graph, image: int, hops: int = 2) -> dict[str, float]:
    """Expected visits of a walk of length 5 from an image, by following every neighbor."""
    visits: Counter = Counter()
    at: dict = {image: 1.0}
    for step in range(2 * hops + 1):
        after: dict = {}
        for node, share in at.items():
            neighbors = graph[node]
            part = share / len(neighbors) if neighbors else 0.0
            for neighbor in neighbors:
                after[neighbor] = after.get(neighbor, 0.0) + part
        at = after
        if step % 2 == 0:
            visits.update(at)
    return visits


def walk(graph: networkx.Graph, image: int, walks: int, chance: random.Random) -> dict[str, float]:
    """Visits of sampled walks of length 5; the neighbors of a node are listed once."""
    visits: Counter = Counter()
    listed: dict = {}
    for _ in range(walks):
        node = image
        for step in range(5):
            if node not in listed:
                listed[node] = list(graph[node])
            if not listed[node]:
                break
            node = chance.choice(listed[node])
            if step % 2 == 0:
                visits[node] += 1 / walks
    return visits


def top_words(visits: dict[str, float], row: str, k: int = 10) -> list[str]:
    own = set(row.split())
    added = (word for word in visits if word not in own)
    return sorted(added, key=lambda word: (-round(visits[word] / 3, 12), word))[:k]


def memory(own: argparse.Namespace) -> dict[str, float]:
    expander = GraphExpander().fit(tag_texts(own))
    fitted = peak_mb()
    texts: list[str] = []
    for text in tag_texts(own):
        texts.append(text)
        if len(texts) == _BATCH:
            expander({"text": texts})
            texts = []
    return {"fitted_mb": fitted, "expanded_mb": peak_mb()}


def peak_mb() -> float:
    """Peak memory of this process; `getrusage` would include its parent's."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024


def in_a_new_process(own: argparse.Namespace, images: int) -> dict[str, float]:
    arguments = ["--images", str(images), "--tags", str(own.tags), "--mean", str(own.mean), "--seed", str(own.seed)]
    command = [sys.executable, __file__, "--memory", *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def show(own: argparse.Namespace, found: dict) -> None:
    whole, small = found["whole"], found["small"]
    table = Table(title=f"{own.images:,} images, {whole['words']:,} tags, {whole['word_pairs']:,} pairs of tags")
    for column in ("", "graph of", "images/s", "closed form is faster by"):
        table.add_column(column, justify="left" if not column else "right")
    fast = small["images_per_second"]
    table.add_row("closed form, fit", f"{own.images:,}", f"{whole['fit_images_per_second']:,.0f}", "")
    table.add_row("closed form, expand", f"{own.images:,}", f"{whole['expand_images_per_second']:,.0f}", "")
    table.add_row("closed form, both", f"{own.images:,}", f"{whole['images_per_second']:,.0f}", "")
    table.add_row("closed form, both", f"{small['images']:,}", f"{fast:,.0f}", "")
    for name, key, rate in (
        ("plain graph, every neighbor", "plain_exact", "images_per_second"),
        (f"plain graph, {own.walks} walks", "plain_walks", "images_per_second"),
        (f'mode="walk", {own.walks} walks', "walks", "expand_images_per_second"),
    ):
        slow = found[key][rate]
        table.add_row(name, f"{small['images']:,}", f"{slow:,.1f}", f"{fast / slow:,.1f} x")
    console = Console()
    console.print(table)
    exact, walks = found["plain_exact"], found["plain_walks"]
    console.print(
        f"Closed form and plain graph differ by {exact['largest_difference_of_visits']:.1e} visits at most and add the "
        f"same ten words in the same order to {exact['same_ten_words']:.0%} of the images; {own.walks} sampled walks "
        f"find {walks['share_of_the_exact_ten_words']:.0%} of these words."
    )
    for images, peak in found["memory"].items():
        console.print(
            f"{int(images):,} images: {peak['fitted_mb']:,.0f} MB fitted, {peak['expanded_mb']:,.0f} MB expanded."
        )


if __name__ == "__main__":
    main()
