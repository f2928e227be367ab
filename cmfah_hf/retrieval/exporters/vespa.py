"""Export to Vespa: a feed, a schema with both rankings, and queries."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cmfah_hf.errors import QueryError
from cmfah_hf.retrieval.base import METRICS, BaseHashIndex, Metric
from cmfah_hf.retrieval.codes import round_for_aqd
from cmfah_hf.retrieval.exporters.blocks import Block, blocks_of, columns_of, packed_queries, query_rows
from cmfah_hf.retrieval.exporters.folders import DEFAULT_NAME, check_name, export_folder, model_note
from cmfah_hf.retrieval.exporters.targets import CODE, ID, Column, Target

_FILES = r"\w+\.sd|feed\.jsonl"
_RESERVED = (
    "attribute|body|case|context|documentid|else|header|hit|host|if|index|position|reference|relevancy|sddocname|"
    "summary|switch|tokenize"
)
_TARGET = Target(
    title="Vespa",
    column_names=re.compile(rf"(?!({_RESERVED})\Z)[A-Za-z_][A-Za-z0-9_]*"),
    column_bytes=255,
    id_bytes=65_000,
    # The characters that its `Text.isTextCharacter` rejects: noncharacters, and controls except tab, newline, return.
    wrong_characters=r"[\x00-\x08\x0B\x0C\x0E-\x1F\x{FDD0}-\x{FDDF}"
    + "".join(rf"\x{{{plane:X}FFFE}}-\x{{{plane:X}FFFF}}" for plane in range(1, 17))
    + "]",
)
_TYPES = {pa.string(): "string", pa.bool_(): "bool", pa.int64(): "long", pa.float32(): "float", pa.float64(): "double"}


def export_vespa(
    index: BaseHashIndex, path: str | os.PathLike, name: str = DEFAULT_NAME, overwrite: bool = False
) -> list[Path]:
    """Writes an index for Vespa: `feed.jsonl`, a `put` a line, and the schema `<name>.sd` for `schemas/`.

    The schema ranks by Hamming distance (`hamming`) and by AQD (`aqd`, see `[aqd]` in docs/method.md), both exactly.
    Vespa does not distinguish a missing value from an empty string or list, or a missing boolean from false. Booleans
    in lists become 0 and 1. See `EXPORTERS` for the arguments.
    """
    check_name(name)
    columns = columns_of(index, _TARGET)
    with export_folder(path, overwrite, _FILES) as folder:
        with (folder / "feed.jsonl").open("w", encoding="utf-8", newline="\n") as feed:
            for block in blocks_of(index, _TARGET, columns):
                for item_id, fields in _rows(block, columns):
                    document = {"put": f"id:{name}:{name}::{item_id}", "fields": fields}
                    feed.write(json.dumps(document, ensure_ascii=False, allow_nan=False) + "\n")
        id_type = "string" if index.id_type == "str" else "long"
        with (folder / f"{name}.sd").open("w", encoding="utf-8", newline="\n") as schema:
            schema.write(f"# {model_note(index)}\n" if index.model else "")
            schema.write(_schema(name, index.bits, id_type, columns))
    return sorted(Path(path).iterdir())


def vespa_query(
    hash_values: Any, k: int = 10, metric: Metric = "hamming", name: str = DEFAULT_NAME
) -> list[dict[str, Any]]:
    """Queries for Vespa: for each, the body of a request to `/search/`.

    Args:
        hash_values: `(Q, K)` or `(K,)` continuous codes; `"hamming"` also takes uint8 packed codes.
        k: The number of answers. Vespa returns at most 400 unless a query profile allows more.
        metric: `"hamming"` or `"aqd"`. AQD rounds the values as `HashIndex` does, so the scores are equal.
        name: The name of the export.

    Raises:
        HashIndexError: If they are not codes of these kinds.
        QueryError: If the metric is unknown, or `k` is below 1.
    """
    check_name(name)
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise QueryError(f"k must be a whole number of at least 1, not {k!r}.")
    if metric not in METRICS:
        raise QueryError(f"There is no ranking {metric!r}; take one of {', '.join(METRICS)}.")
    if metric == "hamming":
        nearest = f"{{targetHits: {k}, approximate: false}}nearestNeighbor({CODE}, {CODE})"
        inputs = [{f"input.query({CODE})": code.view(np.int8).tolist()} for code in packed_queries(hash_values)]
    else:
        nearest = "true"
        inputs = [{"input.query(values)": values.tolist()} for values in round_for_aqd(query_rows(hash_values))]
    return [
        {"yql": f"select * from {name} where {nearest}", "hits": int(k), "ranking": metric, **values}
        for values in inputs
    ]


def _rows(block: Block, columns: list[Column]) -> Iterator[tuple[int | str, dict[str, Any]]]:
    metadata = {}
    for column in columns:
        values = block.metadata[column.name]
        metadata[column.name] = (
            values.cast(pa.list_(pa.int8())) if column.is_list and pa.types.is_boolean(column.value_type) else values
        ).to_pylist()
    for row, item_id in enumerate(block.ids.to_pylist()):
        fields = {ID: item_id, CODE: {"values": block.codes[row].tobytes().hex()}}
        fields.update((name, values[row]) for name, values in metadata.items() if values[row] is not None)
        yield item_id, fields


def _schema(name: str, bits: int, id_type: str, columns: list[Column]) -> str:
    fields = [f"        field {ID} type {id_type} {{\n            indexing: attribute | summary\n        }}\n"]
    for column in columns:
        kind = _TYPES[column.value_type]
        if column.is_list:
            kind = f"array<{'byte' if kind == 'bool' else kind}>"
        fields.append(
            f"        field {column.name} type {kind} {{\n            indexing: attribute | summary\n        }}\n"
        )
    return f"""schema {name} {{
    document {name} {{
        field {CODE} type tensor<int8>(x[{bits // 8}]) {{
            indexing: attribute | summary
            attribute {{
                distance-metric: hamming
            }}
        }}
{"".join(fields)}    }}

    # The relevance is 1 / (1 + distance).
    rank-profile hamming {{
        inputs {{
            query({CODE}) tensor<int8>(x[{bits // 8}])
        }}
        match-features: distance(field, {CODE})
        first-phase {{
            expression: closeness(field, {CODE})
        }}
    }}

    # The relevance is the product of the query's values and the code's -1 and +1.
    rank-profile aqd {{
        inputs {{
            query(values) tensor<float>(x[{bits}])
        }}
        first-phase {{
            expression: 2 * sum(query(values) * unpack_bits(attribute({CODE}), float, little)) - sum(query(values))
        }}
    }}
}}
"""
