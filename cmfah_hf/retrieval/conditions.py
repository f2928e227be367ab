"""Conditions on the metadata of items.

Shapes: `N` items.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from cmfah_hf.errors import QueryError
from cmfah_hf.retrieval.codes import shortened
from cmfah_hf.retrieval.condition_texts import VALUE, UnknownColumnError, parse_condition
from cmfah_hf.retrieval.condition_values import element_type, value_set

_ARROW_ERRORS = (pa.ArrowException, TypeError, ValueError, OverflowError)


def rows_allowed(table: pa.Table | None, where: Any) -> np.ndarray:
    """Mask `(N,)` bool of the rows that meet a condition.

    Args:
        table: The metadata, a row per item.
        where: A mapping from columns to values, of which each column must have one; texts such as `"year>=2020"`, all
            of which must hold (`parse_condition` defines them); or a `pyarrow.compute.Expression`.

    A list meets a condition if one of its values does. A null never meets a mapping, but may meet an expression or a
    negated text. No row meets a value that the column's type cannot hold (2^70 in a column of 64-bit integers). A value
    of another kind (text for a column of numbers) is rejected. 0.0 and -0.0 are equal.

    Raises:
        QueryError: If the condition names an unknown column or an unfit value, or is none of these.
    """
    if isinstance(where, Mapping):
        return _rows_of_mapping(table, where)
    if isinstance(where, pa.compute.Expression):
        return _rows_of_expression(table, where)
    texts = [where] if isinstance(where, str) else where
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise QueryError(
            "A condition is a mapping from columns to values, texts such as 'year>=2020' or an Arrow expression, not "
            f"{shortened(where)}."
        )
    return _rows_of_texts(table, texts)


def _rows_of_mapping(table: pa.Table | None, where: Mapping[str, Any]) -> np.ndarray:
    columns = [] if table is None else table.column_names
    unknown = [name for name in where if name not in columns]
    if unknown:
        raise UnknownColumnError.of(unknown[0], columns)
    table = _required(table)
    allowed_N = np.ones(len(table), bool)
    for name, values in where.items():
        values = values.tolist() if hasattr(values, "tolist") else values
        several = list(values) if isinstance(values, (list, tuple, set, frozenset)) else [values]
        try:
            wanted = value_set(several, element_type(table.schema.field(name).type))
            # No value is null, so a row without a value never meets the condition.
            condition = VALUE.isin(wanted) if len(wanted) else pa.compute.scalar(False)
            allowed_N &= _rows_with(table[name], condition)
        except _ARROW_ERRORS as error:
            raise _without_meaning(shortened(where), columns, error) from error
    return allowed_N


def _rows_of_texts(table: pa.Table | None, texts: Sequence[str]) -> np.ndarray:
    schema = pa.schema([]) if table is None else table.schema
    conditions = [parse_condition(text, schema) for text in texts]
    table = _required(table)
    allowed_N = np.ones(len(table), bool)
    for text, condition in zip(texts, conditions, strict=True):
        try:
            allowed_N &= _rows_with(table[condition.column], condition.expression) != condition.is_negated
        except _ARROW_ERRORS as error:
            raise _without_meaning(repr(text), [condition.column], error) from error
    return allowed_N


def _rows_of_expression(table: pa.Table | None, where: pa.compute.Expression) -> np.ndarray:
    table = _required(table)
    try:
        return _rows_meeting(table, where)
    except _ARROW_ERRORS as error:
        raise _without_meaning(str(where), table.column_names, error) from error


def _required(table: pa.Table | None) -> pa.Table:
    if table is None:
        raise QueryError("The index holds no metadata, so there is nothing that a condition could be on.")
    return table


def _without_meaning(condition: str, columns: Sequence[str], error: Exception) -> QueryError:
    reason = str(error).splitlines()[0].rstrip(".")
    return QueryError(f"The condition {condition} has no meaning for the columns {', '.join(columns)} ({reason}).")


def _rows_with(column: pa.ChunkedArray, condition: pa.compute.Expression) -> np.ndarray:
    """Mask `(N,)` of the rows whose value meets a condition on `VALUE`; of lists, those with such a value."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if element_type(column.type) == column.type:
        return _rows_meeting(pa.table({"value": column}), condition)
    return np.concatenate([np.empty(0, bool), *(_lists_with(chunk, condition) for chunk in column.chunks)])


def _lists_with(lists: pa.Array, condition: pa.compute.Expression) -> np.ndarray:
    lengths = pa.compute.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)
    lengths = np.where(lists.is_valid().to_numpy(zero_copy_only=False), lengths, 0)
    values = lists.flatten()  # without those below a null
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    found = np.zeros(len(lists), bool)
    found[np.repeat(np.arange(len(lists)), lengths)[_rows_meeting(pa.table({"value": values}), condition)]] = True
    return found


def _rows_meeting(table: pa.Table, condition: pa.compute.Expression) -> np.ndarray:
    from pyarrow import dataset  # with pandas, which takes long to import

    kept = dataset.dataset(table).to_table(columns={"kept": condition})["kept"]
    if not pa.types.is_boolean(kept.type):
        raise TypeError(f"it gives {kept.type}, not true or false")
    return pa.compute.fill_null(kept, False).to_numpy().astype(bool)
