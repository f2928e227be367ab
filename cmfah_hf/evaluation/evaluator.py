"""Evaluation of cross-media retrieval from codes of both modalities: figures for tables, curves for plots.

Shapes: `Q` queries, `N` database items, `K` bits, `C` classes, `L` levels of a ranking (see levels.py).
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from cmfah_hf.errors import HashIndexError, QueryError
from cmfah_hf.evaluation.labels import encode_labels
from cmfah_hf.evaluation.levels import count_relevant, hamming_levels, iterate_levels
from cmfah_hf.evaluation.metrics import (
    expected_average_precision,
    precision_at_k,
    precision_recall_curve,
    random_ranking_map,
    recall_at_k,
)
from cmfah_hf.retrieval.codes import as_array, pack, round_for_aqd

logger = logging.getLogger(__name__)

RANKINGS = ("hamming", "aqd")
# The codes of queries and database, by direction.
_SIDES = {"i2t": ("image_hash_q", "text_hash_db"), "t2i": ("text_hash_q", "image_hash_db")}
DIRECTIONS = tuple(_SIDES)

# The handling of ties, whether there is a depth k, and the variant of MAP@k, by metric.
_MAP_METRICS = {
    "map": ("expected", False, None),
    "map@k": ("expected", True, None),
    "map_dcmh@k": ("expected", True, "dcmh"),
    "map_stable": ("stable", False, None),
    "map_stable@k": ("stable", True, None),
    "map_stable_dcmh@k": ("stable", True, "dcmh"),
}
METRICS = (*_MAP_METRICS, "precision@k", "random", "constant")


class RetrievalEvaluator:
    """Measures image-to-text and text-to-image retrieval by shared labels.

    Args:
        metrics: A selection of `METRICS`: `"map"`, the expected MAP over the whole database and all orders of ties;
            `"map@k"`, over the first k items; `"map_dcmh@k"`, over the first k *relevant* items (some published code
            calls this MAP@k); `"map_stable"`, `"map_stable@k"` and `"map_stable_dcmh@k"`, the same with ties in
            database order; `"precision@k"`, expected; `"random"`, the MAP of a random ranking; `"constant"`, the
            expected MAP if every query had the code of the mean of all queries.
        ks: The depths of the metrics at k.
        ranking: `"hamming"`, `"aqd"` (`<z_q, B_x>`, `[aqd]`, see docs/method.md), or both.

    Example:
        >>> evaluator = RetrievalEvaluator(metrics=("map",), ranking="hamming")
        >>> codes = np.array([[1.0] * 8, [-1.0] * 8])
        >>> evaluator(codes, codes, codes, codes, [["dog"], ["car"]], [["dog"], ["car"]])["hamming/i2t/map"]
        1.0
    """

    def __init__(
        self,
        metrics: Sequence[str] = ("map", "precision@k", "random", "constant"),
        ks: Sequence[int] = (1, 5, 10, 50, 100),
        ranking: str | Sequence[str] = RANKINGS,
    ):
        self.metrics = _choices("metrics", metrics, METRICS)
        self.ranking = _choices("ranking", ranking, RANKINGS)
        self.ks = tuple(ks)
        for k in self.ks:
            if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
                raise QueryError(f"ks must be whole numbers of at least 1, not {k!r}.")

    def __call__(
        self, image_hash_q: Any, text_hash_q: Any, image_hash_db: Any, text_hash_db: Any, labels_q: Any, labels_db: Any
    ) -> dict[str, float]:
        """Figures by name, such as `"hamming/i2t/map"`, `"aqd/t2i/precision@10"`, `"random/map"`, and
        `"constant/i2t/map"` (by Hamming distance).

        `i2t` ranks the database's texts for image queries, `t2i` its images for text queries. Queries without relevant
        items count as 0 in all figures; `"queries_without_relevant"` is their number. `"queries"` and `"database"` are
        the sizes, `"queries_without_labels"` and `"database_without_labels"` the numbers of rows without labels.

        Args:
            image_hash_q, text_hash_q: `(Q, K)` continuous codes, or +-1, of the queries; NumPy, or PyTorch on any
                device.
            image_hash_db, text_hash_db: `(N, K)`, of the database.
            labels_q, labels_db: Multi-hot `(Q, C)` and `(N, C)`, or lists of label names for each row.

        Raises:
            QueryError: If shapes or bits do not fit, codes are 0 and 1 or NaN, or queries or database are empty. It
                names the argument.
        """
        problem = _Problem(image_hash_q, text_hash_q, image_hash_db, text_hash_db, labels_q, labels_db)
        results: dict[str, float] = {}
        for ranking in self.ranking:
            for direction in DIRECTIONS:
                for name, values_Q in self._per_query(problem, ranking, direction).items():
                    results[f"{ranking}/{direction}/{name}"] = float(values_Q.mean())
        relevant_Q = problem.relevant_Q
        if "random" in self.metrics:
            results["random/map"] = random_ranking_map(relevant_Q, len(problem.labels_db))
        if "constant" in self.metrics:
            for direction in DIRECTIONS:
                levels = problem.constant_levels(direction)
                results[f"constant/{direction}/map"] = float(expected_average_precision(*levels).mean())
        results["queries"] = float(len(problem.labels_q))
        results["database"] = float(len(problem.labels_db))
        results["queries_without_relevant"] = float(np.count_nonzero(relevant_Q == 0))
        for name, labels in (("queries", problem.labels_q), ("database", problem.labels_db)):
            results[f"{name}_without_labels"] = float(np.count_nonzero(~labels.any(axis=1)))
        if results["queries_without_relevant"]:
            logger.warning(
                "%d of %d queries share no label with any item of the database; they count 0.",
                results["queries_without_relevant"],
                results["queries"],
            )
        return results

    def curves(
        self, image_hash_q: Any, text_hash_q: Any, image_hash_db: Any, text_hash_db: Any, labels_q: Any, labels_db: Any
    ) -> dict[str, dict[str, np.ndarray]]:
        """Curves by name, such as `"hamming/i2t"` and `"random"`, for the functions of plots.py.

        Each has `precision` and `recall`, `(points,)` each: within every Hamming radius 0..K that contains an item; for
        AQD, whose scores have no common levels, at every depth of `k`. `k` are up to 60 depths from 1 to `N`, evenly
        spaced on a logarithmic scale, with `precision_at_k`. Arguments and errors are those of `__call__`.
        """
        problem = _Problem(image_hash_q, text_hash_q, image_hash_db, text_hash_db, labels_q, labels_db)
        size = len(problem.labels_db)
        ks = np.unique(np.geomspace(1, size, 60).round().astype(np.int64))
        curves: dict[str, dict[str, np.ndarray]] = {}
        for ranking in self.ranking:
            for direction in DIRECTIONS:
                precisions, recalls, radii = [], [], None
                for n, r in problem.levels(ranking, direction):
                    precisions.append(precision_at_k(n, r, ks))
                    recalls.append(recall_at_k(n, r, ks))
                    if ranking == "hamming":  # all queries come at once
                        radii = precision_recall_curve(n, r)
                at_k = np.concatenate(precisions).mean(axis=0)
                answerable = max(np.count_nonzero(problem.relevant_Q), 1)
                precision, recall = radii or (at_k, np.concatenate(recalls).sum(axis=0) / answerable)
                found = ~np.isnan(precision)
                curves[f"{ranking}/{direction}"] = {
                    "precision": precision[found],
                    "recall": recall[found],
                    "k": ks,
                    "precision_at_k": at_k,
                }
        chance = problem.relevant_Q.mean() / size
        curves["random"] = {
            "precision": np.full(2, chance),
            "recall": np.array([0.0, 1.0]),
            "k": ks,
            "precision_at_k": np.full(len(ks), chance),
        }
        return curves

    def _per_query(self, problem: "_Problem", ranking: str, direction: str) -> dict[str, np.ndarray]:
        """The selected figures of one ranking and direction, `(Q,)` each."""
        parts: dict[str, list[np.ndarray]] = {}
        for ties in ("expected", "stable"):
            wanted = [m for m in self.metrics if m in _MAP_METRICS and _MAP_METRICS[m][0] == ties]
            at_k = ties == "expected" and "precision@k" in self.metrics and bool(self.ks)
            if not wanted and not at_k:
                continue
            for n, r in problem.levels(ranking, direction, ties):
                for metric in wanted:
                    _, has_depth, variant = _MAP_METRICS[metric]
                    for k in self.ks if has_depth else (None,):
                        name = metric.replace("@k", f"@{k}")
                        parts.setdefault(name, []).append(expected_average_precision(n, r, k, variant))
                if at_k:
                    for k, values_Q in zip(self.ks, precision_at_k(n, r, self.ks).T, strict=True):
                        parts.setdefault(f"precision@{k}", []).append(values_Q)
        return {name: np.concatenate(values) for name, values in parts.items()}


class _Problem:
    """The checked arguments of one evaluation, as arrays of matching shapes."""

    def __init__(
        self, image_hash_q: Any, text_hash_q: Any, image_hash_db: Any, text_hash_db: Any, labels_q: Any, labels_db: Any
    ):
        self.labels_q, self.labels_db = encode_labels(labels_q, labels_db)
        given = {
            "image_hash_q": image_hash_q,
            "text_hash_q": text_hash_q,
            "image_hash_db": image_hash_db,
            "text_hash_db": text_hash_db,
        }
        self._hashes = {name: _naming(name, as_array, values) for name, values in given.items()}
        self.relevant_Q = count_relevant(self.labels_q, self.labels_db)
        bits = None
        for name, values in self._hashes.items():
            labels_name, labels = ("labels_q", self.labels_q) if name.endswith("_q") else ("labels_db", self.labels_db)
            if values.ndim != 2 or not values.size:
                raise QueryError(f"{name} has the shape {values.shape}; give one row of codes an item.")
            if len(values) != len(labels):
                raise QueryError(f"{name} has the shape {values.shape}, but {labels_name} has {len(labels)} rows.")
            bits = bits or values.shape[1]
            if values.shape[1] != bits:
                raise QueryError(f"{name} has the shape {values.shape}, but image_hash_q has {bits} bits.")
        self._codes = {name: _naming(name, pack, values) for name, values in self._hashes.items()}

    def constant_levels(self, direction: str) -> tuple[np.ndarray, np.ndarray]:
        """Counts per Hamming distance, `(Q, K + 1)` each, if all queries had the code of their mean."""
        query, item = _SIDES[direction]
        code = pack(np.where(self._hashes[query].mean(axis=0, dtype=np.float64) >= 0, 1.0, -1.0)[None])
        codes_q = np.repeat(code, len(self.labels_q), axis=0)
        return hamming_levels(codes_q, self._codes[item], self.labels_q, self.labels_db)

    def levels(self, ranking: str, direction: str, ties: str = "expected") -> Iterator[tuple[np.ndarray, np.ndarray]]:
        query, item = _SIDES[direction]
        queries = self._codes[query] if ranking == "hamming" else _naming(query, round_for_aqd, self._hashes[query])
        return iterate_levels(ranking, queries, self._codes[item], self.labels_q, self.labels_db, ties)


def _naming(name: str, convert: Callable[[Any], np.ndarray], values: Any) -> np.ndarray:
    try:
        return convert(values)
    except HashIndexError as error:
        raise QueryError(f"{name}: {error}") from error


def _choices(name: str, chosen: str | Sequence[str], allowed: Sequence[str]) -> tuple[str, ...]:
    chosen = (chosen,) if isinstance(chosen, str) else tuple(chosen)
    for choice in chosen:
        if choice not in allowed:
            raise QueryError(f"{name} cannot be {choice!r}; choose from {', '.join(allowed)}.")
    if not chosen:
        raise QueryError(f"{name} is empty; choose from {', '.join(allowed)}.")
    return chosen
