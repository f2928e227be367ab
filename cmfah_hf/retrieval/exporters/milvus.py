"""Export to Milvus: files for its bulk import, and queries."""

import json
import os
import re
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cmfah_hf.retrieval.base import BaseHashIndex
from cmfah_hf.retrieval.exporters.blocks import Block, blocks_of, columns_of, packed_queries
from cmfah_hf.retrieval.exporters.folders import DEFAULT_NAME, check_name, export_folder, model_note
from cmfah_hf.retrieval.exporters.targets import CODE, ID, Column, Target

# An import takes up to 1,024 files of 16 GB: ten billion items with 1.6 KB of metadata each.
FILE_ROWS = 10_000_000
_FILES = r"collection\.json|part-\d{5}\.parquet"
_KEYWORDS = (
    "like|exists|and|or|not|in|true|false|null|json_contains(_all|_any)?|array_contains(_all|_any)?|array_length|"
    "text_match|phrase_match|random_sample"
)
_TARGET = Target(
    title="Milvus",
    column_names=re.compile(rf"(?i)(?!({_KEYWORDS})\Z)[a-z_][a-z0-9_]*", re.ASCII),
    column_bytes=255,
    id_bytes=65_535,
    text_bytes=65_535,
    list_length=4_096,
)
_TYPES = {
    pa.string(): "VarChar",
    pa.bool_(): "Bool",
    pa.int64(): "Int64",
    pa.float32(): "Float",
    pa.float64(): "Double",
}


def export_milvus(
    index: BaseHashIndex, path: str | os.PathLike, name: str = DEFAULT_NAME, overwrite: bool = False
) -> list[Path]:
    """Writes an index for Milvus: `part-*.parquet` for its bulk import, `collection.json` to create the collection.

    The Parquet files have the types of pymilvus' bulk writer; the JSON is the body of a request to
    `/v2/vectordb/collections/create`, with an exact index (`BIN_FLAT`, `HAMMING`). See `EXPORTERS` for the arguments.
    """
    check_name(name)
    columns = columns_of(index, _TARGET)
    with export_folder(path, overwrite, _FILES) as folder:
        sizes: dict[tuple[str, str], int] = {}
        with ExitStack() as files:
            rows, numbers, writer = 0, count(), None
            for block in blocks_of(index, _TARGET, columns):
                table = _table(block, columns)
                for field, size in _sizes(table.drop_columns([CODE])).items():
                    sizes[field] = max(sizes.get(field, 0), size)
                if writer is None or rows + len(table) > FILE_ROWS:
                    files.close()
                    part = folder / f"part-{next(numbers):05d}.parquet"
                    rows, writer = 0, files.enter_context(pq.ParquetWriter(part, table.schema))
                writer.write_table(table)
                rows += len(table)
        collection = json.dumps(_collection(index, name, columns, sizes), indent=2)
        (folder / "collection.json").write_text(collection + "\n", encoding="utf-8")
    return sorted(Path(path).iterdir())


def milvus_query(hash_values: Any) -> list[bytes]:
    """Queries for a binary vector of Milvus: `K / 8` bytes each, for `data=` of a search.

    Args:
        hash_values: `(Q, K)` or `(K,)` continuous codes, or uint8 packed codes.

    Raises:
        HashIndexError: If they are neither.
    """
    return [code.tobytes() for code in packed_queries(hash_values)]


def _table(block: Block, columns: list[Column]) -> pa.Table:
    width = block.codes.shape[1]
    offsets = pa.array(np.arange(0, block.codes.size + 1, width, dtype=np.int32))
    codes = pa.ListArray.from_arrays(offsets, pa.array(block.codes.ravel()))
    return pa.table({ID: block.ids, CODE: codes, **{column.name: block.metadata[column.name] for column in columns}})


def _sizes(table: pa.Table) -> dict[tuple[str, str], int]:
    """The sizes that the fields need for these rows."""
    sizes: dict[tuple[str, str], int] = {}
    for field in table.schema:
        values = table[field.name].combine_chunks()
        if pa.types.is_list(field.type):
            sizes[field.name, "max_capacity"] = pc.max(pc.list_value_length(values)).as_py() or 0
            values = pc.list_flatten(values)
        if pa.types.is_string(values.type):
            sizes[field.name, "max_length"] = pc.max(pc.binary_length(values)).as_py() or 0
    return sizes


def _collection(
    index: BaseHashIndex, name: str, columns: list[Column], sizes: dict[tuple[str, str], int]
) -> dict[str, Any]:
    # Milvus reserves memory by these sizes when it imports, so they are the needed ones, rounded up to a power of two.
    bounds = {"max_length": _TARGET.text_bytes, "max_capacity": _TARGET.list_length}

    def field(name: str, kind: pa.DataType) -> dict[str, Any]:
        is_list = pa.types.is_list(kind)
        value = _TYPES[kind.value_type if is_list else kind]
        described: dict[str, Any] = {"fieldName": name, "dataType": "Array" if is_list else value}
        if is_list:
            described["elementDataType"] = value
        described["elementTypeParams"] = {
            parameter: str(min(bounds[parameter], 1 << max(4, (size - 1).bit_length())))
            for (of, parameter), size in sizes.items()
            if of == name
        }
        return described

    fields = [
        {**field(ID, pa.string() if index.id_type == "str" else pa.int64()), "isPrimary": True},
        {"fieldName": CODE, "dataType": "BinaryVector", "elementTypeParams": {"dim": str(index.bits)}},
        # Older servers do not support nulls, so only columns with nulls are declared nullable.
        *({**field(column.name, column.type), **({"nullable": True} if column.nullable else {})} for column in columns),
    ]
    return {
        "collectionName": name,
        **({"description": model_note(index)} if index.model else {}),
        "schema": {"autoID": False, "enableDynamicField": False, "fields": fields},
        "indexParams": [{"fieldName": CODE, "indexName": CODE, "indexType": "BIN_FLAT", "metricType": "HAMMING"}],
    }
