"""The results of a search."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cmfah_hf.errors import HashIndexError


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
        """One query's answers as rows: `{"id": ..., "score": ..., "metadata": {...}}`, nearest first.

        Raises:
            HashIndexError: If a value of the metadata has no counterpart in Python, such as a date of the year 10,000.
        """
        k = self.ids.shape[1]
        try:
            columns = [{}] * k if self.metadata is None else self.metadata.slice(query * k, k).to_pylist()
        except (ValueError, OverflowError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise HashIndexError(
                f"The metadata holds what is no Python value ({reason}); read `metadata` as an Arrow table."
            ) from error
        rows = zip(self.ids[query].tolist(), self.scores[query].tolist(), columns, strict=True)
        return [{"id": item_id, "score": score, "metadata": own} for item_id, score, own in rows]
