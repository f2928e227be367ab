"""Curves of experiments: precision at k and precision over recall of each run, and their means over the seeds.

Shapes: `S` seeds, `P` points.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from cmfah_hf.errors import CMFAHError
from cmfah_hf.evaluation.curve_files import CURVES_NAME, read_curves
from cmfah_hf.experiments.results import RECORD_NAME, RUNS_NAME, read_record

logger = logging.getLogger(__name__)

# What `--curve` names, with the axes of its plot.
KINDS = {"precision@k": ("k", "precision_at_k"), "precision-recall": ("recall", "precision")}
# Levels of recall at which precisions of several seeds are averaged.
_LEVELS = np.linspace(0, 1, 101)


@dataclass(frozen=True, eq=False)
class Curve:
    """One curve of one run, or the mean of several.

    Attributes:
        data, method, variant, title, bits, protocol, seed, database, encoding, ranking, direction: As in `Result`; the
            ranking `"random"` is the same in both directions.
        x, y: Its points: depths and precisions, or recalls and precisions.
        spread: The standard deviation of `y` over the seeds; zeros for one seed.
        seeds: The number of seeds.
    """

    data: str
    method: str
    variant: str
    title: str
    bits: int | None
    protocol: str
    seed: int
    database: str
    encoding: str
    ranking: str
    direction: str
    x: np.ndarray
    y: np.ndarray
    spread: np.ndarray
    seeds: int = 1


# The columns of a run, and those that identify a mean over the seeds.
_OF_RUN = ("data", "method", "variant", "title", "bits", "protocol", "seed")
_GROUPS = (*_OF_RUN[:-1], "database", "encoding", "ranking", "direction")


def curves_of_runs(output: str | Path, kind: str) -> list[Curve]:
    """The curves of the finished runs of a grid.

    Args:
        output: The output of `cmfah experiment run`.
        kind: One of `KINDS`.

    Raises:
        CMFAHError: If there is no such kind, or no run has curves; runs without them are left out, with a warning.
    """
    if kind not in KINDS:
        raise CMFAHError(f"There is no curve {kind!r}; choose {' or '.join(KINDS)}.")
    if not (Path(output) / RUNS_NAME).is_dir():
        raise CMFAHError(f"{output}: curves are in the folders of runs; give the output of `cmfah experiment run`.")
    curves, without = [], 0
    for path in sorted((Path(output) / RUNS_NAME).rglob(RECORD_NAME)):
        record = read_record(path.parent)
        if record is None or record["figures"] is None:
            continue
        if (path.parent / CURVES_NAME).is_file():
            curves += _curves_of(path.parent, record, kind)
        else:
            without += 1
    if not curves:
        raise CMFAHError(f"{output}: no run has curves; runs of this version have, if their queries have labels.")
    if without:
        logger.warning("%s: %d runs have no curves, and are left out.", output, without)
    return curves


def _curves_of(folder: Path, record: Mapping[str, Any], kind: str) -> list[Curve]:
    x, y = KINDS[kind]
    of_run: dict[str, Any] = {name: record.get(name) for name in _OF_RUN}
    curves = []
    for name, points in read_curves(folder / CURVES_NAME).items():
        ranking, direction, database, encoding, *_ = [*name.split("/"), "", "", ""]
        own = {**of_run, "database": database or of_run["protocol"], "encoding": encoding or "single"}
        own |= {"ranking": ranking, "x": points[x], "y": points[y], "spread": np.zeros(len(points[y]))}
        curves += [Curve(**own, direction=one) for one in ([direction] if direction else ["i2t", "t2i"])]
    return curves


def mean_curves(curves: Sequence[Curve], kind: str) -> list[Curve]:
    """The means of curves over the seeds, in the order of their first occurrence.

    Depths are those that all seeds have. Precisions are interpolated linearly at levels of recall that all seeds reach.
    """
    groups: dict[tuple, list[Curve]] = {}
    for curve in curves:
        groups.setdefault(tuple(getattr(curve, name) for name in _GROUPS), []).append(curve)
    return [_mean(group, kind) if len(group) > 1 else group[0] for group in groups.values()]


def _mean(group: Sequence[Curve], kind: str) -> Curve:
    if kind == "precision@k":
        x_P = reduce(np.intersect1d, [curve.x for curve in group])
        y_SP = np.stack([curve.y[np.isin(curve.x, x_P)] for curve in group])
    else:
        reached = max(curve.x[0] for curve in group)
        x_P = _LEVELS[reached <= _LEVELS]
        y_SP = np.stack([np.interp(x_P, curve.x, curve.y) for curve in group])
    return replace(group[0], x=x_P, y=y_SP.mean(axis=0), spread=y_SP.std(axis=0, ddof=1), seeds=len(group))
