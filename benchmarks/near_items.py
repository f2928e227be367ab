"""Search by radius, folded answers and groups of near-duplicates among many codes; see docs/benchmarks.md.

    python benchmarks/near_items.py
    python benchmarks/near_items.py --items 1000000 --bits 1 2 3 4 5 6

Times are processor seconds of one thread, the least of three for a search, since other programs may use the machine.
FAISS's `IndexBinaryFlat.range_search` gives the same answers. Codes have 64 bits, as in `search.py`.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
from contests import Codes
from rich.console import Console
from rich.table import Table

from cmfah_hf import HashIndex
from cmfah_hf.retrieval.codes import pack

RADIUS, QUERIES, REPEATS, ANSWERS = 8, 16, 3, 10


def timed(act: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    """The least processor time of a call, in seconds, and its answer."""
    spent, answer = [], None
    for _ in range(repeats):
        start = time.process_time()
        answer = act()
        spent.append(time.process_time() - start)
    return min(spent), answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=10_000_000)
    parser.add_argument("--bits", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--codes", nargs="+", choices=["clustered", "uniform"], default=["clustered", "uniform"])
    own = parser.parse_args()
    faiss.omp_set_num_threads(1)
    few = HashIndex(64)
    few.add(np.arange(8, dtype=np.uint64).view(np.uint8).reshape(-1, 8))
    few.duplicates(1)  # compiles, once on a machine
    for kind in own.codes:
        measure(kind, own.items, own.bits)


def measure(kind: str, items: int, distances: list[int]) -> None:
    """Prints the figures of one distribution of codes."""
    drawn = Codes(64, kind, 1000, 0)
    codes, values = drawn.items(items), drawn.queries(QUERIES)
    queries = pack(values)
    index, flat = HashIndex(64), faiss.IndexBinaryFlat(64)
    index.add(codes)
    flat.add(codes)
    console = Console(width=120)
    console.print(f"{items:,} {kind} codes")
    for name, asked in (("one query", queries[:1]), (f"{QUERIES} queries", queries)):
        ours, found = timed(lambda asked=asked: index.search_radius(asked, RADIUS), REPEATS)
        theirs, (_, _, rows) = timed(lambda asked=asked: flat.range_search(asked, RADIUS + 1), REPEATS)  # below it
        if sorted(np.concatenate([result.ids for result in found]).tolist()) != sorted(rows.tolist()):
            raise SystemExit("The answers differ.")
        per_query = f"{1000 * ours / len(asked):.1f} ms a query, range_search {1000 * theirs / len(asked):.1f} ms"
        console.print(f"{name}, within {RADIUS} bits, {len(rows):,} answers: search_radius {per_query}")
    table = Table("bits", "search, ms a query", "folded items, most of a query")
    for bits in (None, *distances):
        seconds, results = timed(lambda bits=bits: index.search(values, ANSWERS, unique=bits), REPEATS)
        folded = [sum(len(ids) for ids in result.folded or []) for result in results]
        table.add_row("-" if bits is None else str(bits), f"{1000 * seconds / QUERIES:.1f}", f"{max(folded):,}")
    console.print(table)
    table = Table("bits", "seconds", "groups", "items in groups", "largest group")
    for bits in distances:
        seconds, groups = timed(lambda bits=bits: index.duplicates(bits))
        sizes = [len(ids) for ids in groups]
        figures = bits, round(seconds, 1), len(sizes), sum(sizes), max(sizes, default=0)
        table.add_row(*(f"{value:,}" for value in figures))
    console.print(table)


if __name__ == "__main__":
    main()
