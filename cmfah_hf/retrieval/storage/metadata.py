"""The metadata of an index: an Arrow table with one row per item."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from cmfah_hf.errors import HashIndexError
from cmfah_hf.retrieval.codes import as_array, shortened

# A chunk of a table is merged with the next one unless it has at least this many times its rows, so chunks stay few.
_GROWTH = 4
# Arrow's files hold at most 64 levels of nesting.
_MOST_NESTED = 60


def as_table(metadata: Any, items: int) -> pa.Table:
    """Columns as an Arrow table: an Arrow table, a `datasets.Dataset`, or a mapping from names to columns."""
    if hasattr(metadata, "with_format") and hasattr(
        metadata, "column_names"
    ):  # a data set, with its own selection of rows
        metadata = metadata.with_format("arrow")[:]
    if isinstance(metadata, Mapping):
        columns = {name: _as_column(name, column) for name, column in metadata.items()}
        for name, column in columns.items():
            if len(column) != items:
                raise HashIndexError(f"Metadata column {name!r} has {len(column)} values for {items} items.")
        metadata = pa.table(columns)
    if not isinstance(metadata, pa.Table):
        raise HashIndexError(
            f"Metadata is a mapping from names to columns, a data set or an Arrow table, not {type(metadata).__name__}."
        )
    if metadata.num_columns and metadata.num_rows != items:
        raise HashIndexError(f"The metadata has {metadata.num_rows} rows for {items} items; give one row per item.")
    # Notes of a data set in its schema have no meaning here.
    return storable(metadata).replace_schema_metadata(None)


def taken(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """Rows of a table, by their numbers; a search must not wait for pandas, which `take` imports for an array."""
    rows = np.ascontiguousarray(rows, np.int64)
    return table.take(pa.Array.from_buffers(pa.int64(), rows.size, [None, pa.py_buffer(rows)]))


def storable(table: pa.Table) -> pa.Table:
    """The table with types that a search can take rows of: plain ones instead of views and run-end encoding."""
    names = table.column_names
    if len(names) != len(set(names)):
        raise HashIndexError(f"Two metadata columns have one name: {shortened(names)}.")
    for place, column in enumerate(table.schema):
        try:
            stored = _stored_type(column.type)
            if pa.types.is_run_end_encoded(column.type):
                decoded = pa.compute.run_end_decode(table[place])
            elif stored != column.type:
                decoded = table[place].cast(stored)
            else:
                continue
        except (pa.ArrowException, ValueError, LookupError) as error:  # names that are not UTF-8, unknown time zones
            raise _not_stored(column.name, error) from error
        table = table.set_column(place, column.name, decoded)
    return table


def _stored_type(kind: pa.DataType, depth: int = 0) -> pa.DataType:
    """The type itself, or the plain type that replaces a view."""
    types = pa.types
    if depth > _MOST_NESTED:
        raise pa.ArrowInvalid(f"it is nested more than {_MOST_NESTED} deep")
    if types.is_timestamp(kind) and kind.tz is not None:
        pa.lib.string_to_tzinfo(kind.tz)  # raises for unknown time zones
    if types.is_string_view(kind):
        return pa.string()
    if types.is_binary_view(kind):
        return pa.binary()
    if types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, _stored_type(kind.value_type, depth + 1), kind.ordered)
    if isinstance(kind, pa.BaseExtensionType):
        stored = _stored_type(kind.storage_type, depth + 1)
        return kind if stored == kind.storage_type else stored
    return _stored_nested_type(kind, depth) if kind.num_fields else kind


def _stored_nested_type(kind: pa.DataType, depth: int) -> pa.DataType:
    types = pa.types
    fields = [kind.field(place) for place in range(kind.num_fields)]
    stored = [pa.field(field.name, _stored_type(field.type, depth + 1), field.nullable) for field in fields]
    if all(new.type == old.type for new, old in zip(stored, fields, strict=True)):
        return kind
    if types.is_struct(kind):
        return pa.struct(stored)
    if types.is_map(kind):
        return pa.map_(*(field.type for field in stored[0].type), keys_sorted=kind.keys_sorted)
    if types.is_fixed_size_list(kind):
        return pa.list_(stored[0], kind.list_size)
    if types.is_large_list(kind) or types.is_large_list_view(kind):
        return pa.large_list(stored[0])
    if types.is_list(kind) or types.is_list_view(kind):
        return pa.list_(stored[0])
    raise pa.ArrowNotImplementedError(f"no search can take rows of {kind}")


def _as_column(name: Any, column: Any) -> pa.Array:
    if not isinstance(name, str) or not is_utf8(name):
        raise HashIndexError(f"Metadata columns are named by text, not by {shortened(name)}; rename that column.")
    if hasattr(column, "detach"):
        column = as_array(column)
    try:
        values = column.tolist() if hasattr(column, "tolist") else list(column)
        if _nested_deep(values):
            raise pa.ArrowInvalid(f"it is nested more than {_MOST_NESTED} deep, or holds itself")
        try:
            return pa.array(values)
        except OverflowError:  # Arrow infers signed integers
            return pa.array(values, pa.uint64())
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise _not_stored(name, error) from error


def _not_stored(name: str, error: Exception) -> HashIndexError:
    reason = str(error).splitlines()[0].rstrip(".")
    return HashIndexError(f"Metadata column {name!r} cannot be stored ({reason}); give plain values.")


def _nested_deep(values: list) -> bool:
    """Whether a list is nested too deeply for Arrow, which crashes at the end of the stack."""
    level: list[Any] = [values]
    for _ in range(_MOST_NESTED):
        inner = (part for value in level for part in (value.values() if isinstance(value, dict) else value))
        found = {id(part): part for part in inner if isinstance(part, (list, tuple, dict, set, frozenset, np.ndarray))}
        level = [part for part in found.values() if not isinstance(part, np.ndarray) or part.dtype.hasobject]
        if not level:
            return False
    return True


def is_utf8(text: str) -> bool:
    """Whether UTF-8 can encode a text: not if it has lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def appended(table: pa.Table | None, held: int, new: pa.Table | None, items: int) -> pa.Table | None:
    """The `held` rows of `table` followed by those of `new`, with nulls where one lacks a column of the other."""
    if table is None and (new is None or not new.num_columns):
        return None
    parts = [_filled(table, held, new), _filled(new, items, table)]
    try:
        joined = pa.concat_tables(parts, promote_options="default")
    except pa.ArrowException as error:
        raise HashIndexError(
            f"The metadata does not fit what the index holds: {str(error).splitlines()[0]}."
        ) from error
    return _in_few_chunks(joined)


def _filled(table: pa.Table | None, rows: int, other: pa.Table | None) -> pa.Table:
    """The table. If it is missing or has no column: nulls in the columns of the other."""
    if table is not None and table.num_columns:
        return table
    return pa.table({field.name: pa.nulls(rows, field.type) for field in (other.schema if other is not None else [])})


def _in_few_chunks(table: pa.Table) -> pa.Table:
    bounds = np.cumsum([0, *(len(batch) for batch in table.to_batches())]).tolist()
    while len(bounds) > 2 and bounds[-2] - bounds[-3] < _GROWTH * (bounds[-1] - bounds[-2]):
        del bounds[-2]
    start = bounds[-2] if len(bounds) > 1 else 0
    if len(table.slice(start).to_batches()) <= 1:
        return table
    return pa.concat_tables([table.slice(0, start), table.slice(start).combine_chunks()])
