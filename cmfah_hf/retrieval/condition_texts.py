"""Conditions as texts, such as `year>=2020`, `labels=boat,car` and `not date<2024-05`."""

import operator
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute

from cmfah_hf.errors import QueryError
from cmfah_hf.retrieval.codes import shortened
from cmfah_hf.retrieval.condition_values import element_type, plain_type, value_set

# The column in a condition's expression: one value of a row, or one of a row's list.
VALUE = pa.compute.field("value")
# An operator comes before those that it begins with.
_OPERATORS = ("==", "!=", ">=", "<=", "=", ">", "<")
_COMPARE: dict[str, Callable[[Any, Any], pa.compute.Expression]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt,
}  # fmt: skip
_FORM = "A condition is 'column=value', or has one of !=, <, <=, >, >= instead of =, not {}."
# A value, with or without quotes, and the comma or the end behind it.
_ONE_VALUE = re.compile(r'\s*(?:"((?:[^"]|"")*)"|([^",\s][^,]*|))\s*(,|\Z)')
# A year, a month, a day, or a time of a day.
_TIME = re.compile(r"\d{4}(-\d\d(-\d\d([T ]\d\d(:\d\d(:\d\d(\.\d{1,9})?)?)?)?)?)?")
_DAY = len("2024-05-31")
# Each period makes the expression deeper, and Arrow crashes on thousands.
_MOST_PERIODS = 100


class UnknownColumnError(QueryError):
    """A condition on a column that the metadata does not have.

    Attributes:
        column: Its name.
    """

    column: str = ""

    @classmethod
    def of(cls, column: str, columns: Sequence[str]) -> "UnknownColumnError":
        """The error for a column, where the metadata has `columns`."""
        present = ", ".join(columns) or "none"
        error = cls(f"The index has no metadata column {shortened(column)}; it has {present}.")
        error.column = column
        return error


class Condition(NamedTuple):
    """A condition on a column.

    Attributes:
        column: The column.
        expression: What one of its values must meet, an expression of `VALUE`.
        is_negated: Whether the rows are meant that do not meet it; those without a value are among them.
    """

    column: str
    expression: pa.compute.Expression
    is_negated: bool


def parse_condition(text: str, schema: pa.Schema) -> Condition:
    """The condition of a text: a column, an operator, and a value of the column's type.

    `=` (or `==`) takes several values, separated by commas, one of which the row must have; `!=` is its negation, and
    so is `not ` before the condition. A value with a comma or with blanks around it is put in double quotes, in which
    `""` is a quote. Texts are ordered by code points. On a column of dates or times, `2024`, `2024-05`, `2024-05-31`
    and `2024-05-31T18:30` are whole years, months, days and minutes, in the column's time zone. If several column names
    fit the beginning, the longest is meant.

    Raises:
        QueryError: If there is no operator or no such column, or the value is not of its type.
    """
    name, sign, rest, is_negated = _parts(text, schema.names)
    kind = plain_type(element_type(schema.field(name).type))
    values = _values(rest, text)
    if sign not in _COMPARE:
        return Condition(name, _equal(name, values, kind), is_negated != (sign == "!="))
    if len(values) > 1:
        raise QueryError(
            f"The condition {shortened(text)} has several values, but {sign} takes one; put commas into double quotes."
        )
    return Condition(name, _ordered(name, sign, values[0], kind), is_negated)


def _parts(text: str, columns: Sequence[str]) -> tuple[str, str, str, bool]:
    """Column, operator, the rest, and whether there is a `not`."""
    text = text.strip()
    forms = [(text, False)]
    if text.startswith("not "):
        forms.append((text.removeprefix("not ").lstrip(), True))
    for form, is_negated in forms:
        for name in sorted(columns, key=len, reverse=True):
            rest = form.removeprefix(name).lstrip()
            sign = next((sign for sign in _OPERATORS if form.startswith(name) and rest.startswith(sign)), None)
            if sign is not None:
                return name, sign, rest.removeprefix(sign), is_negated
    name, sign, _ = re.match(r"([^=<>!]*)([=<>!]?)(.*)", forms[-1][0], re.DOTALL).groups()  # type: ignore[union-attr]
    if not sign:
        raise QueryError(_FORM.format(shortened(text)))
    raise UnknownColumnError.of(name.strip(), columns)


def _values(rest: str, text: str) -> list[str]:
    values, start = [], 0
    while True:
        found = _ONE_VALUE.match(rest, start)
        if found is None:
            raise QueryError(f"The condition {shortened(text)} has a double quote that does not enclose a value.")
        quoted, plain, end = found.groups()
        values.append(plain.rstrip() if quoted is None else quoted.replace('""', '"'))
        if not end:
            return values
        start = found.end()


def _equal(name: str, texts: Sequence[str], kind: pa.DataType) -> pa.compute.Expression:
    """Whether a value is one of several, or in one of several periods."""
    periods = [_period(name, text, kind) for text in texts]
    if len(texts) - periods.count(None) > _MOST_PERIODS:
        raise QueryError(f"A condition on column {shortened(name)} has over {_MOST_PERIODS} dates; give a range.")
    single = [text for text, period in zip(texts, periods, strict=True) if period is None]
    expression = VALUE.isin(value_set([_typed(name, text, kind).as_py() for text in single], kind))
    for period in filter(None, periods):
        expression |= (period[0] <= VALUE) & (period[1] > VALUE)
    return expression


def _ordered(name: str, sign: str, text: str, kind: pa.DataType) -> pa.compute.Expression:
    period = _period(name, text, kind)
    if period is None:
        return _COMPARE[sign](VALUE, _typed(name, text, kind))
    # Behind a period begins with its end; before it ends with its start.
    return period[sign == ">"] <= VALUE if sign in (">", ">=") else period[sign == "<="] > VALUE


def _typed(name: str, text: str, kind: pa.DataType) -> pa.Scalar:
    try:
        return pa.scalar(text).cast(kind)
    except (pa.ArrowException, ValueError) as error:  # ValueError: a lone surrogate
        raise _no_value(name, text, kind) from error


def _period(name: str, text: str, kind: pa.DataType) -> tuple[pa.Scalar, pa.Scalar] | None:
    """The start of a year, month, ..., and that of the next; None for other columns and forms."""
    is_date = pa.types.is_date(kind)
    if not (is_date or pa.types.is_timestamp(kind)) or not _TIME.fullmatch(text) or (is_date and len(text) > _DAY):
        return None
    try:
        start = np.datetime64(text.replace(" ", "T"))
        return _moment(start, kind), _moment(start + 1, kind)
    except (pa.ArrowException, ValueError) as error:
        raise _no_value(name, text, kind) from error


def _moment(moment: np.datetime64, kind: pa.DataType) -> pa.Scalar:
    if np.datetime_data(moment)[0] in ("Y", "M", "D", "h", "m"):
        moment = moment.astype("datetime64[s]")
    scalar = pa.scalar(moment)
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        scalar = pa.compute.assume_timezone(scalar, kind.tz, ambiguous="earliest", nonexistent="latest")
    return scalar.cast(kind)


def _no_value(name: str, text: str, kind: pa.DataType) -> QueryError:
    return QueryError(f"{shortened(text)} is no value of the column {shortened(name)}, which holds {kind}.")
