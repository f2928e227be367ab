"""Building blocks of the contests in `search.py`: random codes and queries, timed turns, checked answers.

Shapes: `N` items, `Q` queries, `K` bits, `k` answers a query. Codes are packed as in `cmfah_hf/retrieval/codes.py`,
queries are continuous codes rounded by `round_for_aqd`.
"""

import os
import platform
import statistics
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np

from cmfah_hf import HashIndex
from cmfah_hf.retrieval.codes import AQD_STEP, round_for_aqd, unpack

# Of a standard normal x: 1 + 0.87 x falls below 0 as often as a bit of an item is flipped, once in eight.
QUERY_NOISE = 0.87

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

Answers = tuple[np.ndarray, np.ndarray]  # ids and scores, `(Q, k)` each


class Skipped(Exception):  # noqa: N818
    """A section that cannot be run here, with the reason."""


class Codes:
    """Codes and queries of one distribution, drawn from a seed.

    Clustered: centers of uniform bits, of which an item flips each with probability 1/8. A query is the tanh of its
    center plus normal noise that flips the same share, so that wrong bits tend to have small values. Uniform:
    independent bits; queries are the tanh of normal noise.
    """

    def __init__(self, bits: int, kind: str, clusters: int, seed: int):
        self.bits, self.kind = bits, kind
        self.rng = np.random.default_rng(seed)
        self.centers = self._uniform(clusters)

    def items(self, count: int) -> np.ndarray:
        """`(count, K / 8)` packed codes."""
        if self.kind == "uniform":
            return self._uniform(count)
        return self._some_centers(count) ^ (self._uniform(count) & self._uniform(count) & self._uniform(count))

    def queries(self, count: int) -> np.ndarray:
        """`(count, K)` continuous codes without zeros, whose sign differs between libraries."""
        latent = self.rng.standard_normal((count, self.bits))
        if self.kind == "clustered":
            latent = unpack(self._some_centers(count)) + QUERY_NOISE * latent
        values = round_for_aqd(np.tanh(latent))
        return np.where(values == 0, np.float32(AQD_STEP), values)

    def _uniform(self, count: int) -> np.ndarray:
        return np.frombuffer(self.rng.bytes(count * self.bits // 8), np.uint8).reshape(count, -1)

    def _some_centers(self, count: int) -> np.ndarray:
        return self.centers[self.rng.integers(len(self.centers), size=count)]


class Contestant(NamedTuple):
    """A search of a batch of queries, and all queries in the form that it takes; the conversion is not timed."""

    search: Callable[[Any], Answers]
    queries: Any


@dataclass
class Comparison:
    """Ours against the fastest of the others; rates are queries per second."""

    what: str  # the search of ours
    items: int  # `N`
    at_once: int  # queries per call
    k: int
    contestant: str  # the fastest of the others
    ours: float  # median of the turns
    theirs: float  # of the contestant
    ratios: list[float]  # the contestant's seconds over ours, one per turn
    bar: float | None = None  # the target of the median ratio
    remark: str = ""

    @property
    def ratio(self) -> float:
        """The median of the turns."""
        return statistics.median(self.ratios)

    @property
    def reached(self) -> bool | None:
        """Whether the ratio reaches the bar, if there is one."""
        return None if self.bar is None else self.ratio >= self.bar

    def as_dict(self) -> dict[str, Any]:
        """The row for JSON."""
        return asdict(self) | {"ratio": self.ratio, "reached": self.reached}


@dataclass
class Figure:
    """A measurement without a contestant; `bar` is its maximum."""

    what: str
    items: int
    value: float
    unit: str
    bar: float | None = None

    @property
    def reached(self) -> bool | None:
        """Whether the value stays below the bar, if there is one."""
        return None if self.bar is None else self.value <= self.bar

    def as_dict(self) -> dict[str, Any]:
        """The row for JSON."""
        return asdict(self) | {"reached": self.reached}


def in_turns(runs: dict[str, Callable[[], Any]], repeats: int, clock: str = "wall") -> dict[str, list[float]]:
    """The seconds of each run, `repeats` times after a warm-up; every second turn runs in reverse order."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(-1, repeats):
        for name in list(runs)[:: -1 if turn % 2 else 1]:
            start = CLOCKS[clock]()
            runs[name]()
            if turn >= 0:
                seconds[name].append(CLOCKS[clock]() - start)
    return seconds


def contest(
    own: Namespace, contestants: dict[str, Contestant], check: Callable[[dict[str, Answers]], str | None], **row: Any
) -> Comparison:
    """The first contestant against the fastest of the others.

    `own` has `singles` (queries of a turn of single queries), `repeats` (counted turns) and `clock`; `row` has `what`,
    `items`, `at_once`, `k` and `bar` of the comparison. `check` gets all answers of a turn before any is timed, and may
    return a remark.
    """
    runs, count = {}, own.singles if row["at_once"] == 1 else row["at_once"]
    for name, (search, queries) in contestants.items():
        batches = [queries[start : start + row["at_once"]] for start in range(0, count, row["at_once"])]
        runs[name] = partial(lambda search, batches: [search(batch) for batch in batches], search, batches)
    answers = {name: tuple(map(np.concatenate, zip(*run(), strict=True))) for name, run in runs.items()}
    remark = check(answers) or ""
    seconds = in_turns(runs, own.repeats, own.clock)
    ours, *others = runs
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    best = min(others, key=medians.__getitem__)
    ratios = [theirs / mine for theirs, mine in zip(seconds[best], seconds[ours], strict=True)]
    rates = {"ours": count / medians[ours], "theirs": count / medians[best]}
    return Comparison(contestant=best, ratios=ratios, remark=remark, **rates, **row)


def scores_anew(codes: np.ndarray, values: np.ndarray, ids: np.ndarray, metric: str) -> np.ndarray:
    """The scores of the items with these ids for their queries, `(Q, k)`, by float64 algebra on unpacked codes."""
    queries = np.where(values >= 0, 1.0, -1.0) if metric == "hamming" else values.astype(np.float64)
    products = np.stack([unpack(codes[row]) @ query for row, query in zip(ids, queries, strict=True)])
    return (values.shape[1] - products) / 2 if metric == "hamming" else products


def check_equal(codes: np.ndarray, values: np.ndarray, metric: str, answers: dict[str, Answers]) -> None:
    """Asserts that all found the same scores, to the bit, with distinct items that have these scores."""
    (_, expected), *_ = answers.values()
    for name, (ids, scores) in answers.items():
        np.testing.assert_array_equal(scores, expected, err_msg=f"{name}: other scores")
        anew = scores_anew(codes, values[: len(ids)], ids, metric)
        np.testing.assert_array_equal(scores, anew, err_msg=f"{name}: its items score otherwise")
        different = [len(np.unique(row)) for row in ids]
        np.testing.assert_array_equal(different, ids.shape[1], err_msg=f"{name}: an item comes twice")


def check_same_items(codes: np.ndarray, values: np.ndarray, metric: str, answers: dict[str, Answers]) -> None:
    """Asserts that all found the same items in the same order, in addition to `check_equal`."""
    check_equal(codes, values, metric, answers)
    (expected, _), *others = answers.values()
    for ids, _ in others:
        np.testing.assert_array_equal(ids, expected, err_msg="other items among those that tie")


def exact_top(codes: np.ndarray, values: np.ndarray, k: int) -> np.ndarray:
    """The `k` largest AQD scores of each query, `(Q, k)` float32: all products, partitioned and sorted."""
    signs, rows = unpack(codes).astype(np.float32), []
    for start in range(0, len(values), 16):
        products = values[start : start + 16] @ signs.T
        rows.append(-np.sort(-np.partition(products, -k, axis=1)[:, -k:], axis=1))
    return np.concatenate(rows)


def environment(own: Namespace) -> dict[str, Any]:
    """Machine and library settings that the figures depend on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    level = getattr(faiss, "SIMDConfig", None)  # of the releases that choose their kernels when they are loaded
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": own.threads,
        "faiss": faiss.__version__,
        "faiss_options": faiss.get_compile_options().strip(),
        "faiss_level": level.get_level_name() if level else "as compiled",
        "numpy": np.__version__,
        "torch": version("torch"),
        "codes": f"{own.codes}, {own.bits} bits",
        "repeats": own.repeats,
        "clock": own.clock,
    }


def indexed(codes: np.ndarray) -> HashIndex:
    """A `HashIndex` of these codes, with their positions as ids."""
    index = HashIndex(codes.shape[1] * 8)
    index.add(codes)
    return index


def searching(index: Any, k: int, metric: str, **settings: Any) -> Callable[[np.ndarray], Answers]:
    """The search of an index with the methods of `HashIndex`, as contestants have it."""

    def search(queries: np.ndarray) -> Answers:
        results = index.search(queries, k=k, metric=metric, **settings)
        return results.ids, results.scores

    return search
