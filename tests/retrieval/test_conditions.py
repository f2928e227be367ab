"""Conditions on metadata against plain Python."""

import operator
from contextlib import suppress
from datetime import date, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from cmfah_hf.errors import QueryError
from cmfah_hf.retrieval.conditions import rows_allowed

COMPARE = {
    "=": operator.eq, "==": operator.eq, "!=": operator.eq,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
BERLIN = ZoneInfo("Europe/Berlin")
WORDS = st.text(st.sampled_from('ab,"= \n😀é'), max_size=4)
DAYS = st.dates(date(2019, 12, 30), date(2020, 3, 2))
MOMENTS = st.datetimes(datetime(2020, 2, 27), datetime(2020, 3, 1, 1)).map(
    lambda moment: moment.replace(microsecond=moment.microsecond // 500_000 * 500_000)
)
# Names, some with signs and words that conditions have too: the type and the values.
COLUMNS = {
    "year": (pa.int16(), st.integers(-3, 3)),
    "a": (pa.float64(), st.sampled_from([-1.5, -0.0, 0.0, 2.0, 1e300])),
    "a=b": (pa.string(), WORDS),
    "not c": (pa.bool_(), st.booleans()),
    "labels": (pa.list_(pa.string()), st.lists(st.none() | WORDS, max_size=3)),
    "b>": (pa.large_list(pa.uint64()), st.lists(st.sampled_from([0, 1, 2**64 - 1]), max_size=3)),
    "pair": (pa.list_(pa.int32(), 2), st.lists(st.integers(0, 3), min_size=2, max_size=2)),
    "day": (pa.date32(), DAYS),
    "at": (pa.timestamp("ms"), MOMENTS),
    "there": (pa.timestamp("us", "Europe/Berlin"), MOMENTS.map(lambda moment: moment.replace(tzinfo=BERLIN))),
    "days": (pa.list_(pa.date64()), st.lists(DAYS, max_size=2)),
    "kind": (pa.dictionary(pa.int8(), pa.string()), WORDS),
}
# The length of a year (or a little more), a month, ..., a second, by the characters of its text.
SECONDS = {4: 366 * 86_400, 7: 31 * 86_400, 10: 86_400, 13: 3_600, 16: 60, 19: 1}
PHASES = [Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink]
ELEMENTS = {"labels": "a=b", "days": "day", "kind": "a=b"}


def table_of(name, values, cut):
    """The values as a column of two chunks, each a slice of a longer one; the other columns are null."""
    kind = COLUMNS[name][0]
    chunks = []
    for part in (values[:cut], values[cut:]):
        plain = pa.array([None, *part, *values[:1]], kind.value_type if pa.types.is_dictionary(kind) else kind)
        chunks.append(plain.cast(kind).slice(1, len(part)))
    columns = {other: pa.nulls(len(values), own) for other, (own, _) in COLUMNS.items()}
    columns["row"] = pa.array(range(len(values)), pa.int64())
    return pa.table({**columns, name: pa.chunked_array(chunks, kind)})


def quoted(text):
    return '"' + text.replace('"', '""') + '"'


@st.composite
def tables(draw, name):
    values = draw(st.lists(st.none() | COLUMNS[name][1], max_size=5))
    return values, table_of(name, values, draw(st.integers(0, 3)))


@st.composite
def wanted_values(draw, name):
    """A text, and the first and the last moment or value that it means."""
    kind, own = COLUMNS[ELEMENTS.get(name, name)]
    value = draw(st.integers(0, 3) if name in ("b>", "pair") else own)
    if not isinstance(value, date):
        text = (
            str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
        )
        is_plain = not isinstance(value, str) or (value != "" and set(value) <= set("abé"))
        return f" {text} " if is_plain and draw(st.booleans()) else quoted(text), value, value
    length = draw(st.sampled_from([4, 7, 10] + [13, 16, 19] * isinstance(value, datetime)))
    text = value.strftime("%Y-%m-%d" + " %H:%M:%S" * isinstance(value, datetime))[:length]
    start = datetime.fromisoformat(text + "0000-01-01 00:00:00"[length:])
    after = start + timedelta(
        days={4: 366, 7: 31, 10: 1}.get(length, 0), seconds={13: 3600, 16: 60, 19: 1}.get(length, 0)
    )
    if length < 10:
        after = after.replace(day=1, **({"month": 1} if length == 4 else {}))
    last = after - timedelta(microseconds=1)
    if pa.types.is_date(kind):
        return text, start.date(), last.date()
    return text, start.replace(tzinfo=value.tzinfo), last.replace(tzinfo=value.tzinfo)


def meets(value, sign, wanted):
    values = value if isinstance(value, list) else [value]
    found = False
    for own in values:
        for _, first, last in wanted:
            if own is None:
                continue
            if sign in ("=", "==", "!="):
                found |= first <= own <= last
            else:
                found |= COMPARE[sign](own, last if sign in (">", "<=") else first)
    return found


@settings(max_examples=80, deadline=None, phases=PHASES)
@given(st.data())
def test_texts_select_the_rows_that_python_selects(data):
    name = data.draw(st.sampled_from(list(COLUMNS)))
    values, table = data.draw(tables(name))
    sign = data.draw(st.sampled_from(list(COMPARE)))
    most = 3 if sign in ("=", "==", "!=") else 1
    wanted = data.draw(st.lists(wanted_values(name), min_size=1, max_size=most))
    is_negated = data.draw(st.booleans())
    blank = data.draw(st.sampled_from(["", " "]))
    text = f"{'not ' * is_negated}{name}{blank}{sign}{blank}{','.join(each[0] for each in wanted)}"
    expected = [meets(value, sign, wanted) != (is_negated != (sign == "!=")) for value in values]
    assert rows_allowed(table, text).tolist() == expected, text
    both_hold = [is_met and row >= 2 for row, is_met in enumerate(expected)]
    assert rows_allowed(table, [text, "row>=2"]).tolist() == both_hold


@settings(max_examples=50, deadline=None, phases=PHASES)
@given(st.data())
def test_mappings_select_the_rows_that_python_selects(data):
    name = data.draw(st.sampled_from(["year", "a", "a=b", "labels", "b>", "pair", "day", "days", "kind"]))
    values, table = data.draw(tables(name))
    own = COLUMNS[ELEMENTS.get(name, name)][1] if name not in ("b>", "pair") else st.integers(0, 3)
    wanted = data.draw(st.lists(own, max_size=3))
    given = wanted[0] if len(wanted) == 1 else tuple(wanted)
    expected = [any(part in wanted for part in (value if isinstance(value, list) else [value])) for value in values]
    assert rows_allowed(table, {name: given}).tolist() == expected


TABLE = pa.table({
    "year": [2019, None], "text": ["a", "b"], "day": [date(2020, 1, 1), None], "labels": [["boat"], None],
    "at": pa.array([datetime(2020, 1, 1, tzinfo=timezone.utc), None], pa.timestamp("ns", "UTC")),
    "row": [{"a": 1}, None],
})  # fmt: skip


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("year", "A condition is 'column=value', or has one of !=, <, <=, >, >= instead of =, not 'year'"),
        ("", "A condition is 'column=value'"),
        ("month=3", "no metadata column 'month'; it has year, text, day, labels, at, row"),
        ("not month>3", "no metadata column 'month'"),
        ("=3", "no metadata column ''"),
        ("year=boat", "'boat' is no value of the column 'year', which holds int64"),
        ("year=2020.5", "'2020.5' is no value of the column 'year'"),
        ("year=99999999999999999999", "is no value of the column 'year'"),
        ("year>=2019,2020", "'year>=2019,2020' has several values, but >= takes one"),
        ('text="a', "has a double quote that does not enclose a value"),
        ('text="a"b', "has a double quote that does not enclose a value"),
        ("text=\udcff", "is no value of the column 'text'"),
        ("day=2020-13", "'2020-13' is no value of the column 'day', which holds date32"),
        ("day=2020-01-01T10", "'2020-01-01T10' is no value of the column 'day'"),
        ("at>=1600", "'1600' is no value of the column 'at', which holds timestamp"),
        ("day=" + ",".join(["2020"] * 101), "column 'day' has over 100 dates; give a range"),
        ("row=3", "is no value of the column 'row'"),
        ({"labels": [["boat"]]}, "compared with single values"),
        ({"labels": 3}, "3 is no value of the type string"),
        (["year=2019", 3], "A condition is a mapping"),
    ],
)
def test_unfit_texts_are_one_line_that_names_column_and_value(where, message):
    with pytest.raises(QueryError) as raised:
        rows_allowed(TABLE, where)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_times_with_a_zone_are_moments():
    assert rows_allowed(TABLE, "at=2020-01-01T01:00:00+01:00").tolist() == [True, False]
    assert rows_allowed(TABLE, "at>2020-01-01T00:00:00Z").tolist() == [False, False]


