"""The typed decoder: batch and service agree bit for bit, and what is odd about a row is said with its column."""

import json
import math
import time
import timeit
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esteira.errors import ConfigError, DataError
from esteira.features import parse
from esteira.features.contract import Column, ColumnKind, TableContract, Target
from esteira.features.decode import LARGEST, Decoder, fit_decoder, json_rows

KINDS: tuple[ColumnKind, ...] = ("number", "integer", "boolean", "category", "date", "text")


def contract(**kinds: ColumnKind) -> TableContract:
    columns = tuple(Column(name=name, kind=kind) for name, kind in kinds.items())
    return TableContract(line="t", target=Target(name="y", task="binary", classes=(0, 1)), columns=columns)


def every_kind() -> tuple[TableContract, pd.DataFrame]:
    frame = pd.DataFrame(
        {
            "price": [1.5, 2.5, None, 4.0],
            "rooms": [1.0, 2.0, 3.0, None],
            "sunny": pd.array([True, False, None, True], dtype="boolean"),
            "city": ["Rio", "Rio", "São Paulo", None],
            "sold": pd.to_datetime(
                ["2024-02-29", "2023-12-31T23:30:00", None, "1969-07-20"], format="ISO8601", utc=True
            ),
            "note": ["Sea View", None, "sea front", "garden"],
        }
    )
    return contract(price="number", rooms="integer", sunny="boolean", city="category", sold="date", note="text"), frame


CELLS: dict[str, st.SearchStrategy[Any]] = {
    "number": st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**18), 10**18).map(float),
    "integer": st.none() | st.integers(-(2**53), 2**53).map(float),
    "boolean": st.none() | st.booleans(),
    "category": st.none() | st.sampled_from(["a", "b", "ção", "A", " a", "x y", "1", "1.0"]) | st.text(max_size=5),
    "date": st.none()
    | st.datetimes().map(lambda moment: moment.replace(tzinfo=UTC))
    | st.dates(date(1900, 1, 1), date(2100, 1, 1)).map(lambda day: datetime(day.year, day.month, day.day, tzinfo=UTC)),
    "text": st.none()
    | st.text(max_size=30)
    | st.lists(st.sampled_from(["Sea", "sea", "ﬁne", "view", "22"])).map(" ".join),
}


def typed(kind: str, cells: list[Any]) -> Any:
    """A column as validate writes it."""
    if kind in {"number", "integer"}:
        return np.array([math.nan if cell is None else cell for cell in cells], dtype=np.float64)
    if kind == "boolean":
        return pd.array(cells, dtype="boolean") if None in cells else np.array(cells, dtype=bool)
    if kind == "date":
        stamps = [None if cell is None else np.datetime64(cell.replace(tzinfo=None), "us") for cell in cells]
        return pd.Series(np.array(stamps, dtype="datetime64[us]")).dt.tz_localize("UTC")
    return pd.array(cells, dtype="str")


@st.composite
def tables(draw: st.DrawFn) -> tuple[TableContract, pd.DataFrame]:
    count = draw(st.integers(1, 12))
    kinds = {f"c{i}": kind for i, kind in enumerate(draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=6)))}
    cells = {name: draw(st.lists(CELLS[kind], min_size=count, max_size=count)) for name, kind in kinds.items()}
    return contract(**kinds), pd.DataFrame({name: typed(kinds[name], cells[name]) for name in kinds})


@given(tables(), st.integers(0, 11))
@settings(max_examples=150, deadline=None)
def test_a_table_its_rows_and_a_row_alone_decode_to_the_same_bits(
    table: tuple[TableContract, pd.DataFrame], fitted_on: int
) -> None:
    """frame == rows == one row at a time, for any cells, also those that the fit did not see, and through JSON."""
    agreed, frame = table
    decoder = fit_decoder(frame.iloc[: fitted_on + 1], agreed)
    rows = json.loads(json.dumps(json_rows(frame, decoder)))
    batch = decoder.frame(frame)
    assert batch.shape == (len(frame), len(decoder.names))
    assert batch.tobytes() == decoder.rows(rows).tobytes()
    assert batch.tobytes() == np.concatenate([decoder.rows([row]) for row in rows]).tobytes()
    assert [] == [finding for finding in decoder.check(rows) if finding.severity == "error"]
    again = Decoder.from_json(decoder.to_json())
    assert decoder == again
    assert batch.tobytes() == again.rows(rows).tobytes()


