"""`HashIndex` against other searches of the same codes, in one run; see docs/benchmarks.md.

    python benchmarks/search.py
    python benchmarks/search.py --large --approximate --repeats 9
    python benchmarks/search.py --only hamming limit --codes uniform --json

All contestants run in turns in one process, so that other load on the machine affects them equally. The results are
medians of the turns, and ratios within a turn. Answers are checked before anything is timed, against each other and
against scores computed from the codes. Nothing is downloaded.
"""

import argparse
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import faiss
import numpy as np
import torch
from contestants import counting_kernels, gain_of_processes, product_by_numpy, product_by_torch, rescored_search
from contests import (
    CLOCKS,
    Answers,
    Codes,
    Comparison,
    Contestant,
    Figure,
    Skipped,
    check_equal,
    check_same_items,
    contest,
    environment,
    exact_top,
    indexed,
    scores_anew,
    searching,
)
from rich.console import Console
from rich.table import Table

from cmfah_hf.retrieval import HashIndex
from cmfah_hf.retrieval.codes import pack, unpack
from cmfah_hf.retrieval.storage import segments

KS = (10, 100)
MILLION = 1_000_000
EMBEDDING_WIDTH = 512
SHARDS = 2
NAMES = {"hamming": "Hamming", "aqd": "AQD"}
# BLAS and OpenMP read these only when they are loaded.
THREAD_SETTINGS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
OPTIONAL = {"sentence_transformers": "sentence-transformers", "ray": "ray"}
Rows = Iterator[Comparison | Figure]


