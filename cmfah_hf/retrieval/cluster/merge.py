"""Merging the answers and the contents of shards into those of one index.

Shapes: `Q` queries, `k_s` answers of shard `s`, `C` the sum of these; `N_s` items of shard `s`, `N` of all.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow

from cmfah_hf.retrieval.base import Metric
from cmfah_hf.retrieval.radius import too_many
from cmfah_hf.retrieval.results import QueryResults, SearchResults


def merge(
    parts: Sequence[SearchResults], k: int, metric: Metric, schema: pyarrow.Schema | None = None
) -> SearchResults:
    """The `k` nearest of all shards, by score and then by id, from the answers `(Q, k_s)` of each.

    Each shard returns the first of its own items in an order without ties, so the first of all items are among those.
    """
    ids_QC = np.concatenate([part.ids for part in parts], axis=1)
    scores_QC = np.concatenate([part.scores for part in parts], axis=1)
    order_QC = np.lexsort((_ranks(ids_QC), -scores_QC if metric == "aqd" else scores_QC), axis=-1)[:, :k]
    metadata = None
    if schema is not None:
        starts = np.cumsum([0, *(part.ids.size for part in parts)])
        rows = [
            start + np.arange(part.ids.size).reshape(part.ids.shape) for start, part in zip(starts, parts, strict=False)
        ]
        taken = np.take_along_axis(np.concatenate(rows, axis=1), order_QC, 1)
        metadata = joined([part.metadata for part in parts], schema).take(taken.ravel()).combine_chunks()
    codes = None
    if parts[0].codes is not None:
        codes_QCB = np.concatenate([part.codes for part in parts], axis=1)  # all have codes, or none
        codes = np.take_along_axis(codes_QCB, order_QC[:, :, None], 1)
    ids, scores = np.take_along_axis(ids_QC, order_QC, 1), np.take_along_axis(scores_QC, order_QC, 1)
    return SearchResults(ids, scores, metadata, codes=codes)


def merge_radius(
    parts: Sequence[Sequence[QueryResults]], radius: int, limit: int, schema: pyarrow.Schema | None = None
) -> list[QueryResults]:
    """All answers of all shards to each query, by distance and then by id.

    Raises:
        QueryError: If there are more than `limit`.
    """
    if sum(len(result) for part in parts for result in part) > limit:
        raise too_many(limit, radius)
    merged = []
    for results in zip(*parts, strict=True):
        ids, scores = (np.concatenate([getattr(own, name) for own in results]) for name in ("ids", "scores"))
        order = np.lexsort((_ranks(ids), scores))
        metadata = None if schema is None else joined([own.metadata for own in results], schema).take(order)
        merged.append(QueryResults(ids[order], scores[order], metadata))
    return merged


def gathered(parts: Sequence[tuple[np.ndarray, Any]], schema: pyarrow.Schema | None = None) -> Any:
    """The ids of all shards (if the values are None) or their codes or metadata, in ascending order of the ids."""
    ids = np.concatenate([own for own, _ in parts])
    order = np.argsort(ids, kind="stable")
    values = [value for _, value in parts]
    if values[0] is None:
        return ids[order]
    if schema is not None:
        return joined(values, schema).take(order)
    return np.concatenate(values)[order]


def joined(tables: Sequence[pyarrow.Table | None], schema: pyarrow.Schema) -> pyarrow.Table:
    """The tables of several shards one after another."""
    parts = [table.select(schema.names) for table in tables if table is not None]
    # Dictionary columns have one dictionary a shard, which `take` does not merge.
    return pyarrow.concat_tables(parts).unify_dictionaries()


def _ranks(ids: np.ndarray) -> np.ndarray:
    """Numbers in the order of the ids: NumPy's lexsort takes no objects."""
    if ids.dtype != object:
        return ids
    return np.unique(ids.ravel(), return_inverse=True)[1].reshape(ids.shape)
