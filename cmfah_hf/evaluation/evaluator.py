"""Evaluation of cross-media retrieval from codes of both modalities: figures for tables, curves for plots.

Shapes: `Q` queries, `N` database items, `K` bits, `C` classes, `L` levels of a ranking (see levels.py).
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cmfah_hf.errors import QueryError
from cmfah_hf.evaluation.directions import Direction, labeled_directions, paired_directions
from cmfah_hf.evaluation.metrics import (
    expected_average_precision,
    first_relevant_rank,
    hit_rate_at_k,
    ndcg_at_k,
    precision_at_k,
    precision_recall_curve,
    random_ranking_map,
    recall_at_k,
)

logger = logging.getLogger(__name__)

RANKINGS = ("hamming", "aqd", "cosine")

# The handling of ties, whether there is a depth k, and the variant of MAP@k, by metric.
_MAP_METRICS = {
    "map": ("expected", False, None),
    "map@k": ("expected", True, None),
    "map_dcmh@k": ("expected", True, "dcmh"),
    "map_stable": ("stable", False, None),
    "map_stable@k": ("stable", True, None),
    "map_stable_dcmh@k": ("stable", True, "dcmh"),
}
# Metrics of instance retrieval, which `"random"` reports too.
_AT_K: dict[str, Callable[..., np.ndarray]] = {"recall@k": hit_rate_at_k, "ndcg@k": ndcg_at_k}
_INSTANCE_METRICS = (*_AT_K, "median_rank")
METRICS = (*_MAP_METRICS, "precision@k", *_INSTANCE_METRICS, "random", "constant")
DEFAULT_METRICS = ("map", "precision@k", "random", "constant")
PAIR_METRICS = ("map", *_INSTANCE_METRICS, "random")
# The depths at which papers plot precision at k.
_CURVE_STEP, _CURVE_END = 50, 1000


class RetrievalEvaluator:
    """Measures image-to-text and text-to-image retrieval, by shared labels or by pairs.

    Calling it measures category retrieval: an item is relevant to a query if they share a label. `pairs` measures
    instance retrieval: the image of a text, and the texts of an image.

    Args:
        metrics: A selection of `METRICS`: `"map"`, the expected MAP over the whole database and all orders of ties;
            `"map@k"`, over the first k items; `"map_dcmh@k"`, over the first k *relevant* items (some published code
            calls this MAP@k); `"map_stable"`, `"map_stable@k"` and `"map_stable_dcmh@k"`, the same with ties in
            database order; `"precision@k"`, expected; `"recall@k"`, the share of queries with at least one relevant
            item among the first k (`[hit-rate]`, see docs/method.md); `"median_rank"`, the median over the queries of
            the expected rank of the first relevant item (`[first-rank]`); `"ndcg@k"` (`[ndcg]`), all expected;
            `"random"`, MAP and the selected of the last three for a random ranking; `"constant"`, the expected MAP if
            every query had the code of the mean of all queries. `PAIR_METRICS` suit `pairs`, with `ks=(1, 5, 10)`.
        ks: The depths of the metrics at k.
        ranking: One or more of `"hamming"`, `"aqd"` (`<z_q, B_x>`, `[aqd]`), and `"cosine"` of the continuous codes.

    Example:
        >>> evaluator = RetrievalEvaluator(metrics=("map",), ranking="hamming")
        >>> codes = np.array([[1.0] * 8, [-1.0] * 8])
        >>> evaluator(codes, codes, codes, codes, [["dog"], ["car"]], [["dog"], ["car"]])["hamming/i2t/map"]
        1.0
    """

    def __init__(
        self,
        metrics: Sequence[str] = DEFAULT_METRICS,
        ks: Sequence[int] = (1, 5, 10, 50, 100),
        ranking: str | Sequence[str] = ("hamming", "aqd"),
    ):
        self.metrics = _choices("metrics", metrics, METRICS)
        self.ranking = _choices("ranking", ranking, RANKINGS)
        self._ranked = [metric for metric in self.metrics if metric not in ("random", "constant")]
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
        items count as 0 in all figures, and as rank `N + 1`; `"queries_without_relevant"` is their number.
        `"queries"` and `"database"` are the sizes, `"queries_without_labels"` and `"database_without_labels"` the
        numbers of rows without labels.

        Args:
            image_hash_q, text_hash_q: `(Q, K)` continuous codes, or +-1, of the queries; NumPy, or PyTorch on any
                device.
            image_hash_db, text_hash_db: `(N, K)`, of the database.
            labels_q, labels_db: Multi-hot `(Q, C)` and `(N, C)`, or lists of label names for each row.

        Raises:
            QueryError: If shapes or bits do not fit, codes are 0 and 1 or NaN, or queries or database are empty. It
                names the argument.
        """
        directions = labeled_directions(image_hash_q, text_hash_q, image_hash_db, text_hash_db, labels_q, labels_db)
        results = self._figures(directions)
        either = directions["i2t"]
        relevant_Q = either.count_relevant()
        if "random" in self.metrics:
            results |= {f"random/{name}": value for name, value in self._random(either).items()}
        if "constant" in self.metrics:
            results |= _constant(directions)
        results["queries"] = float(len(relevant_Q))
        results["database"] = float(len(either.relevance_db))
        results["queries_without_relevant"] = float(np.count_nonzero(relevant_Q == 0))
        for name, labels in (("queries", either.relevance_q), ("database", either.relevance_db)):
            results[f"{name}_without_labels"] = float(np.count_nonzero(~labels.any(axis=1)))
        if results["queries_without_relevant"]:
            logger.warning(
                "%d of %d queries share no label with any item of the database; they count 0.",
                results["queries_without_relevant"],
                results["queries"],
            )
        return results

    def pairs(
        self, image_hash: Any, text_hash: Any, image_pairs: Any = None, text_pairs: Any = None
    ) -> dict[str, float]:
        """Figures of instance retrieval by name, such as `"hamming/t2i/recall@1"` and `"random/i2t/median_rank"`.

        `t2i` ranks all images for each text, `i2t` all texts for each image. An item is correct if it has the query's
        key, so an image may have several texts, and a text several images. Items without a partner are searched, but
        are not queries. `"images"` and `"texts"` are the numbers of items, `"images_without_text"` and
        `"texts_without_image"` those of items without a partner.

        Args:
            image_hash, text_hash: `(images, K)` and `(texts, K)` continuous codes, or +-1; NumPy, or PyTorch on any
                device.
            image_pairs, text_pairs: The key of each image and of each text, integers or strings. None: row `i` of both
                is a pair.

        Raises:
            QueryError: If shapes, bits or keys do not fit, codes are 0 and 1 or NaN, or no key occurs on both sides.
                It names the argument.

        Example:
            >>> evaluator = RetrievalEvaluator(metrics=("recall@k",), ks=(1,), ranking="hamming")
            >>> images, texts = np.array([[1.0] * 8, [-1.0] * 8]), np.array([[1.0] * 8, [1.0] * 8, [-1.0] * 8])
            >>> found = evaluator.pairs(images, texts, ["cat.jpg", "dog.jpg"], ["cat.jpg", "cat.jpg", "dog.jpg"])
            >>> found["hamming/t2i/recall@1"]
            1.0
        """
        directions = paired_directions(image_hash, text_hash, image_pairs, text_pairs)
        results = self._figures(directions)
        if "random" in self.metrics:
            for name, direction in directions.items():
                results |= {f"random/{name}/{metric}": value for metric, value in self._random(direction).items()}
        if "constant" in self.metrics:
            results |= _constant(directions)
        i2t, t2i = directions["i2t"], directions["t2i"]
        results["images"], results["texts"] = float(len(t2i.relevance_db)), float(len(i2t.relevance_db))
        results["images_without_text"] = results["images"] - len(i2t.relevance_q)
        results["texts_without_image"] = results["texts"] - len(t2i.relevance_q)
        return results

    def curves(
        self, image_hash_q: Any, text_hash_q: Any, image_hash_db: Any, text_hash_db: Any, labels_q: Any, labels_db: Any
    ) -> dict[str, dict[str, np.ndarray]]:
        """Curves by name, such as `"hamming/i2t"` and `"random"`, for the functions of plots.py.

        Each has `precision` and `recall`, `(points,)` each: within every Hamming radius 0..K that contains an item; for
        AQD, whose scores have no common levels, at every depth of `k`. `k` are up to 60 depths from 1 to `N`, evenly
        spaced on a logarithmic scale, and 50, 100, ... 1000, with `precision_at_k`. Arguments and errors are those of
        `__call__`.
        """
        directions = labeled_directions(image_hash_q, text_hash_q, image_hash_db, text_hash_db, labels_q, labels_db)
        relevant_Q, size = directions["i2t"].count_relevant(), len(directions["i2t"].relevance_db)
        steps = np.arange(_CURVE_STEP, min(size, _CURVE_END) + 1, _CURVE_STEP)
        ks = np.unique(np.concatenate([np.geomspace(1, size, 60).round(), steps]).astype(np.int64))
        curves: dict[str, dict[str, np.ndarray]] = {}
        for ranking in self.ranking:
            for name, direction in directions.items():
                precisions, recalls, radii = [], [], None
                for n, r in direction.levels(ranking):
                    precisions.append(precision_at_k(n, r, ks))
                    recalls.append(recall_at_k(n, r, ks))
                    if ranking == "hamming":  # all queries come at once
                        radii = precision_recall_curve(n, r)
                at_k = np.concatenate(precisions).mean(axis=0)
                answerable = max(np.count_nonzero(relevant_Q), 1)
                precision, recall = radii or (at_k, np.concatenate(recalls).sum(axis=0) / answerable)
                found = ~np.isnan(precision)
                curves[f"{ranking}/{name}"] = {
                    "precision": precision[found],
                    "recall": recall[found],
                    "k": ks,
                    "precision_at_k": at_k,
                }
        chance = relevant_Q.mean() / size
        curves["random"] = {
            "precision": np.full(2, chance),
            "recall": np.array([0.0, 1.0]),
            "k": ks,
            "precision_at_k": np.full(len(ks), chance),
        }
        return curves

    def _figures(self, directions: dict[str, Direction]) -> dict[str, float]:
        """The selected figures of all rankings and directions."""
        figures = {}
        for ranking in self.ranking:
            for name, direction in directions.items():
                for metric, values_Q in self._per_query(direction, ranking).items():
                    figures[f"{ranking}/{name}/{metric}"] = _over_queries(metric, values_Q)
        return figures

    def _random(self, direction: Direction) -> dict[str, float]:
        """MAP and the selected figures of instance retrieval for a random ranking: all items are one level."""
        r = direction.count_relevant()[:, None]
        size = len(direction.relevance_db)
        figures = self._instance_figures(np.full_like(r, size), r)
        averages = {metric: _over_queries(metric, values_Q) for metric, values_Q in figures.items()}
        return {"map": random_ranking_map(r[:, 0], size), **averages}

    def _per_query(self, direction: Direction, ranking: str) -> dict[str, np.ndarray]:
        """The selected figures of one ranking and direction, `(Q,)` each."""
        parts: dict[str, list[np.ndarray]] = {}
        for ties in ("expected", "stable"):
            if not any(_MAP_METRICS.get(metric, ("expected",))[0] == ties for metric in self._ranked):
                continue
            for n, r in direction.levels(ranking, ties):
                found = self._map_figures(n, r, ties)
                if ties == "expected":
                    if "precision@k" in self.metrics and self.ks:
                        at_k = precision_at_k(n, r, self.ks).T
                        found |= {f"precision@{k}": values_Q for k, values_Q in zip(self.ks, at_k, strict=True)}
                    found |= self._instance_figures(n, r)
                for metric, values_Q in found.items():
                    parts.setdefault(metric, []).append(values_Q)
        return {metric: np.concatenate(values) for metric, values in parts.items()}

    def _map_figures(self, n: np.ndarray, r: np.ndarray, ties: str) -> dict[str, np.ndarray]:
        figures: dict[str, np.ndarray] = {}
        for metric, (its_ties, has_depth, variant) in _MAP_METRICS.items():
            if metric in self.metrics and its_ties == ties:
                for k in self.ks if has_depth else (None,):
                    figures[metric.replace("@k", f"@{k}")] = expected_average_precision(n, r, k, variant)
        return figures

    def _instance_figures(self, n: np.ndarray, r: np.ndarray) -> dict[str, np.ndarray]:
        figures: dict[str, np.ndarray] = {}
        for metric, measure in _AT_K.items():
            if metric in self.metrics:
                at_k = measure(n, r, self.ks).T
                figures |= {metric.replace("@k", f"@{k}"): at for k, at in zip(self.ks, at_k, strict=True)}
        if "median_rank" in self.metrics:
            figures["median_rank"] = first_relevant_rank(n, r)
        return figures


def _over_queries(metric: str, values_Q: np.ndarray) -> float:
    return float(np.median(values_Q) if metric == "median_rank" else values_Q.mean())


def _constant(directions: dict[str, Direction]) -> dict[str, float]:
    """The MAP if all queries had the code of their mean."""
    return {
        f"constant/{name}/map": float(expected_average_precision(*direction.constant_levels()).mean())
        for name, direction in directions.items()
    }


def _choices(name: str, chosen: str | Sequence[str], allowed: Sequence[str]) -> tuple[str, ...]:
    chosen = (chosen,) if isinstance(chosen, str) else tuple(chosen)
    for choice in chosen:
        if choice not in allowed:
            raise QueryError(f"{name} cannot be {choice!r}; choose from {', '.join(allowed)}.")
    if not chosen:
        raise QueryError(f"{name} is empty; choose from {', '.join(allowed)}.")
    return chosen
