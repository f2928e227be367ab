"""Columns beside the codes: an Arrow table of one row an item, and conditions on it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.dataset

from cmfah_hf.errors import HashIndexError, QueryError
from cmfah_hf.retrieval.codes import as_array, shortened

# The chunks of a table are merged when one is less than so many times the one behind it, so there are never many.
_GROWTH = 4
# Arrow's files hold nothing that is nested more than 64 deep.
_MOST_NESTED = 60


def as_table(metadata: Any, items: int) -> pa.Table:
    """Columns as an Arrow table: an Arrow table, a `datasets.Dataset`, or a mapping from names to columns.

    Raises:
        HashIndexError: If it is none of them, a column cannot be stored, or there are not `items` rows.
    """
    if hasattr(metadata, "with_format") and hasattr(metadata, "column_names"):  # a data set, in its own selection
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
        raise HashIndexError(f"The metadata has {metadata.num_rows} rows for {items} items; give one row an item.")
    # What a data set notes in its schema has no meaning here.
    return storable(metadata).replace_schema_metadata(None)


def storable(table: pa.Table) -> pa.Table:
    """The table in types that a search can take rows of, in place of views and of run-end encoding.

    Raises:
        HashIndexError: If two columns have one name, or the values of a column do not fit into such a type.
    """
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
        except (pa.ArrowException, ValueError, LookupError) as error:  # names that are no UTF-8, time zones
            raise _not_stored(column.name, error) from error
        table = table.set_column(place, column.name, decoded)
    return table


def _stored_type(kind: pa.DataType, depth: int = 0) -> pa.DataType:
    """The type itself, or the one that takes the place of a view."""
    types = pa.types
    if depth > _MOST_NESTED:
        raise pa.ArrowInvalid(f"it is nested more than {_MOST_NESTED} deep")
    if types.is_timestamp(kind) and kind.tz is not None:
        pa.lib.string_to_tzinfo(kind.tz)  # a time zone that nobody knows
    if types.is_string_view(kind):
        return pa.string()
    if types.is_binary_view(kind):
        return pa.binary()
    if types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, _stored_type(kind.value_type, depth + 1), kind.ordered)
    if isinstance(kind, pa.BaseExtensionType):
        stored = _stored_type(kind.storage_type, depth + 1)
        return kind if stored == kind.storage_type else stored
    if not kind.num_fields:
        return kind
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
    if not isinstance(name, str) or not _is_text(name):
        raise HashIndexError(f"Metadata columns are named by text, not by {shortened(name)}; rename that column.")
    if hasattr(column, "detach"):
        column = as_array(column)
    try:
        values = column.tolist() if hasattr(column, "tolist") else list(column)
        if _nested_deep(values):
            raise pa.ArrowInvalid(f"it is nested more than {_MOST_NESTED} deep, or holds itself")
        try:
            return pa.array(values)
        except OverflowError:  # integers are taken for signed ones
            return pa.array(values, pa.uint64())
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise _not_stored(name, error) from error


def _not_stored(name: str, error: Exception) -> HashIndexError:
    reason = str(error).splitlines()[0].rstrip(".")
    return HashIndexError(f"Metadata column {name!r} cannot be stored ({reason}); give plain values.")


def _nested_deep(values: list) -> bool:
    """Whether a list is nested deeper than Arrow can follow: it crashes where the stack ends."""
    level: list[Any] = [values]
    for _ in range(_MOST_NESTED):
        inner = (part for value in level for part in (value.values() if isinstance(value, dict) else value))
        found = {id(part): part for part in inner if isinstance(part, (list, tuple, dict, set, frozenset, np.ndarray))}
        level = [part for part in found.values() if not isinstance(part, np.ndarray) or part.dtype.hasobject]
        if not level:
            return False
    return True


def _is_text(text: str) -> bool:
    """Whether UTF-8 can hold it: lone surrogates it cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def appended(table: pa.Table | None, held: int, new: pa.Table | None, items: int) -> pa.Table | None:
    """The rows of `new` behind the `held` ones of `table`, with nulls where one lacks a column of the other.

    Raises:
        HashIndexError: If a column holds other kinds of values than before.
    """
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


