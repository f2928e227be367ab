"""Calibration of a model: the probability that an answer is relevant, by its score (see docs/method.md, [calibration]).

A calibration is stored next to the model as `calibration.json`, with the fingerprint of the model. It has a map for
each metric and direction, such as `aqd/t2i` for images that a text finds, from the cosine of query and item to a
probability. Whether *relevant* means a shared label or the query's own partner is in `relevance`.

Shapes: `Q` queries, `k` answers a query, `K` bits, `S` points of a map.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cmfah_hf.atomic import write_text
from cmfah_hf.documents import read_json
from cmfah_hf.errors import CheckpointError, HashIndexError
from cmfah_hf.retrieval.base import METRICS
from cmfah_hf.retrieval.codes import check_bits, round_for_aqd

CALIBRATION_NAME = "calibration.json"
# From the medium of the query to that of the items: images `i`, texts `t`.
WAYS = ("t2i", "i2t", "i2i", "t2t")
RELEVANCE = ("labels", "pairs")
# The map whose reliability curve is shown to people.
SHOWN_MAP = "aqd/t2i"

_VERSION = 1
_MOST_BYTES = 2**20
_MOST_POINTS = 1024
_FIGURES = 64
_MOST_BINS = 100


@dataclass(frozen=True, eq=False)
class ScoreMap:
    """A monotone map from the cosine of query and item to the probability that the item is relevant.

    Between two points it is linear, and beyond the first and the last one constant.

    Attributes:
        cosines: `(S,)`, ascending, in [-1, 1].
        probabilities: `(S,)`, not falling, in [0, 1].
        items: The number of items that were searched where it was fitted.
        method: `"isotonic"` or `"logistic"`.
        figures: Figures of the fit by name, on held-out queries.
        bins: The reliability curve of the first ten answers of these queries: rows of the number of answers, their mean
            probability and the share that is relevant. Empty in files of earlier versions.
    """

    cosines: np.ndarray
    probabilities: np.ndarray
    items: int
    method: str
    figures: dict[str, Any] = field(default_factory=dict)
    bins: list[list[float]] = field(default_factory=list)

    def __call__(self, cosines: Any) -> np.ndarray:
        """The probabilities of these cosines, in their shape, float64."""
        return np.interp(cosines, self.cosines, self.probabilities)


@dataclass(frozen=True, eq=False)
class Calibration:
    """The maps of a model.

    Attributes:
        model: The fingerprint of the model.
        bits: `K`.
        relevance: `"labels"`: the probability of sharing a label with the query. `"pairs"`: of being the query's own
            partner, if the collection has it.
        maps: By metric and direction, such as `"aqd/t2i"`; those that could be fitted.
    """

    model: str
    bits: int
    relevance: str
    maps: Mapping[str, ScoreMap]

    def probabilities(self, scores: Any, queries: Any, metric: str, way: str, items: int) -> np.ndarray | None:
        """The probabilities `(Q, k)`, float64, that answers are relevant. None without a map of this direction.

        By pairs, only one of all items is the partner, so the odds shrink as the collection grows: they are those of
        the map times the ratio of the numbers of wrong items (`[calibration]`).

        Args:
            scores: `(Q, k)`, as an index returns them.
            queries: `(Q, K)`, the continuous codes of the queries. Only their directions matter.
            metric: `"hamming"` or `"aqd"`.
            way: One of `WAYS`.
            items: The number of items that were searched.
        """
        score_map = self.maps.get(f"{metric}/{way}")
        if score_map is None:
            return None
        return self.at(score_map, cosines_of(scores, queries, metric), items)

    def at(self, score_map: ScoreMap, cosines: Any, items: int) -> np.ndarray:
        """The probabilities of cosines by one of the maps, in their shape, in a collection of this many items."""
        found = score_map(cosines)
        if self.relevance == "labels":
            return found
        odds = found * (score_map.items - 1)
        return odds / np.maximum(odds + (1 - found) * max(items - 1, 0), np.finfo(np.float64).tiny)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the file.

        Raises:
            CheckpointError: If it cannot be written.
        """
        maps = {
            name: {
                "method": one.method,
                "items": one.items,
                "figures": one.figures,
                "bins": one.bins,
                "cosines": np.round(one.cosines, 6).tolist(),
                "probabilities": np.round(one.probabilities, 6).tolist(),
            }
            for name, one in self.maps.items()
        }
        head = {"version": _VERSION, "model": self.model, "bits": self.bits, "relevance": self.relevance}
        text = ",\n".join(f"{json.dumps(name)}: {json.dumps(one)}" for name, one in maps.items())
        write_text(path, f'{json.dumps(head)[:-1]}, "maps": {{\n{text}\n}}}}\n', CheckpointError)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Calibration":
        """Reads a file that `save` wrote, or anybody else.

        Raises:
            CheckpointError: If the file is missing, or is no calibration: values that are not finite, out of range or
                not monotone, other sizes, unknown directions.
        """
        found = read_json(path, CheckpointError, _MOST_BYTES)
        try:
            return _parsed(found)
        except (AttributeError, HashIndexError, KeyError, OverflowError, TypeError, ValueError) as error:
            reason = str(error) if isinstance(error, _UnfitError) else "parts of it are missing, or of another type"
            raise CheckpointError(
                f"{path} is no calibration ({reason}); remove it, and make a new one with `cmfah calibrate`."
            ) from error


