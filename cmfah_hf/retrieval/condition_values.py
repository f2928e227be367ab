"""Values that conditions compare with the values of a column."""

from typing import Any

import numpy as np
import pyarrow as pa

from cmfah_hf.retrieval.codes import shortened
from cmfah_hf.retrieval.storage.metadata import is_utf8


def element_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values that a column's conditions are about: of a list its elements', otherwise its own."""
    types = pa.types
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return kind.value_type if is_list else kind


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type itself; of a dictionary, that of its values."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def value_set(values: list[Any], kind: pa.DataType) -> pa.Array:
    """The values that a column of this type can hold, compared as Python compares them.

    Raises:
        TypeError: If a value is of another kind, such as a text for a column of numbers.
    """
    kind = plain_type(kind)
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