def rows_allowed(table: pa.Table | None, where: Any) -> np.ndarray:
    """Mask `(N,)` bool of the rows that fulfill a condition. A mapping lets no null through, an expression may.

    A value that no column of its kind can hold (2^70 in a column of 64 bits) lets nothing through; one of another kind
    (text in a column of numbers) is refused. 0.0 and -0.0 are equal.

    Args:
        table: The metadata.
        where: `{"column": value, "other": [values]}`, all of which have to hold, or a `pyarrow.compute.Expression`.

    Raises:
        QueryError: If a column is unknown, or the condition has no meaning for its values.
    """
    columns = [] if table is None else table.column_names
    if isinstance(where, Mapping):
        unknown = [name for name in where if name not in columns]
        if unknown:
            raise QueryError(_unknown(unknown[0], columns))
    elif not isinstance(where, pa.compute.Expression):
        raise QueryError(
            f"A condition is a mapping from columns to values or an Arrow expression, not {shortened(where)}."
        )
    if table is None:
        raise QueryError("The index holds no metadata, so there is nothing that a condition could be on.")
    try:
        condition = _as_expression(where, table.schema) if isinstance(where, Mapping) else where
        kept = pa.dataset.dataset(table).to_table(columns={"kept": condition})["kept"]
        if not pa.types.is_boolean(kept.type):
            raise TypeError(f"it gives {kept.type}, not true or false")
        return pa.compute.fill_null(kept, False).to_numpy().astype(bool)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        described = shortened(where) if isinstance(where, Mapping) else str(where)
        reason = str(error).splitlines()[0].rstrip(".")
        raise QueryError(
            f"The condition {described} has no meaning for the columns {', '.join(columns)} ({reason})."
        ) from error


def _as_expression(where: Mapping, schema: pa.Schema) -> pa.compute.Expression:
    condition = pa.compute.scalar(True)
    for name, values in where.items():
        values = values.tolist() if hasattr(values, "tolist") else values
        several = list(values) if isinstance(values, (list, tuple, set, frozenset)) else [values]
        wanted = _value_set(several, schema.field(name).type)
        # Nulls are never wanted, so a row without a value is let through by none.
        condition &= pa.compute.field(name).isin(wanted) if len(wanted) else pa.compute.scalar(False)
    return condition


def _value_set(values: list, kind: pa.DataType) -> pa.Array:
    """Those of the values that a column of this type can hold, compared as Python compares them.

    Raises:
        TypeError: On a value of another type than the column's.
    """
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    values = [value.item() if isinstance(value, np.generic) else value for value in values if value is not None]
    if any(isinstance(value, (list, tuple, dict, set, frozenset)) for value in values):
        raise TypeError("a column is compared with single values")
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if text:
        plain: tuple[type, ...] = (str,)
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        plain = (int, float)
    else:
        return pa.array(values)
    for value in values:
        if not isinstance(value, plain):
            raise TypeError(f"{shortened(value)} is no value of the type {kind}")
    if text:
        return pa.array([value for value in values if _is_text(value)], kind)
    if pa.types.is_integer(kind):
        whole = [int(value) for value in values if value == value and abs(value) < 2**64 and value == int(value)]
        least, largest = (0, 2**64 - 1) if pa.types.is_uint64(kind) else (-(2**63), 2**63 - 1)
        wanted = [value for value in whole if least <= value <= largest]
        return pa.array(wanted, pa.uint64() if pa.types.is_uint64(kind) else pa.int64())
    real = [float(value) for value in values if not isinstance(value, int) or _as_float(value) == value]
    return pa.array([*real, *([-0.0, 0.0] if 0.0 in real else [])], pa.float64())


def _as_float(value: int) -> float | None:
    try:
        return float(value)
    except OverflowError:
        return None


def parse_conditions(conditions: Sequence[str], table: pa.Table | None) -> dict[str, Any]:
    """`column=value` texts as `rows_allowed` takes them, the values in the types of their columns.

    Raises:
        QueryError: If a text has no `=`, a column is unknown, or a value is not of its column's type.
    """
    columns = [] if table is None else table.column_names
    parsed = {}
    for condition in conditions:
        name, equals, value = condition.partition("=")
        if not equals:
            raise QueryError(f"A condition is 'column=value', not {condition!r}.")
        if name not in columns:
            raise QueryError(_unknown(name, columns))
        kind = table.schema.field(name).type
        try:
            parsed[name] = pa.scalar(value).cast(kind).as_py()
        except (pa.ArrowException, ValueError) as error:  # ValueError: half of a surrogate pair
            raise QueryError(f"{shortened(value)} is no value of the column {name!r}, which holds {kind}.") from error
    return parsed


def _unknown(name: str, columns: list[str]) -> str:
    return f"The index has no metadata column {name!r}; it has {', '.join(columns) or 'none'}."


def _filled(table: pa.Table | None, rows: int, other: pa.Table | None) -> pa.Table:
    """The table, or one of nulls where there is none or it has no column."""
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