def test_no_condition_selects_all_and_many_values_are_quick():
    assert rows_allowed(TABLE, []).tolist() == [True, True]
    assert rows_allowed(TABLE, "year=" + ",".join(map(str, range(3_000)))).tolist() == [True, False]
    np.testing.assert_array_equal(rows_allowed(TABLE.slice(0, 0), "labels=boat"), [])
    with pytest.raises(QueryError, match="has no metadata column 'year'; it has none"):
        rows_allowed(None, "year=3")


def test_the_longest_name_is_meant():
    table = pa.table({"a": [3, 4], "a>": [5, 3], "not a": [1, 2]})
    for text, expected in {
        "a>=3": [False, True],
        "a >=3": [True, True],
        "not a=1": [True, False],
        "not  a=3": [False, True],
    }.items():
        assert rows_allowed(table, text).tolist() == expected, text


ODD_VALUES = ["nan", "-inf", "1e400", "0000", "9999", "9999-12-31", "2262-04-12", "0x10", "1,,2", "NaT", '"', ","]


@settings(max_examples=60, deadline=None, phases=PHASES)
@given(
    st.sampled_from(["", "not "]),
    st.sampled_from([*TABLE.column_names, ""]),
    st.sampled_from([*COMPARE, ""]),
    st.text() | st.sampled_from(ODD_VALUES),
)
def test_any_text_is_a_condition_or_refused(negation, name, sign, value):
    with suppress(QueryError):
        assert rows_allowed(TABLE, f"{negation}{name}{sign}{value}").shape == (2,)
