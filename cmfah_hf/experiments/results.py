"""Results of experiments: one row per figure, saved in the folder of each run and together as a Parquet file."""

import json
import logging
import platform
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cmfah_hf.atomic import atomic_file, write_text
from cmfah_hf.documents import read_json
from cmfah_hf.errors import CheckpointError, CMFAHError
from cmfah_hf.experiments.grid import GridRun

logger = logging.getLogger(__name__)

RUNS_NAME = "runs"
RECORD_NAME = "experiment.json"
RESULTS_NAME = "results.parquet"
# `precision` and `recall` are those of a ranking's first answers, these are those of answers with a probability of .5.
_CALIBRATION_METRICS = {"precision": "probable_precision", "recall": "probable_recall"}
_CALIBRATION_METRICS |= {name: name for name in ("ece", "ece@10")}
_LIBRARIES = ("torch", "transformers", "datasets", "numpy", "scikit-learn")


@dataclass(frozen=True)
class Result:
    """One figure of one run.

    Attributes:
        run: The folder of the run below the grid's output.
        data, method, variant, title, bits, protocol, seed: As in `GridRun`.
        split: The split of the queries: `"query"` or `"validation"`; `"pairs"` for instance retrieval among the pairs
            of the query split.
        database: `"seen"` (including the training pairs) or `"unseen"`.
        encoding: `"single"`, or `"paired"` for items encoded with their partners.
        ranking: `"hamming"`, `"aqd"`, `"cosine"` (of real values), `"random"` or `"constant"`.
        direction: `"i2t"`, `"t2i"`, or `"mean"` of both.
        metric: For example `"map"` or `"precision@10"`; of the probabilities of answers `"ece"`, `"ece@10"`,
            `"probable_precision"` and `"probable_recall"` (docs/evaluation.md, Calibration).
        value: The figure.
        seconds: The duration of reading the data and training, without the evaluation on the queries; of an
            interrupted run, since its last start.
        settings, versions: JSON objects: settings in addition to the configuration, and versions of libraries.
        memory_mb: The most main memory that the process of the run held during the run, in 10^6 bytes, with what it
            held before; None if the run has not trained in one go, or was made by an earlier version of the package.
    """

    run: str
    data: str
    method: str
    variant: str
    title: str
    bits: int | None
    protocol: str
    seed: int
    split: str
    database: str
    encoding: str
    ranking: str
    direction: str
    metric: str
    value: float
    seconds: float
    settings: str
    versions: str
    memory_mb: float | None = None


@dataclass(frozen=True)
class Fitted:
    """The figures of a reference, as rows of results, and the seconds of reading the data and fitting."""

    figures: list[dict[str, Any]]
    seconds: float


_TYPES = {"bits": pa.int64(), "seed": pa.int64(), "value": pa.float64(), "seconds": pa.float64()}
_TYPES |= {"memory_mb": pa.float64()}
SCHEMA = pa.schema([(field.name, _TYPES.get(field.name, pa.string())) for field in fields(Result)])
# Columns that a file of an earlier version may lack, and those without a value in some rows.
_OPTIONAL = {field.name for field in fields(Result) if field.default is not MISSING}
_NULLABLE = {"bits", *_OPTIONAL}


def figures_of_queries(
    figures: Mapping[str, float], database: str, encoding: str = "single", split: str = "query"
) -> list[dict[str, Any]]:
    """The figures of `RetrievalEvaluator` as rows, with the mean of both directions."""
    rows = []
    for name, value in figures.items():
        parts = name.split("/")
        if len(parts) == 3:
            rows.append(dict(zip(("ranking", "direction", "metric"), parts, strict=True), value=value))
            if parts[1] == "t2i" and (other := figures.get(f"{parts[0]}/i2t/{parts[2]}")) is not None:
                rows.append({**rows[-1], "direction": "mean", "value": (value + other) / 2})
        elif len(parts) == 2:  # equal in both directions
            rows += [_row(parts[0], direction, parts[1], value) for direction in ("i2t", "t2i", "mean")]
    return [{"split": split, "database": database, "encoding": encoding, **row} for row in rows]


def figures_of_calibration(measured: Mapping[str, Mapping[str, Any]], database: str) -> list[dict[str, Any]]:
    """The figures of `measure_calibration` as rows, with the mean of both directions across the media."""
    figures = {
        f"{name}/{_CALIBRATION_METRICS[metric]}": float(value)
        for name, own in measured.items()
        for metric, value in own.items()
        if metric in _CALIBRATION_METRICS
    }
    return figures_of_queries(figures, database)


def figures_of_validation(log: Mapping[str, float], database: str, ranking: str = "hamming") -> list[dict[str, Any]]:
    """The figures of the validation queries in a trainer's log, as rows."""
    names = {"eval_map_i2t": "i2t", "eval_map_t2i": "t2i", "eval_map": "mean"}
    rows = [_row(ranking, direction, "map", log[name]) for name, direction in names.items()]
    rows += [_row("random", direction, "map", log["eval_map_random"]) for direction in names.values()]
    return [{"split": "validation", "database": database, "encoding": "single", **row} for row in rows]


