"""Columns beside the codes: an Arrow table of one row an item, and conditions on it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.dataset

from cmfah_hf.errors import HashIndexError, QueryError

# The chunks of a table are merged when one is less than so many times the one behind it, so there are never many.
_GROWTH = 4


def as_table(metadata: Any, items: int) -> pa.Table:
    """Columns as an Arrow table: an Arrow table, a `datasets.Dataset`, or a mapping from names to columns.

    Raises:
        HashIndexError: If it is none of them, a column cannot be stored, or there are not `items` rows.
    """
    if hasattr(metadata, "with_format") and hasattr(metadata, "column_names"):  # a data set, in its own selection
        metadata = metadata.with_format("arrow")[:]
    if isinstance(metadata, Mapping):
        columns = {}
        for name, column in metadata.items():
            try:
                columns[name] = pa.array(column.tolist() if hasattr(column, "tolist") else list(column))
            except (pa.ArrowException, TypeError) as error:
                reason = str(error).splitlines()[0]
                raise HashIndexError(
                    f"Metadata column {name!r} cannot be stored ({reason}); give plain values."
                ) from error
            if len(columns[name]) != items:
                raise HashIndexError(f"Metadata column {name!r} has {len(columns[name])} values for {items} items.")
        metadata = pa.table(columns)
    if not isinstance(metadata, pa.Table):
        raise HashIndexError(
            f"Metadata is a mapping from names to columns, a data set or an Arrow table, not {type(metadata).__name__}."
        )
    if metadata.num_columns and metadata.num_rows != items:
        raise HashIndexError(f"The metadata has {metadata.num_rows} rows for {items} items; give one row an item.")
    if metadata.num_columns != len(set(metadata.column_names)):
        raise HashIndexError(f"Two metadata columns have one name: {', '.join(metadata.column_names)}.")
    # What a data set notes beside its schema has no meaning here.
    return metadata.replace_schema_metadata(None)


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
    """Which rows a condition lets through: `(N,)` bool. A null is let through by none.

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
        raise QueryError(f"A condition is a mapping from columns to values or an Arrow expression, not {where!r}.")
    if table is None:
        raise QueryError("The index holds no metadata, so there is nothing that a condition could be on.")
    try:
        condition = _as_expression(where)
        kept = pa.dataset.dataset(table).to_table(columns={"kept": condition})["kept"]
        return pa.compute.fill_null(kept, False).to_numpy().astype(bool)
    except (pa.ArrowException, TypeError) as error:
        raise QueryError(
            f"The condition {where} has no meaning for the columns {', '.join(columns)} ({str(error).splitlines()[0]})."
        ) from error


def _as_expression(where: Mapping | pa.compute.Expression) -> pa.compute.Expression:
    if not isinstance(where, Mapping):
        return where
    condition = pa.compute.scalar(True)
    for name, values in where.items():
        several = isinstance(values, (list, tuple, set, frozenset))
        condition &= pa.compute.field(name).isin(list(values) if several else [values])
    return condition


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
        except pa.ArrowException as error:
            raise QueryError(f"{value!r} is no value of the column {name!r}, which holds {kind}.") from error
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
