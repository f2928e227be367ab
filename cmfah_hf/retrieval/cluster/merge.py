"""The answers of several shards as the answer of one index.

Shapes: `Q` queries, `k_s` answers of shard `s`, `C` the sum of these.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from cmfah_hf.retrieval.index import Metric, SearchResults

if TYPE_CHECKING:
    import pyarrow


def merge(
    parts: Sequence[SearchResults], k: int, metric: Metric, schema: "pyarrow.Schema | None" = None
) -> SearchResults:
    """The `k` nearest of what each shard found, by score and then by id.

    Every shard gives the first of its own items in an order that is the same for all and has no ties, so the first of
    all items are among those.

    Args:
        parts: What each shard found, `(Q, k_s)`, in the canonical order.
        k: How many answers; fewer where there are not as many.
        metric: What they are ranked by.
        schema: Of the metadata; `None` where there is none.
    """
    ids_QC = np.concatenate([part.ids for part in parts], axis=1)
    scores_QC = np.concatenate([part.scores for part in parts], axis=1)
    order_QC = np.lexsort((_ranks(ids_QC), -scores_QC if metric == "aqd" else scores_QC), axis=-1)[:, :k]
    ids, scores = np.take_along_axis(ids_QC, order_QC, 1), np.take_along_axis(scores_QC, order_QC, 1)
    if schema is None:
        return replace(parts[0], ids=ids, scores=scores)
    return replace(parts[0], ids=ids, scores=scores, metadata=_metadata(parts, order_QC, schema))


def _ranks(ids: np.ndarray) -> np.ndarray:
    """Numbers that sort as the ids do: NumPy's lexsort takes no objects."""
    if ids.dtype != object:
        return ids
    return np.unique(ids.ravel(), return_inverse=True)[1].reshape(ids.shape)


def _metadata(parts: Sequence[SearchResults], order_QC: np.ndarray, schema: "pyarrow.Schema") -> "pyarrow.Table":
    import pyarrow

    tables, rows, start = [], [], 0
    for part in parts:
        size = part.ids.size
        tables.append(part.metadata.select(schema.names))
        rows.append(start + np.arange(size).reshape(part.ids.shape))
        start += size
    rows_QC = np.concatenate(rows, axis=1)
    # Columns of categories have a list of them a shard, which `take` does not put together.
    table = pyarrow.concat_tables(tables).unify_dictionaries()
    return table.take(np.take_along_axis(rows_QC, order_QC, 1).ravel()).combine_chunks()