def _row(ranking: str, direction: str, metric: str, value: float) -> dict[str, Any]:
    return {"ranking": ranking, "direction": direction, "metric": metric, "value": float(value)}


def write_record(
    folder: Path,
    run: GridRun,
    figures: list[dict[str, Any]] | None,
    seconds: float = 0.0,
    memory_mb: float | None = None,
) -> None:
    """Writes the description of a run and, if it has finished, its figures into its folder."""
    shown = {name: value for name, value in asdict(run).items() if name not in ("config", "settings")}
    record = {
        "run": run.name,
        **shown,
        "config": run.config.name,
        "settings": dict(run.settings),
        "versions": versions(),
        "seconds": round(seconds, 1),
        "memory_mb": None if memory_mb is None else round(memory_mb, 1),
        "figures": figures,
    }
    write_text(folder / RECORD_NAME, json.dumps(record, indent=2) + "\n", CheckpointError)


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of a run, if it exists; raises a `CheckpointError` if it is damaged."""
    path = folder / RECORD_NAME
    if not path.is_file():
        return None
    record = read_json(path, CheckpointError)
    if not isinstance(record, dict) or not {"run", "settings", "config", "figures"} <= record.keys():
        raise CheckpointError(f"{path} is no record of an experiment; remove the folder to run it again.")
    return record


def write_results(output: str | Path) -> list[Result]:
    """Collects the figures of all finished runs of a grid into its `results.parquet`, and returns the rows."""
    output = Path(output)
    results = []
    for path in sorted((output / RUNS_NAME).rglob(RECORD_NAME)):
        record = read_record(path.parent)
        if record is not None and record["figures"] is not None:
            results += list(_results_of(path, record))
    table = pa.Table.from_pylist([asdict(result) for result in results], schema=SCHEMA)
    with atomic_file(output / RESULTS_NAME) as temporary:
        pq.write_table(table, temporary)
    return results


def read_results(path: str | Path) -> list[Result]:
    """The rows of a results file, or of a grid's output folder, whose finished runs are collected first.

    A file of another version of the package is read if it only lacks columns that have a default, or has further ones;
    a warning says which.

    Raises:
        CMFAHError: If the path is neither, or the file lacks a column or a value.
    """
    path = Path(path)
    if (path / RUNS_NAME).is_dir():
        return write_results(path)
    if path.is_dir():
        path = path / RESULTS_NAME
    if not path.is_file():
        raise CMFAHError(f"{path}: there are no results; give the output of `cmfah experiment run`, or a Parquet file.")
    try:
        table = _in_this_version(pq.read_table(path), path)
    except (pa.ArrowException, OSError) as error:
        raise CMFAHError(
            f"{path} holds no results ({' '.join(str(error).split())[:200]}); collect them again."
        ) from error
    return [Result(**row) for row in table.to_pylist()]


def _in_this_version(table: pa.Table, path: Path) -> pa.Table:
    """The columns of `SCHEMA` that a table has."""
    missing = [name for name in SCHEMA.names if name not in table.column_names]
    if needed := [name for name in missing if name not in _OPTIONAL]:
        raise CMFAHError(f"{path} holds no results of this version: it has no {', '.join(needed)}; run it again.")
    further = [name for name in table.column_names if name not in SCHEMA.names]
    if missing or further:
        said = [f"it has no {', '.join(missing)}"] if missing else []
        said += [f"its {', '.join(further)} is left out"] if further else []
        logger.warning("%s was written by another version of the package: %s.", path, " and ".join(said))
    schema = pa.schema([SCHEMA.field(name) for name in SCHEMA.names if name not in missing])
    table = table.select(schema.names).cast(schema)
    if empty := [name for name in schema.names if name not in _NULLABLE and table[name].null_count]:
        raise CMFAHError(f"{path} holds no results: {', '.join(empty)} has no value in some row; collect them again.")
    return table


def versions() -> dict[str, str]:
    """The versions of Python, of this package and of the libraries that figures depend on."""
    found = {"python": platform.python_version()}
    for name in ("cmfah-hf", *_LIBRARIES):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # the package in a checkout, or an extra that is not installed
            continue
    return found


def _results_of(path: Path, record: Mapping[str, Any]) -> Iterable[Result]:
    of_run = ("run", "data", "method", "variant", "title", "bits", "protocol", "seed", "seconds")
    try:
        own = {name: record[name] for name in of_run}
        own |= {name: json.dumps(record[name]) for name in ("settings", "versions")}
        own["memory_mb"] = record.get("memory_mb")
        for figure in record["figures"]:
            yield Result(**own, **figure)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is no record of an experiment ({error}); remove its folder.") from error
