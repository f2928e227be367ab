"""Provenance of a table of results: how and by which software its figures came about, and the figure of chance."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cmfah_hf.experiments.results import Result

# Rankings that no method makes.
BASELINES = ("random", "constant")
# Libraries whose versions are expected to change figures.
_DECISIVE = ("cmfah-hf", "torch")
_RANKINGS = {"hamming": "Hamming distance", "aqd": "AQD", "cosine": "cosine"}
# What a metric means, by its name without `@k` or depth.
_METRICS = {
    "map": "MAP, expected over the orders of ties",
    "map_dcmh": "MAP over the first relevant items, expected over the orders of ties",
    "map_stable": "MAP, ties in the order of the database",
    "map_stable_dcmh": "MAP over the first relevant items, ties in the order of the database",
    "precision": "Precision, expected over the orders of ties",
    "recall": "Share of queries with a correct item, expected over the orders of ties",
    "ndcg": "nDCG, expected over the orders of ties",
    "ece": "Expected calibration error",
    "probable_precision": "Precision of the answers with a probability of .5 or more",
    "probable_recall": "Recall of the answers with a probability of .5 or more",
    "median_rank": "Median of the expected rank of the first correct item",
}


@dataclass(frozen=True)
class Provenance:
    """The origin of the figures of a table.

    Attributes:
        protocols: `"seen"` and `"unseen"`, see `DataArguments`.
        databases: What was searched, `"seen"` or `"unseen"`.
        encodings: Whose codes were searched, `"single"`, `"pair"`, `"learnt"`, and `"paired"`.
        metrics, rankings: The figures, without the baselines among the rankings.
        chance: The figure of a random ranking, in the mean of both directions, by what it differs by, such as the
            data; the names are empty if there is only one. Empty if there is none.
        chance_metric: The figure that `chance` is; MAP if the metric has no figure of a random ranking.
        seeds: Of all rows.
        versions: All versions of each library.
    """

    protocols: tuple[str, ...]
    databases: tuple[str, ...]
    encodings: tuple[str, ...]
    metrics: tuple[str, ...]
    rankings: tuple[str, ...]
    chance: Mapping[str, float]
    chance_metric: str
    seeds: tuple[int, ...]
    versions: Mapping[str, tuple[str, ...]]

    @property
    def warning(self) -> str | None:
        """The libraries with several versions in one table, of those that change figures; None if there are none."""
        several = [f"{name} ({', '.join(self.versions[name])})" for name in _DECISIVE if self._is_mixed(name)]
        return f"versions differ between rows: {' and '.join(several)}" if several else None

    def _is_mixed(self, name: str) -> bool:
        return len(self.versions.get(name, ())) > 1

    def line(self) -> str:
        """All of it in one line of plain text."""
        parts = [
            f"Protocol {', '.join(self.protocols)}; database {', '.join(self.databases)}, its codes "
            f"{', '.join(self.encodings)}",
            "; ".join(_described(metric) for metric in self.metrics)
            + (f"; by {', '.join(_RANKINGS.get(name, name) for name in self.rankings)}" if self.rankings else ""),
        ]
        if self.chance:
            of = "" if self.chance_metric in self.metrics else f" ({_described(self.chance_metric).split(',')[0]})"
            shown = [f"{_short(value)}{f' ({name})' if name else ''}" for name, value in self.chance.items()]
            parts.append(f"Chance{of} {', '.join(shown)}")
        parts.append(self.line_of_software())
        return f"{'. '.join(parts)}."

    def line_of_software(self) -> str:
        """Seeds and versions, and the warning if there is one."""
        versions = [f"{name} {'/'.join(found)}" for name, found in self.versions.items()]
        text = f"Seeds {_ranges(self.seeds)}; {', '.join(versions) or 'versions unknown'}"
        return f"{text}. Warning: {self.warning}" if self.warning else text

    def to_dict(self) -> dict[str, Any]:
        """All of it for JSON."""
        warning = {"warning": self.warning} if self.warning else {}
        return {
            **{name: list(getattr(self, name)) for name in ("protocols", "databases", "encodings", "metrics")},
            "rankings": list(self.rankings),
            "chance": {"metric": self.chance_metric, "by": dict(self.chance)} if self.chance else None,
            "seeds": list(self.seeds),
            "versions": {name: list(found) for name, found in self.versions.items()},
            **warning,
        }


def provenance_of(rows: Sequence[Result], every: Sequence[Result] | None = None) -> Provenance:
    """The provenance of the rows of a table.

    Args:
        rows: The rows, of one split.
        every: Rows with those of the random ranking, which a selection may have left out. None: `rows`.
    """
    metrics = _distinct(row.metric for row in rows)
    chance_metric, chance = _chance(rows, rows if every is None else every, metrics)
    return Provenance(
        protocols=_distinct(row.protocol for row in rows),
        databases=_distinct(row.database for row in rows),
        encodings=_distinct(row.encoding for row in rows),
        metrics=metrics,
        rankings=tuple(name for name in _distinct(row.ranking for row in rows) if name not in BASELINES),
        chance=chance,
        chance_metric=chance_metric,
        seeds=tuple(sorted({row.seed for row in rows})),
        versions=_versions(rows),
    )


def _chance(rows: Sequence[Result], every: Sequence[Result], metrics: Sequence[str]) -> tuple[str, dict[str, float]]:
    """The figures of a random ranking for the tasks of the rows, and their metric."""
    tasks = {_task(row) for row in rows}
    random = [row for row in every if row.ranking == "random" and row.direction == "mean" and _task(row) in tasks]
    for metric in (*metrics, "map"):
        found: dict[tuple[str, ...], list[float]] = {}
        for row in random:
            if row.metric == metric:
                found.setdefault(_task(row)[1:], []).append(row.value)
        if found:
            differing = [place for place in range(3) if len({task[place] for task in found}) > 1]
            means = {task: statistics.mean(values) for task, values in found.items()}
            if len({_short(mean) for mean in means.values()}) == 1:
                return metric, {"": next(iter(means.values()))}
            return metric, {", ".join(task[place] for place in differing): mean for task, mean in means.items()}
    return "map", {}


def _task(row: Result) -> tuple[str, str, str, str]:
    """The columns of a result that the figure of a random ranking depends on."""
    return row.split, row.data, row.protocol, row.database


def _versions(rows: Sequence[Result]) -> dict[str, tuple[str, ...]]:
    """The versions of each library in the order of its name in the records; the package and torch first."""
    documents = [json.loads(text) for text in _distinct(row.versions for row in rows)]
    names = _distinct(name for document in documents for name in document)
    first = [name for name in _DECISIVE if name in names]
    return {
        name: tuple(sorted({str(document.get(name, "none")) for document in documents}))
        for name in (*first, *(name for name in names if name not in first))
    }


def _described(metric: str) -> str:
    name, at, depth = metric.partition("@")
    text, comma, rest = _METRICS.get(name, metric).partition(",")
    if name.endswith("dcmh"):
        return f"{text.replace('first', f'first {depth}')}{comma}{rest}"
    return f"{text}{at}{depth}{comma}{rest}" if name in _METRICS else metric


def _short(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def _ranges(seeds: Sequence[int]) -> str:
    """`0-4, 7` for 0, 1, 2, 3, 4, 7."""
    parts: list[list[int]] = []
    for seed in seeds:
        if parts and seed == parts[-1][-1] + 1:
            parts[-1].append(seed)
        else:
            parts.append([seed])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 2 else ", ".join(map(str, part)) for part in parts)


def _distinct(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))