@given(tables())
@settings(max_examples=40, deadline=None)
def test_the_training_rows_are_in_range_and_seen(table: tuple[TableContract, pd.DataFrame]) -> None:
    """Rows that the decoder was fitted on never warn of range, category or fraction; only of empty cells."""
    agreed, frame = table
    decoder = fit_decoder(frame, agreed)
    assert {finding.rule for finding in decoder.check(json_rows(frame, decoder))} <= {"empty"}


def test_raw_text_decodes_as_the_typed_cells_do() -> None:
    """Cells of a CSV, with blanks around them, give what typed cells give."""
    agreed, frame = every_kind()
    decoder = fit_decoder(frame, agreed)
    raw = pd.DataFrame(
        {
            "price": ["1.50", " 2.5", "", "4"],
            "rooms": ["1", "2.0", "3 ", "NA"],
            "sunny": ["True", "false", None, "TRUE"],
            "city": ["Rio ", "Rio", "São Paulo", "  "],
            "sold": ["2024-02-29", "2023-12-31 23:30", "", "1969/07/20"],
            "note": ["Sea View", "", "sea front", "garden"],
        }
    )
    assert decoder.frame(frame).tobytes() == decoder.frame(raw).tobytes()
    assert decoder.frame(frame).tobytes() == decoder.rows(raw.to_dict("records")).tobytes()
    assert decoder == fit_decoder(raw, agreed)


def test_features_say_what_they_are() -> None:
    """Names and values of every kind: codes by frequency, 0 for unknown, NaN for missing; parts of dates; words of text."""
    agreed, frame = every_kind()
    decoder = fit_decoder(pd.concat([frame] * 5), agreed)
    assert (
        "price",
        "rooms",
        "sunny",
        "city",
        *(f"sold.{part}" for part in ("days", "year", "month", "day", "weekday", "hour")),
        *(f"note.{name}" for name in ("length", "words", "has.sea", "has.front", "has.garden", "has.view")),
    ) == decoder.names
    assert (3,) == decoder.categorical
    nan = math.nan
    expected = np.array(
        [
            [1.5, 1, 1, 1, 19782, 2024, 2, 29, 3, 0, 8, 2, 1, 0, 0, 1],
            [2.5, 2, 0, 1, 19722.979166666668, 2023, 12, 31, 6, 23, nan, nan, 0, 0, 0, 0],
            [nan, 3, nan, 2, nan, nan, nan, nan, nan, nan, 9, 2, 1, 1, 0, 0],
            [4, nan, 1, nan, -165, 1969, 7, 20, 6, 0, 6, 1, 0, 0, 1, 0],
        ],
        dtype=np.float32,
    )
    np.testing.assert_array_equal(expected, decoder.frame(frame))
    unseen = decoder.rows([{**json_rows(frame, decoder)[0], "city": "Bahia", "note": "ＳＥＡ 7"}])[0]
    assert unseen[3] == 0
    assert [5, 2, 1] == unseen[10:13].tolist()


def test_codes_go_by_frequency_then_by_name() -> None:
    """The most frequent category is 1; of equally frequent ones the first by name."""
    decoder = fit_decoder(pd.DataFrame({"c": ["b", "a", "c", "c", "d", None]}), contract(c="category"))
    assert ("c", "a", "b", "d") == decoder.columns[0].levels