def cosines_of(scores: Any, queries: Any, metric: str) -> np.ndarray:
    """The cosines `(Q, k)`, float64, of continuous query codes and binary item codes, from the scores of an index.

    By Hamming distance, they are those of the binary codes of both, `1 - 2 d / K`. A query of zeros has the cosine 0.
    """
    queries_QK = np.asarray(queries)
    scores_Qk, bits = np.asarray(scores, np.float64), queries_QK.shape[1]
    if metric == "hamming":
        return 1 - 2 * scores_Qk / bits
    lengths_Q1 = np.linalg.norm(round_for_aqd(queries_QK).astype(np.float64), axis=1, keepdims=True)
    cosines_Qk = scores_Qk / np.maximum(lengths_Q1 * np.sqrt(bits), np.finfo(np.float64).tiny)
    return np.clip(cosines_Qk, -1, 1)


class _UnfitError(ValueError):
    """A fault of a file, in words that complete a message."""


def _parsed(content: Any) -> Calibration:
    if content["version"] != _VERSION:
        raise _UnfitError(f"its version is {content['version']!r:.40}, not {_VERSION}")
    if content["relevance"] not in RELEVANCE:
        raise _UnfitError(f"its relevance is {content['relevance']!r:.40}, neither 'labels' nor 'pairs'")
    if not isinstance(content["model"], str):
        raise _UnfitError("its fingerprint of the model is no text")
    names = {f"{metric}/{way}" for metric in METRICS for way in WAYS}
    unknown = sorted(set(content["maps"]) - names)
    if unknown or not content["maps"]:
        raise _UnfitError(f"it has a map {unknown[0]!r:.40}" if unknown else "it has no map")
    maps = {name: _parsed_map(name, one) for name, one in content["maps"].items()}
    return Calibration(content["model"], check_bits(content["bits"]), content["relevance"], maps)


def _parsed_map(name: str, content: Any) -> ScoreMap:
    cosines_S, probabilities_S = (np.array(content[key], np.float64) for key in ("cosines", "probabilities"))
    if cosines_S.ndim != 1 or cosines_S.shape != probabilities_S.shape or not 1 <= len(cosines_S) <= _MOST_POINTS:
        raise _UnfitError(f"{name}: cosines and probabilities are not two lists of equal length, up to {_MOST_POINTS}")
    for what, values_S, low in (("cosines", cosines_S, -1), ("probabilities", probabilities_S, 0)):
        if not ((values_S >= low) & (values_S <= 1)).all():  # false for NaN too
            raise _UnfitError(f"{name}: the {what} are not all in {low}..1")
    if (np.diff(cosines_S) <= 0).any() or (np.diff(probabilities_S) < 0).any():
        raise _UnfitError(f"{name}: the cosines do not rise, or the probabilities fall")
    items = content["items"]
    if isinstance(items, bool) or not isinstance(items, int) or not 2 <= items < 2**53:
        raise _UnfitError(f"{name}: the number of items is {items!r:.40}")
    if not isinstance(content["method"], str) or not content["method"].isidentifier():
        raise _UnfitError(f"{name}: the method has no name")
    figures, bins = _parsed_figures(name, content["figures"]), _parsed_bins(name, content.get("bins", []))
    return ScoreMap(cosines_S, probabilities_S, items, content["method"][:40], figures, bins)


def _parsed_figures(name: str, figures: Any) -> dict[str, Any]:
    """Figures are only shown: numbers by name."""
    for figure, value in figures.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not np.isfinite(value):
            raise _UnfitError(f"{name}: the figure {figure!r:.40} is no finite number")
    if len(figures) > _FIGURES:
        raise _UnfitError(f"{name}: there are {len(figures)} figures")
    return dict(figures)


def _parsed_bins(name: str, bins: Any) -> list[list[float]]:
    """Bins are only shown: a number of answers, and two numbers in 0..1."""
    if len(bins) > _MOST_BINS:
        raise _UnfitError(f"{name}: there are {len(bins)} bins")
    rows = np.array(bins, np.float64).reshape(len(bins), 3)
    if not (np.isfinite(rows) & (rows >= 0)).all() or not (rows[:, 1:] <= 1).all():
        raise _UnfitError(f"{name}: the bins are not numbers of answers and two shares in 0..1")
    return rows.tolist()
