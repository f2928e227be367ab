"""Conditions on the metadata of items."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from cmfah_hf.errors import QueryError
from cmfah_hf.retrieval.codes import shortened
from cmfah_hf.retrieval.storage.metadata import is_utf8


def rows_allowed(table: pa.Table | None, where: Any) -> np.ndarray:
    """Mask `(N,)` bool of the rows that meet a condition, a mapping or a `pyarrow.compute.Expression`.

    A null never meets a mapping, but may meet an expression. No row meets a value that the column's type cannot hold
    (2^70 in a column of 64-bit integers). A value of another kind (text for a column of numbers) is rejected. 0.0 and
    -0.0 are equal.
    """
    columns = [] if table is None else table.column_names
    if isinstance(where, Mapping):
        unknown = [name for name in where if name not in columns]
        if unknown:
            raise QueryError(_unknown_column(unknown[0], columns))
    elif not isinstance(where, pa.compute.Expression):
        raise QueryError(
            f"A condition is a mapping from columns to values or an Arrow expression, not {shortened(where)}."
        )
    if table is None:
        raise QueryError("The index holds no metadata, so there is nothing that a condition could be on.")
    try:
        condition = _as_expression(where, table.schema) if isinstance(where, Mapping) else where
        from pyarrow import dataset  # with pandas, which takes long to import

        kept = dataset.dataset(table).to_table(columns={"kept": condition})["kept"]
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
        # No value is null, so a row without a value never meets the condition.
        condition &= pa.compute.field(name).isin(wanted) if len(wanted) else pa.compute.scalar(False)
    return condition


def _value_set(values: list, kind: pa.DataType) -> pa.Array:
    """The values that a column of this type can hold, compared as Python compares them."""
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
        return pa.array([value for value in values if is_utf8(value)], kind)
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
    """A mapping for `rows_allowed` from `column=value` texts, with values of the columns' types."""
    schema = pa.schema([]) if table is None else table.schema
    parsed = {}
    for condition in conditions:
        name, equals, value = condition.partition("=")
        if not equals:
            raise QueryError(f"A condition is 'column=value', not {condition!r}.")
        if name not in schema.names:
            raise QueryError(_unknown_column(name, schema.names))
        kind = schema.field(name).type
        try:
            parsed[name] = pa.scalar(value).cast(kind).as_py()
        except (pa.ArrowException, ValueError) as error:  # ValueError: a lone surrogate
            raise QueryError(f"{shortened(value)} is no value of the column {name!r}, which holds {kind}.") from error
    return parsed


def _unknown_column(name: str, columns: list[str]) -> str:
    return f"The index has no metadata column {name!r}; it has {', '.join(columns) or 'none'}."