@pytest.mark.parametrize(
    ("change", "rule", "severity", "says"),
    [
        ({"price": "cheap"}, "type", "error", "'cheap'"),
        ({"price": True}, "type", "error", "True"),
        ({"price": [1]}, "type", "error", "[1]"),
        ({"price": math.inf}, "type", "error", "finite"),
        ({"price": "1e999"}, "type", "error", "finite"),
        ({"price": 10**400}, "type", "error", "digits"),
        ({"price": 10**9000}, "type", "error", "digits"),
        ({"city": 10**9000}, "type", "error", "digits"),
        ({"price": 99}, "range", "warning", "1.5 to 4"),
        ({"price": None}, "empty", "warning", "empty"),
        ({"price": math.nan}, "empty", "warning", "empty"),
        ({"price": " "}, "empty", "warning", "empty"),
        ({"rooms": 1.5}, "whole", "warning", "1.5"),
        ({"sunny": "perhaps"}, "type", "error", "'perhaps'"),
        ({"sunny": 2}, "type", "error", "2"),
        ({"city": "Rjo"}, "category", "warning", "'Rjo' was not in training"),
        ({"city": ["Rio"]}, "type", "error", "['Rio']"),
        ({"city": True}, "type", "error", "True"),
        ({"city": {"name": "Rio"}}, "type", "error", "{'name': 'Rio'}"),
        ({"sold": "29/02/2024"}, "type", "error", "'29/02/2024'"),
        ({"sold": "2024-02-30"}, "type", "error", "'2024-02-30'"),
        ({"sold": 20240229}, "type", "error", "20240229"),
        ({"sold": "9999-12-31T23:59:59-05:00"}, "type", "error", "years 1 to 9999"),
        ({"sold": "0001-01-01T00:00:00+05:00"}, "type", "error", "years 1 to 9999"),
        ({"sold": list(range(99))}, "type", "error", "a list of 99"),
        ({"sold": "2030-01-01"}, "range", "warning", "1969-07-20 to 2024-02-29"),
        ({"note": ["sea"]}, "type", "error", "['sea']"),
        ({"note": ""}, "empty", "warning", "empty"),
        ({"prize": 1}, "unknown", "error", "did you mean 'price'?"),
    ],
)
def test_a_finding_names_column_row_rule_and_value(change: dict[str, Any], rule: str, severity: str, says: str) -> None:
    """What cannot be decoded is an error; what the training did not see is a warning; both say where and what."""
    agreed, frame = every_kind()
    decoder = fit_decoder(frame, agreed)
    good = {"price": 2, "rooms": 2, "sunny": True, "city": "Rio", "sold": "2024-01-01", "note": "sea"}
    assert [] == decoder.check([good])
    (finding,) = decoder.check([good, {**good, **change}, good])
    assert (rule, next(iter(change)), 1, severity) == (finding.rule, finding.column, finding.row, finding.severity)
    assert says in finding.message
    if severity == "error" and rule != "unknown":
        with pytest.raises(DataError, match=finding.column) as caught:
            decoder.rows([good, {**good, **change}])
        assert "row 1" in caught.value.where


def test_missing_column_label_and_dropped_columns() -> None:
    """A missing column is an error, an optional one a warning; the label and dropped columns may be sent."""
    agreed = TableContract.model_validate(
        {
            "line": "t",
            "target": {"name": "y", "task": "regression"},
            "columns": [{"name": "a", "kind": "number"}, {"name": "b", "kind": "number", "required": False}],
            "dropped": [{"name": "id", "reason": "identifier"}],
        }
    )
    decoder = fit_decoder(pd.DataFrame({"a": [1.0, 2.0], "b": [1.0, 2.0]}), agreed)
    assert [] == decoder.check([{"a": 1, "b": 1, "y": 3, "id": "x1"}])
    assert [("required", "a", "error"), ("empty", "b", "warning")] == [
        (finding.rule, finding.column, finding.severity) for finding in decoder.check([{}])
    ]
    assert [("type", "error")] == [(finding.rule, finding.severity) for finding in decoder.check([["a"]])]  # type: ignore[list-item]
    np.testing.assert_array_equal([[1, np.nan]], decoder.rows([{"a": 1}]))
    np.testing.assert_array_equal([[1, np.nan]], decoder.frame(pd.DataFrame({"a": [1.0]})))
    with pytest.raises(DataError, match="'a'"):
        decoder.frame(pd.DataFrame({"b": [1.0]}))


