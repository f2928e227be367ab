"""Limits of a database on ids and metadata, and the checks of values against them."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cmfah_hf.errors import HashIndexError

# The fields of every export, next to the columns of metadata.
ID, CODE = "id", "code"


@dataclass(frozen=True)
class Column:
    """A column of metadata: string, bool, int64, float32 or float64, or a list of one of these."""

    name: str
    type: pa.DataType
    nullable: bool

    @property
    def is_list(self) -> bool:
        return pa.types.is_list(self.type)

    @property
    def value_type(self) -> pa.DataType:
        """The type of a list's elements, or of the column itself."""
        return self.type.value_type if self.is_list else self.type


@dataclass(frozen=True)
class Target:
    """The limits of a database; lengths are bytes of UTF-8, and 0 is no limit."""

    title: str  # in messages
    column_names: re.Pattern  # matches all names a column can have
    column_bytes: int
    id_bytes: int
    text_bytes: int = 0  # of strings other than ids
    wrong_characters: str = ""  # a regular expression (RE2); empty for none
    only_finite: bool = True  # whether NaN and the infinities are rejected
    null_elements: bool = False  # whether a list can contain nulls
    list_length: int = 0

    def column(self, name: str, values: pa.ChunkedArray) -> Column:
        """The column of this name in the types that all databases share."""
        fits = self.column_names.fullmatch(name) and len(name.encode()) <= self.column_bytes
        if not fits or name.lower() in (ID, CODE):
            raise HashIndexError(
                f"{self.title} cannot have a column {name!r} next to {ID!r} and {CODE!r}; rename that column."
            )
        shared = shared_type(values.type)
        if shared is None:
            raise HashIndexError(
                f"Column {name!r} holds {values.type}, which cannot be exported; make it strings, numbers, booleans, "
                "or lists of these."
            )
        return Column(name, shared, bool(values.null_count))

    def checked_ids(self, ids: np.ndarray) -> pa.Array:
        """The ids as an Arrow array; `HashIndexError` at one that the database cannot hold."""
        if ids.dtype != object:
            return pa.array(ids)
        advice = "give the item another id"
        try:
            texts = pa.array(ids.tolist(), pa.string())
        except UnicodeEncodeError:
            row = next(row for row, item in enumerate(ids) if any("\ud800" <= letter <= "\udfff" for letter in item))
            raise self._rejection(f"Id {ids[row]!r}", "a lone surrogate", advice) from None
        for what, test in self._text_tests(self.id_bytes):
            wrong = _first_row(texts, test)
            if wrong is not None:
                raise self._rejection(f"Id {ids[wrong]!r}", what, advice)
        return texts

    def checked_values(self, column: Column, values: pa.Array, ids: pa.Array) -> pa.Array:
        """The values of a column in its shared type; `ids` name their items in errors."""

        def reject(what: str, row: int | None) -> None:
            if row is not None:
                where = f"Item {ids[row].as_py()!r}, column {column.name!r}"
                raise self._rejection(where, what, "change it, or leave the column out")

        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        if pa.types.is_uint64(getattr(values.type, "value_type", values.type)):
            limit = pa.scalar(2**63, pa.uint64())
            reject("an integer of 2^63 or more", _first_row(values, lambda v: pc.greater_equal(v, limit)))
        values = values.cast(column.type)
        if column.is_list and not self.null_elements:
            reject("a null in a list", _first_row(values, pc.is_null))
        if column.is_list and self.list_length:
            longer = pc.greater(pc.list_value_length(values), self.list_length)
            reject(f"a list of more than {self.list_length:,}", _first_true(longer))
        if pa.types.is_floating(column.value_type) and self.only_finite:
            reject("NaN or an infinity", _first_row(values, lambda v: pc.invert(pc.is_finite(v))))
        if pa.types.is_string(column.value_type):
            for what, test in self._text_tests(self.text_bytes):
                reject(what, _first_row(values, test))
        return values

    def _text_tests(self, most_bytes: int) -> list[tuple[str, Callable[[pa.Array], pa.Array]]]:
        tests: list[tuple[str, Callable[[pa.Array], pa.Array]]] = []
        if self.wrong_characters:
            tests.append(("a control character", lambda v: pc.match_substring_regex(v, self.wrong_characters)))
        if most_bytes:
            tests.append((f"more than {most_bytes:,} bytes", lambda v: pc.greater(pc.binary_length(v), most_bytes)))
        return tests

    def _rejection(self, where: str, what: str, advice: str) -> HashIndexError:
        return HashIndexError(f"{where}: {what}, which {self.title} cannot hold; {advice}.")


def shared_type(kind: pa.DataType) -> pa.DataType | None:
    """The type of `Column` that holds all values of an Arrow type; None if there is none."""
    types = pa.types
    if types.is_dictionary(kind):
        return shared_type(kind.value_type)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        value = None if types.is_dictionary(kind.value_type) else shared_type(kind.value_type)
        return None if value is None or types.is_list(value) else pa.list_(value)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind) or types.is_null(kind):
        return pa.string()
    if types.is_boolean(kind):
        return pa.bool_()
    if types.is_integer(kind):
        return pa.int64()
    if types.is_floating(kind):
        return pa.float64() if types.is_float64(kind) else pa.float32()
    return None


def _first_row(values: pa.Array, test: Callable[[pa.Array], pa.Array]) -> int | None:
    """The first row for which the test is true of the value, or of an element of the list."""
    if not hasattr(values.type, "value_type"):
        return _first_true(test(values))
    at = _first_true(test(pc.list_flatten(values)))
    return None if at is None else pc.list_parent_indices(values)[at].as_py()


def _first_true(flags: pa.Array) -> int | None:
    at = pc.index(flags, True).as_py()
    return None if at < 0 else at
