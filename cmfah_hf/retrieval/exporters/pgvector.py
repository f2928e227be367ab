"""Export to PostgreSQL with pgvector: statements that load the items, and queries."""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cmfah_hf.retrieval.base import BaseHashIndex
from cmfah_hf.retrieval.exporters.blocks import Block, blocks_of, columns_of, packed_queries
from cmfah_hf.retrieval.exporters.folders import DEFAULT_NAME, check_name, export_folder, model_note
from cmfah_hf.retrieval.exporters.targets import CODE, ID, Column, Target

_FILES = r"(load|index|query)\.sql"
_TARGET = Target(
    title="PostgreSQL",
    # Every table has columns of these names already. Longer names would be truncated.
    column_names=re.compile(r"(?!(ctid|xmin|xmax|cmin|cmax|tableoid)\Z)[^\x00]+"),
    column_bytes=63,
    id_bytes=2_600,  # a row of the primary key's index has 2,704, its header included
    wrong_characters=r"\x00",
    only_finite=False,
    null_elements=True,
)
_TYPES = {
    pa.string(): "text",
    pa.bool_(): "boolean",
    pa.int64(): "bigint",
    pa.float32(): "real",
    pa.float64(): "double precision",
}


def export_pgvector(
    index: BaseHashIndex, path: str | os.PathLike, name: str = DEFAULT_NAME, overwrite: bool = False
) -> list[Path]:
    """Writes an index for PostgreSQL with pgvector 0.7 or later: `load.sql`, `index.sql` and `query.sql`.

    `load.sql` creates the table and copies the items into it, in one transaction; searching it is exact. `index.sql`
    adds an approximate index, `query.sql` is an example. Codes are `bit(K)`, bit 0 first. See `EXPORTERS` for the
    arguments.
    """
    check_name(name)
    columns = columns_of(index, _TARGET)
    fields = ", ".join(_quoted(field) for field in (ID, CODE, *(column.name for column in columns)))
    with export_folder(path, overwrite, _FILES) as folder:
        with (folder / "load.sql").open("w", encoding="utf-8", newline="\n") as load:
            load.write(_table_statements(index, name, columns))
            if index.model:
                load.write(f"COMMENT ON TABLE \"{name}\" IS '{model_note(index)}';\n")
            load.write(f'COPY "{name}" ({fields}) FROM stdin;\n')
            for block in blocks_of(index, _TARGET, columns):
                load.write(_copy_lines(block, columns))
            load.write(f'\\.\n\nALTER TABLE "{name}" ADD PRIMARY KEY ("{ID}");\nCOMMIT;\nANALYZE "{name}";\n')
        with (folder / "index.sql").open("w", encoding="utf-8", newline="\n") as statements:
            statements.write(
                "-- With this index a search is quick and approximate; without it, it is exact and reads the table.\n"
                f'CREATE INDEX ON "{name}" USING hnsw ("{CODE}" bit_hamming_ops);\n'
            )
        with (folder / "query.sql").open("w", encoding="utf-8", newline="\n") as query:
            query.write(_example_query(name, _bit_strings(np.asarray(index.codes[:1]))[0].as_py()))
    return sorted(Path(path).iterdir())


def pgvector_query(hash_values: Any) -> list[str]:
    """Queries for `bit(K)` of PostgreSQL: `K` characters `0` and `1` each, to be compared by `<~>`.

    Args:
        hash_values: `(Q, K)` or `(K,)` continuous codes, or uint8 packed codes.

    Raises:
        HashIndexError: If they are neither.
    """
    return _bit_strings(packed_queries(hash_values)).to_pylist()


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _bit_strings(codes: np.ndarray) -> pa.Array:
    bits = np.unpackbits(codes, axis=1, bitorder="little") + np.uint8(ord("0"))
    offsets = np.arange(0, bits.size + 1, bits.shape[1], dtype=np.int32)
    return pa.StringArray.from_buffers(len(bits), pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(bits)))


def _table_statements(index: BaseHashIndex, name: str, columns: list[Column]) -> str:
    # This collation orders the ids by code points, which is the canonical order.
    id_type = 'text COLLATE "C"' if index.id_type == "str" else "bigint"
    fields = [f'"{ID}" {id_type} NOT NULL', f'"{CODE}" bit({index.bits}) NOT NULL']
    for column in columns:
        kind = _TYPES[column.value_type]
        fields.append(f"{_quoted(column.name)} {kind}{'[]' if column.is_list else ''}")
    return (
        f"-- For psql: psql --set ON_ERROR_STOP=1 --file load.sql\nSET client_encoding TO 'UTF8';\n"
        f"CREATE EXTENSION IF NOT EXISTS vector;\nBEGIN;\n"
        f'CREATE TABLE "{name}" (\n    ' + ",\n    ".join(fields) + "\n);\n"
    )


def _copy_lines(block: Block, columns: list[Column]) -> str:
    """The block in the text format of COPY."""
    cells = [block.ids.cast(pa.string()), _bit_strings(block.codes), *(block.metadata[c.name] for c in columns)]
    cells = [_copy_text(_array_literals(cell) if pa.types.is_list(cell.type) else cell) for cell in cells]
    lines = pc.binary_join_element_wise(*cells, "\t", null_handling="replace", null_replacement="\\N")
    return "\n".join(lines.to_pylist()) + "\n"


def _copy_text(values: pa.Array) -> pa.Array:
    if not pa.types.is_string(values.type):
        return values.cast(pa.string())
    for character, escape in (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r")):
        values = pc.replace_substring(values, character, escape)
    return values


def _array_literals(lists: pa.Array) -> pa.Array:
    """Lists as PostgreSQL writes arrays: `{"a","b",NULL}`."""
    values = pc.list_flatten(lists)
    if pa.types.is_string(values.type):
        escaped = pc.replace_substring(pc.replace_substring(values, "\\", "\\\\"), '"', '\\"')
        texts = pc.binary_join_element_wise('"', escaped, '"', "")
    else:
        texts = values.cast(pa.string())
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    joined = pc.binary_join(pa.ListArray.from_arrays(offsets, pc.fill_null(texts, "NULL")), ",")
    literals = pc.binary_join_element_wise("{", joined, "}", "")
    return pc.if_else(pc.is_null(lists), pa.scalar(None, pa.string()), literals)


def _example_query(name: str, bits: str) -> str:
    # A constant: no index supports an order by a value from another table.
    distance = f"""("{CODE}" <~> B'{bits}')"""
    return (
        "-- The ten nearest to the first item, by distance, then by id.\n"
        f'SELECT "{ID}", {distance}::integer AS distance\nFROM "{name}"\nORDER BY {distance}, "{ID}"\nLIMIT 10;\n'
    )
