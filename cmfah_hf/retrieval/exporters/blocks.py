"""The items of an index in blocks, and their queries, as databases take them.

An exporter holds one block in addition to the index. Items that the database would reject, truncate or change are
errors here that name the item, because a bulk load that stops after an hour names neither.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cmfah_hf.errors import HashIndexError
from cmfah_hf.retrieval.base import BaseHashIndex
from cmfah_hf.retrieval.codes import as_array, pack, unpack
from cmfah_hf.retrieval.exporters.targets import Column, Target

BLOCK_ROWS = 16_384


@dataclass(frozen=True)
class Block:
    """Consecutive items: ids `(n,)` int64 or string, codes `(n, K / 8)` uint8, and the columns of metadata."""

    ids: pa.Array
    codes: np.ndarray
    metadata: dict[str, pa.Array]


def columns_of(index: BaseHashIndex, target: Target) -> list[Column]:
    """The columns of an index's metadata in the types that databases share; an empty index is an error."""
    if not len(index):
        raise HashIndexError("The index is empty; add items before exporting it.")
    metadata = index.metadata
    return [] if metadata is None else [target.column(name, metadata[name]) for name in metadata.column_names]


def blocks_of(index: BaseHashIndex, target: Target, columns: list[Column]) -> Iterator[Block]:
    """The items in the order of `index.ids`; `HashIndexError` at one that the database cannot hold."""
    ids, codes, metadata = index.ids, index.codes, index.metadata
    for start in range(0, len(ids), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        block = Block(ids=target.checked_ids(ids[rows]), codes=np.ascontiguousarray(codes[rows]), metadata={})
        if metadata is not None:
            for column in columns:
                values = metadata[column.name].slice(start, BLOCK_ROWS).combine_chunks()
                block.metadata[column.name] = target.checked_values(column, values, block.ids)
        yield block


def query_rows(hash_values: Any) -> np.ndarray:
    """Queries as a matrix: `(K,)` as one row."""
    values = as_array(hash_values)
    return values[None] if values.ndim == 1 else values


def packed_queries(hash_values: Any) -> np.ndarray:
    """Queries, `(Q, K)` or `(K,)` continuous codes or packed codes, as `(Q, K / 8)` uint8."""
    values = query_rows(hash_values)
    if values.dtype != np.uint8:
        return pack(values)
    unpack(values)  # rejects wrong shapes
    return np.ascontiguousarray(values)
