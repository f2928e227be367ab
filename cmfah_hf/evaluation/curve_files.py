"""Files of curves: the points of `RetrievalEvaluator.curves` as JSON.

A file holds, by name, the lists `k` and `precision_at_k`, up to the depth of the figures in papers, and `recall` and
`precision`. Names are such as `hamming/i2t`, `random`, or `hamming/i2t/seen/pair`, of another database or other codes.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cmfah_hf.atomic import write_text
from cmfah_hf.documents import read_json
from cmfah_hf.errors import CheckpointError

CURVES_NAME = "curves.json"
# Papers plot precision at k up to this depth.
DEEPEST = 1000
_PAIRS = (("k", "precision_at_k"), ("recall", "precision"))


def write_curves(curves: Mapping[str, Mapping[str, np.ndarray]], path: str | os.PathLike) -> None:
    """Writes curves, with five decimals and without depths beyond `DEEPEST`.

    Raises:
        CheckpointError: If the file cannot be written.
    """
    lines = []
    for name, curve in curves.items():
        kept = np.asarray(curve["k"]) <= DEEPEST
        points = {
            "k": np.asarray(curve["k"])[kept].tolist(),
            "precision_at_k": _rounded(np.asarray(curve["precision_at_k"])[kept]),
            "recall": _rounded(curve["recall"]),
            "precision": _rounded(curve["precision"]),
        }
        lines.append(f"{json.dumps(name)}: {json.dumps(points)}")
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n", CheckpointError)


def add_curves(
    curves: Mapping[str, Mapping[str, np.ndarray]], database: str, encoding: str, path: str | os.PathLike
) -> None:
    """Adds the curves of another database, or of other codes, to a file, with both in their names.

    A missing file is created, as for a run of an earlier version.

    Raises:
        CheckpointError: If the file is none of curves, or cannot be written.
    """
    ranked = {f"{name}/{database}/{encoding}": curve for name, curve in curves.items() if "/" in name}
    known = read_curves(path) if Path(path).is_file() else {}
    write_curves({**known, **ranked}, path)


def read_curves(path: str | os.PathLike) -> dict[str, dict[str, np.ndarray]]:
    """The curves of a file that `write_curves` wrote; `CheckpointError` if there is none, or it is no such file."""
    found = read_json(path, CheckpointError)
    try:
        curves = {
            str(name): {key: np.asarray(points[key], dtype=np.float64) for pair in _PAIRS for key in pair}
            for name, points in found.items()
        }
        fits = all(
            curve[x].ndim == 1 and curve[x].shape == curve[y].shape and np.isfinite([curve[x], curve[y]]).all()
            for curve in curves.values()
            for x, y in _PAIRS
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        fits = False
    if not fits:
        raise CheckpointError(f"{path} is no file of curves; remove the folder of the run, and run it again.")
    return curves


def _rounded(values: Any) -> list[float]:
    return np.round(np.asarray(values, dtype=np.float64), 5).tolist()
