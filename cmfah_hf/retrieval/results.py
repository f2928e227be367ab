"""What a search returns."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa


@dataclass(frozen=True, eq=False)
class SearchResults:
    """The `k` nearest items of each query, nearest first.

    Attributes:
        ids: `(Q, k)`, int64 or an object array of str, as they were added.
        scores: `(Q, k)`. Hamming: int32 distances, smaller is nearer. AQD: float32 scores, larger is nearer.
        metadata: An Arrow table of `Q k` rows, query after query. None where the index holds none.
    """

    ids: np.ndarray
    scores: np.ndarray
    metadata: pa.Table | None = None

    def hits(self, query: int = 0) -> list[dict[str, Any]]:
        """One query's answers as rows: `{"id": ..., "score": ..., "metadata": {...}}`, nearest first."""
        k = self.ids.shape[1]
        columns = [{}] * k if self.metadata is None else self.metadata.slice(query * k, k).to_pylist()
        rows = zip(self.ids[query].tolist(), self.scores[query].tolist(), columns, strict=True)
        return [{"id": item_id, "score": score, "metadata": own} for item_id, score, own in rows]