def test_numbers_beyond_float32_stay_finite() -> None:
    """A finite double that float32 cannot hold counts as the largest float32, in a table as in a row."""
    decoder = fit_decoder(pd.DataFrame({"a": [1e300, -1e300, 1.0]}), contract(a="number"))
    expected = np.array([[LARGEST], [-LARGEST], [1]], dtype=np.float32)
    np.testing.assert_array_equal(expected, decoder.frame(pd.DataFrame({"a": [1e300, -1e300, 1.0]})))
    np.testing.assert_array_equal(expected, decoder.rows([{"a": 1e300}, {"a": -1e300}, {"a": 1}]))
    with pytest.raises(DataError, match="finite"):
        decoder.frame(pd.DataFrame({"a": [1.0, math.inf]}))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"version": 2}', '{"version": 1, "label": "y", "ignored": [], "columns": [{}]}']
)
def test_a_broken_decoder_file_is_refused(text: str) -> None:
    """What is no decoder of this version is a configuration error, never a guess."""
    with pytest.raises(ConfigError):
        Decoder.from_json(text)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [("1_000", None), ("１２", None), ("0x10", None), ("1,5", None), ("+1.5e3", 1500.0), (".5", 0.5), ("5.", 5.0)]
    + [(word, math.nan) for word in ("nan", "NaN", "N/A", "?", "null", " ")],
)
def test_what_text_is_a_number(cell: str, expected: float | None) -> None:
    """Plain decimal numbers only; words for an empty cell are missing; the rest is refused."""
    if expected is None:
        with pytest.raises(ValueError, match="finite number"):
            parse.number(cell)
    else:
        np.testing.assert_equal(parse.number(cell), expected)


def test_labels_read_as_the_contract_says() -> None:
    """A label is one of the contract's classes in its own type, empty, or refused."""
    flag = Target(name="y", task="binary", classes=(False, True))
    code = Target(name="y", task="multiclass", classes=(1, 2, 3))
    word = Target(name="y", task="multiclass", classes=("None", "no", "yes"))
    amount = Target(name="y", task="regression")
    assert [True, False, None] == [parse.label(cell, flag) for cell in ("True", np.bool_(False), math.nan)]
    assert [2, 3, None] == [parse.label(cell, code) for cell in ("2.0", np.int64(3), "")]
    assert ["yes", "None", None] == [parse.label(cell, word) for cell in (" yes", "None", "NaN")]
    assert [2.5, None] == [parse.label(cell, amount) for cell in ("2.5", "nan")]
    for cell, target in (("4", code), ("1.5", code), ("maybe", word), ("inf", amount), ("x", amount)):
        with pytest.raises(ValueError, match="must be"):
            parse.label(cell, target)


def test_a_hostile_row_is_named_in_bounded_time_and_size() -> None:
    """Thousands of unknown columns or unseen long categories cost little and give bounded messages."""
    decoder = fit_decoder(pd.DataFrame({"c": [f"level {i}" for i in range(1000)]}), contract(c="category"))
    rows = [{"c": "level" * 1000, **{f"{'x' * 200}{i}": 1 for i in range(500)}} for _ in range(100)]
    began = time.perf_counter()
    findings = decoder.check(rows)
    assert time.perf_counter() - began < 2
    assert 100 * 11 == len(findings)
    assert max(len(finding.message) for finding in findings) < 200


def test_one_row_of_fifteen_columns_decodes_in_microseconds() -> None:
    """Decoding and checking one dict of 15 columns takes tens of microseconds, so that a service can do it per request."""
    kinds: dict[str, ColumnKind] = {**{f"n{i}": "number" for i in range(6)}, **{f"c{i}": "category" for i in range(9)}}
    frame = pd.DataFrame({name: [1.5, 2.5] if name[0] == "n" else ["a", "b"] for name in kinds})
    decoder = fit_decoder(frame, contract(**kinds))
    row = json_rows(frame, decoder)[:1]
    decode = min(timeit.repeat(lambda: decoder.rows(row), number=200, repeat=20)) / 200
    check = min(timeit.repeat(lambda: decoder.check(row), number=200, repeat=20)) / 200
    assert decode < 40e-6, f"{decode * 1e6:.1f} us"
    assert check < 40e-6, f"{check * 1e6:.1f} us"
