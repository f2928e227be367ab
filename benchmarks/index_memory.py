"""Memory of one `HashIndex` in its own process, or the time to load it, as JSON; `search.py` runs this.

    python benchmarks/index_memory.py add my.index --items 10000000
    python benchmarks/index_memory.py load my.index

`add` fills an index, searches it once by each ranking, and saves it; `load` maps that file and searches it once. Bytes
are the growth of the process's resident memory, without the caller's codes and the libraries.
"""

import argparse
import json
import time
from pathlib import Path

import faiss
import psutil
from contests import Codes, indexed, searching

import cmfah_hf.retrieval.searchers.exact_ivf  # noqa: F401  # loads numba, as an index does for its first lists
from cmfah_hf import HashIndex


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("add", "load"))
    parser.add_argument("path", type=Path)
    parser.add_argument("--items", type=int, default=10_000_000)
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--codes", choices=("clustered", "uniform"), default="clustered")
    parser.add_argument("--clusters", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    own = parser.parse_args()
    faiss.omp_set_num_threads(own.threads)
    drawn = Codes(own.bits, own.codes, own.clusters, own.seed)
    values, small = drawn.queries(1), indexed(drawn.items(1000))
    for metric in ("hamming", "aqd"):
        searching(small, 10, metric)(values)
    print(json.dumps((add if own.what == "add" else load)(own, drawn, values)))  # noqa: T201


def add(own: argparse.Namespace, drawn: Codes, values) -> dict[str, float]:
    """Resident bytes per item after adding, the searches and `optimize`, and bytes of the saved file and the codes."""
    codes, process = drawn.items(own.items), psutil.Process()
    before, found = process.memory_info().rss, {}
    start = time.perf_counter()
    index = indexed(codes)
    found["seconds_to_add"] = time.perf_counter() - start
    for metric in ("hamming", "aqd"):
        searching(index, 10, metric)(values)
        found[f"resident_{metric}"] = (process.memory_info().rss - before) / own.items
    start = time.perf_counter()
    index.optimize()
    found["seconds_to_optimize"] = time.perf_counter() - start
    found["resident_optimized"] = (process.memory_info().rss - before) / own.items
    index.save(own.path)
    found["file"] = own.path.stat().st_size / own.items
    found["codes"] = index.codes.nbytes / own.items
    return found


def load(own: argparse.Namespace, drawn: Codes, values) -> dict[str, float]:
    """Seconds to load the file, and until each ranking has returned its first answer."""
    start, found = time.perf_counter(), {}
    before = psutil.Process().memory_info().rss
    index = HashIndex.load(own.path, mmap=True)
    found["seconds_to_load"] = time.perf_counter() - start
    for metric in ("hamming", "aqd"):
        searching(index, 10, metric)(values)
        found[f"seconds_to_{metric}"] = time.perf_counter() - start
    found["resident"] = (psutil.Process().memory_info().rss - before) / len(index)
    return found


if __name__ == "__main__":
    main()