def draw(own: argparse.Namespace, items: int, queries: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Packed codes, the continuous codes of queries, and the packed queries."""
    drawn = Codes(own.bits, own.codes, own.clusters, own.seed)
    codes, values = drawn.items(items), drawn.queries(queries)
    return codes, values, pack(values)


def ready(own: argparse.Namespace, codes: np.ndarray) -> HashIndex:
    """An index of these codes, with its inverted lists built unless `--plain` is given."""
    index = indexed(codes)
    if not own.plain:
        index.optimize()
    return index


def sizes(own: argparse.Namespace) -> list[int]:
    return [own.items, own.large] if own.large else [own.items]


def batches(own: argparse.Namespace) -> list[tuple[int, int]]:
    """Queries at once, and k."""
    return [(at_once, k) for at_once in (1, own.batch) for k in KS]


def bar(own: argparse.Namespace, value: float, items: int, since: int = MILLION) -> float | None:
    """The target ratio, where width and number of codes are those that it is defined for."""
    return value if own.bits == 64 and items >= since else None


def aqd(own: argparse.Namespace) -> Rows:
    codes, values, _ = draw(own, own.items, own.batch)
    index, signs = ready(own, codes), unpack(codes).astype(np.float32)
    signs_of_torch, values_of_torch = torch.from_numpy(signs), torch.from_numpy(values)

    for at_once, k in batches(own):
        contestants = {
            "HashIndex": Contestant(searching(index, k, "aqd"), values),
            "product, NumPy": Contestant(partial(product_by_numpy, signs, k), values),
            "product, PyTorch": Contestant(partial(product_by_torch, signs_of_torch, k), values_of_torch),
        }
        row = {"what": "AQD", "items": own.items, "bar": bar(own, 25 if at_once == 1 else 12, own.items)}
        yield contest(own, contestants, partial(check_equal, codes, values, "aqd"), at_once=at_once, k=k, **row)


def hamming(own: argparse.Namespace) -> Rows:
    for items in sizes(own):
        codes, values, packed = draw(own, items, own.batch)
        index, flat = ready(own, codes), faiss.IndexBinaryFlat(own.bits)
        flat.add(codes)
        for at_once, k in batches(own):
            contestants = {
                "HashIndex": Contestant(searching(index, k, "hamming"), packed),
                "IndexBinaryFlat": Contestant(lambda queries, k=k, flat=flat: flat.search(queries, k)[::-1], packed),
            }
            row = {"what": "Hamming", "items": items, "bar": bar(own, 1.7, items)}
            check = partial(check_equal, codes, values, "hamming")
            yield contest(own, contestants, check, at_once=at_once, k=k, **row)


def limit(own: argparse.Namespace) -> Rows:
    if own.bits % 64:
        raise Skipped(f"the kernels read words of 64 bits, and {own.bits} bits are not whole words")
    for items in sizes(own):
        codes, _, packed = draw(own, items, own.singles)
        index = ready(own, codes)

        def counted(kernel: Callable[[np.ndarray], int], queries: np.ndarray) -> Answers:
            return np.empty((1, 0)), np.array([[kernel(queries[0])]])

        def check(answers: dict[str, Answers]) -> None:
            _, (_, expected), *others = answers.values()
            for _, counts in others:
                np.testing.assert_array_equal(counts, expected, err_msg="the kernels count differently")

        contestants = {"HashIndex": Contestant(searching(index, KS[0], "hamming"), packed)}
        for name, kernel in counting_kernels(codes, own.bits // 4).items():
            contestants[name] = Contestant(partial(counted, kernel), packed)
        row = {"what": "Hamming", "items": items, "bar": bar(own, 0.5, items, 10 * MILLION)}
        found = contest(own, contestants, check, at_once=1, k=KS[0], **row)
        found.remark = f"{found.ratio:.0%} of the limit"
        yield found


def rescoring(own: argparse.Namespace) -> Rows:
    search_rescored = rescored_search()
    for items in (own.small, own.items):
        codes, values, _ = draw(own, items, own.batch)
        index, flat = ready(own, codes), faiss.IndexBinaryFlat(own.bits)
        flat.add(np.packbits(unpack(codes) > 0, axis=1))  # most significant bit first, NumPy's default
        exact = exact_top(codes, values, max(KS))

        def check(k: int, answers: dict[str, Answers], codes=codes, values=values, exact=exact) -> str:
            ours, others = answers.values()
            queries, expected = values[: len(ours[0])], exact[: len(ours[0]), :k]
            check_equal(codes, queries, "aqd", {"HashIndex": ours, "the sorted product": (ours[0], expected)})
            # By score, so that another choice among ties is no miss.
            shares = (np.mean(scores_anew(codes, queries, ids, "aqd") >= expected[:, -1:]) for ids, _ in (ours, others))
            return "finds {:.1%} against {:.1%}".format(*shares)

        for at_once, k in batches(own):
            contestants = {
                "HashIndex": Contestant(searching(index, k, "aqd"), values),
                "sentence-transformers": Contestant(partial(search_rescored, flat, k), values),
            }
            row = {"what": "AQD", "items": items, "bar": bar(own, 3 if k == 10 else 8, items, 200_000)}
            yield contest(own, contestants, partial(check, k), at_once=at_once, k=k, **row)


def floats(own: argparse.Namespace) -> Rows:
    rng, k = np.random.default_rng(own.seed), KS[0]
    centers = rng.standard_normal((own.clusters, EMBEDDING_WIDTH), np.float32)
    count = own.float_items + own.batch
    embeddings = rng.standard_normal((count, EMBEDDING_WIDTH), np.float32)
    embeddings += centers[rng.integers(own.clusters, size=count)]
    faiss.normalize_L2(embeddings)
    # The signs of random projections: codes of the same items, without training.
    projected = embeddings @ rng.standard_normal((EMBEDDING_WIDTH, own.bits), np.float32)
    values = np.tanh(projected[own.float_items :] / projected.std())
    codes, queries, embeddings = pack(projected), embeddings[own.float_items :], embeddings[: own.float_items]
    codes = codes[: own.float_items]
    index = ready(own, codes)
    with tempfile.TemporaryDirectory() as folder:
        index.save(Path(folder) / "codes.index")
        size = (Path(folder) / "codes.index").stat().st_size / len(index)
    flat = faiss.IndexFlatIP(EMBEDDING_WIDTH)
    hnsw = faiss.IndexHNSWFlat(EMBEDDING_WIDTH, 16, faiss.METRIC_INNER_PRODUCT)
    hnsw.hnsw.efSearch = 64
    for name, other in {"IndexFlatIP": flat, "IndexHNSWFlat": hnsw}.items():
        other.add(embeddings)
        size_of_other = faiss.serialize_index(other).nbytes / other.ntotal
        nearest = flat.search(queries, k)[1]

        def check(answers: dict[str, Answers], name=name, size_of_other=size_of_other, nearest=nearest) -> str:
            ids, scores = answers["HashIndex"]
            np.testing.assert_array_equal(scores, scores_anew(codes, values[: len(ids)], ids, "hamming"))
            found = answers[name][0]
            share = np.mean([np.isin(row, best) for row, best in zip(found, nearest[: len(found)], strict=True)])
            return f"{size:,.0f} bytes against {size_of_other:,.0f}; it finds {share:.1%}"

        for at_once in (1, own.batch):
            contestants = {
                "HashIndex": Contestant(searching(index, k, "hamming"), pack(values)),
                name: Contestant(lambda batch, other=other: other.search(batch, k)[::-1], queries),
            }
            yield contest(own, contestants, check, what="Hamming", items=own.float_items, at_once=at_once, k=k)


def shards(own: argparse.Namespace) -> Rows:
    if own.plain:
        raise Skipped("each shard makes its lists by itself after some turns")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray lowers the priority of its workers, but not that of this process.
    os.environ.setdefault("RAY_worker_niceness", "0")
    import ray

    from cmfah_hf.retrieval.cluster import ShardedHashIndex

    own = argparse.Namespace(**vars(own) | {"clock": "wall"})  # other processes do the work
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    ray.init("local", num_cpus=SHARDS, **quiet)
    try:
        for items in sizes(own):
            # A larger batch amortizes the call to other processes.
            batches = own.batch, own.shard_batch
            codes, values, packed = draw(own, items, max(batches))
            index, k = ready(own, codes), KS[0]
            most = gain_of_processes(SHARDS, codes, packed[: own.batch], k, own.repeats)
            with (
                tempfile.TemporaryDirectory() as folder,
                ShardedHashIndex(own.bits, shards=SHARDS, folder=folder) as sharded,
            ):
                sharded.add(codes)
                sharded.optimize()
                for metric, queries in {"hamming": packed, "aqd": values}.items():
                    for at_once in (1, *batches):
                        contestants = {
                            "sharded": Contestant(searching(sharded, k, metric), queries),
                            "HashIndex": Contestant(searching(index, k, metric), queries),
                        }
                        check = partial(check_same_items, codes, values, metric)
                        least = bar(own, 1.5, items, 10 * MILLION) if at_once > 1 else None
                        row = {"what": f"{SHARDS} shards, {NAMES[metric]}", "items": items, "bar": least}
                        found = contest(own, contestants, check, at_once=at_once, k=k, **row)
                        ours, theirs = (1000 * at_once / rate for rate in (found.ours, found.theirs))
                        found.remark = f"a call: {ours:.2f} ms against {theirs:.2f}, {ours - theirs:+.2f}"
                        if at_once > 1:
                            found.remark += f"; {SHARDS} processes do {most:.2f} times the work of one here"
                        yield found
    finally:
        ray.shutdown()


def approximate(own: argparse.Namespace) -> Rows:
    codes, values, packed = draw(own, own.items, own.batch)
    index, start = ready(own, codes), time.perf_counter()
    index.search(packed[:1], exact=False)
    built = time.perf_counter() - start
    for metric, queries in {"hamming": packed, "aqd": values}.items():
        for at_once, k in batches(own):
            recall = index.measure_recall(values, k=k, metric=metric)

            def check(answers: dict[str, Answers], metric=metric, recall=recall) -> str:
                for ids, scores in answers.values():
                    np.testing.assert_array_equal(scores, scores_anew(codes, values[: len(ids)], ids, metric))
                return f"recall {recall:.1%}, lists built in {built:.1f} s"

            contestants = {
                "approximate": Contestant(searching(index, k, metric, exact=False), queries),
                "exact": Contestant(searching(index, k, metric), queries),
            }
            row = {"what": NAMES[metric], "items": own.items, "at_once": at_once, "k": k}
            yield contest(own, contestants, check, **row)


def memory(own: argparse.Namespace) -> Rows:
    script = Path(__file__).with_name("index_memory.py")
    settings = [f"--{name}={getattr(own, name)}" for name in ("bits", "codes", "clusters", "seed", "threads")]
    for items in sizes(own):
        found = {}
        with tempfile.TemporaryDirectory() as folder:
            for what in ("add", "load"):
                command = [sys.executable, script, what, Path(folder) / "codes.index", f"--items={items}", *settings]
                run = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
                found |= {f"{what}/{name}": value for name, value in json.loads(run.stdout).items()}
        unit, most = "bytes per item", bar(own, 1.0, items, 10 * MILLION)
        yield Figure("codes", items, found["add/codes"], unit)
        yield Figure("file", items, found["add/file"], unit)
        yield Figure("process, after adding and a Hamming search", items, found["add/resident_hamming"], unit)
        yield Figure("process, after an AQD search too", items, found["add/resident_aqd"], unit)
        yield Figure("process, mapped from the file, after both", items, found["load/resident"], unit)
        yield Figure("adding", items, found["add/seconds_to_add"], "seconds")
        yield Figure("process, after optimize() too", items, found["add/resident_optimized"], unit)
        yield Figure("optimize()", items, found["add/seconds_to_optimize"], "seconds")
        yield Figure("loading with mmap=True", items, found["load/seconds_to_load"], "seconds", most)
        yield Figure("the same and a first Hamming search", items, found["load/seconds_to_hamming"], "seconds")
        yield Figure("the same and a first AQD search", items, found["load/seconds_to_aqd"], "seconds")


SECTIONS: dict[str, tuple[Callable[[argparse.Namespace], Rows], str, str]] = {
    "aqd": (
        aqd,
        "AQD, against the float32 product with all +-1 codes and its largest k",
        "Scores are equal to the bit.",
    ),
    "hamming": (hamming, "Hamming, against faiss.IndexBinaryFlat", "Distances are equal."),
    "limit": (limit, "Hamming, against reading the codes and counting their bits, without a top k", ""),
    "rescoring": (
        rescoring,
        "AQD, against sentence-transformers' binary search with rescoring, four times k",
        "Found: items of the exact top k, by exact score.",
    ),
    "floats": (
        floats,
        f"Hamming, against float embeddings of {EMBEDDING_WIDTH} dimensions",
        "Speed and size alone: embeddings hold more information than codes, and find other items. Bytes are those of "
        "the saved index per item, ids included; found: items of IndexFlatIP's top k.",
    ),
    "shards": (shards, "Over Ray on this machine, against one HashIndex", "A shard is a process; items are the same."),
    "approximate": (approximate, "exact=False, against the exact search", ""),
    "memory": (memory, "Memory of an index", "A fresh process each; the file is in the page cache when it is loaded."),
}


def print_section(console: Console, name: str, rows: list[Comparison | Figure]) -> None:
    _, title, caption = SECTIONS[name]
    table = Table(title=f"{name}: {title}", caption=caption)
    compares = isinstance(rows[0], Comparison)
    columns = ("ours", "items", "at once", "k", "queries/s", "against", "queries/s", "ratio", "turns", "bar", "")
    for column in columns if compares else ("what", "items", "value", "unit", "at most"):
        table.add_column(column, justify="left" if column in ("ours", "against", "", "what", "unit") else "right")
    for row in rows:
        aim = "" if row.bar is None else f"{row.bar:g}, {'reached' if row.reached else 'missed'}"
        if isinstance(row, Comparison):
            rates = f"{row.ours:,.0f}", row.contestant, f"{row.theirs:,.0f}"
            ratios = f"{row.ratio:.2f}", f"{min(row.ratios):.2f} to {max(row.ratios):.2f}"
            table.add_row(row.what, f"{row.items:,}", str(row.at_once), str(row.k), *rates, *ratios, aim, row.remark)
        else:
            table.add_row(row.what, f"{row.items:,}", f"{row.value:,.2f}", row.unit, aim)
    console.print(table)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="Sections to run. Default: all but `approximate`.")
    parser.add_argument("--approximate", action="store_true", help="Add the section `approximate`.")
    parser.add_argument("--items", type=int, default=MILLION)
    parser.add_argument(
        "--large", type=int, nargs="?", const=10 * MILLION, default=0, metavar="ITEMS",
        help="A second size for hamming, limit, shards and memory; 10 million if no number follows.",
    )  # fmt: skip
    parser.add_argument("--small", type=int, default=200_000, help="A smaller size for the section `rescoring`.")
    parser.add_argument("--float-items", type=int, default=100_000, help="Items of the section `floats`.")
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--codes", choices=("clustered", "uniform"), default="clustered")
    parser.add_argument("--clusters", type=int, default=1000, help="Centers of clustered codes.")
    parser.add_argument("--singles", type=int, default=32, help="Queries of a turn of single queries.")
    parser.add_argument("--batch", type=int, default=256, help="Queries of a turn with one batch.")
    parser.add_argument("--shard-batch", type=int, default=4096, help="The larger batch of the section `shards`.")
    parser.add_argument("--repeats", type=int, default=5, help="Counted turns.")
    parser.add_argument("--threads", type=int, default=1, help="Threads of every contestant; a Ray shard has one.")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall",
        help="Wall time, or CPU time of the process, for machines with other load.",
    )  # fmt: skip
    parser.add_argument("--plain", action="store_true", help="Without optimize().")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="JSON to standard output, tables to standard error.")
    own = parser.parse_args(arguments)
    if own.only is None:
        own.only = [name for name in SECTIONS if name != "approximate"]
    if own.approximate and "approximate" not in own.only:
        own.only.append("approximate")
    if own.clock == "cpu" and own.threads > 1:
        parser.error("--clock cpu sums the seconds of all threads; give --threads 1 with it.")
    if own.singles > own.batch:
        parser.error(f"--singles {own.singles} is more than the queries of --batch {own.batch}; give fewer.")
    return own


def main() -> None:
    own = parse()
    threads = dict.fromkeys(THREAD_SETTINGS, str(own.threads))
    if {name: os.environ.get(name) for name in threads} != threads:
        os.execve(sys.executable, sys.orig_argv, os.environ | threads)
    faiss.omp_set_num_threads(own.threads)
    torch.set_num_threads(own.threads)
    if own.plain:
        segments.SCANNED_FIRST = math.inf  # else the index would build its lists after many searches
    console = Console(width=160, stderr=own.json)
    found = {"environment": environment(own), "sections": {}, "skipped": {}}
    console.print(", ".join(f"{name} {value}" for name, value in found["environment"].items()))
    for name in own.only:
        start = time.perf_counter()
        try:
            rows = list(SECTIONS[name][0](own))
        except (Skipped, ModuleNotFoundError) as error:
            if isinstance(error, ModuleNotFoundError) and error.name not in OPTIONAL:
                raise
            reason = str(error) if isinstance(error, Skipped) else f"{OPTIONAL[error.name]} is not installed"
            found["skipped"][name] = reason
            console.print(f"{name}: skipped, {reason}.")
            continue
        found["sections"][name] = [row.as_dict() for row in rows]
        print_section(console, name, rows)
        console.print(f"{name} took {time.perf_counter() - start:,.0f} s in all.\n")
    if own.json:
        print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
